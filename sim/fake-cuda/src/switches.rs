//! `KVPIPE_FAKE_CUDA`, and what every call has in common.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{env, fmt};

use kvpipe_fake_common::{Calls, lock, number};

use crate::codes::{Code, Result, SUCCESS};

#[derive(Debug)]
pub(crate) struct Switches {
    pub(crate) devices: usize,
    pub(crate) version: c_int,
    pub(crate) init: Code,
    pub(crate) memory: usize,
    pub(crate) slow: Duration,
    pub(crate) poison: bool,
    pub(crate) waits: bool,
    calls: Calls,
}

impl Switches {
    fn parse(text: &str) -> Self {
        let mut switches = Self {
            devices: 1,
            version: 13000,
            init: SUCCESS,
            memory: 1 << 30,
            slow: Duration::ZERO,
            poison: true,
            waits: false,
            calls: Calls::default(),
        };
        for (name, value) in kvpipe_fake_common::switches(text) {
            match name {
                "devices" => switches.devices = number(name, value),
                "version" => switches.version = number(name, value),
                "init" => switches.init = number(name, value),
                "oom" => switches.memory = number(name, value),
                "slow" => switches.slow = Duration::from_micros(number(name, value)),
                "poison" => switches.poison = value != "off",
                "waits" => switches.waits = true,
                "fail" => switches.calls.add_failure(value),
                _ => panic!("KVPIPE_FAKE_CUDA: unknown switch {name}"),
            }
        }
        switches
    }
}

static SWITCHES: Mutex<Option<Arc<Switches>>> = Mutex::new(None);

static MISUSES: AtomicU64 = AtomicU64::new(0);

/// Replaces what `KVPIPE_FAKE_CUDA` says, and starts counting calls anew. What is alive stays.
///
/// # Panics
///
/// If a switch is unknown or its value makes no sense.
pub fn configure(text: &str) {
    let switches = Switches::parse(text);
    *lock(&SWITCHES) = Some(Arc::new(switches));
}

pub(crate) fn switches() -> Arc<Switches> {
    let mut switches = lock(&SWITCHES);
    let parse = || Arc::new(Switches::parse(&env::var("KVPIPE_FAKE_CUDA").unwrap_or_default()));
    Arc::clone(switches.get_or_insert_with(parse))
}

/// Runs a call, unless it has to fail.
pub(crate) fn call(symbol: &'static str, run: impl FnOnce() -> Result) -> Code {
    match switches().calls.count(symbol) {
        Some(code) => code.unsigned_abs(),
        None => run().err().unwrap_or(SUCCESS),
    }
}

/// Notes what a correct program does not do; the code is its answer.
pub(crate) fn misuse(code: Code, what: impl fmt::Display) -> Code {
    MISUSES.fetch_add(1, Ordering::Relaxed);
    eprintln!("fake CUDA: misuse: {what}");
    code
}

pub(crate) fn misuses() -> u64 {
    MISUSES.load(Ordering::Relaxed)
}

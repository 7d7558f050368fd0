//! `KVPIPE_FAKE_NCCL`.

use std::env;
use std::ffi::c_int;
use std::sync::{Arc, Mutex};

use kvpipe_fake_common::{Calls, lock, number};

use crate::codes::Code;

#[derive(Debug)]
pub(crate) struct Switches {
    pub(crate) version: c_int,
    pub(crate) in_progress: u32,
    /// After so many operations of a communicator, this code.
    pub(crate) async_error: Option<(u64, Code)>,
    pub(crate) async_errors: bool,
    pub(crate) silent: bool,
    pub(crate) abort_hangs: bool,
    pub(crate) init_blocks: bool,
    rank: Option<usize>,
    calls: Calls,
}

impl Switches {
    fn parse(text: &str) -> Self {
        let mut switches = Self {
            version: 22703,
            in_progress: 0,
            async_error: None,
            async_errors: false,
            silent: false,
            abort_hangs: false,
            init_blocks: false,
            rank: None,
            calls: Calls::default(),
        };
        for (name, value) in kvpipe_fake_common::switches(text) {
            match name {
                "version" => switches.version = number(name, value),
                "in_progress" => switches.in_progress = number(name, value),
                "async_error" => {
                    let (operations, code) = value.split_once(':').unwrap_or_default();
                    switches.async_error = Some((number(name, operations), number(name, code)));
                }
                "async_errors" => switches.async_errors = value == "on",
                "silent" => switches.silent = true,
                "abort_hangs" => switches.abort_hangs = true,
                "init_blocks" => switches.init_blocks = true,
                "rank" => switches.rank = Some(number(name, value)),
                "fail" => switches.calls.add_failure(value),
                _ => panic!("KVPIPE_FAKE_NCCL: unknown switch {name}"),
            }
        }
        switches
    }

    /// The code that this call of a rank has to fail with, if it has to.
    pub(crate) fn count(&self, symbol: &'static str, rank: Option<usize>) -> Option<Code> {
        let is_meant = self.rank.is_none() || rank.is_none() || self.rank == rank;
        if is_meant { self.calls.count(symbol) } else { None }
    }
}

static SWITCHES: Mutex<Option<Arc<Switches>>> = Mutex::new(None);

/// Replaces what `KVPIPE_FAKE_NCCL` says, and starts counting calls anew. Communicators keep what they
/// were made with, but for calls that fail.
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
    let parse = || Arc::new(Switches::parse(&env::var("KVPIPE_FAKE_NCCL").unwrap_or_default()));
    Arc::clone(switches.get_or_insert_with(parse))
}

/// The switches as they are for one rank.
pub(crate) fn switches_of(rank: usize) -> Arc<Switches> {
    let switches = switches();
    match switches.rank {
        Some(other) if other != rank => {
            Arc::new(Switches { version: switches.version, ..Switches::parse("") })
        }
        _ => switches,
    }
}

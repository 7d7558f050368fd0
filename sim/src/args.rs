//! The command line.

use std::collections::BTreeSet;
use std::time::Duration;

use kvpipe_sim::runner::Batch;
use kvpipe_sim::scenario::{Case, Scenario};

pub(crate) const USAGE: &str = "\
usage: kvpipe-sim --seeds N [--start S] [--scenario NAME] [--time-limit SECONDS] [--threads N]
       kvpipe-sim --seed N [--scenario NAME] [--faults none|I,J,...] [--items N] [--trace]

The first runs N seeds, of the standard mix or of one scenario, and stops at the first that breaks a
promise; what failed is made smaller, and printed with its last events. The second runs one world
again, with all its faults or some of them, and with --trace prints all that happens.

scenarios: calm, pair, no-resume, ring, partitions, crashes, store-outage, store-wire,
           store-wire-faults, clocks, leavers, vllm, chaos";

pub(crate) enum Command {
    Help,
    Batch(Batch),
    Replay { case: Case, trace: bool },
}

#[derive(Default)]
struct Flags {
    seeds: Option<u64>,
    start: Option<u64>,
    time_limit: Option<u64>,
    threads: Option<usize>,
    seed: Option<u64>,
    scenario: Option<Scenario>,
    faults: Option<BTreeSet<usize>>,
    items: Option<usize>,
    trace: bool,
}

pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut args = args;
    let mut flags = Flags::default();
    while let Some(flag) = args.next() {
        let mut value = || args.next().ok_or(format!("{flag} needs a value"));
        match flag.as_str() {
            "-h" | "--help" => return Ok(Command::Help),
            "--seeds" => flags.seeds = Some(number(&flag, &value()?)?),
            "--start" => flags.start = Some(number(&flag, &value()?)?),
            "--time-limit" => flags.time_limit = Some(number(&flag, &value()?)?),
            "--threads" => flags.threads = Some(number(&flag, &value()?)?),
            "--seed" => flags.seed = Some(number(&flag, &value()?)?),
            "--items" => flags.items = Some(number(&flag, &value()?)?),
            "--scenario" => flags.scenario = Some(scenario(&value()?)?),
            "--faults" => flags.faults = Some(faults(&value()?)?),
            "--trace" => flags.trace = true,
            other => return Err(format!("{other}: what is that?")),
        }
    }
    flags.command()
}

impl Flags {
    fn command(self) -> Result<Command, String> {
        let Self { seeds, start, time_limit, threads, seed, scenario, faults, items, trace } = self;
        match (seeds, seed) {
            (Some(seeds), None) if faults.is_none() && items.is_none() && !trace => {
                let start = start.unwrap_or(0);
                let end = start.checked_add(seeds).ok_or("there are not so many seeds")?;
                let time_limit = time_limit.map(Duration::from_secs);
                let threads = threads.unwrap_or_else(|| {
                    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
                });
                Ok(Command::Batch(Batch { seeds: start..end, scenario, time_limit, threads }))
            }
            (None, Some(seed)) if start.is_none() && time_limit.is_none() && threads.is_none() => {
                let scenario = scenario.unwrap_or_else(|| Scenario::of_seed(seed));
                Ok(Command::Replay { case: Case { scenario, seed, faults, items }, trace })
            }
            (None, None) => Err("which seeds?".into()),
            _ => Err("--seeds runs many, --seed one; each has options of its own".into()),
        }
    }
}

fn number<T: std::str::FromStr>(flag: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{flag} {value}: not a number"))
}

fn scenario(name: &str) -> Result<Scenario, String> {
    let found = Scenario::ALL.into_iter().find(|scenario| scenario.name() == name);
    found.ok_or_else(|| format!("--scenario {name}: there is none of that name"))
}

fn faults(list: &str) -> Result<BTreeSet<usize>, String> {
    match list {
        "none" => Ok(BTreeSet::new()),
        list => list.split(',').map(|item| number("--faults", item)).collect(),
    }
}

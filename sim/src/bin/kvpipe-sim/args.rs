//! The command line.

use std::collections::BTreeSet;
use std::time::Duration;

use kvpipe_sim::runner::Batch;
use kvpipe_sim::scenario::{Case, Scenario};

pub(crate) const USAGE: &str = "\
usage: kvpipe-sim --seeds N [options]    many worlds, until one breaks a promise
       kvpipe-sim --seed N [options]     one world again

with --seeds:
  --start S             the first seed (0)
  --scenario NAME       one family of worlds, instead of the standard mix
  --time-limit SECONDS  no new seed after this time
  --threads N           worlds at a time (as many as there are CPUs)
  --as-is               do not make smaller what fails

with --seed:
  --scenario NAME       the family (the one that the standard mix has for N)
  --faults I,J,...      only these of its faults; none for none
  --items N             at most so many items for each sender
  --trace               print all that happens

exit code: 0 if no promise was broken, 1 if one was, 2 if the command line makes
no sense or nothing can be printed, 130 if it was interrupted before the end.
Interrupted (^C), it prints what was found so far; interrupted twice, nothing.

scenarios:";

pub(crate) enum Command {
    Help,
    Batch { batch: Batch, as_is: bool },
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
    as_is: bool,
}

pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Command, String> {
    // `--seed=7` is `--seed 7`.
    let mut args = args.flat_map(|arg| match arg.split_once('=') {
        Some((flag, value)) if flag.starts_with("--") => vec![flag.to_owned(), value.to_owned()],
        _ => vec![arg],
    });
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
            "--as-is" => flags.as_is = true,
            other => return Err(format!("unknown option {other}")),
        }
    }
    flags.command()
}

impl Flags {
    fn command(self) -> Result<Command, String> {
        match (self.seeds, self.seed) {
            (Some(seeds), None) => self.batch(seeds),
            (None, Some(seed)) => self.replay(seed),
            (None, None) => Err("which seeds? say --seeds N or --seed N".into()),
            (Some(_), Some(_)) => Err("--seeds runs many, --seed one: not both".into()),
        }
    }

    fn batch(self, seeds: u64) -> Result<Command, String> {
        let Self { start, time_limit, threads, scenario, faults, items, trace, as_is, .. } = self;
        let foreign = [("--faults", faults.is_some()), ("--items", items.is_some()), ("--trace", trace)];
        refuse(&foreign, "--seed")?;
        if seeds == 0 || threads == Some(0) {
            return Err("--seeds and --threads are one at least".into());
        }
        let start = start.unwrap_or(0);
        let end = start.checked_add(seeds).ok_or("there are not so many seeds")?;
        let time_limit = time_limit.map(Duration::from_secs);
        let cpus = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = threads.unwrap_or_else(cpus);
        Ok(Command::Batch { batch: Batch { seeds: start..end, scenario, time_limit, threads }, as_is })
    }

    fn replay(self, seed: u64) -> Result<Command, String> {
        let Self { start, time_limit, threads, scenario, faults, items, trace, as_is, .. } = self;
        let foreign = [
            ("--start", start.is_some()),
            ("--time-limit", time_limit.is_some()),
            ("--threads", threads.is_some()),
            ("--as-is", as_is),
        ];
        refuse(&foreign, "--seeds")?;
        let whole = match scenario {
            Some(scenario) => Case::new(scenario, seed),
            None => Case::standard(seed),
        };
        let planned = whole.setup().faults.faults.len();
        if let Some(unknown) = faults.iter().flatten().find(|number| **number >= planned) {
            return Err(format!("--faults {unknown}: seed {seed} has {planned} faults, from 0 on"));
        }
        Ok(Command::Replay { case: Case { faults, items, ..whole }, trace })
    }
}

fn refuse(given: &[(&str, bool)], needs: &str) -> Result<(), String> {
    match given.iter().find(|(_, is_given)| *is_given) {
        Some((flag, _)) => Err(format!("{flag} needs {needs}")),
        None => Ok(()),
    }
}

fn number<T: std::str::FromStr>(flag: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{flag} {value}: not a number"))
}

fn scenario(name: &str) -> Result<Scenario, String> {
    let found = Scenario::ALL.into_iter().find(|scenario| scenario.name() == name);
    found.ok_or_else(|| {
        let names = Scenario::ALL.map(Scenario::name).join(", ");
        format!("--scenario {name}: there is none of that name, there are {names}")
    })
}

fn faults(list: &str) -> Result<BTreeSet<usize>, String> {
    match list {
        "none" => Ok(BTreeSet::new()),
        list => list.split(',').map(|item| number("--faults", item)).collect(),
    }
}

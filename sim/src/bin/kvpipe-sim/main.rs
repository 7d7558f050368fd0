//! The runner: many seeds, or one again.
//!
//! Of `--seed`, what goes to standard output is the same in every run, byte for byte. Of `--seeds` the
//! tables are, if all of the seeds were run. Progress goes to standard error.

mod args;
mod interrupt;

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvpipe_sim::fault::Kind;
use kvpipe_sim::runner::{Batch, Shrunk, Summary, attempt, shrink};
use kvpipe_sim::scenario::{Case, Scenario};

use crate::args::{Command, USAGE};

fn main() -> ExitCode {
    let mut printed = String::new();
    let exit_code = match args::parse(std::env::args().skip(1)) {
        Ok(Command::Help) => {
            let scenarios =
                Scenario::ALL.map(|family| format!("  {:<18} {}\n", family.name(), family.about()));
            printed = format!("{USAGE}\n{}", scenarios.concat());
            GOOD
        }
        Ok(Command::Replay { case, trace }) => replay(&case, trace, &mut printed),
        Ok(Command::Batch { batch, as_is }) => run(&batch, as_is, &mut printed),
        Err(wrong) => {
            eprintln!("{wrong} (see --help)");
            return ExitCode::from(2);
        }
    };
    match io::stdout().write_all(printed.as_bytes()).and_then(|()| io::stdout().flush()) {
        Ok(()) => {}
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => {
            eprintln!("can't print the result: {error}");
            return ExitCode::from(2);
        }
    }
    ExitCode::from(exit_code)
}

/// In so many seeds of the standard mix every kind of fault strikes.
const TELLING_SEEDS: u64 = 1000;

const GOOD: u8 = 0;
const BROKEN: u8 = 1;

/// As of a process that an interrupt has ended.
const INTERRUPTED: u8 = 130;

fn run(batch: &Batch, as_is: bool, printed: &mut String) -> u8 {
    let interrupted = interrupt::listen();
    let is_interrupted = || interrupted.load(Ordering::Relaxed);
    let mut progress = Progress::new(batch);
    let summary = batch.run(|summary| {
        progress.show(summary);
        if is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    progress.clear();
    let Summary { seeds, coverage, simulated, elapsed, failure } = &summary;
    line(printed, coverage);
    let (seconds, simulated) = (elapsed.as_secs_f64(), simulated.as_secs_f64());
    let planned = batch.seeds.end - batch.seeds.start;
    let all = if *seeds == planned { String::new() } else { format!(" of {planned}") };
    let speeds = format!("{:.0} seeds/s, {:.0} simulated s/s", *seeds as f64 / seconds, simulated / seconds);
    line(
        printed,
        format_args!("{seeds}{all} seeds, {simulated:.0} s simulated in {seconds:.1} s ({speeds})"),
    );
    if batch.scenario.is_none() && *seeds >= TELLING_SEEDS {
        let blind = coverage.never_struck();
        let names: Vec<_> = blind.into_iter().map(Kind::name).collect();
        if !names.is_empty() {
            line(printed, format_args!("of {seeds} seeds none was struck by: {}", names.join(", ")));
        }
    }
    let Some((case, violations)) = failure else {
        match (*seeds < planned, is_interrupted()) {
            (false, _) => {}
            (true, false) => line(printed, "the time limit was reached"),
            (true, true) => line(printed, "it was interrupted"),
        }
        line(printed, "no promise was broken");
        return if *seeds < planned && is_interrupted() { INTERRUPTED } else { GOOD };
    };
    line(printed, format_args!("\nafter {seeds} seeds FAILED: {case}"));
    violations.iter().for_each(|violation| line(printed, format_args!("  {violation}")));
    let case = match as_is {
        true => case.clone(),
        false => {
            eprintln!("it is being made smaller");
            let Shrunk { case, runs } = shrink(case, || !is_interrupted());
            line(printed, format_args!("\nmade smaller in {runs} runs, and now fails like this: {case}"));
            case
        }
    };
    show(&case, false, printed);
    line(printed, "\nrun it again, from the root of kvpipe:");
    line(printed, format_args!("cargo run --release --manifest-path sim/Cargo.toml -- {case} --trace"));
    BROKEN
}

fn replay(case: &Case, trace: bool, printed: &mut String) -> u8 {
    line(printed, case);
    let good = show(case, trace, printed);
    if !good && case.faults.is_none() && case.items.is_none() {
        let (scenario, seed) = (case.scenario.name(), case.seed);
        line(printed, format_args!("\nto make it smaller: --scenario {scenario} --seeds 1 --start {seed}"));
    }
    if good { GOOD } else { BROKEN }
}

/// Runs a case and prints what it is and what it came to. False if a promise was broken.
fn show(case: &Case, trace: bool, printed: &mut String) -> bool {
    line(printed, case.setup());
    let report = match attempt(case) {
        Ok(report) => report,
        Err(panic) => {
            line(printed, format_args!("FAILED: {panic}"));
            return false;
        }
    };
    let shown = match (trace, report.is_good()) {
        (true, _) => report.trace.len(),
        (false, true) => 0,
        (false, false) => LAST_EVENTS.min(report.trace.len()),
    };
    report.trace[report.trace.len() - shown..].iter().for_each(|event| line(printed, event));
    line(printed, report.summary());
    report.is_good()
}

/// Lines of the history that are shown of a failure.
const LAST_EVENTS: usize = 40;

fn line(printed: &mut String, text: impl std::fmt::Display) {
    // A String takes whatever there is.
    let _ = writeln!(printed, "{text}");
}

/// A line on the terminal that is written again and again; elsewhere a line now and then.
struct Progress {
    terminal: bool,
    planned: u64,
    time_limit: Option<Duration>,
    next: Duration,
}

impl Progress {
    fn new(batch: &Batch) -> Self {
        let terminal = io::stderr().is_terminal();
        let planned = batch.seeds.end - batch.seeds.start;
        Self { terminal, planned, time_limit: batch.time_limit, next: Duration::ZERO }
    }

    fn show(&mut self, summary: &Summary) {
        let Summary { seeds, elapsed, .. } = summary;
        if *elapsed < self.next || *seeds == 0 {
            return;
        }
        self.next = *elapsed + PERIODS[usize::from(self.terminal)];
        let speed = *seeds as f64 / elapsed.as_secs_f64();
        let by_speed = (self.planned - seeds) as f64 / speed;
        let limit =
            self.time_limit.map_or(f64::INFINITY, |limit| limit.saturating_sub(*elapsed).as_secs_f64());
        let left = by_speed.min(limit);
        let left = if left.is_finite() { format!(", {left:.0} s left") } else { String::new() };
        let line = format!("{seeds} of {} seeds, {speed:.0}/s{left}", self.planned);
        match self.terminal {
            true => eprint!("\r\x1b[K{line}"),
            false => eprintln!("{line}"),
        }
        // A terminal that is gone stops nothing.
        let _ = io::stderr().flush();
    }

    fn clear(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

/// Elsewhere, and on a terminal.
const PERIODS: [Duration; 2] = [Duration::from_secs(30), Duration::from_millis(200)];

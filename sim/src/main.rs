//! The runner: many seeds, or one again.
//!
//! The exit code is 1 if a promise was broken, and 2 if the command line makes no sense. What goes to
//! standard output is the same in every run of the same command line, but for the two speeds of a batch;
//! progress goes to standard error.

mod args;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use kvpipe_sim::runner::{Batch, Summary, attempt, shrink};
use kvpipe_sim::scenario::Case;

use crate::args::{Command, USAGE};

fn main() -> ExitCode {
    match args::parse(std::env::args().skip(1)) {
        Ok(Command::Help) => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        Ok(Command::Replay { case, trace }) => replay(&case, trace),
        Ok(Command::Batch(batch)) => run(&batch),
        Err(wrong) => {
            eprintln!("{wrong}\n\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn run(batch: &Batch) -> ExitCode {
    let mut progress = Progress::new();
    let summary = batch.run(|summary| progress.show(summary));
    progress.clear();
    let Summary { seeds, coverage, simulated, elapsed, failure } = &summary;
    println!("{coverage}");
    let (seconds, simulated) = (elapsed.as_secs_f64(), simulated.as_secs_f64());
    let speeds = format!("{:.0} seeds/s, {:.0} simulated s/s", *seeds as f64 / seconds, simulated / seconds);
    let Some((case, violations)) = failure else {
        println!(
            "{seeds} seeds, {simulated:.0} s simulated in {seconds:.1} s ({speeds}): no promise was broken"
        );
        return ExitCode::SUCCESS;
    };
    println!("after {seeds} seeds FAILED: {case}");
    violations.iter().for_each(|violation| println!("  {violation}"));
    let shrunk = shrink(case);
    println!("\nmade smaller in {} runs: {}", shrunk.runs, shrunk.case);
    show(&shrunk.case, false);
    println!("\nrun it again: cargo run --release --manifest-path sim/Cargo.toml -- {} --trace", shrunk.case);
    ExitCode::FAILURE
}

fn replay(case: &Case, trace: bool) -> ExitCode {
    println!("{case}");
    if show(case, trace) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a case and prints what it is and what it came to. False if a promise was broken.
fn show(case: &Case, trace: bool) -> bool {
    print!("{}", case.setup());
    let report = match attempt(case) {
        Ok(report) => report,
        Err(panic) => {
            println!("FAILED: {panic}");
            return false;
        }
    };
    if trace {
        report.trace.iter().for_each(|line| println!("{line}"));
    }
    if trace || !report.is_good() {
        print!("{report}");
    }
    for (kind, count) in &report.struck {
        println!("struck: {} {count}", kind.name());
    }
    let totals = report.totals;
    let (accepted, delivered, simulated) =
        (totals.accepted, totals.delivered, report.simulated.as_secs_f64());
    let verdict = if report.is_good() { "ok" } else { "FAILED" };
    println!("{verdict}: {delivered} of {accepted} items delivered, {simulated:.3} s simulated");
    report.is_good()
}

/// A line on the terminal that is written again and again; elsewhere a line now and then.
struct Progress {
    terminal: bool,
    next: Duration,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), next: Duration::ZERO }
    }

    fn show(&mut self, summary: &Summary) {
        if summary.elapsed < self.next {
            return;
        }
        self.next = summary.elapsed + Duration::from_millis(if self.terminal { 200 } else { 30_000 });
        let (seeds, seconds) = (summary.seeds, summary.elapsed.as_secs_f64());
        let (speed, failed) = (seeds as f64 / seconds, summary.coverage.failed);
        let line = format!(
            "{seeds} seeds in {seconds:.0} s, {speed:.0} seeds/s, {failed} streams failed as they may"
        );
        match self.terminal {
            true => eprint!("\r\x1b[K{line}"),
            false => eprintln!("{line}"),
        }
        // A terminal that is gone stops nothing.
        let _ = std::io::stderr().flush();
    }

    fn clear(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

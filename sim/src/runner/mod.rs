//! Runs many seeds, counts what they met, and makes what fails small.

mod coverage;
mod shrink;

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

pub use self::coverage::Coverage;
pub use self::shrink::{Shrunk, shrink};
use crate::panics::said;
use crate::scenario::{Case, Scenario};
use crate::world::Report;

/// Which seeds to run.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The seeds.
    pub seeds: Range<u64>,
    /// The family, or the one that each seed has in the standard mix.
    pub scenario: Option<Scenario>,
    /// No new seed is begun after this time.
    pub time_limit: Option<Duration>,
    /// How many at a time.
    pub threads: usize,
}

/// What became of a batch.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// How many seeds were run.
    pub seeds: u64,
    /// What they met.
    pub coverage: Coverage,
    /// In simulated time, all together.
    pub simulated: Duration,
    /// In real time.
    pub elapsed: Duration,
    /// The first seed that broke a promise, and how.
    pub failure: Option<(Case, Vec<String>)>,
}

/// How often somebody is told how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Batch {
    /// Runs until all seeds are through, one has failed, the time is over, or `progress`, which is called a
    /// few times a second, says so.
    pub fn run(&self, mut progress: impl FnMut(&Summary) -> ControlFlow<()>) -> Summary {
        let began = now();
        let (next, stop) = (AtomicU64::new(self.seeds.start), AtomicBool::new(false));
        let mut summary = Summary::default();
        let mut failures = BTreeMap::new();
        let (finished, outcomes) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                let (next, stop, finished) = (&next, &stop, finished.clone());
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= self.seeds.end {
                            return;
                        }
                        let case = self.case(seed);
                        let outcome = attempt(&case);
                        if finished.send((case, outcome)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(finished);
            loop {
                let outcome = outcomes.recv_timeout(LOOK_EVERY);
                summary.elapsed = began.elapsed();
                let over = self.time_limit.is_some_and(|limit| summary.elapsed >= limit);
                stop.fetch_or(over, Ordering::Relaxed);
                let (case, outcome) = match outcome {
                    Ok(outcome) => outcome,
                    Err(RecvTimeoutError::Timeout) => {
                        stop.fetch_or(progress(&summary).is_break(), Ordering::Relaxed);
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => break,
                };
                summary.seeds += 1;
                match outcome {
                    Ok(report) => {
                        summary.coverage.add(&case, &report);
                        summary.simulated += report.simulated;
                        if !report.is_good() {
                            failures.insert(case.seed, (case, report.violations));
                        }
                    }
                    Err(panic) => {
                        failures.insert(case.seed, (case, vec![panic]));
                    }
                }
                let over = !failures.is_empty() || progress(&summary).is_break();
                stop.fetch_or(over, Ordering::Relaxed);
            }
        });
        summary.failure = failures.into_values().next();
        summary
    }

    fn case(&self, seed: u64) -> Case {
        match self.scenario {
            Some(scenario) => Case::new(scenario, seed),
            None => Case::standard(seed),
        }
    }
}

/// Runs a case.
///
/// # Errors
/// What it says if it panics.
pub fn attempt(case: &Case) -> Result<Report, String> {
    let run = catch_unwind(AssertUnwindSafe(|| case.run()));
    run.map_err(|panic| format!("the run panicked: {}", said(panic.as_ref())))
}

/// Whether a case breaks a promise.
fn fails(case: &Case) -> bool {
    !attempt(case).is_ok_and(|report| report.is_good())
}

#[expect(clippy::disallowed_methods, reason = "how long people wait is no part of the simulation")]
fn now() -> Instant {
    Instant::now()
}

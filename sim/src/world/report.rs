//! What a run came to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use kvpipe::Result;

use super::{Life, World};
use crate::fault::{FaultPlan, Kind};
use crate::net::Network;
use crate::oracle::{Oracle, Totals};

/// What became of the software of a rank.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It came to its end.
    Ended(Result<()>),
    /// It was killed, and did not come back.
    Killed,
    /// It ran when the run was over, because something was wrong.
    Running,
}

/// What a run came to. `Display` has all that is needed to understand a failure, and to run it again.
#[derive(Clone, Debug)]
pub struct Report {
    /// The world's seed.
    pub seed: u64,
    /// What was to go wrong.
    pub faults: FaultPlan,
    /// What is wrong.
    pub violations: Vec<String>,
    /// What the streams came to.
    pub totals: Totals,
    /// Calls of operations of process groups that failed, and that did not.
    pub operations: [u64; 2],
    /// What became of the software of each rank, the last time it ran.
    pub results: Vec<Outcome>,
    /// How many faults of each kind really hit something.
    pub struck: BTreeMap<Kind, u64>,
    /// How often other things happened that a run might as well go without.
    pub happened: BTreeMap<String, u64>,
    /// Every event, by line.
    pub trace: Vec<String>,
    /// How long it took, in simulated time.
    pub simulated: Duration,
}

/// Lines of the history in a report.
const LAST_EVENTS: usize = 40;

impl Report {
    pub(super) fn new(
        world: &World,
        oracle: Oracle,
        lives: &BTreeMap<usize, Life>,
        happened: BTreeMap<String, u64>,
        struck: BTreeMap<Kind, u64>,
        network: &Network,
        simulated: Duration,
    ) -> Self {
        let totals = oracle.totals();
        let broken = oracle.judge().err().unwrap_or_default();
        Self {
            seed: world.seed,
            faults: world.faults.clone(),
            violations: broken.into_iter().map(|(who, what)| format!("{who}: {what}")).collect(),
            totals,
            operations: [0; 2],
            results: lives.values().map(Life::outcome).collect(),
            struck,
            happened,
            trace: network.trace().lines(),
            simulated,
        }
    }

    /// Whether no promise was broken. The software of a rank may have failed all the same: see
    /// [`all_succeeded`](Self::all_succeeded).
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.violations.is_empty()
    }

    /// Whether the software of every rank came to its end without an error.
    #[must_use]
    pub fn all_succeeded(&self) -> bool {
        self.results.iter().all(|result| matches!(result, Outcome::Ended(Ok(()))))
    }
}

impl Report {
    /// What it came to, without the history.
    #[must_use]
    pub fn summary(&self) -> Summary<'_> {
        Summary(self)
    }
}

/// What a run came to, in a few lines.
#[derive(Debug)]
pub struct Summary<'a>(&'a Report);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { results, struck, totals, operations, simulated, violations, .. } = self.0;
        for (rank, result) in results.iter().enumerate() {
            match result {
                Outcome::Ended(Ok(())) => {}
                Outcome::Ended(Err(error)) => writeln!(f, "rank {rank} gave up: {error}")?,
                Outcome::Killed => writeln!(f, "rank {rank} was killed")?,
                Outcome::Running => writeln!(f, "rank {rank} was still running")?,
            }
        }
        let struck: Vec<_> = struck.iter().map(|(kind, count)| format!("{} {count}", kind.name())).collect();
        writeln!(
            f,
            "faults that struck: {}",
            if struck.is_empty() { "none".into() } else { struck.join(", ") }
        )?;
        violations.iter().try_for_each(|violation| writeln!(f, "FAILED: {violation}"))?;
        let verdict = if violations.is_empty() { "ok" } else { "FAILED" };
        let (accepted, delivered, seconds) = (totals.accepted, totals.delivered, simulated.as_secs_f64());
        match operations {
            [0, 0] => write!(f, "{verdict}: {delivered} of {accepted} items delivered")?,
            [failed, done] => write!(f, "{verdict}: {done} calls of operations succeeded, {failed} failed")?,
        }
        write!(f, ", {seconds:.3} s simulated")
    }
}

/// What a run was and came to, with the end of its history.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, faults, trace, .. } = self;
        writeln!(f, "seed {seed}, {} ranks\n{faults}", self.results.len())?;
        let first = trace.len().saturating_sub(LAST_EVENTS);
        trace[first..].iter().try_for_each(|line| writeln!(f, "{line}"))?;
        write!(f, "{}", self.summary())
    }
}

impl Life {
    fn outcome(&self) -> Outcome {
        match (&self.result, self.running) {
            (Some(result), _) => Outcome::Ended(result.clone()),
            (None, true) => Outcome::Running,
            (None, false) => Outcome::Killed,
        }
    }
}

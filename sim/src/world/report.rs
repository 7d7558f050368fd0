//! What a run came to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use kvpipe::{Error, Result};

use super::Life;
use crate::fault::Kind;
use crate::net::Network;
use crate::oracle::{Oracle, Totals};

/// Which errors have a cause. By default everything that can happen in a world may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectations {
    /// Edges may end: a peer dies, or is silent for too long, or the store is out of reach.
    pub severed: bool,
    /// A rank or a pipe may be opened again in the place of one that has ended.
    pub restarted: bool,
    /// A user may leave early: abort, drop, or close while items come.
    pub left: bool,
}

impl Default for Expectations {
    fn default() -> Self {
        Self { severed: true, restarted: true, left: true }
    }
}

impl Expectations {
    /// Nothing may fail.
    pub const SUCCESS: Self = Self { severed: false, restarted: false, left: false };

    /// Whether an end may see this error.
    #[must_use]
    pub fn allow(&self, error: &Error) -> bool {
        let Self { severed, restarted, left } = *self;
        match error {
            Error::Closed => true,
            Error::PeerRestarted { .. } => restarted,
            Error::Misuse(_) => left,
            Error::PeerGone { .. } | Error::Timeout { .. } | Error::Io { .. } => severed || restarted || left,
            Error::PeerAborted { .. } | Error::ReceiverClosed { .. } => left || severed || restarted,
            // A peer that breaks the protocol, a setting that differs, a bug: never.
            _ => false,
        }
    }
}

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

/// What a run came to. `Display` has the violations and the end of the history.
#[derive(Clone, Debug)]
pub struct Report {
    /// What is wrong.
    pub violations: Vec<String>,
    /// What the streams came to.
    pub totals: Totals,
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
            violations: broken.into_iter().map(|(who, what)| format!("{who}: {what}")).collect(),
            totals,
            results: lives.values().map(Life::outcome).collect(),
            struck,
            happened,
            trace: network.trace().lines(),
            simulated,
        }
    }

    /// Whether no promise was broken.
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

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.trace.len().saturating_sub(LAST_EVENTS);
        self.trace[first..].iter().try_for_each(|line| writeln!(f, "{line}"))?;
        for (rank, result) in self.results.iter().enumerate() {
            match result {
                Outcome::Ended(Ok(())) => {}
                Outcome::Ended(Err(error)) => writeln!(f, "rank {rank} gave up: {error}")?,
                Outcome::Killed => writeln!(f, "rank {rank} was killed")?,
                Outcome::Running => writeln!(f, "rank {rank} was still running")?,
            }
        }
        self.violations.iter().try_for_each(|violation| writeln!(f, "FAILED: {violation}"))
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

//! What a run came to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use kvpipe::{Error, Result};

use super::{Life, World};
use crate::fault::{FaultPlan, Kind};
use crate::net::Network;
use crate::oracle::{Oracle, Totals};

/// Which errors have a cause. By default every error that some fault can cause; a peer that breaks the
/// protocol, ends that are set up differently, and bugs have none in any world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectations {
    /// Edges may end, or not come to be: a peer dies, or is silent for too long, or the store is out of reach.
    pub severed: bool,
    /// Also edges whose items have got through: those over tcp do not need the store any more.
    pub met_severed: bool,
    /// A rank or a pipe may be opened again in the place of one that has ended.
    pub restarted: bool,
    /// A user may leave early: abort, drop, or close while items come.
    pub left: bool,
    /// Deadlines may pass, because a clock jumps.
    pub late: bool,
    /// When the first fault strikes. Before that only users who leave can be the cause of anything.
    pub not_before: Duration,
}

impl Default for Expectations {
    fn default() -> Self {
        let not_before = Duration::ZERO;
        Self { severed: true, met_severed: true, restarted: true, left: true, late: true, not_before }
    }
}

impl Expectations {
    /// Nothing may fail.
    pub const SUCCESS: Self = Self {
        severed: false,
        met_severed: false,
        restarted: false,
        left: false,
        late: false,
        not_before: Duration::ZERO,
    };

    /// Whether nothing may fail.
    #[must_use]
    pub fn is_success(&self) -> bool {
        let Self { severed, met_severed, restarted, left, late, not_before: _ } = *self;
        !(severed || met_severed || restarted || left || late)
    }

    /// Whether an end may see this error at this time; `met` if items have got through.
    #[must_use]
    pub fn allow(&self, error: &Error, met: bool, now: Duration) -> bool {
        let Self { left, .. } = *self;
        let [severed, restarted, late] =
            [if met { self.met_severed } else { self.severed }, self.restarted, self.late]
                .map(|may_be| may_be && now >= self.not_before);
        match error {
            Error::Closed => true,
            Error::PeerRestarted { .. } => restarted,
            Error::Misuse(_) => left,
            Error::Timeout { .. } => severed || restarted || late,
            Error::PeerGone { .. } | Error::Io { .. } => severed || restarted,
            Error::PeerAborted { .. } | Error::ReceiverClosed { .. } => left || severed || restarted || late,
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
        let Report { results, struck, totals, simulated, violations, .. } = self.0;
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
        write!(f, "{verdict}: {delivered} of {accepted} items delivered, {seconds:.3} s simulated")
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

impl fmt::Display for Expectations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { severed, met_severed, restarted, left, late, .. } = self;
        let unmet = *severed && !met_severed;
        let causes = [
            (unmet, "edges that never come to be"),
            (*met_severed, "edges that end"),
            (*restarted, "ranks or pipes that begin anew"),
            (*left, "users who leave"),
            (*late, "clocks that jump"),
        ];
        let causes: Vec<_> = causes.iter().filter(|(may_be, _)| *may_be).map(|(_, cause)| *cause).collect();
        match causes.is_empty() {
            true => f.write_str("nothing may fail"),
            false => write!(f, "errors may come of {}", causes.join(", or ")),
        }
    }
}

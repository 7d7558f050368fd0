//! What seeds met: a simulation in which nothing happens proves nothing.

use std::collections::BTreeMap;
use std::fmt;

use crate::fault::Kind;
use crate::scenario::Case;
use crate::world::Report;

/// How often things happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Faults by kind: planned, and really hitting something.
    pub faults: BTreeMap<Kind, [u64; 2]>,
    /// Runs of each scenario.
    pub scenarios: BTreeMap<&'static str, u64>,
    /// Errors that ends saw, ways to leave, and the like.
    pub happened: BTreeMap<String, u64>,
    /// Runs in which faults were planned, and none struck.
    pub unscathed: u64,
    /// Runs in which no item was ever accepted, and no operation of a process group called.
    pub empty: u64,
    /// Pipes that were opened at a sending end.
    pub streams: u64,
    /// Senders that were told of a failure.
    pub failed: u64,
    /// Items accepted and delivered.
    pub items: [u64; 2],
    /// Calls of operations of process groups that failed, and that did not.
    pub operations: [u64; 2],
}

impl Coverage {
    /// Counts a run.
    pub fn add(&mut self, case: &Case, report: &Report) {
        for planned in &case.setup().faults.faults {
            self.faults.entry(planned.fault.kind()).or_default()[0] += 1;
        }
        self.unscathed += u64::from(report.struck.is_empty() && !report.faults.faults.is_empty());
        self.empty += u64::from(report.totals.accepted == 0 && report.operations == [0, 0]);
        for (kind, count) in &report.struck {
            self.faults.entry(*kind).or_default()[1] += count;
        }
        for (what, count) in &report.happened {
            *self.happened.entry(what.clone()).or_default() += count;
        }
        *self.scenarios.entry(case.scenario.name()).or_default() += 1;
        self.streams += report.totals.streams as u64;
        self.failed += report.totals.failed as u64;
        self.items[0] += report.totals.accepted as u64;
        self.items[1] += report.totals.delivered as u64;
        for (count, more) in self.operations.iter_mut().zip(report.operations) {
            *count += more;
        }
    }

    /// Kinds of faults that never hit anything.
    #[must_use]
    pub fn never_struck(&self) -> Vec<Kind> {
        Kind::ALL
            .into_iter()
            .filter(|kind| self.faults.get(kind).is_none_or(|[_, struck]| *struck == 0))
            .collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [accepted, delivered] = self.items;
        let Self { streams, failed, unscathed, empty, operations: [broken, done], .. } = self;
        writeln!(
            f,
            "{streams} streams, {failed} ended by a failure; {accepted} items accepted, {delivered} delivered"
        )?;
        writeln!(f, "{done} calls of operations succeeded, {broken} failed")?;
        writeln!(f, "in {unscathed} runs no fault came before the end, in {empty} nothing was done")?;
        writeln!(f, "{:<28} {:>10} {:>10}", "fault", "planned", "struck")?;
        for (kind, [planned, struck]) in &self.faults {
            writeln!(f, "  {:<26} {planned:>10} {struck:>10}", kind.name())?;
        }
        writeln!(f, "{:<28} {:>10}", "scenario", "runs")?;
        for (name, runs) in &self.scenarios {
            writeln!(f, "  {name:<26} {runs:>10}")?;
        }
        writeln!(f, "{:<28} {:>10}", "seen and done by ends", "times")?;
        for (what, times) in &self.happened {
            writeln!(f, "  {what:<26} {times:>10}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_that_was_planned_and_one_that_was_not_never_struck_unless_one_did() {
        let mut coverage = Coverage::default();
        assert_eq!(coverage.never_struck(), Kind::ALL);
        coverage.faults = Kind::ALL.map(|kind| (kind, [3, 1])).into();
        assert!(coverage.never_struck().is_empty());
        coverage.faults.insert(Kind::Hold, [3, 0]);
        coverage.faults.remove(&Kind::Kill);
        assert_eq!(coverage.never_struck(), [Kind::Hold, Kind::Kill]);
    }
}

//! Makes a failing case small: fewer faults, fewer items.

use std::collections::BTreeSet;

use super::fails;
use crate::panics::hushed;
use crate::scenario::Case;

/// A failing case that was made smaller.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// It fails too, though perhaps in another way.
    pub case: Case,
    /// How many runs it took.
    pub runs: usize,
}

/// More runs are not worth the wait.
const RUNS_MAX: usize = 200;

/// The smallest failing case that is found by leaving out one fault after the other, and then items, as long
/// as `goes_on` says so.
#[must_use]
pub fn shrink(case: &Case, goes_on: impl Fn() -> bool) -> Shrunk {
    let mut search = Search { best: case.clone(), runs: 0, goes_on };
    let setup = case.setup();
    let mut faults: BTreeSet<usize> =
        case.faults.clone().unwrap_or_else(|| (0..setup.faults.faults.len()).collect());
    if search.accepts(Case { faults: Some(BTreeSet::new()), ..search.best.clone() }) {
        faults.clear();
    }
    let mut shrinks = true;
    while shrinks {
        shrinks = false;
        for fault in faults.clone() {
            let mut fewer = faults.clone();
            fewer.remove(&fault);
            if search.accepts(Case { faults: Some(fewer.clone()), ..search.best.clone() }) {
                (faults, shrinks) = (fewer, true);
            }
        }
    }
    let mut items = setup.software.items();
    for fewer in (0..).map(|power| 1 << power).take_while(|fewer| *fewer < setup.software.items()) {
        if search.accepts(Case { items: Some(fewer), ..search.best.clone() }) {
            items = fewer;
            break;
        }
    }
    // Between the power of two that fails and the one below, which does not.
    for fewer in items / 2 + 1..items {
        if search.accepts(Case { items: Some(fewer), ..search.best.clone() }) {
            break;
        }
    }
    Shrunk { case: search.best, runs: search.runs }
}

struct Search<G> {
    best: Case,
    runs: usize,
    goes_on: G,
}

impl<G: Fn() -> bool> Search<G> {
    fn accepts(&mut self, case: Case) -> bool {
        if self.runs >= RUNS_MAX || !(self.goes_on)() {
            return false;
        }
        self.runs += 1;
        // Each run that panics would say so.
        let fails = hushed(|| fails(&case));
        if fails {
            self.best = case;
        }
        fails
    }
}

//! What happened in a simulation, line by line: two runs of one seed must not differ in a byte.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::draws::mix;

/// The history of one simulation. Clones write to the same one.
///
/// A line has the simulated time in microseconds, the number of the event, the host and the event.
/// What happens too often for a line, such as each read and write, goes into a digest that every
/// line ends with: the first line in which two runs differ is not far from where they parted.
#[derive(Clone, Debug, Default)]
pub struct Trace(Arc<Mutex<History>>);

#[derive(Debug, Default)]
struct History {
    lines: Vec<String>,
    now: Duration,
    /// The simulation is between two steps.
    is_between: bool,
    /// When this step ends. A host whose clock has jumped seems to be later for the rest of it.
    step_ends: Option<Duration>,
    digest: u64,
}

impl Trace {
    /// An event on `host`.
    pub fn note(&self, host: &str, event: impl Display) {
        let mut history = self.lock();
        history.look_at_the_clock();
        let History { lines, now, digest, .. } = &mut *history;
        let now_us = now.as_micros();
        let number = lines.len();
        // Eight digits tell two runs apart as well as sixteen.
        let digest = *digest >> 32;
        lines.push(format!("{now_us:>10} {number:>5} {digest:08x} {host:<8} {event}"));
    }

    /// An event too small for a line.
    pub(crate) fn count(&self, what: u64, amount: usize) {
        let mut history = self.lock();
        history.look_at_the_clock();
        #[expect(clippy::cast_possible_truncation, reason = "half a million years of simulated time")]
        let now = history.now.as_micros() as u64;
        history.digest = [now, what, amount as u64].into_iter().fold(history.digest, mix);
    }

    /// The simulated time.
    pub(crate) fn now(&self) -> Duration {
        let mut history = self.lock();
        history.look_at_the_clock();
        history.now
    }

    /// The hosts run, until this time.
    pub(crate) fn enter_step(&self, until: Duration) {
        let mut history = self.lock();
        history.is_between = false;
        history.step_ends = Some(until);
    }

    /// No host runs, and the time is this.
    pub(crate) fn leave_step(&self, now: Duration) {
        let mut history = self.lock();
        history.is_between = true;
        history.now = now;
    }

    /// Whoever is dropped now did not come to its end.
    pub(crate) fn is_killed(&self) -> bool {
        self.lock().is_between || Handle::try_current().is_err()
    }

    /// The lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, History> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl History {
    /// Outside of every host, between two steps of the simulation, the time is that of the last event
    /// or the one that was set. A host that is being crashed is outside too: it has no clock any more
    /// but the real one.
    fn look_at_the_clock(&mut self) {
        if self.is_between || Handle::try_current().is_err() {
            return;
        }
        if let Some(elapsed) = turmoil::sim_elapsed() {
            self.now = self.step_ends.map_or(elapsed, |end| elapsed.min(end));
        }
    }
}

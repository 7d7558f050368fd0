//! What connections are like, and what became of the faults.

use std::ops::{Add, AddAssign};
use std::time::Duration;

use crate::draws::Draws;

/// What connections are like.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// Bytes that one direction of a connection holds: written, and not yet read by the other end.
    pub window_bytes: usize,
    /// The most bytes that one read or write moves.
    pub part_bytes_max: usize,
    /// The least and the most time that a segment takes.
    pub latency: [Duration; 2],
    /// Most segments keep within `latency`, but there is a long tail, up to ten times the most.
    pub latency_tail: bool,
}

impl Conditions {
    /// Conditions drawn from a seed.
    #[must_use]
    pub fn drawn(draws: &Draws) -> Self {
        let least = draws.between(0..=2);
        let latency = [least, least + draws.between(1..=8)].map(Duration::from_millis);
        let window_bytes = 1 << draws.between(12..=18);
        let part_bytes_max = draws.bytes(1024..=65_536);
        Self { window_bytes, part_bytes_max, latency, latency_tail: draws.one_in(4) }
    }

    /// How long so many bytes take, of whom nobody is in a hurry: in as many round trips as there are
    /// windows, each of them slow.
    #[must_use]
    pub fn time_for(&self, bytes: usize) -> Duration {
        let round_trips = u32::try_from(bytes.div_ceil(self.window_bytes)).unwrap_or(u32::MAX);
        let [_, most] = self.latency;
        let slow = if self.latency_tail { most * 2 } else { most };
        slow * 2 * (round_trips + 1)
    }

    /// How long the next segment takes.
    pub(super) fn draw_latency(&self, draws: &Draws) -> Duration {
        let [least, most] = self.latency;
        if !self.latency_tail {
            return uniform([least, most], draws);
        }
        // Steps of half the range, each half as likely as the one before: an exponential distribution
        // without a logarithm, which need not be the same on every machine.
        let step = most.saturating_sub(least) / 2;
        let steps = draws.between(0..=u64::MAX).trailing_zeros();
        let latency = least + step * steps + uniform([Duration::ZERO, step], draws);
        latency.min(most * TAIL)
    }
}

/// How many times the usual most a segment of the tail takes at most.
const TAIL: u32 = 10;

/// A time of the range, in microseconds.
pub(super) fn uniform(range: [Duration; 2], draws: &Draws) -> Duration {
    // Centuries fit.
    let [least, most] = range.map(|bound| u64::try_from(bound.as_micros()).unwrap_or(u64::MAX));
    Duration::from_micros(draws.between(least..=most.max(least)))
}

/// How often faults really struck something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Struck {
    /// Connections that a cut reset.
    pub cut: usize,
    /// Segments that a block, or the peer's power loss, swallowed; they were sent again, resets aside.
    pub lost: usize,
    /// Segments that a hold kept.
    pub held: usize,
    /// Requests to connect that a block, or the listener's power loss, swallowed.
    pub connects_lost: usize,
    /// Segments that a changed latency made later than the conditions could have.
    pub slowed: usize,
    /// Connections that a power loss silenced, as their other end sees it.
    pub silenced: usize,
    /// Resets with which a host that is back answered segments of connections from before.
    pub forgotten: usize,
}

impl Add for Struck {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            cut: self.cut + other.cut,
            lost: self.lost + other.lost,
            held: self.held + other.held,
            connects_lost: self.connects_lost + other.connects_lost,
            slowed: self.slowed + other.slowed,
            silenced: self.silenced + other.silenced,
            forgotten: self.forgotten + other.forgotten,
        }
    }
}

impl AddAssign for Struck {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

//! What is measured, and how many figures become one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One thing found out.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Measurement {
    Size(SizeMeasurement),
    /// Items without payload.
    Nones {
        items: u64,
        speed: Speed,
        limit: Option<Speed>,
    },
    /// A small tensor there and back.
    RoundTrip {
        bytes: usize,
        pipe_us: f64,
        limit_us: f64,
    },
}

/// Items of one size. Durations and speeds are medians of the rounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SizeMeasurement {
    pub(super) size: usize,
    /// Of each round.
    pub(super) items: u64,
    pub(super) pipe: Speed,
    /// The best of `limits`.
    pub(super) limit: Speed,
    pub(super) limits: Vec<Limit>,
    pub(super) with_checksum: Option<Speed>,
    pub(super) latency: Latency,
    pub(super) limit_latency: Latency,
}

/// One way to have no pipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Limit {
    pub(super) by: LimitWay,
    pub(super) speed: Speed,
}

/// How items are moved without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LimitWay {
    /// The most that one read of a socket takes; None takes what is missing of the item, as a channel does.
    ReadCap(Option<usize>),
    /// How many items a group of NCCL has.
    GroupItems(usize),
}

/// Items in a second.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
pub(super) struct Speed(pub(super) f64);

/// Of single items, in microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Latency {
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
}

impl Speed {
    /// The median of rounds that moved `items` each.
    pub(super) fn of_rounds(items: u64, rounds: Vec<Duration>) -> Self {
        Self(items as f64 / median(rounds).as_secs_f64().max(f64::MIN_POSITIVE))
    }

    /// GB (10^9 bytes) in a second, of items of `size` bytes.
    pub(super) fn gigabytes(self, size: usize) -> f64 {
        self.0 * size as f64 / 1e9
    }
}

impl Latency {
    pub(super) fn of(mut durations: Vec<Duration>) -> Self {
        durations.sort_unstable();
        let microseconds = |percent| percentile(&durations, percent).as_secs_f64() * 1e6;
        Self { p50_us: microseconds(50), p99_us: microseconds(99) }
    }
}

/// The middle one; of an even number the slower of the two.
pub(super) fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort_unstable();
    durations.get(durations.len() / 2).copied().unwrap_or_default()
}

/// The nearest-rank percentile of sorted values: the smallest that `percent` of them don't exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(values: &[u64]) -> Vec<Duration> {
        values.iter().copied().map(Duration::from_millis).collect()
    }

    #[test]
    fn the_median_is_a_round_that_took_place() {
        assert_eq!(median(milliseconds(&[9, 1, 5])), Duration::from_millis(5));
        assert_eq!(median(milliseconds(&[1, 9])), Duration::from_millis(9));
        assert_eq!(median(Vec::new()), Duration::ZERO);
    }

    #[test]
    fn speed_is_of_the_median_round() {
        let speed = Speed::of_rounds(1000, milliseconds(&[500, 1, 9000]));
        assert_eq!((speed.0, speed.gigabytes(1_000_000)), (2000.0, 2.0));
    }

    #[test]
    fn latencies_are_values_that_occurred_in_microseconds() {
        let latency = Latency::of(milliseconds(&(1..=100).rev().collect::<Vec<u64>>()));
        assert_eq!((latency.p50_us.round(), latency.p99_us.round()), (50_000.0, 99_000.0));
    }
}

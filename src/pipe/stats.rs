//! What a metrics exporter can read from a pipe.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::queue::QueueStats;

/// A look at a pipe. Totals never decrease; the rest are gauges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// The sending direction, if the pipe has one.
    pub send: Option<SendStats>,
    /// The receiving direction, if the pipe has one.
    pub receive: Option<ReceiveStats>,
}

/// A look at a sending direction. Bytes are payload bytes; a `None` has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SendStats {
    /// Items acknowledged by the peer (total).
    pub delivered_items: u64,
    /// Their bytes (total).
    pub delivered_bytes: u64,
    /// Items handed to the wire and not acknowledged.
    pub in_flight_items: usize,
    /// Their bytes.
    pub in_flight_bytes: usize,
    /// Items accepted and not yet handed to the wire.
    pub queued_items: usize,
    /// Their bytes.
    pub queued_bytes: usize,
    /// Bytes counted against the budget: reserved, queued and in flight.
    pub held_bytes: usize,
    /// The most that `held_bytes` ever was.
    pub held_bytes_max: usize,
    /// Time that senders spent waiting for room, added up over all of them (total).
    pub blocked: Duration,
}

/// A look at a receiving direction. Bytes are payload bytes; a `None` has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReceiveStats {
    /// Items taken by the user (total).
    pub taken_items: u64,
    /// Their bytes (total).
    pub taken_bytes: u64,
    /// Items in the inbox.
    pub queued_items: usize,
    /// Their bytes.
    pub queued_bytes: usize,
    /// Bytes counted against the window: in the inbox, or arriving.
    pub held_bytes: usize,
    /// The most that `held_bytes` ever was.
    pub held_bytes_max: usize,
    /// Time that receivers spent waiting for an item, added up over all of them (total).
    pub blocked: Duration,
}

impl SendStats {
    pub(super) fn new(queue: &QueueStats, blocked: Duration) -> Self {
        Self {
            delivered_items: queue.settled_items,
            delivered_bytes: queue.settled_bytes,
            in_flight_items: queue.in_flight_items,
            in_flight_bytes: queue.in_flight_bytes,
            queued_items: queue.queued_items,
            queued_bytes: queue.queued_bytes,
            held_bytes: queue.held_bytes,
            held_bytes_max: queue.held_bytes_max,
            blocked,
        }
    }
}

impl ReceiveStats {
    pub(super) fn new(queue: &QueueStats, blocked: Duration) -> Self {
        Self {
            taken_items: queue.settled_items,
            taken_bytes: queue.settled_bytes,
            queued_items: queue.queued_items,
            queued_bytes: queue.queued_bytes,
            held_bytes: queue.held_bytes,
            held_bytes_max: queue.held_bytes_max,
            blocked,
        }
    }
}

/// Adds up the time that waits took. The clock is read only by those who wait.
#[derive(Debug, Default)]
pub(super) struct BlockedTime {
    total_ns: AtomicU64,
}

impl BlockedTime {
    /// Counts until the guard is dropped, also by cancellation.
    pub(super) fn start(&self) -> impl Drop + '_ {
        Blocked {
            time: self,
            #[cfg(not(loom))]
            since: tokio::time::Instant::now(),
        }
    }

    pub(super) fn total(&self) -> Duration {
        Duration::from_nanos(self.total_ns.load(Ordering::Relaxed))
    }
}

struct Blocked<'a> {
    time: &'a BlockedTime,
    #[cfg(not(loom))]
    since: tokio::time::Instant,
}

impl Drop for Blocked<'_> {
    fn drop(&mut self) {
        // Loom has no time.
        #[cfg(loom)]
        let elapsed = Duration::ZERO;
        #[cfg(not(loom))]
        let elapsed = self.since.elapsed();
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.time.total_ns.fetch_add(nanos, Ordering::Relaxed);
    }
}

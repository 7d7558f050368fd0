//! Idle memory that is kept for later, in host memory or on a device: pure book-keeping.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Buffers below this length are not kept: the allocator recycles them as fast, and zeroing them costs
/// no page fault.
const POOLED_BYTES_MIN: usize = 4096;

/// The most idle buffers of one pool, whatever their sizes, so that its book-keeping is bounded too.
const IDLE_BUFFERS_MAX: usize = 1024;

/// Capacities in every doubling: rounding up wastes less than an eighth, and lengths that differ a
/// little, such as those of requests of similar length, share their buffers.
const CLASSES_PER_DOUBLING: usize = 8;

/// Capacities are multiples of it: the alignment that is promised for host memory.
const CLASS_BYTES_MIN: usize = 64;

/// The counts of a pool of buffers at one moment. Bytes are capacities: what is allocated, which is a
/// little more than what was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Bytes of the buffers that wait to be taken; never above the pool's bound.
    pub idle_bytes: usize,
    /// How many buffers wait to be taken.
    pub idle_buffers: usize,
    /// Bytes of the buffers that are in use, taken or frozen.
    pub live_bytes: usize,
    /// How many buffers are in use.
    pub live_buffers: usize,
    /// Buffers that were taken from the stock since the pool began.
    pub hits: u64,
    /// Buffers that had to be allocated since the pool began, small ones included.
    pub misses: u64,
}

/// What can be kept.
pub(crate) trait Memory {
    /// How many bytes were allocated for it.
    fn capacity(&self) -> usize;
}

/// When a buffer became idle, in give-backs since the pool began.
type Stamp = u64;

/// The idle memory of a pool.
pub(crate) struct Stock<M> {
    /// By capacity, and among equals the youngest first: its pages are most likely in a cache.
    idle: BTreeMap<(usize, Reverse<Stamp>), M>,
    /// The capacities in `idle`, longest idle first.
    ages: BTreeMap<Stamp, usize>,
    next_stamp: Stamp,
    stats: PoolStats,
}

impl<M> Default for Stock<M> {
    fn default() -> Self {
        Self { idle: BTreeMap::new(), ages: BTreeMap::new(), next_stamp: 0, stats: PoolStats::default() }
    }
}

impl<M: Memory> Stock<M> {
    pub(crate) fn stats(&self) -> PoolStats {
        self.stats
    }

    pub(crate) fn reuse(&mut self, len: usize) -> Option<M> {
        if len < POOLED_BYTES_MIN {
            return None;
        }
        let largest = len.saturating_add(len / 2);
        let (&key, _) = self.idle.range((len, Reverse(Stamp::MAX))..).next()?;
        if key.0 > largest {
            return None;
        }
        let memory = self.remove(key)?;
        self.stats.hits += 1;
        self.count_live(&memory);
        Some(memory)
    }

    pub(crate) fn adopt(&mut self, memory: &M) {
        self.stats.misses += 1;
        self.count_live(memory);
    }

    fn count_live(&mut self, memory: &M) {
        self.stats.live_buffers += 1;
        self.stats.live_bytes += memory.capacity();
    }

    /// Takes a live buffer back, and returns what is to be freed for it.
    pub(crate) fn give_back(&mut self, memory: M, idle_bytes_max: usize) -> Vec<M> {
        let capacity = memory.capacity();
        self.stats.live_buffers -= 1;
        self.stats.live_bytes -= capacity;
        if capacity < POOLED_BYTES_MIN || capacity > idle_bytes_max {
            return vec![memory];
        }
        let mut freed = self.shrink_to(idle_bytes_max - capacity);
        if self.stats.idle_buffers >= IDLE_BUFFERS_MAX {
            freed.extend(self.oldest().and_then(|key| self.remove(key)));
        }
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        self.ages.insert(stamp, capacity);
        self.idle.insert((capacity, Reverse(stamp)), memory);
        self.stats.idle_buffers += 1;
        self.stats.idle_bytes += capacity;
        freed
    }

    /// Gives what is idle beyond so many bytes, to be freed.
    pub(crate) fn shrink_to(&mut self, idle_bytes_max: usize) -> Vec<M> {
        let mut freed = Vec::new();
        while self.stats.idle_bytes > idle_bytes_max {
            let Some(oldest) = self.oldest().and_then(|key| self.remove(key)) else { break };
            freed.push(oldest);
        }
        freed
    }

    fn oldest(&self) -> Option<(usize, Reverse<Stamp>)> {
        let (&stamp, &capacity) = self.ages.first_key_value()?;
        Some((capacity, Reverse(stamp)))
    }

    fn remove(&mut self, key: (usize, Reverse<Stamp>)) -> Option<M> {
        let memory = self.idle.remove(&key)?;
        self.ages.remove(&key.1.0);
        self.stats.idle_buffers -= 1;
        self.stats.idle_bytes -= memory.capacity();
        Some(memory)
    }
}

/// What to allocate for `len` bytes.
pub(crate) fn capacity_for(len: usize) -> Result<usize> {
    if len < POOLED_BYTES_MIN {
        return Ok(len);
    }
    let class = ((1_usize << len.ilog2()) / CLASSES_PER_DOUBLING).max(CLASS_BYTES_MIN);
    len.checked_next_multiple_of(class)
        .ok_or_else(|| Error::Misuse(format!("a buffer of {len} bytes is over the limit of {}", isize::MAX)))
}

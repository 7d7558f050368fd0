//! Buffers for payloads, recycled.
//!
//! A fresh buffer costs a page fault for every 4 KiB that is received into it, which halved the
//! measured loopback throughput at 64 MiB. So a buffer goes back to its [`BufferPool`] when the
//! last [`Bytes`] made of it is dropped, on whatever thread, and serves again.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;

use super::buffer::{ALIGNMENT, AlignedMemory};
use crate::error::{Error, Result};

/// Buffers below this length are not pooled: the allocator recycles them as fast, and zeroing them
/// costs no page fault.
const POOLED_BYTES_MIN: usize = 4096;

/// The most idle buffers of one pool, whatever their sizes, so that its book-keeping is bounded too.
const IDLE_BUFFERS_MAX: usize = 1024;

/// Capacities in every doubling: rounding up wastes less than an eighth, and lengths that differ a
/// little, such as those of requests of similar length, share their buffers.
const CLASSES_PER_DOUBLING: usize = 8;

/// A bounded stock of idle buffers. Clones share it.
///
/// A request is served by the smallest idle buffer that is large enough and at most half again as
/// large as asked, else by a fresh one. When the idle bytes are over the bound, the buffers that
/// have been idle for longest are freed, so that the stock follows a change of sizes. Taking and
/// giving back take time logarithmic in the number of idle buffers.
///
/// Only *idle* memory is bounded here; live buffers are bounded by whoever reserves room before
/// taking one.
///
/// ```
/// use kvpipe::tensor::BufferPool;
///
/// let pool = BufferPool::new(64 << 20);
/// let mut buffer = pool.take(1 << 20)?;
/// buffer.fill(7);
/// let payload = buffer.freeze();
/// assert_eq!(payload.len(), 1 << 20);
/// drop(payload);
/// assert_eq!(pool.stats().idle_buffers, 1);
/// # Ok::<(), kvpipe::Error>(())
/// ```
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

/// A [`BufferPool`]'s counts at one moment. Bytes are capacities: what is allocated, which is a
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

impl BufferPool {
    /// An empty pool that keeps at most `idle_bytes_max` bytes of idle buffers; 0 keeps none.
    #[must_use]
    pub fn new(idle_bytes_max: usize) -> Self {
        Self { shared: Arc::new(Shared { idle_bytes_max, state: Mutex::default() }) }
    }

    /// A buffer of `len` bytes.
    ///
    /// Its contents are initialised, but **stale**: zero when it is fresh, and what its last user
    /// left there when it is recycled. Overwrite all of it before freezing it.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no memory, [`Error::Misuse`] if no address space could hold `len`.
    pub fn take(&self, len: usize) -> Result<BufferMut> {
        self.take_beside(len, usize::MAX)
    }

    /// As [`take`](Self::take); but before it allocates, it frees what is idle beyond `idle_bytes_max`,
    /// the longest idle first. So whoever bounds the live buffers can bound all of the memory.
    ///
    /// # Errors
    /// As there.
    pub fn take_beside(&self, len: usize, idle_bytes_max: usize) -> Result<BufferMut> {
        let reused = self.shared.lock().reuse(len);
        let memory = match reused {
            Some(memory) => memory,
            None => {
                let unwanted = self.shared.lock().shrink_to(idle_bytes_max);
                drop(unwanted);
                // Not under the lock: a large allocation is a system call.
                let memory = AlignedMemory::zeroed(capacity_for(len)?)?;
                self.shared.lock().adopt(&memory);
                memory
            }
        };
        Ok(BufferMut { memory, len, home: Arc::downgrade(&self.shared) })
    }

    /// The pool's counts now.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.shared.lock().stats
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool")
            .field("idle_bytes_max", &self.shared.idle_bytes_max)
            .field("stats", &self.stats())
            .finish()
    }
}

/// A buffer that is being filled: exclusive, 64-byte aligned, initialised from the start.
///
/// Dropping it gives its memory back to the pool that it came from, if that still exists.
pub struct BufferMut {
    memory: AlignedMemory,
    len: usize,
    home: Weak<Shared>,
}

impl BufferMut {
    /// A buffer of `len` zero bytes that belongs to no pool and is freed when it is dropped.
    ///
    /// # Errors
    /// As [`BufferPool::take`].
    pub fn zeroed(len: usize) -> Result<Self> {
        Ok(Self { memory: AlignedMemory::zeroed(len)?, len, home: Weak::new() })
    }

    /// Makes it immutable and shareable, without copying it. When the last clone or slice is
    /// dropped, the memory goes where dropping `self` would have sent it.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        if self.len == 0 {
            return Bytes::new();
        }
        Bytes::from_owner(self)
    }
}

impl Deref for BufferMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory.as_slice()[..self.len]
    }
}

impl DerefMut for BufferMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory.as_mut_slice()[..self.len]
    }
}

impl AsRef<[u8]> for BufferMut {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for BufferMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferMut({} bytes of {})", self.len, self.memory.capacity())
    }
}

impl Drop for BufferMut {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            let unwanted = home.lock().give_back(mem::take(&mut self.memory), home.idle_bytes_max);
            // Only now that the lock is released: freeing a large buffer is a system call.
            drop(unwanted);
        }
    }
}

struct Shared {
    idle_bytes_max: usize,
    /// std's mutex and not `crate::sync`'s: nothing waits for anything while holding it, so loom has
    /// nothing to see here, and buffers may be dropped outside of a model.
    state: Mutex<State>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No critical section leaves a broken state behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a buffer became idle, in give-backs since the pool began.
type Stamp = u64;

#[derive(Default)]
struct State {
    /// By capacity, and among equals the youngest first: its pages are most likely in a cache.
    idle: BTreeMap<(usize, Reverse<Stamp>), AlignedMemory>,
    /// The capacities in `idle`, longest idle first.
    ages: BTreeMap<Stamp, usize>,
    next_stamp: Stamp,
    stats: PoolStats,
}

impl State {
    fn reuse(&mut self, len: usize) -> Option<AlignedMemory> {
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

    fn adopt(&mut self, memory: &AlignedMemory) {
        self.stats.misses += 1;
        self.count_live(memory);
    }

    fn count_live(&mut self, memory: &AlignedMemory) {
        self.stats.live_buffers += 1;
        self.stats.live_bytes += memory.capacity();
    }

    /// Takes a live buffer back, and returns what is to be freed for it.
    fn give_back(&mut self, memory: AlignedMemory, idle_bytes_max: usize) -> Vec<AlignedMemory> {
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
    fn shrink_to(&mut self, idle_bytes_max: usize) -> Vec<AlignedMemory> {
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

    fn remove(&mut self, key: (usize, Reverse<Stamp>)) -> Option<AlignedMemory> {
        let memory = self.idle.remove(&key)?;
        self.ages.remove(&key.1.0);
        self.stats.idle_buffers -= 1;
        self.stats.idle_bytes -= memory.capacity();
        Some(memory)
    }
}

/// What to allocate for `len` bytes.
fn capacity_for(len: usize) -> Result<usize> {
    if len < POOLED_BYTES_MIN {
        return Ok(len);
    }
    let class = ((1_usize << len.ilog2()) / CLASSES_PER_DOUBLING).max(ALIGNMENT);
    len.checked_next_multiple_of(class)
        .ok_or_else(|| Error::Misuse(format!("a buffer of {len} bytes is over the limit of {}", isize::MAX)))
}

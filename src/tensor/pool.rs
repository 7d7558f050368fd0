//! Buffers for payloads, recycled.
//!
//! A fresh buffer costs a page fault for every 4 KiB that is received into it, which halved the
//! measured loopback throughput at 64 MiB. So a buffer goes back to its [`BufferPool`] when the
//! last [`Bytes`] made of it is dropped, on whatever thread, and serves again.

use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;

use super::buffer::AlignedMemory;
use crate::error::Result;
pub use crate::stock::PoolStats;
use crate::stock::{Memory, Stock, capacity_for};

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
    /// [`Error::Io`](crate::Error::Io) if there is no memory, [`Error::Misuse`](crate::Error::Misuse) if no address space could hold `len`.
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
        self.shared.lock().stats()
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
    state: Mutex<Stock<AlignedMemory>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Stock<AlignedMemory>> {
        // No critical section leaves a broken state behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory for AlignedMemory {
    fn capacity(&self) -> usize {
        self.capacity()
    }
}

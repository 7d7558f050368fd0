//! Device memory, recycled.
//!
//! The driver waits for all that runs on a device before it frees memory there, and takes its time to
//! allocate: a transfer between two allocations is not as fast as the wire. So memory goes back to its
//! pool when the last [`DeviceBuffer`](super::DeviceBuffer) made of it is dropped, and serves again.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{Device, DeviceBufferMut};
use crate::error::Result;
use crate::stock::{Memory, PoolStats, Stock, capacity_for};

/// A bounded stock of idle device memory. Clones share it.
///
/// As [`BufferPool`](crate::tensor::BufferPool), with one thing to mind: memory that was dropped may be
/// written to at once. So drop a tensor only when no stream of yours uses it any more, or leave it to an
/// [`InFlight`](super::InFlight).
#[derive(Clone)]
pub struct DevicePool {
    shared: Arc<Shared>,
}

impl DevicePool {
    /// An empty pool that keeps at most `idle_bytes_max` bytes of idle memory on `device`; 0 keeps none.
    #[must_use]
    pub fn new(device: &Arc<dyn Device>, idle_bytes_max: usize) -> Self {
        let (device, stock) = (Arc::clone(device), Mutex::default());
        Self { shared: Arc::new(Shared { device, idle_bytes_max, stock }) }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.shared.device
    }

    /// A buffer of `bytes` bytes, which hold whatever their last user left there. Before it allocates, it
    /// frees what is idle beyond `idle_bytes_max`, the longest idle first. So whoever bounds the live
    /// buffers can bound all of the memory.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) if there is no memory.
    ///
    /// # Cancel safety
    /// The memory goes back.
    pub async fn take_beside(&self, bytes: usize, idle_bytes_max: usize) -> Result<DeviceBufferMut> {
        let reused = self.shared.lock().reuse(bytes);
        let memory = match reused {
            Some(memory) => memory,
            None => {
                let unwanted = self.shared.lock().shrink_to(idle_bytes_max);
                drop(unwanted);
                let memory = DeviceBufferMut::allocated(self.device(), capacity_for(bytes)?).await?;
                self.shared.lock().adopt(&memory);
                memory
            }
        };
        let address = memory.address();
        let owner = Recycled { memory: Some(memory), home: Arc::downgrade(&self.shared) };
        // SAFETY: the owner has the memory, which is at least so long, exclusively.
        Ok(unsafe { DeviceBufferMut::from_raw(self.device(), address, bytes, owner) })
    }

    /// The pool's counts now.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.shared.lock().stats()
    }
}

impl fmt::Debug for DevicePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DevicePool")
            .field("device", &self.shared.device.location())
            .field("idle_bytes_max", &self.shared.idle_bytes_max)
            .field("stats", &self.stats())
            .finish()
    }
}

struct Shared {
    device: Arc<dyn Device>,
    idle_bytes_max: usize,
    stock: Mutex<Stock<DeviceBufferMut>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Stock<DeviceBufferMut>> {
        // No critical section leaves a broken state behind.
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory for DeviceBufferMut {
    fn capacity(&self) -> usize {
        self.len()
    }
}

/// Memory in use, on its way back.
struct Recycled {
    /// Until it is dropped.
    memory: Option<DeviceBufferMut>,
    home: Weak<Shared>,
}

impl Drop for Recycled {
    fn drop(&mut self) {
        if let (Some(home), Some(memory)) = (self.home.upgrade(), self.memory.take()) {
            let unwanted = home.lock().give_back(memory, home.idle_bytes_max);
            drop(unwanted);
        }
    }
}

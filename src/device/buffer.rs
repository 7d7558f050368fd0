//! Memory on a device, and host memory that a device can reach.

use std::any::Any;
use std::fmt;
use std::ops::{Bound, Deref, DerefMut, RangeBounds};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use super::{Device, Event, chores};
use crate::error::{Error, Result};

/// Bytes on a device that do not change any more. Clones and slices share them.
///
/// Equality is that of the memory, not of what it holds.
#[derive(Clone)]
pub struct DeviceBuffer {
    memory: Arc<Memory>,
    address: u64,
    len: usize,
    ready: Option<Event>,
}

impl DeviceBuffer {
    /// Memory that somebody else allocated, such as torch. `owner` is dropped when it is used no more,
    /// on whatever thread, and is not asked anything before.
    ///
    /// # Safety
    /// For as long as `owner` lives, `bytes` bytes at `address` must be memory of `device` that nobody
    /// writes to, apart from work before an event that is given to [`with_ready`](Self::with_ready).
    pub unsafe fn from_raw(
        device: &Arc<dyn Device>,
        address: u64,
        bytes: usize,
        owner: impl Any + Send + Sync,
    ) -> Self {
        let memory = Memory::foreign(device, address, bytes, owner);
        Self { memory: Arc::new(memory), address, len: bytes, ready: None }
    }

    /// The same memory, which is to be read only after `event`: work that the producer has begun.
    #[must_use]
    pub fn with_ready(mut self, event: Event) -> Self {
        self.ready = Some(event);
        self
    }

    /// The device that it is on.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.memory.device
    }

    /// Where it begins on the device.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The producer's event, for which a stream must wait before it reads; None if all is there.
    #[must_use]
    pub fn ready(&self) -> Option<&Event> {
        self.ready.as_ref()
    }

    /// A part of it, not copied.
    ///
    /// # Errors
    /// [`Error::Misuse`] if it reaches beyond the end.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Result<Self> {
        let begin = match range.start_bound() {
            Bound::Included(begin) => Some(*begin),
            Bound::Excluded(before) => before.checked_add(1),
            Bound::Unbounded => Some(0),
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.checked_add(1),
            Bound::Excluded(end) => Some(*end),
            Bound::Unbounded => Some(self.len),
        };
        match (begin, end) {
            (Some(begin), Some(end)) if begin <= end && end <= self.len => {
                Ok(Self { address: self.address + begin as u64, len: end - begin, ..self.clone() })
            }
            _ => Err(Error::Misuse(format!("a slice reaches beyond the {} bytes of a buffer", self.len))),
        }
    }
}

impl PartialEq for DeviceBuffer {
    fn eq(&self, other: &Self) -> bool {
        (self.device().location(), self.address, self.len)
            == (other.device().location(), other.address, other.len)
    }
}

impl Eq for DeviceBuffer {}

impl fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceBuffer({} bytes at {:#x} of {})", self.len, self.address, self.device().location())
    }
}

/// Bytes on a device that nobody else has. What they are is not known until something is copied there.
pub struct DeviceBufferMut {
    memory: Memory,
}

impl DeviceBufferMut {
    /// `bytes` of device memory, aligned to 256. It may wait for all that runs on the device, as the
    /// driver does: [`allocated`](Self::allocated) does not.
    ///
    /// # Errors
    /// [`Error::Cuda`] if there is no memory.
    pub fn allocate(device: &Arc<dyn Device>, bytes: usize) -> Result<Self> {
        let address = match bytes {
            0 => 0,
            bytes => device.allocate(bytes)?,
        };
        Ok(Self { memory: Memory { device: Arc::clone(device), address, bytes, owner: None } })
    }

    /// As [`allocate`](Self::allocate), on a thread that may wait.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// The memory is freed again.
    pub async fn allocated(device: &Arc<dyn Device>, bytes: usize) -> Result<Self> {
        chores::run(device, move |device| Self::allocate(device, bytes)).await
    }

    /// Memory that somebody else allocated, to be written to. `owner` is dropped when it is used no more,
    /// on whatever thread.
    ///
    /// # Safety
    /// For as long as `owner` lives, `bytes` bytes at `address` must be memory of `device` that nobody
    /// else uses.
    pub unsafe fn from_raw(
        device: &Arc<dyn Device>,
        address: u64,
        bytes: usize,
        owner: impl Any + Send + Sync,
    ) -> Self {
        Self { memory: Memory::foreign(device, address, bytes, owner) }
    }

    /// The device that it is on.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.memory.device
    }

    /// Where it begins on the device.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.memory.address
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.memory.bytes
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes it constant and shareable. Work that writes to it must be done, or else before the event
    /// that is given to [`DeviceBuffer::with_ready`].
    #[must_use]
    pub fn freeze(self) -> DeviceBuffer {
        let (address, len) = (self.address(), self.len());
        DeviceBuffer { memory: Arc::new(self.memory), address, len, ready: None }
    }
}

impl fmt::Debug for DeviceBufferMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let location = self.device().location();
        write!(f, "DeviceBufferMut({} bytes at {:#x} of {location})", self.len(), self.address())
    }
}

/// Device memory, ours or another's.
struct Memory {
    device: Arc<dyn Device>,
    address: u64,
    bytes: usize,
    /// Of foreign memory, what keeps it alive.
    owner: Option<Box<dyn Any + Send + Sync>>,
}

impl Memory {
    fn foreign(device: &Arc<dyn Device>, address: u64, bytes: usize, owner: impl Any + Send + Sync) -> Self {
        Self { device: Arc::clone(device), address, bytes, owner: Some(Box::new(owner)) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.owner.is_some() || self.bytes == 0 {
            return;
        }
        let (address, bytes) = (self.address, self.bytes);
        chores::later(&self.device, move |device| {
            // SAFETY: `allocate` gave it, and nothing else frees it; what a stream uses is held by an
            // `InFlight` or by its user.
            if let Err(error) = unsafe { device.free(address, bytes) } {
                tracing::warn!(%error, bytes, "device memory was not freed");
            }
        });
    }
}

/// Host memory that a device can reach, page-locked and cached. Initialised from the start.
pub struct PinnedBuffer {
    device: Arc<dyn Device>,
    memory: Pinned,
    len: usize,
}

/// Where pinned memory begins; dangling where there is none.
struct Pinned(NonNull<u8>);

// SAFETY: its one owner has the memory exclusively, as `Box<[u8]>` does, which is Send.
unsafe impl Send for Pinned {}
// SAFETY: shared access only reads, as with `Box<[u8]>`, which is Sync.
unsafe impl Sync for Pinned {}

impl PinnedBuffer {
    /// `bytes` of zeros. It costs more than a page fault for every page, and may wait for all that runs
    /// on the device, as the driver does: [`allocated`](Self::allocated) does not. Keep what you have.
    ///
    /// # Errors
    /// [`Error::Cuda`] if there is no memory; [`Error::Misuse`] if no address space could hold it.
    pub fn allocate(device: &Arc<dyn Device>, bytes: usize) -> Result<Self> {
        if isize::try_from(bytes).is_err() {
            return Err(Error::Misuse(format!(
                "a buffer of {bytes} bytes is over the limit of {}",
                isize::MAX
            )));
        }
        let pointer = match bytes {
            0 => NonNull::dangling(),
            bytes => device.allocate_pinned(bytes)?,
        };
        // SAFETY: so many bytes there are ours. Nobody says what is in them, and `deref` shows them.
        unsafe { pointer.write_bytes(0, bytes) };
        Ok(Self { device: Arc::clone(device), memory: Pinned(pointer), len: bytes })
    }

    /// As [`allocate`](Self::allocate), on a thread that may wait.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// The memory is freed again.
    pub async fn allocated(device: &Arc<dyn Device>, bytes: usize) -> Result<Self> {
        chores::run(device, move |device| Self::allocate(device, bytes)).await
    }
}

impl Deref for PinnedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `allocate` got and initialised so many bytes, which are ours until drop; a stream writes
        // to them only while an `InFlight` has the buffer.
        unsafe { slice::from_raw_parts(self.memory.0.as_ptr(), self.len) }
    }
}

impl DerefMut for PinnedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the borrow is exclusive.
        unsafe { slice::from_raw_parts_mut(self.memory.0.as_ptr(), self.len) }
    }
}

impl Pinned {
    fn free(self, device: &dyn Device, bytes: usize) {
        // SAFETY: `allocate_pinned` gave it to the buffer that is being dropped, and nothing else frees it.
        if let Err(error) = unsafe { device.free_pinned(self.0, bytes) } {
            tracing::warn!(%error, bytes, "pinned memory was not freed");
        }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if self.len > 0 {
            let (memory, len) = (Pinned(self.memory.0), self.len);
            chores::later(&self.device, move |device| memory.free(&**device, len));
        }
    }
}

impl fmt::Debug for PinnedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedBuffer({} bytes for {})", self.len, self.device.location())
    }
}

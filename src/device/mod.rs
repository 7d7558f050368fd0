//! GPUs: memory, streams and events, behind a [`Device`] trait thin enough for a host to stand in.
//!
//! | type | what it is |
//! |---|---|
//! | [`CudaDevice`] | a GPU, through the CUDA driver, which is looked for when it is asked for and not before |
//! | [`DeviceBuffer`], [`DeviceBufferMut`] | bytes on a device: shared and constant, or exclusive |
//! | [`DevicePool`] | device memory that is used again, within a bound |
//! | [`PinnedBuffer`] | bytes on the host that a device can reach, and that the host reads at full speed |
//! | [`Stream`], [`Event`] | an order of work on a device, and a place in it that can be waited for |
//! | [`InFlight`] | what a stream still uses, kept until it does not |
//! | [`Staging`] | copies between a device and ordinary host memory, in pieces that overlap |
//!
//! # What is held to
//!
//! - **No memory is freed that a stream still uses**, also if the future that waits for it is dropped.
//! - **Nothing waits on the runtime's threads.** Events are polled by a thread of their own, and memory
//!   is allocated and freed by one for each device, because the driver may wait there for all that runs
//!   on the device: for a transfer, say, whose peer is gone, and which only this very runtime can abort.
//! - **No CUDA is needed** to build this or to run it. Without it [`CudaDevice::open`] says what is
//!   missing.

mod buffer;
mod chores;
mod cuda;
mod flight;
mod oneshot;
mod poller;
mod pool;
mod staging;
mod stream;

use std::fmt;
use std::ptr::NonNull;

pub use buffer::{DeviceBuffer, DeviceBufferMut, PinnedBuffer};
pub use cuda::{CudaDevice, CudaVersion, DeviceReport, DriverReport};
pub use flight::InFlight;
pub use pool::DevicePool;
#[cfg(not(loom))]
pub(crate) use staging::Reading;
pub use staging::{Staging, to_device, to_host};
pub use stream::{Event, Stream};

use crate::error::Result;

/// The memory that holds a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Location {
    /// Host memory.
    Cpu,
    /// The GPU of this index, as CUDA counts those that the process may see.
    Cuda(usize),
}

impl Location {
    /// Refuses a device that is not on this machine, and opens none. Host memory always is there.
    ///
    /// # Errors
    /// As [`CudaDevice::open`].
    pub fn ensure_available(self) -> Result<()> {
        match self {
            Self::Cpu => Ok(()),
            Self::Cuda(index) => CudaDevice::look_for(index),
        }
    }
}

/// As torch names it: `cpu`, `cuda:0`.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// A device's memory at one moment, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// What could be allocated, by any process.
    pub free: usize,
    /// All there is.
    pub total: usize,
}

/// What a device must be able to do: the calls of the CUDA driver, under names of their own.
///
/// Streams and events are handles; [`Stream`], [`Event`] and the buffers own them, and are what to use.
/// Every method may be called on any thread. Copies and fills only begin: they run in the order of
/// their stream.
///
/// # Safety of the methods
/// Addresses, pointers, streams and events must be this device's own, alive, and large enough for
/// `bytes`; what a stream uses must live, and must not be written to, until the stream is beyond it.
pub trait Device: fmt::Debug + Send + Sync + 'static {
    /// Which device it is.
    fn location(&self) -> Location;

    /// Its name, for people.
    fn name(&self) -> String;

    /// How much memory it has.
    fn memory(&self) -> Result<MemoryInfo>;

    /// Makes it the calling thread's device, until that thread chooses another.
    fn make_current(&self) -> Result<()>;

    /// `bytes` (at least 1) of device memory, aligned to 256. May wait for what runs on the device.
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Frees what [`allocate`](Self::allocate) gave. May wait for what runs on the device.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn free(&self, address: u64, bytes: usize) -> Result<()>;

    /// `bytes` (at least 1) of host memory that the device can reach, cached for reading. May wait for
    /// what runs on the device.
    fn allocate_pinned(&self, bytes: usize) -> Result<NonNull<u8>>;

    /// Frees what [`allocate_pinned`](Self::allocate_pinned) gave. May wait for what runs on the device.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn free_pinned(&self, pointer: NonNull<u8>, bytes: usize) -> Result<()>;

    /// A new stream, which does not wait for the legacy default stream, 0.
    fn create_stream(&self) -> Result<u64>;

    /// Gives a stream back. Its work goes on until it is done.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn destroy_stream(&self, stream: u64) -> Result<()>;

    /// A new event, without a time.
    fn create_event(&self) -> Result<u64>;

    /// Gives an event back.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn destroy_event(&self, event: u64) -> Result<()>;

    /// Moves an event behind all that is on a stream.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn record_event(&self, event: u64, stream: u64) -> Result<()>;

    /// What follows on `stream` begins after `event`, which may be another device's.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn stream_wait_event(&self, stream: u64, event: u64) -> Result<()>;

    /// Whether the work before an event is done. True for one that was never recorded.
    ///
    /// # Errors
    /// Also the failure of that work.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn event_is_complete(&self, event: u64) -> Result<bool>;

    /// Copies from pinned host memory.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn copy_to_device(&self, to: u64, from: *const u8, bytes: usize, stream: u64) -> Result<()>;

    /// Copies to pinned host memory.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn copy_to_host(&self, to: *mut u8, from: u64, bytes: usize, stream: u64) -> Result<()>;

    /// Copies from device memory to device memory.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn copy_within(&self, to: u64, from: u64, bytes: usize, stream: u64) -> Result<()>;

    /// Fills device memory with zeros.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn fill_zero(&self, to: u64, bytes: usize, stream: u64) -> Result<()>;
}

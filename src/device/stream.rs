//! Streams and events, owned.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use super::flight::InFlight;
use super::{Device, DeviceBuffer, DeviceBufferMut, PinnedBuffer, poller};
use crate::error::{Error, Result};

/// An order of work on a device. Clones are the same stream.
///
/// Dropping the last one does not wait for its work.
#[derive(Clone)]
pub struct Stream(Arc<OwnedStream>);

struct OwnedStream {
    device: Arc<dyn Device>,
    raw: u64,
    /// Of a foreign stream, what keeps it alive.
    owner: Option<Box<dyn Any + Send + Sync>>,
}

impl Stream {
    /// A new stream, which does not wait for the legacy default stream.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn new(device: &Arc<dyn Device>) -> Result<Self> {
        let raw = device.create_stream()?;
        Ok(Self(Arc::new(OwnedStream { device: Arc::clone(device), raw, owner: None })))
    }

    /// A stream that somebody else made, such as torch; 0 is the legacy default stream. `owner` is
    /// dropped when it is used no more, and is not asked anything before.
    ///
    /// # Safety
    /// `raw` must be a stream of `device` (a `CUstream`) for as long as `owner` lives.
    pub unsafe fn from_raw(device: &Arc<dyn Device>, raw: u64, owner: impl Any + Send + Sync) -> Self {
        let owner: Option<Box<dyn Any + Send + Sync>> = Some(Box::new(owner));
        Self(Arc::new(OwnedStream { device: Arc::clone(device), raw, owner }))
    }

    /// The device that it is of.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.0.device
    }

    /// The handle (a `CUstream`).
    #[must_use]
    pub fn raw(&self) -> u64 {
        self.0.raw
    }

    /// An event behind all that is on the stream now.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn record(&self) -> Result<Event> {
        let event = Event::new(&self.0.device)?;
        // SAFETY: both are owned by what we hold, and of one device.
        unsafe { self.0.device.record_event(event.raw(), self.raw())? };
        Ok(event)
    }

    /// What follows on the stream begins after `event`.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: both are owned by what we hold. The driver keeps an event for those that wait for it,
        // should it be destroyed meanwhile.
        unsafe { self.0.device.stream_wait_event(self.raw(), event.raw()) }
    }

    /// Keeps `held`, which work on the stream uses, until all that is on the stream now is done.
    ///
    /// # Errors
    /// [`Error::Cuda`]. Nobody can tell any more when the work is done, so that `held` is leaked.
    pub fn in_flight<T: Send + 'static>(&self, held: T) -> Result<InFlight<T>> {
        match self.record() {
            Ok(event) => Ok(InFlight::new(event, held)),
            Err(error) => {
                tracing::error!(%error, "no event for what a stream uses, which is leaked");
                std::mem::forget(held);
                Err(error)
            }
        }
    }

    /// Begins to copy the first bytes of `from`, as many as `to` has.
    ///
    /// # Errors
    /// [`Error::Misuse`] unless `from` has as many, both of the stream's device; [`Error::Cuda`].
    pub fn copy_to_device(
        &self,
        from: PinnedBuffer,
        to: DeviceBufferMut,
    ) -> Result<InFlight<(PinnedBuffer, DeviceBufferMut)>> {
        self.check("copied to", to.device(), to.len(), from.len())?;
        if !to.is_empty() {
            // SAFETY: both are alive and long enough, and belong to the flight until the copy is done.
            unsafe { self.device().copy_to_device(to.address(), from.as_ptr(), to.len(), self.raw())? };
        }
        self.in_flight((from, to))
    }

    /// Begins to copy all of `from`, once it is [ready](DeviceBuffer::ready), to the beginning of `to`.
    ///
    /// # Errors
    /// [`Error::Misuse`] unless `to` has room, and `from` is of the stream's device; [`Error::Cuda`].
    pub fn copy_to_host(
        &self,
        from: &DeviceBuffer,
        mut to: PinnedBuffer,
    ) -> Result<InFlight<(DeviceBuffer, PinnedBuffer)>> {
        self.check("copied from", from.device(), from.len(), to.len())?;
        self.wait_until_ready(from)?;
        if !from.is_empty() {
            // SAFETY: both are alive and long enough, and belong to the flight until the copy is done.
            unsafe {
                self.device().copy_to_host(to.as_mut_ptr(), from.address(), from.len(), self.raw())?;
            }
        }
        self.in_flight((from.clone(), to))
    }

    /// Begins to copy all of `from`, once it is [ready](DeviceBuffer::ready), to the beginning of `to`.
    ///
    /// # Errors
    /// [`Error::Misuse`] unless `to` has room, and both are of the stream's device; [`Error::Cuda`].
    pub fn copy(
        &self,
        from: &DeviceBuffer,
        to: DeviceBufferMut,
    ) -> Result<InFlight<(DeviceBuffer, DeviceBufferMut)>> {
        self.check("copied from", from.device(), from.len(), to.len())?;
        self.check("copied to", to.device(), from.len(), to.len())?;
        self.wait_until_ready(from)?;
        if !from.is_empty() {
            // SAFETY: both are alive and long enough, and belong to the flight until the copy is done.
            unsafe { self.device().copy_within(to.address(), from.address(), from.len(), self.raw())? };
        }
        self.in_flight((from.clone(), to))
    }

    /// Begins to fill all of `to` with zeros.
    ///
    /// # Errors
    /// [`Error::Misuse`] unless it is of the stream's device; [`Error::Cuda`].
    pub fn fill_zero(&self, to: DeviceBufferMut) -> Result<InFlight<DeviceBufferMut>> {
        self.check("filled on", to.device(), to.len(), to.len())?;
        if !to.is_empty() {
            // SAFETY: it is alive, and belongs to the flight until the work is done.
            unsafe { self.device().fill_zero(to.address(), to.len(), self.raw())? };
        }
        self.in_flight(to)
    }

    /// What follows on the stream may read `buffer`.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn wait_until_ready(&self, buffer: &DeviceBuffer) -> Result<()> {
        buffer.ready().map_or(Ok(()), |event| self.wait(event))
    }

    fn check(&self, what: &str, device: &Arc<dyn Device>, bytes: usize, room: usize) -> Result<()> {
        if device.location() != self.device().location() {
            let (here, there) = (self.device().location(), device.location());
            return Err(Error::Misuse(format!("{there} can't be {what} on a stream of {here}")));
        }
        if bytes > room {
            return Err(Error::Misuse(format!("a copy of {bytes} bytes does not fit a buffer of {room}")));
        }
        Ok(())
    }
}

impl Drop for OwnedStream {
    fn drop(&mut self) {
        if self.owner.is_some() {
            return;
        }
        // SAFETY: `create_stream` gave it, and nothing else destroys it.
        if let Err(error) = unsafe { self.device.destroy_stream(self.raw) } {
            tracing::warn!(%error, "a stream was not destroyed");
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({:#x} of {})", self.raw(), self.device().location())
    }
}

/// A place in the order of a stream. Clones are the same event, which is recorded once.
#[derive(Clone)]
pub struct Event(Arc<OwnedEvent>);

struct OwnedEvent {
    device: Arc<dyn Device>,
    raw: u64,
    /// Of a foreign event, what keeps it alive.
    owner: Option<Box<dyn Any + Send + Sync>>,
}

impl Event {
    fn new(device: &Arc<dyn Device>) -> Result<Self> {
        let raw = device.create_event()?;
        Ok(Self(Arc::new(OwnedEvent { device: Arc::clone(device), raw, owner: None })))
    }

    /// An event that somebody else recorded. `owner` is dropped when it is used no more.
    ///
    /// # Safety
    /// `raw` must be an event of `device` (a `CUevent`) for as long as `owner` lives, and must not be
    /// recorded again.
    pub unsafe fn from_raw(device: &Arc<dyn Device>, raw: u64, owner: impl Any + Send + Sync) -> Self {
        let owner: Option<Box<dyn Any + Send + Sync>> = Some(Box::new(owner));
        Self(Arc::new(OwnedEvent { device: Arc::clone(device), raw, owner }))
    }

    /// The handle (a `CUevent`).
    #[must_use]
    pub fn raw(&self) -> u64 {
        self.0.raw
    }

    /// Whether all that was on the stream before it is done.
    ///
    /// # Errors
    /// [`Error::Cuda`], also where it is that work which has failed.
    pub fn is_complete(&self) -> Result<bool> {
        // SAFETY: it is ours, or alive by the contract of `from_raw`.
        unsafe { self.0.device.event_is_complete(self.raw()) }
    }

    /// Waits until all that was on the stream before it is done.
    ///
    /// # Errors
    /// As [`is_complete`](Self::is_complete); [`Error::Io`] if there can't be a thread to poll it.
    ///
    /// # Cancel safety
    /// It can be dropped and called again.
    pub async fn completed(&self) -> Result<()> {
        match self.is_complete()? {
            true => Ok(()),
            false => poller::completion(self)?.await,
        }
    }
}

impl Drop for OwnedEvent {
    fn drop(&mut self) {
        if self.owner.is_some() {
            return;
        }
        // SAFETY: `create_event` gave it, and nothing else destroys it.
        if let Err(error) = unsafe { self.device.destroy_event(self.raw) } {
            tracing::warn!(%error, "an event was not destroyed");
        }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({:#x} of {})", self.raw(), self.0.device.location())
    }
}

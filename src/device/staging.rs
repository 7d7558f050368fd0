//! Between devices and ordinary host memory, through pinned buffers.
//!
//! A copy goes in pieces: while the host reads or writes one, the device does the next ones. So it
//! takes a few mebibytes of pinned memory, whatever its length; and ordinary memory is never touched by
//! a device, so that a copy can be given up at any time.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::{Device, DeviceBuffer, DeviceBufferMut, InFlight, PinnedBuffer, Stream};
use crate::error::{Error, Result};

/// The length of a piece: long enough that the time it takes hides that of noticing its end, and short
/// enough to stay in the cache for whoever reads it next.
const PIECE_BYTES: usize = 1 << 20;

/// The shortest buffer for a piece: less pinned memory is no cheaper.
const BUFFER_BYTES_MIN: usize = 64 << 10;

/// Pieces at a time, the one included that the host is busy with.
const PIECES_MAX: usize = 4;

/// Pinned buffers and a stream for copies between a device and ordinary host memory. The buffers are
/// allocated when they are first needed, four of 1 MiB at most, and kept.
#[derive(Debug)]
pub struct Staging {
    stream: Stream,
    idle: Vec<PinnedBuffer>,
}

impl Staging {
    /// Staging with a stream of its own.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn new(device: &Arc<dyn Device>) -> Result<Self> {
        Ok(Self::on(Stream::new(device)?))
    }

    /// Staging whose copies take their turn on `stream`.
    #[must_use]
    pub fn on(stream: Stream) -> Self {
        Self { stream, idle: Vec::new() }
    }

    /// The device that it copies from and to.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        self.stream.device()
    }

    /// Copies all of `from`, once it is [ready](DeviceBuffer::ready), to `into`.
    ///
    /// # Errors
    /// [`Error::Misuse`] unless both are of one length and `from` is of this device; [`Error::Cuda`].
    ///
    /// # Cancel safety
    /// `into` holds a part of it then.
    pub async fn to_host(&mut self, from: &DeviceBuffer, into: &mut [u8]) -> Result<()> {
        if from.len() != into.len() {
            return Err(Error::Misuse(format!("{} bytes can't be copied to {}", from.len(), into.len())));
        }
        let mut rest = into;
        let mut reading = self.read(from);
        while let Some(piece) = reading.next().await? {
            let (part, further) = rest.split_at_mut(piece.len());
            part.copy_from_slice(piece);
            rest = further;
        }
        Ok(())
    }

    /// Copies `bytes` to memory that it allocates on the device. They are there when it is done.
    ///
    /// # Errors
    /// [`Error::Cuda`], if there is no memory for example.
    ///
    /// # Cancel safety
    /// The memory is freed once no copy uses it.
    pub async fn to_device(&mut self, bytes: &[u8]) -> Result<DeviceBuffer> {
        let to = DeviceBufferMut::allocated(self.device(), bytes.len()).await?.freeze();
        let mut writing = Writing { staging: self, to: &to, flying: VecDeque::new() };
        let mut begin = 0;
        for piece in bytes.chunks(PIECE_BYTES) {
            writing.write(begin, piece).await?;
            begin += piece.len();
        }
        writing.finish().await?;
        Ok(to)
    }

    /// Reads `from` in pieces, once it is [ready](DeviceBuffer::ready).
    pub(crate) fn read<'a>(&'a mut self, from: &'a DeviceBuffer) -> Reading<'a> {
        Reading { staging: self, from, begun: 0, flying: VecDeque::new(), current: None }
    }

    /// A pinned buffer of at least `bytes`, which is at most a piece.
    async fn buffer(&mut self, bytes: usize) -> Result<PinnedBuffer> {
        match self.idle.iter().position(|buffer| buffer.len() >= bytes) {
            Some(index) => Ok(self.idle.swap_remove(index)),
            None => {
                // Rounded up, so that lengths that grow a little each time share their buffers.
                let bytes = bytes.next_power_of_two().clamp(BUFFER_BYTES_MIN, PIECE_BYTES);
                PinnedBuffer::allocated(self.device(), bytes).await
            }
        }
    }

    /// Keeps a buffer for later.
    fn put_back(&mut self, buffer: PinnedBuffer) {
        self.idle.push(buffer);
        if self.idle.len() > PIECES_MAX {
            // Short ones have been replaced by long ones.
            let shortest = (0..self.idle.len()).min_by_key(|index| self.idle[*index].len());
            shortest.map(|index| self.idle.swap_remove(index));
        }
    }
}

/// A device buffer that is being read, piece by piece.
pub(crate) struct Reading<'a> {
    staging: &'a mut Staging,
    from: &'a DeviceBuffer,
    /// Where the next piece begins that is not on its way.
    begun: usize,
    flying: VecDeque<InFlight<(DeviceBuffer, PinnedBuffer)>>,
    current: Option<PinnedBuffer>,
}

impl Reading<'_> {
    /// The next piece, or None after the last. It is there until the next call.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the two are of different devices; [`Error::Cuda`].
    ///
    /// # Cancel safety
    /// A piece may be lost: read again from the beginning.
    pub(crate) async fn next(&mut self) -> Result<Option<&[u8]>> {
        if let Some(read) = self.current.take() {
            self.staging.put_back(read);
        }
        while self.flying.len() < PIECES_MAX && self.begun < self.from.len() {
            let end = self.from.len().min(self.begun + PIECE_BYTES);
            let piece = self.from.slice(self.begun..end)?;
            let buffer = self.staging.buffer(piece.len()).await?;
            self.flying.push_back(self.staging.stream.copy_to_host(&piece, buffer)?);
            self.begun = end;
        }
        let Some(first) = self.flying.pop_front() else { return Ok(None) };
        let (piece, buffer) = first.done().await?;
        Ok(Some(&self.current.insert(buffer)[..piece.len()]))
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if let Some(read) = self.current.take() {
            self.staging.put_back(read);
        }
    }
}

/// A device buffer that is being filled. Nobody else has seen it yet.
struct Writing<'a> {
    staging: &'a mut Staging,
    to: &'a DeviceBuffer,
    flying: VecDeque<InFlight<(PinnedBuffer, DeviceBuffer)>>,
}

impl Writing<'_> {
    /// Begins to copy `piece` to where `begin` is.
    async fn write(&mut self, begin: usize, piece: &[u8]) -> Result<()> {
        if self.flying.len() == PIECES_MAX {
            self.land().await?;
        }
        let to = self.to.slice(begin..begin + piece.len())?;
        let mut buffer = self.staging.buffer(piece.len()).await?;
        buffer[..piece.len()].copy_from_slice(piece);
        let stream = &self.staging.stream;
        // SAFETY: both are alive and long enough, and belong to the flight until the copy is done. The
        // device memory is not shown to anybody before that.
        unsafe {
            stream.device().copy_to_device(to.address(), buffer.as_ptr(), piece.len(), stream.raw())?;
        }
        self.flying.push_back(stream.in_flight((buffer, to))?);
        Ok(())
    }

    async fn finish(&mut self) -> Result<()> {
        while !self.flying.is_empty() {
            self.land().await?;
        }
        Ok(())
    }

    /// Waits for the copy that began first.
    async fn land(&mut self) -> Result<()> {
        if let Some(first) = self.flying.pop_front() {
            let (buffer, _) = first.done().await?;
            self.staging.put_back(buffer);
        }
        Ok(())
    }
}

/// Copies `bytes` to memory that it allocates on the device of `stream`. They are there when it is done.
///
/// Whoever copies often keeps a [`Staging`], and with it the pinned memory.
///
/// # Errors
/// As [`Staging::to_device`], and so is what happens if it is dropped early.
pub async fn to_device(bytes: Bytes, stream: &Stream) -> Result<DeviceBuffer> {
    Staging::on(stream.clone()).to_device(&bytes).await
}

/// Copies all of `buffer`, once it is [ready](DeviceBuffer::ready), to `into`.
///
/// Whoever copies often keeps a [`Staging`], and with it the pinned memory.
///
/// # Errors
/// As [`Staging::to_host`], and so is what happens if it is dropped early.
pub async fn to_host(buffer: &DeviceBuffer, stream: &Stream, into: &mut [u8]) -> Result<()> {
    Staging::on(stream.clone()).to_host(buffer, into).await
}

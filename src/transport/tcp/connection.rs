//! Frames on a byte stream: batching, checksums, and payloads that are not copied.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::transport::session::Violation;
use crate::wire::DecodeError;
use crate::wire::frame::{Frame, Reply, frame_in};

/// Bytes of headers and small payloads that are gathered before they are written or parsed.
const BUFFER_BYTES: usize = 64 << 10;

/// Payloads up to this size are copied next to their header; larger ones are written from where
/// they lie.
const INLINE_BYTES_MAX: usize = 16 << 10;

/// Bytes of a large payload that are checksummed and passed to the system, or the other way round, at
/// a time: few enough to be still in the cache for the second of the two. Without a checksum the
/// system gets or gives as much as it can: each call, and each time that the peer is woken for a
/// little, costs more than it saves.
const CHECKED_BYTES: usize = 32 << 10;

/// Bytes that are read beyond a large payload, for its trailer and the next header. What they hold of
/// the next payload is copied, so they are few.
const LOOKAHEAD_BYTES: usize = 1 << 10;

const TRAILER_BYTES: usize = size_of::<u32>();

/// A frame of one direction.
pub(crate) trait WireFrame: Sized {
    fn encode_into(&self, out: &mut Vec<u8>);
    fn decode(body: &[u8]) -> Result<Self, DecodeError>;

    /// How many bytes follow the frame.
    fn payload_bytes(&self) -> usize {
        0
    }
}

impl WireFrame for Frame {
    fn encode_into(&self, out: &mut Vec<u8>) {
        self.encode_into(out);
    }

    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(body)
    }

    fn payload_bytes(&self) -> usize {
        match self {
            Self::Item { metadata, .. } => metadata.payload_bytes(),
            _ => 0,
        }
    }
}

impl WireFrame for Reply {
    fn encode_into(&self, out: &mut Vec<u8>) {
        self.encode_into(out);
    }

    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(body)
    }
}

/// Reads frames, and payloads into the caller's memory.
#[derive(Debug)]
pub(crate) struct FrameReader<R> {
    stream: R,
    buffer: Box<[u8]>,
    /// What was read and not consumed.
    unread: Range<usize>,
    /// Bytes to read into the buffer at most: all of it, or little if the payloads are large.
    read_max: usize,
    checksum: bool,
    /// The checksum of the frame whose payload is being read.
    running: u32,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(stream: R, checksum: bool) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Self { stream, buffer, unread: 0..0, read_max: BUFFER_BYTES, checksum, running: 0 }
    }

    /// The next frame, if all of it is in the buffer, with its trailer unless a payload comes first.
    pub(crate) fn take<F: WireFrame>(&mut self) -> Result<Option<F>, Violation> {
        let unread = &self.buffer[self.unread.clone()];
        let Some(body) = frame_in(unread).map_err(violation)? else { return Ok(None) };
        let end = body.end;
        let frame = F::decode(&unread[body]).map_err(violation)?;
        if self.checksum {
            self.running = crc32c::crc32c(&unread[..end]);
        }
        let payload_bytes = frame.payload_bytes();
        self.read_max = if payload_bytes > INLINE_BYTES_MAX { LOOKAHEAD_BYTES } else { BUFFER_BYTES };
        if payload_bytes > 0 || !self.checksum {
            self.unread.start += end;
            return Ok(Some(frame));
        }
        let Some(trailer) = unread[end..].first_chunk() else { return Ok(None) };
        verify(self.running, *trailer)?;
        self.unread.start += end + TRAILER_BYTES;
        Ok(Some(frame))
    }

    /// Whether [`fill`](Self::fill) may be called, for a reader who has not taken all frames.
    pub(crate) fn has_room(&self) -> bool {
        self.unread.len() < self.buffer.len()
    }

    /// Reads once into the buffer; 0 at the end of the stream. Cancel safe.
    pub(crate) async fn fill(&mut self) -> io::Result<usize> {
        if self.unread.is_empty() {
            self.unread = 0..0;
        } else if self.unread.end == self.buffer.len() {
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        // There is room: a frame is far smaller than the buffer, and whole ones have been taken.
        let end = self.buffer.len().min(self.unread.end + self.read_max);
        let read = self.stream.read(&mut self.buffer[self.unread.end..end]).await?;
        self.unread.end += read;
        Ok(read)
    }

    /// Reads once, into `payload` or else into the buffer; 0 at the end of the stream. Cancel safe.
    pub(crate) async fn read(&mut self, payload: Option<&mut [u8]>) -> io::Result<usize> {
        match payload {
            Some(target) => self.payload(target).await,
            None => self.fill().await,
        }
    }

    /// Reads a part of a payload to the beginning of `target`, which is not empty; 0 at the end of
    /// the stream. Cancel safe.
    async fn payload(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let limit = if self.checksum { target.len().min(CHECKED_BYTES) } else { target.len() };
        let read = if self.unread.is_empty() {
            self.stream.read(&mut target[..limit]).await?
        } else {
            let read = limit.min(self.unread.len());
            let begin = self.unread.start;
            target[..read].copy_from_slice(&self.buffer[begin..begin + read]);
            self.unread.start += read;
            read
        };
        if self.checksum {
            self.running = crc32c::crc32c_append(self.running, &target[..read]);
        }
        Ok(read)
    }

    /// Checks the trailer behind a payload. False if more bytes are needed.
    pub(crate) fn payload_ends(&mut self) -> Result<bool, Violation> {
        if !self.checksum {
            return Ok(true);
        }
        let Some(trailer) = self.buffer[self.unread.clone()].first_chunk() else { return Ok(false) };
        verify(self.running, *trailer)?;
        self.unread.start += TRAILER_BYTES;
        Ok(true)
    }

    /// Reads and forgets until the stream ends, so that closing it does not destroy what we sent
    /// last: a connection that is closed with bytes unread is reset.
    pub(crate) async fn discard(&mut self) -> io::Result<()> {
        while self.stream.read(&mut self.buffer).await? > 0 {}
        Ok(())
    }
}

/// Writes frames, gathering small ones.
#[derive(Debug)]
pub(crate) struct FrameWriter<W> {
    stream: W,
    staged: Vec<u8>,
    /// How much of `staged` the stream has taken.
    flushed: usize,
    checksum: bool,
    /// The checksum of the frame whose payload [`poll_piece`](Self::poll_piece) writes.
    running: u32,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    pub(crate) fn new(stream: W, checksum: bool) -> Self {
        let staged = Vec::with_capacity(BUFFER_BYTES + INLINE_BYTES_MAX);
        Self { stream, staged, flushed: 0, checksum, running: 0 }
    }

    /// Stages a frame whose payload goes with it, or, if that is too large to be copied, follows by
    /// [`poll_piece`](Self::poll_piece): true if it does. For somebody who writes when there is time, and
    /// can't be kept waiting.
    pub(crate) fn stage(&mut self, frame: &impl WireFrame, payload: &[u8]) -> bool {
        let begin = self.staged.len();
        frame.encode_into(&mut self.staged);
        if self.checksum {
            self.running = crc32c::crc32c(&self.staged[begin..]);
        }
        let follows = payload.len() > INLINE_BYTES_MAX;
        if !follows {
            self.staged.extend_from_slice(payload);
            self.end_staged(payload);
        }
        follows
    }

    /// Writes once: what is staged, and then of `piece`, whose length in bytes that were taken it gives.
    /// After the last one, [`stage_end`](Self::stage_end).
    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>, piece: &[u8]) -> Poll<io::Result<usize>> {
        let piece = if self.checksum { &piece[..piece.len().min(CHECKED_BYTES)] } else { piece };
        let staged = &self.staged[self.flushed..];
        let staged_bytes = staged.len();
        let stream = Pin::new(&mut self.stream);
        let written = ready!(match staged_bytes {
            0 => stream.poll_write(cx, piece),
            _ => stream.poll_write_vectored(cx, &[IoSlice::new(staged), IoSlice::new(piece)]),
        })?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.flushed += written.min(staged_bytes);
        if self.flushed == self.staged.len() {
            self.staged.clear();
            self.flushed = 0;
        }
        let taken = written - written.min(staged_bytes);
        if self.checksum {
            self.running = crc32c::crc32c_append(self.running, &piece[..taken]);
        }
        Poll::Ready(Ok(taken))
    }

    /// Stages what comes behind a payload that [`poll_piece`](Self::poll_piece) has written.
    pub(crate) fn stage_end(&mut self) {
        self.end_staged(&[]);
    }

    fn end_staged(&mut self, payload: &[u8]) {
        if self.checksum {
            let checksum = crc32c::crc32c_append(self.running, payload);
            self.staged.extend_from_slice(&checksum.to_le_bytes());
        }
    }

    /// As [`flush`](Self::flush).
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(self.flush()).poll(cx)
    }

    /// Writes a frame and its payload, or keeps them (or their end) for the next
    /// [`flush`](Self::flush). Calls `moved` for each part of a large payload.
    ///
    /// Cancel safe only without a large payload, which must not be cut short.
    pub(crate) async fn write(
        &mut self,
        frame: &impl WireFrame,
        payload: &[u8],
        moved: impl Fn(),
    ) -> io::Result<()> {
        let mut writing = self.begin(frame);
        writing.write(payload, moved).await?;
        writing.end().await
    }

    /// Begins a frame whose payload comes in pieces. Nothing else may be written before its end.
    pub(super) fn begin(&mut self, frame: &impl WireFrame) -> PayloadWriter<'_, W> {
        let begin = self.staged.len();
        frame.encode_into(&mut self.staged);
        let checksum = self.checksum.then(|| crc32c::crc32c(&self.staged[begin..]));
        PayloadWriter { writer: self, checksum, payload_bytes: frame.payload_bytes(), written: 0 }
    }

    /// [`write`](Self::write) for a frame without payload. Cancel safe.
    pub(crate) async fn write_bare(&mut self, frame: &impl WireFrame) -> io::Result<()> {
        self.write(frame, &[], || {}).await
    }

    /// Whether something waits to be flushed.
    pub(crate) fn is_staged(&self) -> bool {
        !self.staged.is_empty()
    }

    /// Writes what was kept. Cancel safe: the next call goes on where this one was.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        while self.flushed < self.staged.len() {
            let written = self.stream.write(&self.staged[self.flushed..]).await?;
            self.take_flushed(written)?;
        }
        self.staged.clear();
        self.flushed = 0;
        self.stream.flush().await
    }

    /// Ends our direction of the connection.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// Writes what is staged and then `piece`, together as far as the stream can.
    async fn write_behind_staged(&mut self, mut piece: &[u8], moved: impl Fn()) -> io::Result<()> {
        while self.flushed < self.staged.len() {
            let staged = &self.staged[self.flushed..];
            let slices = [IoSlice::new(staged), IoSlice::new(piece)];
            let staged_bytes = staged.len();
            let written = self.stream.write_vectored(&slices).await?;
            self.take_flushed(written.min(staged_bytes))?;
            piece = &piece[written.saturating_sub(staged_bytes)..];
            moved();
        }
        self.staged.clear();
        self.flushed = 0;
        while !piece.is_empty() {
            let written = self.stream.write(piece).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            piece = &piece[written..];
            moved();
        }
        Ok(())
    }

    fn take_flushed(&mut self, written: usize) -> io::Result<()> {
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.flushed += written;
        Ok(())
    }
}

/// A frame whose payload is being written.
#[derive(Debug)]
#[must_use = "a frame has an end"]
pub(super) struct PayloadWriter<'a, W> {
    writer: &'a mut FrameWriter<W>,
    checksum: Option<u32>,
    payload_bytes: usize,
    written: usize,
}

impl<W: AsyncWrite + Unpin> PayloadWriter<'_, W> {
    /// Writes the next piece of the payload. Calls `moved` for each part of it, if the payload is large.
    ///
    /// Cancel safe only if it is not.
    pub(super) async fn write(&mut self, piece: &[u8], moved: impl Fn()) -> io::Result<()> {
        self.written += piece.len();
        if self.payload_bytes <= INLINE_BYTES_MAX {
            self.add(piece);
            self.writer.staged.extend_from_slice(piece);
            return Ok(());
        }
        let part_bytes = if self.checksum.is_some() { CHECKED_BYTES } else { piece.len().max(1) };
        for part in piece.chunks(part_bytes) {
            self.add(part);
            self.writer.write_behind_staged(part, &moved).await?;
        }
        Ok(())
    }

    /// Ends the frame, all of whose payload has been written.
    pub(super) async fn end(self) -> io::Result<()> {
        debug_assert_eq!(self.written, self.payload_bytes);
        if let Some(checksum) = self.checksum {
            self.writer.staged.extend_from_slice(&checksum.to_le_bytes());
        }
        // Afterwards, so that a frame is staged whole even if this is cancelled.
        if self.writer.staged.len() + INLINE_BYTES_MAX > BUFFER_BYTES {
            self.writer.flush().await?;
        }
        Ok(())
    }

    fn add(&mut self, part: &[u8]) {
        if let Some(checksum) = &mut self.checksum {
            *checksum = crc32c::crc32c_append(*checksum, part);
        }
    }
}

fn violation(error: DecodeError) -> Violation {
    Violation(error.to_string())
}

fn verify(computed: u32, trailer: [u8; TRAILER_BYTES]) -> Result<(), Violation> {
    let sent = u32::from_le_bytes(trailer);
    match computed == sent {
        true => Ok(()),
        false => Err(Violation(format!("checksum {computed:08x} of what arrived, {sent:08x} was sent"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_frames_are_written_together() {
        let mut writer = FrameWriter::new(Vec::new(), false);
        let mut all = Vec::new();
        for upto in 0..100 {
            let reply = Reply::Acknowledge { upto };
            reply.encode_into(&mut all);
            writer.write_bare(&reply).await.unwrap();
        }
        assert!(writer.stream.is_empty() && writer.is_staged());
        writer.flush().await.unwrap();
        assert!(writer.stream == all && !writer.is_staged());
    }

    #[tokio::test]
    async fn what_is_gathered_never_outgrows_its_buffer() {
        let mut writer = FrameWriter::new(Vec::new(), false);
        let allocated = writer.staged.capacity();
        for upto in 0..BUFFER_BYTES as u64 {
            writer.write_bare(&Reply::Acknowledge { upto }).await.unwrap();
        }
        assert!(writer.stream.len() > BUFFER_BYTES);
        assert_eq!(writer.staged.capacity(), allocated);
    }

    #[tokio::test]
    async fn discarding_leaves_nothing_unread_which_would_reset_the_connection() {
        let mut reader = FrameReader::new(&[7; 3 * BUFFER_BYTES][..], false);
        reader.discard().await.unwrap();
        assert!(reader.stream.is_empty());
    }
}

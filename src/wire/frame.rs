//! Framing, and the frames that follow the handshake on a tcp connection.
//!
//! One connection serves one directed edge. Items flow one way as [`Frame`]s, acknowledgements the
//! other way as [`Reply`]s. The two have no tag in common, so that a frame of the wrong direction
//! does not decode.
//!
//! # On the wire
//!
//! ```text
//! u32 LE   length of the body, 1 to 2048 bytes
//! ...      body: tag u8, then the fields in the order in which they are declared
//! ...      payload: behind an item whose metadata says so; exactly that many raw bytes
//! u32 LE   CRC32C over all of the above, where the handshake agreed on checksums
//! ```
//!
//! The length prefix counts the body alone. Payload and checksum belong to the transport, which
//! moves them without a copy; every frame has the checksum then, also one without a payload.
//! Handshake messages are framed alike, but never have a checksum.

use std::ops::Range;

use super::codec::{self, Message, Reader, Writer};
use super::error::DecodeError;
use super::metadata::Metadata;
use super::text::Text;

/// The longest body of a frame, in bytes.
pub const MAX_FRAME_BYTES: usize = 2048;

/// The length prefix of a frame, in bytes.
pub const PREFIX_BYTES: usize = size_of::<u32>();

/// Where the body of the first frame in `buffer` is, or None if more bytes are needed to tell.
/// The next frame, or this one's payload, begins at the range's end.
///
/// # Errors
/// [`DecodeError::FrameLength`] as soon as the length prefix is there, if it is zero or above
/// [`MAX_FRAME_BYTES`].
///
/// ```
/// use kvpipe::wire::frame::{Frame, frame_in};
///
/// let mut buffer = Vec::new();
/// Frame::Close { items: 3 }.encode_into(&mut buffer);
/// assert_eq!(frame_in(&buffer[..7])?, None);
///
/// let body = frame_in(&buffer)?.expect("all of it is here");
/// assert_eq!(Frame::decode(&buffer[body])?, Frame::Close { items: 3 });
/// # Ok::<(), kvpipe::wire::DecodeError>(())
/// ```
pub fn frame_in(buffer: &[u8]) -> Result<Option<Range<usize>>, DecodeError> {
    let Some(prefix) = buffer.first_chunk() else {
        return Ok(None);
    };
    let bytes = u32::from_le_bytes(*prefix);
    let limit = MAX_FRAME_BYTES as u32;
    if !(1..=limit).contains(&bytes) {
        return Err(DecodeError::FrameLength { bytes, limit });
    }
    let body = PREFIX_BYTES..PREFIX_BYTES + bytes as usize;
    Ok((body.end <= buffer.len()).then_some(body))
}

/// From the sender of items to their receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The next item; its payload follows the frame.
    Item {
        /// Its place in the order of this edge, from 0, across reconnections.
        sequence: u64,
        /// What it is.
        metadata: Metadata,
    },
    /// The sender has closed gracefully: there are no further items.
    Close {
        /// How many there were in all, so that a receiver can tell that none is missing.
        items: u64,
    },
    /// The sender gave up; what was not acknowledged is not coming.
    Abort {
        /// Why, for people.
        reason: Text,
    },
    /// A sign of life, sent when there was nothing else to send.
    Alive,
    /// The answer to [`Reply::Finished`]: both ends know now that the edge has ended well. Without
    /// it the receiver can't tell a sender that has heard from a connection that broke.
    Goodbye,
}

impl Frame {
    /// Appends the frame with its length prefix. Does not allocate if `out` has the room.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        encode_framed(self, out);
    }

    /// The frame whose body, without length prefix, is `body`.
    ///
    /// # Errors
    /// Whatever makes it another frame than [`encode_into`](Self::encode_into) writes.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        codec::decode(body)
    }
}

/// From the receiver of items to their sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Items have arrived.
    Acknowledge {
        /// Every item below this sequence is in the inbox.
        upto: u64,
    },
    /// The answer to [`Frame::Close`]: everything arrived, and the receiving user took it.
    Finished {
        /// How many items that were.
        taken: u64,
    },
    /// The receiving user closed before it had taken everything. All that the inbox held was
    /// acknowledged before.
    Closed {
        /// How many items it took, from the first of the edge.
        taken: u64,
    },
    /// The receiver gave up. All that its inbox holds was acknowledged before.
    Abort {
        /// Why, for people.
        reason: Text,
    },
    /// A sign of life, sent when there was nothing else to send.
    Alive,
}

impl Reply {
    /// Appends the frame with its length prefix. Does not allocate if `out` has the room.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        encode_framed(self, out);
    }

    /// The frame whose body, without length prefix, is `body`.
    ///
    /// # Errors
    /// Whatever makes it another frame than [`encode_into`](Self::encode_into) writes.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        codec::decode(body)
    }
}

/// Appends a length prefix and the message as the body behind it.
pub(super) fn encode_framed<M: Message>(message: &M, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    codec::encode_into(message, out);
    let body_bytes = out.len() - start - PREFIX_BYTES;
    // No message comes near the limit: their only parts of variable length are bounded by type.
    debug_assert!((1..=MAX_FRAME_BYTES).contains(&body_bytes), "a body of {body_bytes} bytes");
    out[start..start + PREFIX_BYTES].copy_from_slice(&(body_bytes as u32).to_le_bytes());
}

/// Tags on the wire. Replies have the high bit set.
mod tag {
    pub(super) const ITEM: u8 = 0x01;
    pub(super) const CLOSE: u8 = 0x02;
    pub(super) const ABORT: u8 = 0x03;
    pub(super) const ALIVE: u8 = 0x04;
    pub(super) const GOODBYE: u8 = 0x05;

    pub(super) const REPLY_ACKNOWLEDGE: u8 = 0x81;
    pub(super) const REPLY_FINISHED: u8 = 0x82;
    pub(super) const REPLY_CLOSED: u8 = 0x83;
    pub(super) const REPLY_ABORT: u8 = 0x84;
    pub(super) const REPLY_ALIVE: u8 = 0x85;
}

/// What errors call the text of both aborts.
const ABORT_REASON: &str = "reason of an abort";

impl Message for Frame {
    fn write(&self, out: &mut Writer<'_>) {
        match self {
            Self::Item { sequence, metadata } => {
                out.put(&tag::ITEM);
                out.put(sequence);
                metadata.write(out);
            }
            Self::Close { items } => {
                out.put(&tag::CLOSE);
                out.put(items);
            }
            Self::Abort { reason } => {
                out.put(&tag::ABORT);
                out.put(reason.as_str());
            }
            Self::Alive => out.put(&tag::ALIVE),
            Self::Goodbye => out.put(&tag::GOODBYE),
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match input.take()? {
            tag::ITEM => Self::Item { sequence: input.take()?, metadata: Metadata::read(input)? },
            tag::CLOSE => Self::Close { items: input.take()? },
            tag::ABORT => Self::Abort { reason: Text::read(ABORT_REASON, input)? },
            tag::ALIVE => Self::Alive,
            tag::GOODBYE => Self::Goodbye,
            found => return Err(DecodeError::UnknownTag { what: "frame tag", found: found.into() }),
        })
    }
}

impl Message for Reply {
    fn write(&self, out: &mut Writer<'_>) {
        match self {
            Self::Acknowledge { upto } => {
                out.put(&tag::REPLY_ACKNOWLEDGE);
                out.put(upto);
            }
            Self::Finished { taken } => {
                out.put(&tag::REPLY_FINISHED);
                out.put(taken);
            }
            Self::Closed { taken } => {
                out.put(&tag::REPLY_CLOSED);
                out.put(taken);
            }
            Self::Abort { reason } => {
                out.put(&tag::REPLY_ABORT);
                out.put(reason.as_str());
            }
            Self::Alive => out.put(&tag::REPLY_ALIVE),
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match input.take()? {
            tag::REPLY_ACKNOWLEDGE => Self::Acknowledge { upto: input.take()? },
            tag::REPLY_FINISHED => Self::Finished { taken: input.take()? },
            tag::REPLY_CLOSED => Self::Closed { taken: input.take()? },
            tag::REPLY_ABORT => Self::Abort { reason: Text::read(ABORT_REASON, input)? },
            tag::REPLY_ALIVE => Self::Alive,
            found => return Err(DecodeError::UnknownTag { what: "reply tag", found: found.into() }),
        })
    }
}

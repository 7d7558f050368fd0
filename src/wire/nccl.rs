//! The frames of an NCCL edge's control connection: those of [`frame`](super::frame), and two more.
//!
//! Payloads do not follow their items here: NCCL carries them beside the connection, once the receiver
//! has said that it is [ready](NcclReply::Ready). All else is as on a tcp connection, framing and
//! checksum included.
//!
//! ```text
//! sender                                              receiver
//!   ├── Join: by this id ──────────────────────────────▶│
//!   │         both form the communicator, and try it    │
//!   ├── Item 0, Item 1, …: as many as there are ────────▶│ reserves room, posts a receive
//!   │◀─────────────────────────────── Ready { upto: 1 } ─┤
//!   ╞══ payload of item 0, by NCCL ═════════════════════▶│ its event, then the inbox
//!   │◀─────────────────────────── Acknowledge { upto: 1 } ─┤
//! ```

use super::codec::{self, Message, Reader, Writer};
use super::error::DecodeError;
use super::frame::{Frame, Reply, encode_framed};
use super::object::UniqueId;

/// From the sender of items to their receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NcclFrame {
    /// The communicator of this edge, once, before anything else: the sender is its rank 0, the
    /// receiver its rank 1.
    Join {
        /// By which the two find each other.
        id: UniqueId,
    },
    /// What a tcp connection has as well; no payload follows.
    Edge(Frame),
}

/// From the receiver of items to their sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NcclReply {
    /// The payload of every item below `upto` has a place, and its receive is posted.
    Ready {
        /// The first item that has none yet.
        upto: u64,
    },
    /// What a tcp connection has as well.
    Edge(Reply),
}

/// Tags that [`frame`](super::frame) does not use.
mod tag {
    pub(super) const JOIN: u8 = 0x06;
    pub(super) const REPLY_READY: u8 = 0x86;
}

impl NcclFrame {
    /// Appends the frame with its length prefix. Does not allocate if `out` has the room.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        match self {
            Self::Join { id } => encode_framed(&Join(*id), out),
            Self::Edge(frame) => frame.encode_into(out),
        }
    }

    /// The frame whose body, without length prefix, is `body`.
    ///
    /// # Errors
    /// Whatever makes it another frame than [`encode_into`](Self::encode_into) writes.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        match body.first() {
            Some(&tag::JOIN) => codec::decode(body).map(|Join(id)| Self::Join { id }),
            _ => Frame::decode(body).map(Self::Edge),
        }
    }
}

impl NcclReply {
    /// Appends the frame with its length prefix. Does not allocate if `out` has the room.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ready { upto } => encode_framed(&Ready(*upto), out),
            Self::Edge(reply) => reply.encode_into(out),
        }
    }

    /// The frame whose body, without length prefix, is `body`.
    ///
    /// # Errors
    /// Whatever makes it another frame than [`encode_into`](Self::encode_into) writes.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        match body.first() {
            Some(&tag::REPLY_READY) => codec::decode(body).map(|Ready(upto)| Self::Ready { upto }),
            _ => Reply::decode(body).map(Self::Edge),
        }
    }
}

impl From<Frame> for NcclFrame {
    fn from(frame: Frame) -> Self {
        Self::Edge(frame)
    }
}

impl From<Reply> for NcclReply {
    fn from(reply: Reply) -> Self {
        Self::Edge(reply)
    }
}

struct Join(UniqueId);

impl Message for Join {
    fn write(&self, out: &mut Writer<'_>) {
        out.put(&tag::JOIN);
        out.put(&self.0.0);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match input.take()? {
            tag::JOIN => Ok(Self(UniqueId(input.take()?))),
            found => Err(DecodeError::UnknownTag { what: "frame tag", found: u8::into(found) }),
        }
    }
}

struct Ready(u64);

impl Message for Ready {
    fn write(&self, out: &mut Writer<'_>) {
        out.put(&tag::REPLY_READY);
        out.put(&self.0);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match input.take()? {
            tag::REPLY_READY => Ok(Self(input.take()?)),
            found => Err(DecodeError::UnknownTag { what: "reply tag", found: u8::into(found) }),
        }
    }
}

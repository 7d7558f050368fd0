//! The frames between two ranks of a process group.
//!
//! One connection serves one directed edge, as on the tcp transport, whose framing, handshake and
//! checksums these are. Messages go one way as [`GroupFrame`]s; the other way has signs of life and
//! aborts only, so that a rank can be told of a failure while it is in the middle of a long message.
//!
//! ```text
//! Begin { 7, all_reduce(sum) of float32 [1024] }   once for each operation that uses the edge
//! Part { 2048 bytes } ▓▓▓▓▓                        and then its messages, as many as the algorithm has
//! Part { 2048 bytes } ▓▓▓▓▓
//! ```
//!
//! What a rank calls is on the wire as words for people, with a digest of all of them: two calls agree
//! if they say the same. So a mismatch can be told in the words of both, at any rank.

use std::fmt;

use super::codec::{self, Message, Reader, Writer};
use super::error::DecodeError;
use super::frame::encode_framed;
use super::text::Text;

/// What a rank calls: the operation, and everything in which all ranks must agree.
///
/// ```
/// use kvpipe::wire::collective::Call;
///
/// let here = Call::new("all_reduce(sum) of float32 [4]");
/// assert_eq!(here, Call::new("all_reduce(sum) of float32 [4]"));
/// assert_ne!(here, Call::new("all_reduce(sum) of float32 [5]"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    words: Text,
    digest: u64,
}

impl Call {
    /// The call that `words` describe. What is too long to be sent is still compared.
    #[must_use]
    pub fn new(words: impl AsRef<str>) -> Self {
        let words = words.as_ref();
        Self { words: Text::from(words), digest: fnv1a(words.as_bytes()) }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.words.fmt(f)
    }
}

/// Fowler, Noll and Vo's hash (FNV-1a, 64 bits): finds out accidents, not attacks.
fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, step)
}

/// Along an edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupFrame {
    /// The sender has begun an operation, which all messages that follow belong to.
    Begin {
        /// How many operations of the whole group the sender has ended: the place of this one in their
        /// order, if it is one of them.
        operation: u64,
        /// For an operation between two ranks: its place in the order of those from the one to the other.
        pair: Option<u64>,
        /// What it is.
        call: Call,
    },
    /// The next message, whose payload follows the frame.
    Part {
        /// Its length.
        bytes: u64,
    },
    /// The sender gives the group up.
    Abort(Verdict),
    /// A sign of life, sent when there was nothing else to send.
    Alive,
    /// The sender has left the group, having finished what it began.
    Goodbye,
}

/// Against the edge, to the rank that sends along it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupReply {
    /// The receiver gives the group up.
    Abort(Verdict),
    /// A sign of life, sent when there was nothing else to send.
    Alive,
    /// The receiver has left the group, having finished what it began.
    Goodbye,
}

/// Why a group has failed, as its ranks tell each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Of what kind.
    pub fault: Fault,
    /// The rank that is at fault, or that found it out.
    pub rank: u32,
    /// In words.
    pub reason: Text,
}

/// The kinds of failures that ranks tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// Two ranks called different operations.
    Mismatch = 1,
    /// A rank is gone.
    Gone = 2,
    /// Anything else.
    Other = 3,
}

impl GroupFrame {
    /// Appends the frame with its length prefix.
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

impl GroupReply {
    /// Appends the frame with its length prefix.
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

/// Tags on the wire, none of them also one of [`frame`](super::frame). Replies have the high bit set.
mod tag {
    pub(super) const BEGIN: u8 = 0x11;
    pub(super) const PART: u8 = 0x12;
    pub(super) const ABORT: u8 = 0x13;
    pub(super) const ALIVE: u8 = 0x14;
    pub(super) const GOODBYE: u8 = 0x15;

    pub(super) const REPLY_ABORT: u8 = 0x93;
    pub(super) const REPLY_ALIVE: u8 = 0x94;
    pub(super) const REPLY_GOODBYE: u8 = 0x95;
}

impl Message for GroupFrame {
    fn write(&self, out: &mut Writer<'_>) {
        match self {
            Self::Begin { operation, pair, call } => {
                out.put(&tag::BEGIN);
                out.put(operation);
                out.put(pair);
                out.put(&call.digest);
                out.put(call.words.as_str());
            }
            Self::Part { bytes } => {
                out.put(&tag::PART);
                out.put(bytes);
            }
            Self::Abort(verdict) => {
                out.put(&tag::ABORT);
                verdict.write(out);
            }
            Self::Alive => out.put(&tag::ALIVE),
            Self::Goodbye => out.put(&tag::GOODBYE),
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match input.take()? {
            tag::BEGIN => {
                let (operation, pair, digest) = (input.take()?, input.take()?, input.take()?);
                let words = Text::read("call", input)?;
                Self::Begin { operation, pair, call: Call { words, digest } }
            }
            tag::PART => Self::Part { bytes: input.take()? },
            tag::ABORT => Self::Abort(Verdict::read(input)?),
            tag::ALIVE => Self::Alive,
            tag::GOODBYE => Self::Goodbye,
            found => return Err(DecodeError::UnknownTag { what: "frame tag", found: u8::into(found) }),
        })
    }
}

impl Message for GroupReply {
    fn write(&self, out: &mut Writer<'_>) {
        match self {
            Self::Abort(verdict) => {
                out.put(&tag::REPLY_ABORT);
                verdict.write(out);
            }
            Self::Alive => out.put(&tag::REPLY_ALIVE),
            Self::Goodbye => out.put(&tag::REPLY_GOODBYE),
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match input.take()? {
            tag::REPLY_ABORT => Self::Abort(Verdict::read(input)?),
            tag::REPLY_ALIVE => Self::Alive,
            tag::REPLY_GOODBYE => Self::Goodbye,
            found => return Err(DecodeError::UnknownTag { what: "reply tag", found: u8::into(found) }),
        })
    }
}

impl Message for Verdict {
    fn write(&self, out: &mut Writer<'_>) {
        out.put(&(self.fault as u8));
        out.put(&self.rank);
        out.put(self.reason.as_str());
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let fault = match input.take()? {
            1 => Fault::Mismatch,
            2 => Fault::Gone,
            3 => Fault::Other,
            found => return Err(DecodeError::UnknownTag { what: "fault", found: u8::into(found) }),
        };
        Ok(Self { fault, rank: input.take()?, reason: Text::read("reason of an abort", input)? })
    }
}

//! Why bytes were refused.

use std::io;

use crate::error::{Error, Link};

/// Why bytes are not a message.
///
/// One lower-case line each, which names the field, what was found and the limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end inside a field. Framing makes sure that a message is whole before it is
    /// decoded, so more bytes are not to be waited for.
    #[error("the message is truncated")]
    Truncated,

    /// Bytes are left behind the last field.
    #[error("{count} trailing bytes after the message")]
    TrailingBytes {
        /// How many.
        count: usize,
    },

    /// The input is longer than any message; none of it was read.
    #[error("a message of {bytes} bytes is over the limit of {limit} bytes")]
    MessageTooLong {
        /// The input's length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },

    /// The length prefix of a frame is zero, or above the limit.
    #[error("a frame length of {bytes} bytes is not within 1 to {limit} bytes")]
    FrameLength {
        /// What the prefix says.
        bytes: u32,
        /// The limit.
        limit: u32,
    },

    /// The connection does not begin with kvpipe's magic: the other end is something else.
    #[error("the first bytes \"{}\" are not kvpipe's", found.escape_ascii())]
    Magic {
        /// What it began with, 8 bytes at most.
        found: Vec<u8>,
    },

    /// A version that this build does not speak.
    #[error("{what} version {found} is not supported, only version {supported}")]
    Version {
        /// Of what.
        what: &'static str,
        /// The version found.
        found: u16,
        /// The only version that is understood.
        supported: u16,
    },

    /// A byte that chooses between alternatives has none of the known values.
    #[error("unknown {what} {found}")]
    UnknownTag {
        /// What the byte chooses.
        what: &'static str,
        /// Its value.
        found: u32,
    },

    /// A dtype code that this build does not know.
    #[error("unknown dtype code {code}")]
    UnknownDType {
        /// The code.
        code: u8,
    },

    /// More dimensions than a shape may have.
    #[error("{count} dimensions are over the limit of {limit}")]
    TooManyDimensions {
        /// How many.
        count: usize,
        /// The limit.
        limit: usize,
    },

    /// A shape whose elements or bytes can't be counted on this machine.
    #[error("impossible shape: {0}")]
    Shape(String),

    /// Dtype and shape say one payload length, the length field another.
    #[error(
        "a payload length of {declared} bytes does not agree with dtype and shape, which take {computed} bytes"
    )]
    PayloadLength {
        /// What the length field says.
        declared: u64,
        /// What dtype and shape need.
        computed: u64,
    },

    /// A text longer than its field allows.
    #[error("a {what} of {bytes} bytes is over the limit of {limit} bytes")]
    TextTooLong {
        /// Which text.
        what: &'static str,
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: usize,
    },

    /// A text that is not UTF-8.
    #[error("the {what} is not valid utf-8")]
    NotUtf8 {
        /// Which text.
        what: &'static str,
    },

    /// A control character, such as a line break or an escape sequence for terminals, in a text.
    #[error("the {what} contains the control character {found:?}")]
    ControlCharacter {
        /// Which text.
        what: &'static str,
        /// The first one.
        found: char,
    },

    /// An operation of a pickle that is not allowed, or not where it stands.
    #[error("opcode {opcode:#04x} at offset {offset} of the pickle: {fault}")]
    Pickle {
        /// Where it is, in bytes from the beginning of the message.
        offset: usize,
        /// Its code.
        opcode: u8,
        /// What is wrong.
        fault: String,
    },

    /// A tensor that takes more bytes, once it is contiguous, than the reader has for it.
    #[error("a tensor of {bytes} bytes is over the limit of {limit} bytes")]
    TensorTooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },

    /// There is no memory for the contiguous copy of a tensor within the limit.
    #[error("no memory for a tensor of {bytes} bytes")]
    OutOfMemory {
        /// Its length.
        bytes: usize,
    },

    /// Anything else that the codec refuses.
    #[error("malformed: {0}")]
    Malformed(String),
}

impl DecodeError {
    /// The public error for a message that came over `link`: a version that differs is nobody's
    /// fault, a lack of memory this machine's, everything else is the peer's.
    #[must_use]
    pub fn into_error(self, link: Link) -> Error {
        match self {
            Self::Version { .. } => Error::PeerIncompatible { link, mismatch: self.to_string() },
            Self::OutOfMemory { .. } => {
                Error::io(format!("{link}: {self}"), io::ErrorKind::OutOfMemory.into())
            }
            _ => Error::PeerMisbehaved { link, violation: self.to_string() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_differs_is_nobodys_fault_and_a_lack_of_memory_this_machines() {
        let link = || Link::new(0, 1);
        let version = DecodeError::Version { what: "handshake", found: 2, supported: 1 };
        assert!(matches!(version.into_error(link()), Error::PeerIncompatible { .. }));
        let memory = DecodeError::OutOfMemory { bytes: 9 };
        assert!(matches!(memory.into_error(link()), Error::Io { .. }));
        assert!(matches!(DecodeError::Truncated.into_error(link()), Error::PeerMisbehaved { .. }));
    }

    #[test]
    fn a_stranger_is_named_by_its_first_bytes_on_one_line() {
        let stranger = DecodeError::Magic { found: b"GET /\r\n".to_vec() };
        assert_eq!(stranger.to_string(), r#"the first bytes "GET /\r\n" are not kvpipe's"#);
    }
}

//! What a client asks.

use bytes::{Bytes, BytesMut};

use super::pieces::Output;
use super::protocol::opcode;
use super::reply::Expected;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// The first request of a connection.
    Validate {
        /// [`MAGIC`](super::protocol::MAGIC), from a client that speaks this protocol.
        magic: u32,
    },
    /// Is anybody there?
    Ping {
        /// What the reply repeats.
        nonce: u32,
    },
    /// Store a value.
    Set {
        /// Under which key.
        key: Bytes,
        /// Any bytes.
        value: Bytes,
    },
    /// Give a value.
    Get {
        /// Of which key; it must be there.
        key: Bytes,
    },
    /// Add to a decimal number.
    Add {
        /// Under which key; a missing one is 0.
        key: Bytes,
        /// How much.
        delta: i64,
    },
    /// Are all keys there?
    Check {
        /// Which.
        keys: Vec<Bytes>,
    },
    /// Answer when all keys have come.
    Wait {
        /// Which.
        keys: Vec<Bytes>,
    },
    /// Forget the pending WAIT.
    CancelWait,
    /// Delete a key.
    DeleteKey {
        /// Which.
        key: Bytes,
    },
    /// Put a value behind the one that is there.
    Append {
        /// Under which key.
        key: Bytes,
        /// What is put behind.
        value: Bytes,
    },
    /// Store a value if another is there.
    CompareSet {
        /// Under which key.
        key: Bytes,
        /// The value that must be there; empty for none.
        expected: Bytes,
        /// The value to store.
        desired: Bytes,
    },
    /// Give several values.
    MultiGet {
        /// Of which keys; all must be there.
        keys: Vec<Bytes>,
    },
    /// Store several values.
    MultiSet {
        /// Keys and values.
        pairs: Vec<(Bytes, Bytes)>,
    },
    /// How many keys are there?
    NumKeys,
    /// Which keys are there?
    ListKeys,
    /// Put a value at the end of a queue.
    QueuePush {
        /// Which queue.
        key: Bytes,
        /// Any bytes.
        value: Bytes,
    },
    /// Take the first value out of a queue.
    QueuePop {
        /// Which queue.
        key: Bytes,
    },
    /// How many values has a queue?
    QueueLen {
        /// Which queue.
        key: Bytes,
    },
    /// Answer when so many have arrived here.
    Barrier {
        /// Where they are counted.
        key: Bytes,
        /// How many.
        world_size: i64,
    },
}

impl Request {
    /// Appends the request to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        self.encode_to(out);
    }

    pub(super) fn encode_to(&self, out: &mut impl Output) {
        match self {
            Self::Validate { magic } => {
                out.put(&[opcode::VALIDATE]);
                out.put(&magic.to_le_bytes());
            }
            Self::Ping { nonce } => {
                out.put(&[opcode::PING]);
                out.put(&nonce.to_le_bytes());
            }
            Self::Set { key, value } => put_request(out, opcode::SET, [key, value]),
            Self::Get { key } => put_request(out, opcode::GET, [key]),
            Self::Add { key, delta } => {
                put_request(out, opcode::ADD, [key]);
                out.put(&delta.to_le_bytes());
            }
            Self::Check { keys } => put_list(out, opcode::CHECK, keys.len(), keys),
            Self::Wait { keys } => put_list(out, opcode::WAIT, keys.len(), keys),
            Self::CancelWait => out.put(&[opcode::CANCEL_WAIT]),
            Self::DeleteKey { key } => put_request(out, opcode::DELETE_KEY, [key]),
            Self::Append { key, value } => put_request(out, opcode::APPEND, [key, value]),
            Self::CompareSet { key, expected, desired } => {
                put_request(out, opcode::COMPARE_SET, [key, expected, desired]);
            }
            Self::MultiGet { keys } => put_list(out, opcode::MULTI_GET, keys.len(), keys),
            Self::MultiSet { pairs } => {
                let blobs = pairs.iter().flat_map(|(key, value)| [key, value]);
                put_list(out, opcode::MULTI_SET, pairs.len(), blobs);
            }
            Self::NumKeys => out.put(&[opcode::NUM_KEYS]),
            Self::ListKeys => out.put(&[opcode::LIST_KEYS]),
            Self::QueuePush { key, value } => put_request(out, opcode::QUEUE_PUSH, [key, value]),
            Self::QueuePop { key } => put_request(out, opcode::QUEUE_POP, [key]),
            Self::QueueLen { key } => put_request(out, opcode::QUEUE_LEN, [key]),
            Self::Barrier { key, world_size } => {
                put_request(out, opcode::BARRIER, [key]);
                out.put(&world_size.to_le_bytes());
            }
        }
    }

    /// Its name in the protocol.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Validate { .. } => "VALIDATE",
            Self::Ping { .. } => "PING",
            Self::Set { .. } => "SET",
            Self::Get { .. } => "GET",
            Self::Add { .. } => "ADD",
            Self::Check { .. } => "CHECK",
            Self::Wait { .. } => "WAIT",
            Self::CancelWait => "CANCEL_WAIT",
            Self::DeleteKey { .. } => "DELETE_KEY",
            Self::Append { .. } => "APPEND",
            Self::CompareSet { .. } => "COMPARE_SET",
            Self::MultiGet { .. } => "MULTI_GET",
            Self::MultiSet { .. } => "MULTI_SET",
            Self::NumKeys => "GETNUMKEYS",
            Self::ListKeys => "LIST_KEYS",
            Self::QueuePush { .. } => "QUEUE_PUSH",
            Self::QueuePop { .. } => "QUEUE_POP",
            Self::QueueLen { .. } => "QUEUE_LEN",
            Self::Barrier { .. } => "BARRIER",
        }
    }

    /// The reply that it has, if it has one.
    pub(super) fn expected(&self) -> Option<Expected> {
        Some(match self {
            Self::Validate { .. } | Self::Set { .. } | Self::Append { .. } => return None,
            Self::MultiSet { .. } | Self::QueuePush { .. } => return None,
            Self::Ping { .. } => Expected::Pong,
            Self::Get { .. } | Self::CompareSet { .. } => Expected::Value,
            Self::MultiGet { keys } => Expected::Values(keys.len()),
            Self::Add { .. } | Self::DeleteKey { .. } | Self::NumKeys | Self::QueueLen { .. } => {
                Expected::Number
            }
            Self::Check { .. } => Expected::Readiness,
            Self::Wait { .. } | Self::Barrier { .. } | Self::CancelWait => Expected::Wait,
            Self::QueuePop { .. } => Expected::Popped,
            Self::ListKeys => Expected::Keys,
        })
    }

    /// It may be sent again if nobody knows whether it arrived.
    pub(super) fn changes_nothing(&self) -> bool {
        matches!(
            self,
            Self::Get { .. }
                | Self::MultiGet { .. }
                | Self::Check { .. }
                | Self::Wait { .. }
                | Self::NumKeys
                | Self::ListKeys
                | Self::QueueLen { .. }
        )
    }

    /// Which servers know it, if not all do (release headers of torch 2.1 to 2.15).
    pub(super) fn known_to(&self) -> Option<&'static str> {
        match self {
            Self::QueuePush { .. } | Self::QueuePop { .. } | Self::QueueLen { .. } => {
                Some("kvpipe's, and PyTorch's libuv server since torch 2.8")
            }
            Self::ListKeys => Some("kvpipe's, and PyTorch's since torch 2.10"),
            Self::Barrier { .. } => Some("kvpipe's, and PyTorch's since torch 2.12"),
            _ => None,
        }
    }
}

fn put_request<const N: usize>(out: &mut impl Output, opcode: u8, blobs: [&Bytes; N]) {
    out.put(&[opcode]);
    blobs.into_iter().for_each(|blob| put_blob(out, blob));
}

fn put_list<'a>(out: &mut impl Output, opcode: u8, count: usize, blobs: impl IntoIterator<Item = &'a Bytes>) {
    out.put(&[opcode]);
    out.put(&(count as u64).to_le_bytes());
    blobs.into_iter().for_each(|blob| put_blob(out, blob));
}

/// A length, and so many bytes.
pub(super) fn put_blob(out: &mut impl Output, bytes: &Bytes) {
    out.put(&(bytes.len() as u64).to_le_bytes());
    out.put_value(bytes);
}

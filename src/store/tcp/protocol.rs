//! TCPStore's requests and replies as bytes: pure, incremental, bounded.
//!
//! A request is an opcode and its fields, one after another; there is no frame around it. Numbers are
//! little-endian, strings and bytes have a `u64` length in front. Replies come in the order of the
//! requests and carry no opcode: what a reply means depends on what was asked. (torch 2.5 to 2.15,
//! `TCPStoreBackend.hpp`; observed with 2.8 and 2.15. VALIDATE and SET have no reply.)
//!
//! | opcode | request | fields | reply |
//! |---|---|---|---|
//! | 0 | VALIDATE | u32 magic | none |
//! | 1 | SET | key, value | none |
//! | 3 | GET | key | value |
//! | 4 | ADD | key, i64 delta | i64 sum |
//! | 5 | CHECK | u64 count, keys | u8: 0 ready, 1 not |
//! | 6 | WAIT | u64 count, keys | u8: 0 stop waiting, possibly much later |
//! | 8 | DELETE_KEY | key | i64: 1 deleted, 0 was not there |
//! | 12 | CANCEL_WAIT | | u8: 1 wait cancelled |
//! | 13 | PING | u32 nonce | u32 the same |

use bytes::{BufMut, Bytes, BytesMut};

pub use super::parser::{Expected, ReplyParser, RequestParser};

/// What the first request of a connection carries, so that strangers are noticed. It is a check
/// against mistakes and no authentication.
pub const MAGIC: u32 = 0x3C85_F7CE;

pub(super) mod opcode {
    pub(in crate::store::tcp) const VALIDATE: u8 = 0;
    pub(in crate::store::tcp) const SET: u8 = 1;
    pub(in crate::store::tcp) const GET: u8 = 3;
    pub(in crate::store::tcp) const ADD: u8 = 4;
    pub(in crate::store::tcp) const CHECK: u8 = 5;
    pub(in crate::store::tcp) const WAIT: u8 = 6;
    pub(in crate::store::tcp) const DELETE_KEY: u8 = 8;
    pub(in crate::store::tcp) const CANCEL_WAIT: u8 = 12;
    pub(in crate::store::tcp) const PING: u8 = 13;
}

/// Bytes that are not TCPStore's protocol, or more than the limits allow. Nothing that comes after
/// them on the same connection has a meaning.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A request begins with a byte that is no opcode.
    #[error("unknown opcode {0}")]
    UnknownOpcode(u8),
    /// A length is over its limit.
    #[error("a {what} of {length} bytes is over the limit of {limit} bytes")]
    TooLong {
        /// Which field.
        what: &'static str,
        /// Its declared length in bytes.
        length: u64,
        /// The limit in bytes.
        limit: usize,
    },
    /// A CHECK or WAIT names too many keys.
    #[error("{count} keys in one request are over the limit of {limit}")]
    TooManyKeys {
        /// The declared count.
        count: u64,
        /// The limit.
        limit: usize,
    },
    /// A reply is none that the request can have.
    #[error("the reply to {request} is {reply}, which it can't be")]
    WrongReply {
        /// The request.
        request: &'static str,
        /// What came.
        reply: String,
    },
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// The first request of a connection.
    Validate {
        /// [`MAGIC`], from a client that speaks this protocol.
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
}

impl Request {
    /// Appends the request to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        let value = self.encode_up_to_value(out);
        out.put_slice(value);
    }

    /// As [`encode`](Self::encode), without copying a value, which may be large: gives what goes on the
    /// wire right after `out`, nothing for most.
    #[must_use = "the value goes on the wire, too"]
    pub fn encode_up_to_value(&self, out: &mut BytesMut) -> &[u8] {
        match self {
            Self::Validate { magic } => {
                out.put_u8(opcode::VALIDATE);
                out.put_u32_le(*magic);
            }
            Self::Ping { nonce } => {
                out.put_u8(opcode::PING);
                out.put_u32_le(*nonce);
            }
            Self::Set { key, value } => {
                out.put_u8(opcode::SET);
                put_blob(out, key);
                out.put_u64_le(value.len() as u64);
                return value;
            }
            Self::Get { key } => {
                out.put_u8(opcode::GET);
                put_blob(out, key);
            }
            Self::Add { key, delta } => {
                out.put_u8(opcode::ADD);
                put_blob(out, key);
                out.put_i64_le(*delta);
            }
            Self::Check { keys } => {
                out.put_u8(opcode::CHECK);
                put_keys(out, keys);
            }
            Self::Wait { keys } => {
                out.put_u8(opcode::WAIT);
                put_keys(out, keys);
            }
            Self::CancelWait => out.put_u8(opcode::CANCEL_WAIT),
            Self::DeleteKey { key } => {
                out.put_u8(opcode::DELETE_KEY);
                put_blob(out, key);
            }
        }
        &[]
    }
}

fn put_blob(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u64_le(bytes.len() as u64);
    out.put_slice(bytes);
}

fn put_keys(out: &mut BytesMut, keys: &[Bytes]) {
    out.put_u64_le(keys.len() as u64);
    keys.iter().for_each(|key| put_blob(out, key));
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// To PING: its nonce.
    Pong(u32),
    /// To GET.
    Value(Bytes),
    /// To ADD: the sum. To DELETE_KEY: 1 for deleted, 0 for was not there.
    Number(i64),
    /// To CHECK: all keys are there.
    Ready,
    /// To CHECK: not all are.
    NotReady,
    /// To WAIT, once all keys have come.
    StopWaiting,
    /// To CANCEL_WAIT, always.
    WaitCanceled,
}

impl Reply {
    /// Appends the reply to `out`, except for a value, which may be large: gives what goes on the wire
    /// right after `out`, nothing for most.
    #[must_use = "the value goes on the wire, too"]
    pub fn encode_up_to_value(&self, out: &mut BytesMut) -> &[u8] {
        match self {
            Self::Pong(nonce) => out.put_u32_le(*nonce),
            Self::Value(value) => {
                out.put_u64_le(value.len() as u64);
                return value;
            }
            Self::Number(number) => out.put_i64_le(*number),
            Self::Ready => out.put_u8(READY),
            Self::NotReady => out.put_u8(NOT_READY),
            Self::StopWaiting => out.put_u8(STOP_WAITING),
            Self::WaitCanceled => out.put_u8(WAIT_CANCELED),
        }
        &[]
    }

    /// How many bytes it has on the wire.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        match self {
            Self::Pong(_) => 4,
            Self::Value(value) => 8 + value.len(),
            Self::Number(_) => 8,
            Self::Ready | Self::NotReady | Self::StopWaiting | Self::WaitCanceled => 1,
        }
    }
}

pub(super) const READY: u8 = 0;
pub(super) const NOT_READY: u8 = 1;
pub(super) const STOP_WAITING: u8 = 0;
pub(super) const WAIT_CANCELED: u8 = 1;

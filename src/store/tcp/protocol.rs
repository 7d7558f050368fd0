//! TCPStore's requests and replies as bytes: pure, incremental, bounded.
//!
//! A request is an opcode and its fields, one after another; there is no frame around it. Numbers are
//! little-endian, strings and bytes have a `u64` length in front. Replies come in the order of the
//! requests and carry no opcode: what a reply means depends on what was asked. (torch 2.5 to 2.15,
//! `TCPStoreBackend.hpp`; observed with 2.8 and 2.15.)
//!
//! | opcode | request | fields | reply | since torch |
//! |---|---|---|---|---|
//! | 0 | VALIDATE | u32 magic | none | 2.2 |
//! | 1 | SET | key, value | none | 2.2 |
//! | 2 | COMPARE_SET | key, expected, desired | value, see [`Store::compare_set`] | 2.2 |
//! | 3 | GET | key | value | 2.2 |
//! | 4 | ADD | key, i64 delta | i64 sum | 2.2 |
//! | 5 | CHECK | u64 count, keys | u8: 0 ready, 1 not | 2.2 |
//! | 6 | WAIT | u64 count, keys | u8: 0 stop waiting, possibly much later | 2.2 |
//! | 7 | GETNUMKEYS | | i64 | 2.2 |
//! | 8 | DELETE_KEY | key | i64: 1 deleted, 0 was not there | 2.2 |
//! | 9 | APPEND | key, value | none | 2.2 |
//! | 10 | MULTI_GET | u64 count, keys | as many values, without a count | 2.2 |
//! | 11 | MULTI_SET | u64 count, as many times key, value | none | 2.2 |
//! | 12 | CANCEL_WAIT | | u8: 1 wait cancelled | 2.2 |
//! | 13 | PING | u32 nonce | u32 the same | 2.5 |
//! | 14 | QUEUE_PUSH | key, value | none | 2.8, libuv |
//! | 15 | QUEUE_POP | key | i64 length before, and if that is not 0 the value | 2.8, libuv |
//! | 16 | QUEUE_LEN | key | i64 | 2.8, libuv |
//! | 17 | LIST_KEYS | | i64 count, keys | 2.10 |
//! | 18 | BARRIER | key, i64 world size | u8: 0 stop waiting, possibly much later | 2.12 |
//!
//! [`Store::compare_set`]: crate::store::Store::compare_set

pub use super::parser::RequestParser;
pub use super::reply::{Expected, Reply};
pub use super::reply_parser::ReplyParser;
pub use super::request::Request;

/// What the first request of a connection carries, so that strangers are noticed. It is a check
/// against mistakes and no authentication.
pub const MAGIC: u32 = 0x3C85_F7CE;

pub(super) mod opcode {
    pub(in crate::store::tcp) const VALIDATE: u8 = 0;
    pub(in crate::store::tcp) const SET: u8 = 1;
    pub(in crate::store::tcp) const COMPARE_SET: u8 = 2;
    pub(in crate::store::tcp) const GET: u8 = 3;
    pub(in crate::store::tcp) const ADD: u8 = 4;
    pub(in crate::store::tcp) const CHECK: u8 = 5;
    pub(in crate::store::tcp) const WAIT: u8 = 6;
    pub(in crate::store::tcp) const NUM_KEYS: u8 = 7;
    pub(in crate::store::tcp) const DELETE_KEY: u8 = 8;
    pub(in crate::store::tcp) const APPEND: u8 = 9;
    pub(in crate::store::tcp) const MULTI_GET: u8 = 10;
    pub(in crate::store::tcp) const MULTI_SET: u8 = 11;
    pub(in crate::store::tcp) const CANCEL_WAIT: u8 = 12;
    pub(in crate::store::tcp) const PING: u8 = 13;
    pub(in crate::store::tcp) const QUEUE_PUSH: u8 = 14;
    pub(in crate::store::tcp) const QUEUE_POP: u8 = 15;
    pub(in crate::store::tcp) const QUEUE_LEN: u8 = 16;
    pub(in crate::store::tcp) const LIST_KEYS: u8 = 17;
    pub(in crate::store::tcp) const BARRIER: u8 = 18;
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
    /// A request or a reply has too many keys.
    #[error("{count} keys in one message are over the limit of {limit}")]
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

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

use super::fields::{Blob, Number};
use crate::store::Limits;

/// What the first request of a connection carries, so that strangers are noticed. It is a check
/// against mistakes and no authentication.
pub const MAGIC: u32 = 0x3C85_F7CE;

mod opcode {
    pub(super) const VALIDATE: u8 = 0;
    pub(super) const SET: u8 = 1;
    pub(super) const GET: u8 = 3;
    pub(super) const ADD: u8 = 4;
    pub(super) const CHECK: u8 = 5;
    pub(super) const WAIT: u8 = 6;
    pub(super) const DELETE_KEY: u8 = 8;
    pub(super) const CANCEL_WAIT: u8 = 12;
    pub(super) const PING: u8 = 13;
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

const READY: u8 = 0;
const NOT_READY: u8 = 1;
const STOP_WAITING: u8 = 0;
const WAIT_CANCELED: u8 = 1;

/// What a reply's first byte means depends on the request it answers; this says which that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expected {
    /// A reply to PING.
    Pong,
    /// A reply to GET.
    Value,
    /// A reply to ADD or DELETE_KEY.
    Number,
    /// A reply to CHECK.
    Readiness,
    /// A reply to WAIT or CANCEL_WAIT.
    Wait,
}

/// Reads one reply from bytes that come in any pieces.
#[derive(Debug)]
pub struct ReplyParser {
    value_bytes_limit: usize,
    stage: ReplyStage,
}

#[derive(Debug)]
enum ReplyStage {
    Pong(Number<4>),
    Value(Blob),
    Number(Number<8>),
    Readiness(Number<1>),
    Wait(Number<1>),
}

impl ReplyParser {
    /// A parser for one reply. Of `limits` only that of values matters.
    #[must_use]
    pub fn new(expected: Expected, limits: &Limits) -> Self {
        let stage = match expected {
            Expected::Pong => ReplyStage::Pong(Number::default()),
            Expected::Value => ReplyStage::Value(Blob::default()),
            Expected::Number => ReplyStage::Number(Number::default()),
            Expected::Readiness => ReplyStage::Readiness(Number::default()),
            Expected::Wait => ReplyStage::Wait(Number::default()),
        };
        Self { value_bytes_limit: limits.value_bytes, stage }
    }

    /// Takes bytes off the front of `input`, and none after the reply's last. `None`: call again with
    /// more. After a reply or an error the parser has done its work.
    ///
    /// # Errors
    /// [`ProtocolError::TooLong`] and [`ProtocolError::WrongReply`].
    pub fn parse(&mut self, input: &mut &[u8]) -> Result<Option<Reply>, ProtocolError> {
        let wrong = |request, byte: u8| ProtocolError::WrongReply { request, reply: format!("{byte:#04x}") };
        Ok(match &mut self.stage {
            ReplyStage::Pong(nonce) => nonce.take(input).map(|bytes| Reply::Pong(u32::from_le_bytes(bytes))),
            ReplyStage::Value(value) => value.take(input, "value", self.value_bytes_limit)?.map(Reply::Value),
            ReplyStage::Number(number) => {
                number.take(input).map(|bytes| Reply::Number(i64::from_le_bytes(bytes)))
            }
            ReplyStage::Readiness(byte) => match byte.take(input) {
                None => None,
                Some([READY]) => Some(Reply::Ready),
                Some([NOT_READY]) => Some(Reply::NotReady),
                Some([byte]) => return Err(wrong("CHECK", byte)),
            },
            ReplyStage::Wait(byte) => match byte.take(input) {
                None => None,
                Some([STOP_WAITING]) => Some(Reply::StopWaiting),
                Some([WAIT_CANCELED]) => Some(Reply::WaitCanceled),
                Some([byte]) => return Err(wrong("WAIT", byte)),
            },
        })
    }
}

/// Reads requests from bytes that come in any pieces, in time linear in the bytes.
#[derive(Debug)]
pub struct RequestParser {
    limits: Limits,
    stage: Stage,
}

/// Where in a request the parser is, with what it has of it.
#[derive(Debug, Default)]
enum Stage {
    #[default]
    Opcode,
    Magic(Number<4>),
    Nonce(Number<4>),
    Key(KeyOperation, Blob),
    SetValue(Bytes, Blob),
    AddDelta(Bytes, Number<8>),
    KeyCount(KeysOperation, Number<8>),
    Keys(KeysOperation, KeyList),
}

/// Requests that begin with one key.
#[derive(Clone, Copy, Debug)]
enum KeyOperation {
    Set,
    Get,
    Add,
    Delete,
}

/// Requests that have a list of keys.
#[derive(Clone, Copy, Debug)]
enum KeysOperation {
    Check,
    Wait,
}

impl KeysOperation {
    fn request(self, keys: Vec<Bytes>) -> Request {
        match self {
            Self::Check => Request::Check { keys },
            Self::Wait => Request::Wait { keys },
        }
    }
}

enum Step {
    /// The input is used up.
    More(Stage),
    Next(Stage),
    Done(Request),
}

impl RequestParser {
    /// A parser at the beginning of a connection.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, stage: Stage::Opcode }
    }

    /// Takes bytes off the front of `input` up to the end of the next request. `None`: `input` is used
    /// up, call again with more. Call it until it gives `None`: one input may hold many requests.
    ///
    /// # Errors
    /// A [`ProtocolError`], after which the connection has no meaning.
    pub fn parse(&mut self, input: &mut &[u8]) -> Result<Option<Request>, ProtocolError> {
        loop {
            match std::mem::take(&mut self.stage).step(input, &self.limits)? {
                Step::Next(stage) => self.stage = stage,
                Step::Done(request) => return Ok(Some(request)),
                Step::More(stage) => {
                    self.stage = stage;
                    return Ok(None);
                }
            }
        }
    }
}

impl Stage {
    fn step(self, input: &mut &[u8], limits: &Limits) -> Result<Step, ProtocolError> {
        Ok(match self {
            Self::Opcode => {
                let Some((opcode, rest)) = input.split_first() else { return Ok(Step::More(self)) };
                *input = rest;
                Self::after_opcode(*opcode)?
            }
            Self::Magic(mut magic) => match magic.take(input) {
                None => Step::More(Self::Magic(magic)),
                Some(bytes) => Step::Done(Request::Validate { magic: u32::from_le_bytes(bytes) }),
            },
            Self::Nonce(mut nonce) => match nonce.take(input) {
                None => Step::More(Self::Nonce(nonce)),
                Some(bytes) => Step::Done(Request::Ping { nonce: u32::from_le_bytes(bytes) }),
            },
            Self::Key(operation, mut blob) => match blob.take(input, "key", limits.key_bytes)? {
                None => Step::More(Self::Key(operation, blob)),
                Some(key) => Self::after_key(operation, key),
            },
            Self::SetValue(key, mut blob) => match blob.take(input, "value", limits.value_bytes)? {
                None => Step::More(Self::SetValue(key, blob)),
                Some(value) => Step::Done(Request::Set { key, value }),
            },
            Self::AddDelta(key, mut delta) => match delta.take(input) {
                None => Step::More(Self::AddDelta(key, delta)),
                Some(bytes) => Step::Done(Request::Add { key, delta: i64::from_le_bytes(bytes) }),
            },
            Self::KeyCount(operation, mut count) => match count.take(input) {
                None => Step::More(Self::KeyCount(operation, count)),
                Some(bytes) => {
                    let keys = KeyList::new(u64::from_le_bytes(bytes), limits)?;
                    Step::Next(Self::Keys(operation, keys))
                }
            },
            Self::Keys(operation, mut list) => match list.take(input, limits)? {
                None => Step::More(Self::Keys(operation, list)),
                Some(keys) => Step::Done(operation.request(keys)),
            },
        })
    }

    fn after_opcode(opcode: u8) -> Result<Step, ProtocolError> {
        let key = |operation| Step::Next(Self::Key(operation, Blob::default()));
        let keys = |operation| Step::Next(Self::KeyCount(operation, Number::default()));
        Ok(match opcode {
            opcode::VALIDATE => Step::Next(Self::Magic(Number::default())),
            opcode::PING => Step::Next(Self::Nonce(Number::default())),
            opcode::SET => key(KeyOperation::Set),
            opcode::GET => key(KeyOperation::Get),
            opcode::ADD => key(KeyOperation::Add),
            opcode::DELETE_KEY => key(KeyOperation::Delete),
            opcode::CHECK => keys(KeysOperation::Check),
            opcode::WAIT => keys(KeysOperation::Wait),
            opcode::CANCEL_WAIT => Step::Done(Request::CancelWait),
            unknown => return Err(ProtocolError::UnknownOpcode(unknown)),
        })
    }

    fn after_key(operation: KeyOperation, key: Bytes) -> Step {
        match operation {
            KeyOperation::Set => Step::Next(Self::SetValue(key, Blob::default())),
            KeyOperation::Add => Step::Next(Self::AddDelta(key, Number::default())),
            KeyOperation::Get => Step::Done(Request::Get { key }),
            KeyOperation::Delete => Step::Done(Request::DeleteKey { key }),
        }
    }
}

#[derive(Debug)]
struct KeyList {
    /// How many keys are still to come.
    missing: usize,
    keys: Vec<Bytes>,
    /// Of all keys so far.
    bytes: usize,
    next: Blob,
}

impl KeyList {
    fn new(count: u64, limits: &Limits) -> Result<Self, ProtocolError> {
        let limit = limits.keys_per_request;
        match usize::try_from(count) {
            Ok(missing) if missing <= limit => {
                Ok(Self { missing, keys: Vec::new(), bytes: 0, next: Blob::default() })
            }
            _ => Err(ProtocolError::TooManyKeys { count, limit }),
        }
    }

    fn take(&mut self, input: &mut &[u8], limits: &Limits) -> Result<Option<Vec<Bytes>>, ProtocolError> {
        while self.missing > 0 {
            let Some(key) = self.next.take(input, "key", limits.key_bytes)? else { return Ok(None) };
            self.bytes += key.len();
            if self.bytes > limits.key_list_bytes {
                let (length, limit) = (self.bytes as u64, limits.key_list_bytes);
                return Err(ProtocolError::TooLong { what: "list of keys", length, limit });
            }
            self.keys.push(key);
            self.missing -= 1;
            self.next = Blob::default();
        }
        Ok(Some(std::mem::take(&mut self.keys)))
    }
}

//! Requests and replies out of bytes that come in any pieces.
//!
//! What a field's length or a count declares is checked against the limits before anything is
//! allocated, and every byte is looked at once.

use bytes::Bytes;

use super::fields::{Blob, Number};
use super::protocol::{NOT_READY, ProtocolError, READY, Reply, Request, STOP_WAITING, WAIT_CANCELED, opcode};
use crate::store::Limits;

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

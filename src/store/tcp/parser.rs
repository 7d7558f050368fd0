//! Requests out of bytes that come in any pieces.
//!
//! What a field's length or a count declares is checked against the limits before anything is
//! allocated, and every byte is looked at once.

use std::sync::Arc;

use bytes::{BufMut, Bytes};

use super::fields::{Blob, Bound, Number};
use super::lists::{BlobList, PairList};
use super::protocol::{ProtocolError, Request, opcode};
use super::stock::Stock;
use crate::store::Limits;

/// Reads requests from bytes that come in any pieces, in time linear in the bytes.
#[derive(Debug)]
pub struct RequestParser {
    limits: Limits,
    stock: Arc<Stock>,
    stage: Stage,
}

/// Where in a request the parser is, with what it has of it, and what to make of it.
#[derive(Debug, Default)]
enum Stage {
    #[default]
    Opcode,
    Magic(Number<4>),
    Nonce(Number<4>),
    Key(AfterKey, Blob),
    Value(KeyAndValue, Bytes, Blob),
    Expected(Bytes, Blob),
    Desired(Bytes, Bytes, Blob),
    Number(KeyAndNumber, Bytes, Number<8>),
    KeyCount(KeyList, Number<8>),
    Keys(KeyList, BlobList),
    PairCount(Number<8>),
    Pairs(PairList),
}

/// What follows the key with which a request begins.
#[derive(Clone, Copy, Debug)]
enum AfterKey {
    Nothing(fn(Bytes) -> Request),
    Value(KeyAndValue),
    Number(KeyAndNumber),
    ExpectedAndDesired,
}

type KeyAndValue = fn(Bytes, Bytes) -> Request;
type KeyAndNumber = fn(Bytes, i64) -> Request;
type KeyList = fn(Vec<Bytes>) -> Request;

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
        Self::recycling(limits, Arc::default())
    }

    /// As [`new`](Self::new), with memory from a stock for large values.
    pub(super) fn recycling(limits: Limits, stock: Arc<Stock>) -> Self {
        Self { limits, stock, stage: Stage::Opcode }
    }

    /// Takes bytes off the front of `input` up to the end of the next request. `None`: `input` is used
    /// up, call again with more. Call it until it gives `None`: one input may hold many requests.
    ///
    /// # Errors
    /// A [`ProtocolError`], after which the connection has no meaning.
    pub fn parse(&mut self, input: &mut &[u8]) -> Result<Option<Request>, ProtocolError> {
        loop {
            match std::mem::take(&mut self.stage).step(input, &self.limits, &self.stock)? {
                Step::Next(stage) => self.stage = stage,
                Step::Done(request) => return Ok(Some(request)),
                Step::More(stage) => {
                    self.stage = stage;
                    return Ok(None);
                }
            }
        }
    }

    /// Where the next bytes of the connection may be put, if all that it has room for belong to one
    /// large value: it saves copying them. Ask after [`parse`](Self::parse) gave `None`, fill it in part
    /// or in whole, and call `parse` with nothing or with what comes next.
    pub fn spare(&mut self) -> Option<impl BufMut> {
        self.stage.blob()?.spare()
    }

    /// Whether a request has begun that has not come whole.
    #[must_use]
    pub fn is_within_request(&self) -> bool {
        !matches!(self.stage, Stage::Opcode)
    }

    /// The memory that the unfinished request takes, about: it grows with what has come of it, by a
    /// constant factor, and never with what is only announced, unless that takes the place of a value
    /// that is gone.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        match &self.stage {
            Stage::Opcode | Stage::Magic(_) | Stage::Nonce(_) => 0,
            Stage::KeyCount(..) | Stage::PairCount(_) => 0,
            Stage::Key(_, key) => key.held_bytes(),
            Stage::Number(_, key, _) => key.len(),
            Stage::Value(_, key, value) => key.len() + value.held_bytes(),
            Stage::Expected(key, expected) => key.len() + expected.held_bytes(),
            Stage::Desired(key, expected, desired) => key.len() + expected.len() + desired.held_bytes(),
            Stage::Keys(_, keys) => keys.held_bytes(),
            Stage::Pairs(pairs) => pairs.held_bytes(),
        }
    }
}

impl Stage {
    fn step(self, input: &mut &[u8], limits: &Limits, stock: &Arc<Stock>) -> Result<Step, ProtocolError> {
        let key_bound = Bound::new("key", limits.key_bytes);
        let value_bound = Bound::new("value", limits.value_bytes).recycling(stock);
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
            Self::Key(after, mut blob) => match blob.take(input, key_bound)? {
                None => Step::More(Self::Key(after, blob)),
                Some(key) => after.key(key),
            },
            Self::Value(request, key, mut blob) => match blob.take(input, value_bound)? {
                None => Step::More(Self::Value(request, key, blob)),
                Some(value) => Step::Done(request(key, value)),
            },
            Self::Expected(key, mut blob) => match blob.take(input, value_bound)? {
                None => Step::More(Self::Expected(key, blob)),
                Some(expected) => Step::Next(Self::Desired(key, expected, Blob::default())),
            },
            Self::Desired(key, expected, mut blob) => {
                let bound = Bound { used: expected.len(), ..value_bound };
                match blob.take(input, bound)? {
                    None => Step::More(Self::Desired(key, expected, blob)),
                    Some(desired) => Step::Done(Request::CompareSet { key, expected, desired }),
                }
            }
            Self::Number(request, key, mut number) => match number.take(input) {
                None => Step::More(Self::Number(request, key, number)),
                Some(bytes) => Step::Done(request(key, i64::from_le_bytes(bytes))),
            },
            Self::KeyCount(request, mut count) => match count.take(input) {
                None => Step::More(Self::KeyCount(request, count)),
                Some(bytes) => {
                    Step::Next(Self::Keys(request, BlobList::keys(u64::from_le_bytes(bytes), limits)?))
                }
            },
            Self::Keys(request, mut list) => match list.take(input)? {
                None => Step::More(Self::Keys(request, list)),
                Some(keys) => Step::Done(request(keys)),
            },
            Self::PairCount(mut count) => match count.take(input) {
                None => Step::More(Self::PairCount(count)),
                Some(bytes) => Step::Next(Self::Pairs(PairList::new(u64::from_le_bytes(bytes), limits)?)),
            },
            Self::Pairs(mut list) => match list.take(input, limits)? {
                None => Step::More(Self::Pairs(list)),
                Some(pairs) => Step::Done(Request::MultiSet { pairs }),
            },
        })
    }

    fn after_opcode(opcode: u8) -> Result<Step, ProtocolError> {
        let key = |after| Step::Next(Self::Key(after, Blob::default()));
        let keys = |request| Step::Next(Self::KeyCount(request, Number::default()));
        Ok(match opcode {
            opcode::VALIDATE => Step::Next(Self::Magic(Number::default())),
            opcode::PING => Step::Next(Self::Nonce(Number::default())),
            opcode::SET => key(AfterKey::Value(|key, value| Request::Set { key, value })),
            opcode::APPEND => key(AfterKey::Value(|key, value| Request::Append { key, value })),
            opcode::QUEUE_PUSH => key(AfterKey::Value(|key, value| Request::QueuePush { key, value })),
            opcode::COMPARE_SET => key(AfterKey::ExpectedAndDesired),
            opcode::GET => key(AfterKey::Nothing(|key| Request::Get { key })),
            opcode::DELETE_KEY => key(AfterKey::Nothing(|key| Request::DeleteKey { key })),
            opcode::QUEUE_POP => key(AfterKey::Nothing(|key| Request::QueuePop { key })),
            opcode::QUEUE_LEN => key(AfterKey::Nothing(|key| Request::QueueLen { key })),
            opcode::ADD => key(AfterKey::Number(|key, delta| Request::Add { key, delta })),
            opcode::BARRIER => key(AfterKey::Number(|key, world_size| Request::Barrier { key, world_size })),
            opcode::CHECK => keys(|keys| Request::Check { keys }),
            opcode::WAIT => keys(|keys| Request::Wait { keys }),
            opcode::MULTI_GET => keys(|keys| Request::MultiGet { keys }),
            opcode::MULTI_SET => Step::Next(Self::PairCount(Number::default())),
            opcode::NUM_KEYS => Step::Done(Request::NumKeys),
            opcode::LIST_KEYS => Step::Done(Request::ListKeys),
            opcode::CANCEL_WAIT => Step::Done(Request::CancelWait),
            unknown => return Err(ProtocolError::UnknownOpcode(unknown)),
        })
    }

    /// What is being filled, if its bytes go into a buffer of their own.
    fn blob(&mut self) -> Option<&mut Blob> {
        match self {
            Self::Value(_, _, value) => Some(value),
            Self::Expected(_, blob) | Self::Desired(_, _, blob) => Some(blob),
            Self::Pairs(pairs) => Some(pairs.next()),
            _ => None,
        }
    }
}

impl AfterKey {
    fn key(self, key: Bytes) -> Step {
        match self {
            Self::Nothing(request) => Step::Done(request(key)),
            Self::Value(request) => Step::Next(Stage::Value(request, key, Blob::default())),
            Self::Number(request) => Step::Next(Stage::Number(request, key, Number::default())),
            Self::ExpectedAndDesired => Step::Next(Stage::Expected(key, Blob::default())),
        }
    }
}

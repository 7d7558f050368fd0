//! Replies out of bytes that come in any pieces, bounded as requests are.

use std::sync::Arc;

use bytes::{BufMut, Bytes};

use super::fields::{Blob, Bound, Number};
use super::lists::BlobList;
use super::protocol::ProtocolError;
use super::reply::{Expected, NOT_READY, READY, Reply, STOP_WAITING, WAIT_CANCELED};
use super::stock::Stock;
use crate::store::Limits;

/// Reads one reply from bytes that come in any pieces.
#[derive(Debug)]
pub struct ReplyParser {
    limits: Limits,
    stock: Arc<Stock>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Pong(Number<4>),
    Value(Blob),
    Values(BlobList),
    Number(Number<8>),
    Readiness(Number<1>),
    Wait(Number<1>),
    PoppedLength(Number<8>),
    Popped { length: u64, value: Blob },
    KeyCount(Number<8>),
    Keys(BlobList),
}

enum Step {
    More,
    Next(Stage),
    Done(Reply),
}

impl ReplyParser {
    /// A parser for one reply. Of `limits` those on keys and values matter; the keys of a store, and
    /// the values that are asked for together, may have as many bytes as a store may hold.
    #[must_use]
    pub fn new(expected: Expected, limits: &Limits) -> Self {
        Self::recycling(expected, limits, Arc::default())
    }

    /// As [`new`](Self::new), with memory from a stock for large values.
    pub(super) fn recycling(expected: Expected, limits: &Limits, stock: Arc<Stock>) -> Self {
        let stage = match expected {
            Expected::Pong => Stage::Pong(Number::default()),
            Expected::Value => Stage::Value(Blob::default()),
            Expected::Values(count) => Stage::Values(BlobList::values(count, limits)),
            Expected::Number => Stage::Number(Number::default()),
            Expected::Readiness => Stage::Readiness(Number::default()),
            Expected::Wait => Stage::Wait(Number::default()),
            Expected::Popped => Stage::PoppedLength(Number::default()),
            Expected::Keys => Stage::KeyCount(Number::default()),
        };
        Self { limits: limits.clone(), stock, stage }
    }

    /// Takes bytes off the front of `input`, and none after the reply's last. `None`: call again with
    /// more. After a reply or an error the parser has done its work.
    ///
    /// # Errors
    /// [`ProtocolError::TooLong`], [`ProtocolError::TooManyKeys`] and [`ProtocolError::WrongReply`].
    pub fn parse(&mut self, input: &mut &[u8]) -> Result<Option<Reply>, ProtocolError> {
        loop {
            match self.stage.step(input, &self.limits, &self.stock)? {
                Step::More => return Ok(None),
                Step::Next(stage) => self.stage = stage,
                Step::Done(reply) => return Ok(Some(reply)),
            }
        }
    }

    /// As [`RequestParser::spare`](super::protocol::RequestParser::spare).
    pub fn spare(&mut self) -> Option<impl BufMut> {
        match &mut self.stage {
            Stage::Value(value) | Stage::Popped { value, .. } => value.spare(),
            Stage::Values(values) => values.next().spare(),
            _ => None,
        }
    }
}

impl Stage {
    fn step(
        &mut self,
        input: &mut &[u8],
        limits: &Limits,
        stock: &Arc<Stock>,
    ) -> Result<Step, ProtocolError> {
        let value_bound = Bound::new("value", limits.value_bytes).recycling(stock);
        let done = |reply: Option<Reply>| reply.map_or(Step::More, Step::Done);
        Ok(match self {
            Self::Pong(nonce) => done(nonce.take(input).map(|bytes| Reply::Pong(u32::from_le_bytes(bytes)))),
            Self::Value(value) => done(value.take(input, value_bound)?.map(Reply::Value)),
            Self::Values(values) => done(values.take(input)?.map(Reply::Values)),
            Self::Number(number) => {
                done(number.take(input).map(|bytes| Reply::Number(i64::from_le_bytes(bytes))))
            }
            Self::Readiness(byte) => match byte.take(input) {
                None => Step::More,
                Some([READY]) => Step::Done(Reply::Ready),
                Some([NOT_READY]) => Step::Done(Reply::NotReady),
                Some([byte]) => return Err(wrong_byte("CHECK", byte)),
            },
            Self::Wait(byte) => match byte.take(input) {
                None => Step::More,
                Some([STOP_WAITING]) => Step::Done(Reply::StopWaiting),
                Some([WAIT_CANCELED]) => Step::Done(Reply::WaitCanceled),
                Some([byte]) => return Err(wrong_byte("WAIT or BARRIER", byte)),
            },
            Self::PoppedLength(length) => match length.take(input).map(u64::from_le_bytes) {
                None => Step::More,
                Some(0) => Step::Done(Reply::QueueEmpty),
                Some(length) if i64::try_from(length).is_ok() => {
                    Step::Next(Self::Popped { length, value: Blob::default() })
                }
                Some(negative) => {
                    let reply = format!("a queue of {} values", negative.cast_signed());
                    return Err(ProtocolError::WrongReply { request: "QUEUE_POP", reply });
                }
            },
            Self::Popped { length, value } => {
                let length = *length;
                let popped = |value: Bytes| Reply::Popped { length, value };
                done(value.take(input, value_bound)?.map(popped))
            }
            Self::KeyCount(count) => match count.take(input) {
                None => Step::More,
                Some(bytes) => Step::Next(Self::Keys(BlobList::all_keys(u64::from_le_bytes(bytes), limits)?)),
            },
            Self::Keys(keys) => done(keys.take(input)?.map(Reply::Keys)),
        })
    }
}

fn wrong_byte(request: &'static str, byte: u8) -> ProtocolError {
    ProtocolError::WrongReply { request, reply: format!("{byte:#04x}") }
}

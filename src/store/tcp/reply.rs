//! What a server answers.

use bytes::{Bytes, BytesMut};

use super::pieces::Output;
use super::request::put_blob;

/// What a reply's first byte means depends on the request it answers; this says which that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expected {
    /// A reply to PING.
    Pong,
    /// A reply to GET or COMPARE_SET.
    Value,
    /// A reply to MULTI_GET of so many keys.
    Values(usize),
    /// A reply to ADD, DELETE_KEY, GETNUMKEYS or QUEUE_LEN.
    Number,
    /// A reply to CHECK.
    Readiness,
    /// A reply to WAIT, BARRIER or CANCEL_WAIT.
    Wait,
    /// A reply to QUEUE_POP.
    Popped,
    /// A reply to LIST_KEYS.
    Keys,
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// To PING: its nonce.
    Pong(u32),
    /// To GET. To COMPARE_SET: what is there now, or what was expected in vain.
    Value(Bytes),
    /// To MULTI_GET: as many as were asked for.
    Values(Vec<Bytes>),
    /// To ADD: the sum. To DELETE_KEY: 1 for deleted, 0 for was not there. To GETNUMKEYS and QUEUE_LEN:
    /// how many.
    Number(i64),
    /// To CHECK: all keys are there.
    Ready,
    /// To CHECK: not all are.
    NotReady,
    /// To WAIT, once all keys have come. To BARRIER, once all have arrived.
    StopWaiting,
    /// To CANCEL_WAIT, always.
    WaitCanceled,
    /// To QUEUE_POP.
    Popped {
        /// How many values the queue had, this one included; never 0.
        length: u64,
        /// The first of them.
        value: Bytes,
    },
    /// To QUEUE_POP: there is nothing to take.
    QueueEmpty,
    /// To LIST_KEYS: all keys, in any order, as they are on the wire.
    Keys(Vec<Bytes>),
}

pub(super) const READY: u8 = 0;
pub(super) const NOT_READY: u8 = 1;
pub(super) const STOP_WAITING: u8 = 0;
pub(super) const WAIT_CANCELED: u8 = 1;

impl Reply {
    /// Appends the reply to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        self.encode_to(out);
    }

    pub(super) fn encode_to(&self, out: &mut impl Output) {
        match self {
            Self::Pong(nonce) => out.put(&nonce.to_le_bytes()),
            Self::Value(value) => put_blob(out, value),
            Self::Values(values) => values.iter().for_each(|value| put_blob(out, value)),
            Self::Number(number) => out.put(&number.to_le_bytes()),
            Self::Ready => out.put(&[READY]),
            Self::NotReady => out.put(&[NOT_READY]),
            Self::StopWaiting => out.put(&[STOP_WAITING]),
            Self::WaitCanceled => out.put(&[WAIT_CANCELED]),
            Self::Popped { length, value } => {
                out.put(&length.to_le_bytes());
                put_blob(out, value);
            }
            Self::QueueEmpty => out.put(&0u64.to_le_bytes()),
            Self::Keys(keys) => {
                out.put(&(keys.len() as u64).to_le_bytes());
                keys.iter().for_each(|key| put_blob(out, key));
            }
        }
    }

    /// How many bytes it has on the wire.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let blob = |bytes: &Bytes| 8 + bytes.len();
        match self {
            Self::Pong(_) => 4,
            Self::Value(value) => blob(value),
            Self::Values(values) => values.iter().map(blob).sum(),
            Self::Number(_) | Self::QueueEmpty => 8,
            Self::Ready | Self::NotReady | Self::StopWaiting | Self::WaitCanceled => 1,
            Self::Popped { value, .. } => 8 + blob(value),
            Self::Keys(keys) => 8 + keys.iter().map(blob).sum::<usize>(),
        }
    }
}

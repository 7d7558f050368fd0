//! The fields of every operation, to break each of them.

use bytes::Bytes;
use kvpipe::store::Limits;
use kvpipe::store::tcp::protocol::{MAGIC, Request};

/// What a field is, where something may be wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// The length of a key, which follows.
    Key,
    /// The length of a value, which follows.
    Value,
    /// How many keys, or pairs of a key and a value, follow.
    Count,
}

/// A request as it is on the wire, and where its lengths and counts stand in it.
pub(super) struct Shape {
    pub(super) bytes: Vec<u8>,
    pub(super) fields: Vec<(Field, usize)>,
}

impl Field {
    /// What the field may say at most.
    pub(super) fn limit(self, limits: &Limits) -> u64 {
        let limit = match self {
            Self::Key => limits.key_bytes,
            Self::Value => limits.value_bytes,
            Self::Count => limits.keys_per_request,
        };
        limit as u64
    }
}

/// One request of each kind, VALIDATE first.
pub(super) fn requests() -> Vec<Request> {
    let key = || Bytes::from_static(b"/key");
    let keys = || vec![key(), Bytes::from_static(b"/other")];
    let value = || Bytes::from_static(b"value");
    let pairs = vec![(key(), value()), ("/other".into(), value())];
    vec![
        Request::Validate { magic: MAGIC },
        Request::Ping { nonce: 7 },
        Request::Set { key: key(), value: value() },
        Request::CompareSet { key: key(), expected: value(), desired: value() },
        Request::Get { key: key() },
        Request::Add { key: "/n".into(), delta: 1 },
        Request::Check { keys: keys() },
        Request::Wait { keys: keys() },
        Request::NumKeys,
        Request::DeleteKey { key: key() },
        Request::Append { key: key(), value: value() },
        Request::MultiGet { keys: keys() },
        Request::MultiSet { pairs },
        Request::CancelWait,
        Request::QueuePush { key: key(), value: value() },
        Request::QueuePop { key: key() },
        Request::QueueLen { key: key() },
        Request::ListKeys,
        Request::Barrier { key: "/barrier".into(), world_size: 1 },
    ]
}

impl Shape {
    /// Of a request whose keys and values are not empty.
    pub(super) fn of(request: &Request) -> Self {
        use Field::{Count, Key, Value};
        let bytes = crate::support::encoded(std::slice::from_ref(request)).to_vec();
        let kinds = match request {
            Request::Set { .. } | Request::Append { .. } | Request::QueuePush { .. } => vec![Key, Value],
            Request::CompareSet { .. } => vec![Key, Value, Value],
            Request::Get { .. } | Request::Add { .. } | Request::DeleteKey { .. } => vec![Key],
            Request::QueuePop { .. } | Request::QueueLen { .. } | Request::Barrier { .. } => vec![Key],
            Request::Check { .. } | Request::Wait { .. } | Request::MultiGet { .. } => vec![Count, Key, Key],
            Request::MultiSet { .. } => vec![Count, Key, Value, Key, Value],
            _ => vec![],
        };
        let mut offset = 1;
        let mut fields = Vec::new();
        for kind in kinds {
            fields.push((kind, offset));
            let number = u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap());
            offset += 8 + if kind == Count { 0 } else { usize::try_from(number).unwrap() };
        }
        Self { bytes, fields }
    }
}

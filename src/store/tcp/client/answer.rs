//! What is read out of a reply; one of another kind is given back.

use bytes::Bytes;

use crate::store::tcp::protocol::Reply;

pub(super) fn number(reply: Reply) -> Result<i64, Reply> {
    if let Reply::Number(number) = reply { Ok(number) } else { Err(reply) }
}

/// A number that can't be negative.
pub(super) fn count(reply: Reply) -> Result<u64, Reply> {
    number(reply).and_then(|number| u64::try_from(number).map_err(|_negative| Reply::Number(number)))
}

pub(super) fn ready(reply: Reply) -> Result<bool, Reply> {
    match reply {
        Reply::Ready => Ok(true),
        Reply::NotReady => Ok(false),
        other => Err(other),
    }
}

pub(super) fn value(reply: Reply) -> Result<Bytes, Reply> {
    if let Reply::Value(value) = reply { Ok(value) } else { Err(reply) }
}

pub(super) fn values(reply: Reply) -> Result<Vec<Bytes>, Reply> {
    if let Reply::Values(values) = reply { Ok(values) } else { Err(reply) }
}

/// The value, or `None` if there was none to take.
pub(super) fn popped(reply: Reply) -> Result<Option<Bytes>, Reply> {
    match reply {
        Reply::Popped { value, .. } => Ok(Some(value)),
        Reply::QueueEmpty => Ok(None),
        other => Err(other),
    }
}

pub(super) fn keys(reply: Reply) -> Result<Vec<Bytes>, Reply> {
    if let Reply::Keys(keys) = reply { Ok(keys) } else { Err(reply) }
}

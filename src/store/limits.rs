//! What a store takes at most.

use bytes::Bytes;

use super::keyspace::text;
use crate::error::{Error, Result};

/// Bounds on what a store holds and on what its clients may make it hold.
///
/// They are checked against the declared length, before anything is allocated. PyTorch's servers have
/// others: libuv's takes keys of 8 KiB, 131,072 keys in a request and values of 8 MiB at most, which are
/// the sizes of addresses and not of tensors; the classic one takes whatever is declared (torch 2.15,
/// `TCPStoreLibUvBackend.cpp`). A client of a libuv server does well to set `value_bytes` to 8 MiB,
/// because what that server refuses it refuses by closing the connection.
///
/// What a server holds besides what is stored: for all clients together `unfinished_bytes` of requests,
/// and for each of them `outbound_bytes` plus one more reply that it has not read. The values in replies
/// are those in the store, not copies, until they are replaced there. Besides, 32 MiB at most of large
/// values that are gone are kept for the next ones, as a client's store does as well. Who pauses for 30 s with a request
/// half sent or a reply half read is closed, so that such memory is not held for ever by whoever stalls.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The longest key, in bytes, including the `/` that the TCP client puts in front. 8 KiB.
    pub key_bytes: usize,
    /// The longest value, and the most bytes that the values of one request have together. 1 GiB.
    pub value_bytes: usize,
    /// The most keys that one request may name. 131,072.
    pub keys_per_request: usize,
    /// The most bytes that the keys of one request may have together. 16 MiB.
    pub key_list_bytes: usize,
    /// The most keys and queued values that the store holds together. 1,048,576.
    pub stored_keys: usize,
    /// The most bytes that the keys and values in the store have together, queued ones included. 4 GiB.
    pub stored_bytes: usize,
    /// The most connections that a server keeps; one more is closed at once. 4096.
    pub clients: usize,
    /// The most memory that the requests of all clients together take which have not come whole, or
    /// which wait for their keys. Beyond it the client goes whose unfinished request is the largest, or
    /// who would wait. 2 GiB.
    pub unfinished_bytes: usize,
    /// The most bytes of replies that wait for one client to read them; a client that reads nothing
    /// is not read from any more. 1 MiB.
    pub outbound_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            key_bytes: 8 << 10,
            value_bytes: 1 << 30,
            keys_per_request: 128 << 10,
            key_list_bytes: 16 << 20,
            stored_keys: 1 << 20,
            stored_bytes: 4 << 30,
            clients: 4096,
            unfinished_bytes: 2 << 30,
            outbound_bytes: 1 << 20,
        }
    }
}

/// What a key in a list costs beside its own bytes: its place in the list, its allocation, and where it
/// waits to come its place in two ordered sets.
pub(super) const LISTED_KEY_BYTES: usize = 192;

impl Limits {
    /// Refuses a key that is too long, for a caller in this process.
    pub(crate) fn check_key(&self, key: &[u8]) -> Result<()> {
        if key.len() > self.key_bytes {
            let (length, limit) = (key.len(), self.key_bytes);
            return Err(Error::Misuse(format!("a key of {length} bytes is over the limit of {limit} bytes")));
        }
        Ok(())
    }

    /// Refuses a list of keys that is too long, or has a key that is.
    pub(crate) fn check_keys<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<()> {
        if keys.len() > self.keys_per_request {
            let (count, limit) = (keys.len(), self.keys_per_request);
            return Err(Error::Misuse(format!("{count} keys in one request are over the limit of {limit}")));
        }
        keys.iter().try_for_each(|key| self.check_key(key.as_ref()))?;
        let (length, limit) = (keys.iter().map(|key| key.as_ref().len()).sum::<usize>(), self.key_list_bytes);
        if length > limit {
            return Err(Error::Misuse(format!(
                "a list of keys of {length} bytes is over the limit of {limit} bytes"
            )));
        }
        Ok(())
    }

    /// Refuses the values of one request if they are too long together, naming the first one's key.
    pub(crate) fn check_values<'a>(
        &self,
        key: &str,
        values: impl IntoIterator<Item = &'a Bytes>,
    ) -> Result<()> {
        let (length, limit) = (values.into_iter().map(Bytes::len).sum::<usize>(), self.value_bytes);
        if length > limit {
            return Err(Error::Misuse(format!(
                "a value of {length} bytes for key {key:?} is over the limit of {limit} bytes"
            )));
        }
        Ok(())
    }

    /// Refuses keys and values that are too many or too long together.
    pub(crate) fn check_pairs<K: AsRef<[u8]>>(&self, pairs: &[(K, Bytes)]) -> Result<()> {
        let keys: Vec<&[u8]> = pairs.iter().map(|(key, _)| key.as_ref()).collect();
        self.check_keys(&keys)?;
        let Some(first) = keys.first() else { return Ok(()) };
        self.check_values(&text(first), pairs.iter().map(|(_, value)| value))
    }
}

/// As a barrier counts, or [`Error::Misuse`]: nobody can arrive at a barrier of none.
pub(super) fn checked_world_size(key: &str, world_size: usize) -> Result<i64> {
    match i64::try_from(world_size) {
        Ok(count) if count > 0 => Ok(count),
        _ => {
            Err(Error::Misuse(format!("the barrier at key {key:?} can't have a world size of {world_size}")))
        }
    }
}

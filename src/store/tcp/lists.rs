//! Lists of keys and of values, read from bytes that come in any pieces.

use bytes::Bytes;

use super::fields::{Blob, Bound};
use super::protocol::ProtocolError;
use crate::store::Limits;
use crate::store::limits::LISTED_KEY_BYTES;

/// A count of keys, if it is within the limit.
pub(super) fn checked_count(count: u64, limit: usize) -> Result<usize, ProtocolError> {
    match usize::try_from(count) {
        Ok(count) if count <= limit => Ok(count),
        _ => Err(ProtocolError::TooManyKeys { count, limit }),
    }
}

/// So many keys, or so many values, all of which share one limit.
#[derive(Debug)]
pub(super) struct BlobList {
    /// How many are still to come.
    missing: usize,
    blobs: Vec<Bytes>,
    /// Of each.
    bound: Bound<'static>,
    /// Of all together; `used` is what has come.
    together: Bound<'static>,
    next: Blob,
}

impl BlobList {
    /// The keys of one request.
    pub(super) fn keys(count: u64, limits: &Limits) -> Result<Self, ProtocolError> {
        let count = checked_count(count, limits.keys_per_request)?;
        Ok(Self::new(
            count,
            Bound::new("key", limits.key_bytes),
            Bound::new("list of keys", limits.key_list_bytes),
        ))
    }

    /// The keys of a whole store.
    pub(super) fn all_keys(count: u64, limits: &Limits) -> Result<Self, ProtocolError> {
        let count = checked_count(count, limits.stored_keys)?;
        Ok(Self::new(
            count,
            Bound::new("key", limits.key_bytes),
            Bound::new("list of keys", limits.stored_bytes),
        ))
    }

    /// The values of one reply. They come out of one store, and have its bound together.
    pub(super) fn values(count: usize, limits: &Limits) -> Self {
        Self::new(
            count,
            Bound::new("value", limits.value_bytes),
            Bound::new("list of values", limits.stored_bytes),
        )
    }

    fn new(missing: usize, bound: Bound<'static>, together: Bound<'static>) -> Self {
        Self { missing, blobs: Vec::new(), bound, together, next: Blob::default() }
    }

    /// Takes what is missing from the front of `input`; gives all once they are complete.
    pub(super) fn take(&mut self, input: &mut &[u8]) -> Result<Option<Vec<Bytes>>, ProtocolError> {
        while self.missing > 0 {
            // The tighter of the two bounds is the one that is broken first.
            let left = self.together.limit - self.together.used;
            let bound = if self.bound.limit <= left { self.bound } else { self.together };
            let Some(blob) = self.next.take(input, bound)? else { return Ok(None) };
            self.together.used += blob.len();
            self.blobs.push(blob);
            self.missing -= 1;
            self.next = Blob::default();
        }
        Ok(Some(std::mem::take(&mut self.blobs)))
    }

    pub(super) fn next(&mut self) -> &mut Blob {
        &mut self.next
    }

    /// The memory that it takes, about.
    pub(super) fn held_bytes(&self) -> usize {
        self.blobs.len() * LISTED_KEY_BYTES + self.together.used + self.next.held_bytes()
    }
}

/// So many pairs of a key and a value.
#[derive(Debug)]
pub(super) struct PairList {
    missing: usize,
    pairs: Vec<(Bytes, Bytes)>,
    key: Option<Bytes>,
    next: Blob,
    keys_bytes: usize,
    values_bytes: usize,
}

impl PairList {
    pub(super) fn new(count: u64, limits: &Limits) -> Result<Self, ProtocolError> {
        let missing = checked_count(count, limits.keys_per_request)?;
        Ok(Self {
            missing,
            pairs: Vec::new(),
            key: None,
            next: Blob::default(),
            keys_bytes: 0,
            values_bytes: 0,
        })
    }

    /// As [`BlobList::take`].
    pub(super) fn take(
        &mut self,
        input: &mut &[u8],
        limits: &Limits,
    ) -> Result<Option<Vec<(Bytes, Bytes)>>, ProtocolError> {
        while self.missing > 0 {
            if self.key.is_none() {
                let bound = Bound::new("key", limits.key_bytes);
                let Some(key) = self.next.take(input, bound)? else { return Ok(None) };
                self.keys_bytes += key.len();
                let (length, limit) = (self.keys_bytes as u64, limits.key_list_bytes);
                if self.keys_bytes > limit {
                    return Err(ProtocolError::TooLong { what: "list of keys", length, limit });
                }
                self.key = Some(key);
                self.next = Blob::default();
            }
            let what = if self.pairs.is_empty() { "value" } else { "list of values" };
            let bound = Bound { used: self.values_bytes, ..Bound::new(what, limits.value_bytes) };
            let Some(value) = self.next.take(input, bound)? else { return Ok(None) };
            self.values_bytes += value.len();
            self.pairs.extend(self.key.take().map(|key| (key, value)));
            self.missing -= 1;
            self.next = Blob::default();
        }
        Ok(Some(std::mem::take(&mut self.pairs)))
    }

    pub(super) fn next(&mut self) -> &mut Blob {
        &mut self.next
    }

    /// The memory that it takes, about.
    pub(super) fn held_bytes(&self) -> usize {
        self.pairs.len() * 2 * LISTED_KEY_BYTES + self.keys_bytes + self.values_bytes + self.next.held_bytes()
    }
}

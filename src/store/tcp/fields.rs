//! The three shapes that every TCPStore message is made of, read from bytes that come in any pieces.

use std::sync::Arc;

use bytes::Bytes;
use bytes::buf::{BufMut, Limit};

use super::protocol::ProtocolError;
use super::stock::Stock;

/// How much of a declared length is allocated before its bytes have come.
const ALLOCATED_AHEAD_BYTES: usize = 64 << 10;

/// By how much of what has come the memory grows.
const GROWTH: usize = 3;

/// From how many missing bytes on they may be put straight into their place.
const SPARE_BYTES_MIN: usize = 16 << 10;

/// `N` raw bytes: a number, little-endian on the wire.
#[derive(Debug)]
pub(super) struct Number<const N: usize> {
    bytes: [u8; N],
    filled: usize,
}

impl<const N: usize> Default for Number<N> {
    fn default() -> Self {
        Self { bytes: [0; N], filled: 0 }
    }
}

impl<const N: usize> Number<N> {
    /// Takes what is missing from the front of `input`; gives the bytes once they are complete.
    pub(super) fn take(&mut self, input: &mut &[u8]) -> Option<[u8; N]> {
        let (now, later) = input.split_at(input.len().min(N - self.filled));
        self.bytes[self.filled..self.filled + now.len()].copy_from_slice(now);
        self.filled += now.len();
        *input = later;
        (self.filled == N).then_some(self.bytes)
    }
}

/// A string, or bytes: a `u64` length, then so many bytes.
#[derive(Debug, Default)]
pub(super) struct Blob {
    length: Number<8>,
    body: Option<Body>,
}

#[derive(Debug)]
struct Body {
    bytes: Vec<u8>,
    length: usize,
}

/// How long a blob may be, what to call it, and where its memory may come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound<'a> {
    pub(super) what: &'static str,
    pub(super) limit: usize,
    /// What others that share the limit have used of it.
    pub(super) used: usize,
    pub(super) stock: Option<&'a Arc<Stock>>,
}

impl<'a> Bound<'a> {
    pub(super) fn new(what: &'static str, limit: usize) -> Self {
        Self { what, limit, used: 0, stock: None }
    }

    /// Of a value that may be large, and such ones come again and again.
    pub(super) fn recycling(self, stock: &'a Arc<Stock>) -> Self {
        Self { stock: Some(stock), ..self }
    }

    /// A length, if it is within the bound.
    fn check(self, declared: u64) -> Result<usize, ProtocolError> {
        let Self { what, limit, used, .. } = self;
        let total = declared.saturating_add(used as u64);
        match usize::try_from(declared) {
            Ok(length) if total <= limit as u64 => Ok(length),
            _ => Err(ProtocolError::TooLong { what, length: total, limit }),
        }
    }
}

impl Blob {
    /// As [`Number::take`]. A length over `bound` is refused before anything is allocated; below it,
    /// memory grows with what has come, and ends at exactly the length; at once where a stock has that
    /// to spare and the value has begun to come.
    pub(super) fn take(
        &mut self,
        input: &mut &[u8],
        bound: Bound<'_>,
    ) -> Result<Option<Bytes>, ProtocolError> {
        let body = match &mut self.body {
            Some(body) => body,
            None => {
                let Some(length) = self.length.take(input) else { return Ok(None) };
                let length = bound.check(u64::from_le_bytes(length))?;
                self.body.insert(Body { bytes: Vec::new(), length })
            }
        };
        body.fill(input, bound.stock);
        if body.bytes.len() < body.length {
            return Ok(None);
        }
        let bytes = std::mem::take(&mut body.bytes);
        Ok(Some(match bound.stock {
            Some(stock) => stock.value(bytes),
            None => bytes.into(),
        }))
    }

    /// Where the next bytes may be put instead of being taken; none if only few are missing, which had
    /// better come together with what is behind them.
    pub(super) fn spare(&mut self) -> Option<Limit<&mut Vec<u8>>> {
        let body = self.body.as_mut()?;
        let room = body.bytes.capacity() - body.bytes.len();
        let spare = room.min(body.length - body.bytes.len());
        (body.is_long() && spare > 0).then(|| (&mut body.bytes).limit(spare))
    }

    /// What it has allocated.
    pub(super) fn held_bytes(&self) -> usize {
        self.body.as_ref().map_or(0, |body| body.bytes.capacity())
    }
}

impl Body {
    fn fill(&mut self, input: &mut &[u8], stock: Option<&Arc<Stock>>) {
        let (now, later) = input.split_at(input.len().min(self.length - self.bytes.len()));
        self.make_room(now.len(), stock);
        self.bytes.extend_from_slice(now);
        *input = later;
        if self.is_long() {
            self.make_room(1, stock);
        }
    }

    /// So much is missing that it is worth a read of its own.
    fn is_long(&self) -> bool {
        self.length - self.bytes.len() >= SPARE_BYTES_MIN
    }

    fn make_room(&mut self, bytes: usize, stock: Option<&Arc<Stock>>) {
        if self.bytes.capacity() - self.bytes.len() < bytes {
            let recycled =
                if self.bytes.is_empty() { None } else { stock.and_then(|stock| stock.take(self.length)) };
            if let Some(mut buffer) = recycled {
                buffer.extend_from_slice(&self.bytes);
                self.bytes = buffer;
                return;
            }
            // Growing by a factor keeps the copying linear; exact reservations end at the declared
            // length, so that a stored value costs no more than it is counted for.
            let missing = self.length - self.bytes.len();
            let more = bytes.max(self.bytes.len() * GROWTH).max(ALLOCATED_AHEAD_BYTES);
            self.bytes.reserve_exact(more.min(missing));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(length: u64) -> [u8; 8] {
        length.to_le_bytes()
    }

    fn value(limit: usize) -> Bound<'static> {
        Bound::new("value", limit)
    }

    #[test]
    fn a_declared_length_allocates_little_before_its_bytes_come() {
        let mut blob = Blob::default();
        assert_eq!(blob.take(&mut &declared(1 << 30)[..], value(1 << 30)), Ok(None));
        assert_eq!(blob.held_bytes(), ALLOCATED_AHEAD_BYTES);
        let come = 10 * ALLOCATED_AHEAD_BYTES;
        for _ in 0..come {
            assert_eq!(blob.take(&mut &b"x"[..], value(1 << 30)), Ok(None));
        }
        assert!(blob.held_bytes() <= 4 * come + ALLOCATED_AHEAD_BYTES, "{}", blob.held_bytes());
    }

    #[test]
    fn a_value_that_came_in_pieces_takes_no_more_memory_than_its_length() {
        let length = 9 * ALLOCATED_AHEAD_BYTES + 1;
        let mut blob = Blob::default();
        assert_eq!(blob.take(&mut &declared(length as u64)[..], value(length)), Ok(None));
        for _ in 1..length {
            assert_eq!(blob.take(&mut &b"x"[..], value(length)), Ok(None));
        }
        assert_eq!(blob.held_bytes(), length);
        assert_eq!(blob.take(&mut &b"x"[..], value(length)).unwrap().unwrap(), vec![b'x'; length]);
    }

    #[test]
    fn a_long_value_may_be_put_into_its_place_but_not_its_end() {
        let length = 3 * ALLOCATED_AHEAD_BYTES;
        let mut blob = Blob::default();
        assert!(blob.spare().is_none(), "its length has not come");
        assert_eq!(blob.take(&mut &declared(length as u64)[..], value(length)), Ok(None));
        let mut placed = 0;
        while let Some(mut spare) = blob.spare() {
            placed += spare.remaining_mut();
            spare.put_bytes(b'x', spare.remaining_mut());
            assert!(placed <= length);
            if placed < length {
                assert_eq!(blob.take(&mut &[][..], value(length)), Ok(None));
            }
        }
        assert_eq!(placed, length);
        assert_eq!(blob.take(&mut &[][..], value(length)).unwrap().unwrap(), vec![b'x'; length]);

        let mut short = Blob::default();
        let few = SPARE_BYTES_MIN - 1;
        assert_eq!(short.take(&mut &declared(few as u64)[..], value(length)), Ok(None));
        assert!(short.spare().is_none());
    }

    #[test]
    fn the_limit_itself_is_taken_and_one_more_is_refused() {
        let take = |length| Blob::default().take(&mut &declared(length)[..], Bound::new("key", 8));
        assert_eq!(take(8), Ok(None));
        assert_eq!(take(9), Err(ProtocolError::TooLong { what: "key", length: 9, limit: 8 }));
        let huge = 1 << 62;
        assert_eq!(take(huge), Err(ProtocolError::TooLong { what: "key", length: huge, limit: 8 }));
    }

    #[test]
    fn a_shared_limit_counts_what_others_have_used() {
        let bound = Bound { used: 5, ..value(8) };
        assert_eq!(Blob::default().take(&mut &declared(3)[..], bound), Ok(None));
        let refused = |length| Err(ProtocolError::TooLong { what: "value", length, limit: 8 });
        assert_eq!(Blob::default().take(&mut &declared(4)[..], bound), refused(9));
        assert_eq!(Blob::default().take(&mut &declared(u64::MAX)[..], bound), refused(u64::MAX));
    }

    #[test]
    fn an_empty_value_is_complete_with_its_length() {
        let mut input = &[0, 0, 0, 0, 0, 0, 0, 0, 42][..];
        assert_eq!(Blob::default().take(&mut input, value(8)), Ok(Some(Bytes::new())));
        assert_eq!(input, [42]);
    }
}

//! The three shapes that every TCPStore message is made of, read from bytes that come in any pieces.

use bytes::Bytes;

use super::protocol::ProtocolError;

/// How much of a declared length is allocated before its bytes have come.
const ALLOCATED_AHEAD_BYTES: usize = 64 << 10;

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

impl Blob {
    /// As [`Number::take`]. A length over `limit` is refused before anything is allocated; below it,
    /// memory grows with what has come, and ends at exactly the length.
    pub(super) fn take(
        &mut self,
        input: &mut &[u8],
        what: &'static str,
        limit: usize,
    ) -> Result<Option<Bytes>, ProtocolError> {
        let body = match &mut self.body {
            Some(body) => body,
            None => {
                let Some(length) = self.length.take(input) else { return Ok(None) };
                let declared = u64::from_le_bytes(length);
                let length = match usize::try_from(declared) {
                    Ok(length) if length <= limit => length,
                    _ => return Err(ProtocolError::TooLong { what, length: declared, limit }),
                };
                self.body.insert(Body { bytes: Vec::new(), length })
            }
        };
        body.fill(input);
        if body.bytes.len() < body.length {
            return Ok(None);
        }
        Ok(Some(Bytes::from(std::mem::take(&mut body.bytes))))
    }
}

impl Body {
    fn fill(&mut self, input: &mut &[u8]) {
        let missing = self.length - self.bytes.len();
        let (now, later) = input.split_at(input.len().min(missing));
        if self.bytes.capacity() - self.bytes.len() < now.len() {
            // Doubling keeps the copying linear; exact reservations end at the declared length, so that
            // a stored value costs no more than it is counted for.
            let more = now.len().max(self.bytes.len()).max(ALLOCATED_AHEAD_BYTES);
            self.bytes.reserve_exact(more.min(missing));
        }
        self.bytes.extend_from_slice(now);
        *input = later;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(length: u64) -> [u8; 8] {
        length.to_le_bytes()
    }

    #[test]
    fn a_declared_length_allocates_little_before_its_bytes_come() {
        let mut blob = Blob::default();
        let mut input = &declared(1 << 30)[..];
        assert_eq!(blob.take(&mut input, "value", 1 << 30), Ok(None));
        assert_eq!(blob.body.as_ref().unwrap().bytes.capacity(), 0);
        assert_eq!(blob.take(&mut &b"x"[..], "value", 1 << 30), Ok(None));
        assert_eq!(blob.body.as_ref().unwrap().bytes.capacity(), ALLOCATED_AHEAD_BYTES);
    }

    #[test]
    fn a_value_that_came_in_pieces_takes_no_more_memory_than_its_length() {
        let length = 3 * ALLOCATED_AHEAD_BYTES + 1;
        let mut blob = Blob::default();
        assert_eq!(blob.take(&mut &declared(length as u64)[..], "value", length), Ok(None));
        for _ in 1..length {
            assert_eq!(blob.take(&mut &b"x"[..], "value", length), Ok(None));
        }
        let capacity = blob.body.as_ref().unwrap().bytes.capacity();
        assert_eq!(capacity, length);
        assert_eq!(blob.take(&mut &b"x"[..], "value", length).unwrap().unwrap(), vec![b'x'; length]);
    }

    #[test]
    fn the_limit_itself_is_taken_and_one_more_is_refused() {
        let take = |length| Blob::default().take(&mut &declared(length)[..], "key", 8);
        assert_eq!(take(8), Ok(None));
        assert_eq!(take(9), Err(ProtocolError::TooLong { what: "key", length: 9, limit: 8 }));
        let huge = 1 << 62;
        assert_eq!(take(huge), Err(ProtocolError::TooLong { what: "key", length: huge, limit: 8 }));
    }

    #[test]
    fn an_empty_value_is_complete_with_its_length() {
        let mut input = &[0, 0, 0, 0, 0, 0, 0, 0, 42][..];
        assert_eq!(Blob::default().take(&mut input, "value", 8), Ok(Some(Bytes::new())));
        assert_eq!(input, [42]);
    }
}

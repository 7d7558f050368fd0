//! Bytes on their way out, in as many pieces as avoid copying them.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// Where a message is encoded to.
pub(super) trait Output {
    /// Appends bytes by copying them.
    fn put(&mut self, bytes: &[u8]);

    /// Appends a value, which may be large.
    fn put_value(&mut self, value: &Bytes) {
        self.put(value);
    }
}

impl Output for BytesMut {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Messages to be written, with large values as they are. One write takes several pieces, where the
/// connection has vectored writes.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    ready: VecDeque<Bytes>,
    /// Comes after what is ready, and still grows.
    tail: BytesMut,
    ready_bytes: usize,
    /// The most that the tail had room for: what is taken from it is no room any more, but still allocated.
    allocated: usize,
}

/// Values up to this size are copied next to their neighbours, which costs less than a piece.
const COPIED_VALUE_BYTES: usize = 4 << 10;

/// What stays allocated for the messages to come.
const KEPT_BYTES: usize = 64 << 10;

impl Pieces {
    /// For the next messages, once all is written.
    pub(super) fn recycle(&mut self) {
        if self.allocated > KEPT_BYTES {
            *self = Self::default();
        }
    }

    fn push(&mut self, piece: Bytes) {
        self.ready_bytes += piece.len();
        self.ready.push_back(piece);
    }
}

impl Output for Pieces {
    fn put(&mut self, bytes: &[u8]) {
        self.tail.put(bytes);
        self.allocated = self.allocated.max(self.tail.capacity());
    }

    fn put_value(&mut self, value: &Bytes) {
        if value.len() <= COPIED_VALUE_BYTES {
            return self.put(value);
        }
        if !self.tail.is_empty() {
            let before = self.tail.split().freeze();
            self.push(before);
        }
        self.push(value.clone());
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.ready_bytes + self.tail.len()
    }

    fn chunk(&self) -> &[u8] {
        self.ready.front().map_or(&self.tail[..], |piece| &piece[..])
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        let pieces = self.ready.iter().map(|piece| &piece[..]).chain(tail);
        slices.iter_mut().zip(pieces).map(|(slice, piece)| *slice = IoSlice::new(piece)).count()
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(piece) = self.ready.front_mut() {
            let taken = count.min(piece.len());
            piece.advance(taken);
            self.ready_bytes -= taken;
            count -= taken;
            if !piece.is_empty() {
                return;
            }
            self.ready.pop_front();
        }
        self.tail.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixed() -> (Pieces, Vec<u8>) {
        let large = Bytes::from(vec![7; COPIED_VALUE_BYTES + 1]);
        let mut pieces = Pieces::default();
        let mut expected = BytesMut::new();
        for _ in 0..3 {
            for output in [&mut pieces as &mut dyn Output, &mut expected] {
                output.put(b"head");
                output.put_value(&large);
                output.put_value(&Bytes::from_static(b"small"));
                output.put_value(&large);
                output.put_value(&large);
                output.put(b"tail");
            }
        }
        (pieces, expected.to_vec())
    }

    #[test]
    fn the_bytes_come_out_in_order_whatever_is_taken_at_a_time() {
        for step in [1, 3, 4096, 4097, 5000, usize::MAX] {
            let (mut pieces, expected) = mixed();
            let mut taken = Vec::new();
            while pieces.has_remaining() {
                assert_eq!(pieces.remaining(), expected.len() - taken.len());
                let count = step.min(pieces.chunk().len());
                taken.extend_from_slice(&pieces.chunk()[..count]);
                pieces.advance(count);
            }
            assert!(taken == expected, "{step} at a time");
        }
    }

    #[test]
    fn one_write_may_take_all_pieces_and_stop_within_any() {
        let (mut pieces, expected) = mixed();
        let mut slices = [IoSlice::new(&[]); 64];
        let count = pieces.chunks_vectored(&mut slices);
        let all: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
        assert!(all == expected);
        pieces.advance(10_000);
        assert!(pieces.copy_to_bytes(pieces.remaining()) == expected[10_000..]);
    }

    #[test]
    fn a_large_value_is_not_copied() {
        let (pieces, _) = mixed();
        let large: Vec<_> = pieces.ready.iter().filter(|piece| piece.len() > COPIED_VALUE_BYTES).collect();
        assert_eq!(large.len(), 9);
        assert!(large.iter().all(|piece| piece.as_ptr() == large[0].as_ptr()));
    }

    #[test]
    fn much_memory_is_not_kept_for_messages_to_come_and_little_is() {
        for (bytes, kept) in [(100, true), (KEPT_BYTES + 1, false)] {
            let mut pieces = Pieces::default();
            pieces.put(&vec![1; bytes]);
            // Written in two parts, as a connection may take it.
            pieces.advance(bytes / 2);
            pieces.advance(pieces.remaining());
            pieces.recycle();
            assert_eq!(pieces.tail.try_reclaim(bytes), kept, "{bytes} bytes");
        }
    }
}

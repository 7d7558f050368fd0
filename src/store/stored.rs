//! One value in the store, to which more may be appended.

use bytes::{Bytes, BytesMut};

/// A value and what its buffer costs.
#[derive(Debug)]
pub(super) struct Stored {
    value: Bytes,
    /// Of the buffer: more than the value's length after an append.
    held_bytes: usize,
}

/// A value that was appended to has room for this part of itself, so that appending is not quadratic.
const SLACK_PART: usize = 8;

impl Stored {
    pub(super) fn new(value: Bytes) -> Self {
        let held_bytes = value.len();
        Self { value, held_bytes }
    }

    pub(super) fn value(&self) -> &Bytes {
        &self.value
    }

    /// What counts against the store's limit.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Puts `more` at the end: within the buffer where it fits, else in a larger one, which has
    /// `slack_bytes_max` to spare at most. A value that somebody has, such as a reply that was not sent
    /// yet, is copied and left as it was.
    pub(super) fn append(&mut self, more: &[u8], slack_bytes_max: usize) {
        let length = self.value.len() + more.len();
        let larger = |value: &[u8]| {
            let held_bytes = length + (length / SLACK_PART).min(slack_bytes_max);
            let mut buffer = BytesMut::with_capacity(held_bytes);
            buffer.extend_from_slice(value);
            (buffer, held_bytes)
        };
        let (mut buffer, held_bytes) = match std::mem::take(&mut self.value).try_into_mut() {
            Ok(buffer) if length <= self.held_bytes.min(buffer.capacity()) => (buffer, self.held_bytes),
            Ok(full) => larger(&full),
            Err(shared) => larger(&shared),
        };
        buffer.extend_from_slice(more);
        self.held_bytes = held_bytes;
        self.value = buffer.freeze();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appending_often_copies_seldom_and_the_slack_counts() {
        const LENGTH: usize = 1 << 20;
        let mut stored = Stored::new(vec![1; LENGTH].into());
        let mut moved = 0;
        for _ in 0..1000 {
            let before = stored.value().as_ptr();
            stored.append(b"2", usize::MAX);
            moved += usize::from(stored.value().as_ptr() != before);
        }
        assert_eq!(moved, 1, "into one larger buffer");
        let (old, new) = stored.value().split_at(LENGTH);
        assert!(old.iter().all(|byte| *byte == 1) && new == [b'2'; 1000]);
        assert_eq!(stored.held_bytes(), LENGTH + 1 + (LENGTH + 1) / SLACK_PART);
    }

    #[test]
    fn appending_leaves_a_value_alone_that_a_reader_still_has() {
        let mut stored = Stored::new(vec![b'1'; 100].into());
        for _ in 0..20 {
            let before = stored.value().clone();
            stored.append(b"2", usize::MAX);
            assert_eq!(stored.value()[..], [&before[..], b"2"].concat());
        }
    }

    #[test]
    fn there_is_no_more_slack_than_allowed() {
        let mut stored = Stored::new(vec![0; 100].into());
        stored.append(&[1; 100], 3);
        assert_eq!((stored.value().len(), stored.held_bytes()), (200, 203));
    }
}

//! Memory of large values that are gone, for the next ones.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use bytes::Bytes;

use crate::sync::Mutex;

/// Shorter values are left to the allocator, which is as fast with them.
const RECYCLED_BYTES_MIN: usize = 128 << 10;

/// The most that one stock keeps. [`Limits`](crate::store::Limits) says so.
const STOCK_BYTES: usize = 32 << 20;

/// Buffers of values that were dropped. Fresh memory costs a page fault for every 4 KiB that is
/// received into it, and the stream of equal chunks that a pipe is needs none.
///
/// A buffer serves again for a value of exactly its length only, so that no value ever holds more than
/// it is counted for.
#[derive(Debug)]
pub(super) struct Stock {
    idle: Mutex<Idle>,
}

impl Default for Stock {
    fn default() -> Self {
        Self { idle: Mutex::new(Idle::default()) }
    }
}

#[derive(Debug, Default)]
struct Idle {
    /// Longest idle first.
    buffers: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Stock {
    /// An empty buffer with room for exactly `length` bytes, if there is one.
    pub(super) fn take(&self, length: usize) -> Option<Vec<u8>> {
        if length < RECYCLED_BYTES_MIN {
            return None;
        }
        let mut idle = self.idle.lock();
        // The youngest, whose pages are most likely in a cache.
        let index = idle.buffers.iter().rposition(|buffer| buffer.capacity() == length)?;
        idle.bytes -= length;
        idle.buffers.remove(index)
    }

    /// A value whose buffer comes back when the last of its clones is dropped, if it is worth it.
    pub(super) fn value(self: &Arc<Self>, bytes: Vec<u8>) -> Bytes {
        if bytes.capacity() < RECYCLED_BYTES_MIN || bytes.len() != bytes.capacity() {
            return bytes.into();
        }
        Bytes::from_owner(Value { bytes, home: Arc::downgrade(self) })
    }

    fn give_back(&self, mut bytes: Vec<u8>) {
        bytes.clear();
        let mut unwanted = Vec::new();
        {
            let mut idle = self.idle.lock();
            idle.bytes += bytes.capacity();
            idle.buffers.push_back(bytes);
            while idle.bytes > STOCK_BYTES
                && let Some(oldest) = idle.buffers.pop_front()
            {
                idle.bytes -= oldest.capacity();
                unwanted.push(oldest);
            }
        }
        // Only now that the lock is released: freeing a large buffer is a system call.
        drop(unwanted);
    }
}

struct Value {
    bytes: Vec<u8>,
    home: Weak<Stock>,
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            home.give_back(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: usize = 1 << 20;

    fn buffer(length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        bytes.resize(length, 7);
        bytes
    }

    #[test]
    fn a_buffer_comes_back_with_the_last_clone_and_serves_its_own_length_only() {
        let stock = Arc::new(Stock::default());
        let bytes = buffer(LENGTH);
        let place = bytes.as_ptr();
        let value = stock.value(bytes);
        let part = value.slice(5..10);
        drop(value);
        assert!(stock.take(LENGTH).is_none(), "a part of it is in use");
        drop(part);
        assert!(stock.take(LENGTH - 1).is_none() && stock.take(LENGTH + 1).is_none());
        let again = stock.take(LENGTH).unwrap();
        assert_eq!((again.as_ptr(), again.len(), again.capacity()), (place, 0, LENGTH));
        assert!(stock.take(LENGTH).is_none());
        assert_eq!(stock.idle.lock().bytes, 0);
    }

    #[test]
    fn a_stock_keeps_no_more_than_its_bound_and_the_youngest() {
        let stock = Arc::new(Stock::default());
        let values: Vec<_> = (0..40).map(|extra| stock.value(buffer(LENGTH + extra))).collect();
        drop(values);
        let kept: Vec<_> = stock.idle.lock().buffers.iter().map(Vec::capacity).collect();
        assert_eq!(kept, (9..40).map(|extra| LENGTH + extra).collect::<Vec<_>>());
        assert_eq!(stock.idle.lock().bytes, kept.iter().sum::<usize>());
    }

    #[test]
    fn small_values_and_those_with_slack_are_not_kept() {
        let stock = Arc::new(Stock::default());
        let mut slack = buffer(LENGTH);
        slack.pop();
        for bytes in [buffer(RECYCLED_BYTES_MIN - 1), slack] {
            drop(stock.value(bytes));
        }
        assert!(stock.idle.lock().buffers.is_empty());
    }
}

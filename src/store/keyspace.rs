//! The keys, their values and who waits for them: a state machine without I/O or clock.
//!
//! [`MemoryStore`](super::MemoryStore) and the TCP server both stand on it, which is what makes them
//! behave alike. The semantics are TCPStore's (torch 2.5 to 2.15, classic and libuv servers), with
//! these choices where those are lax: ADD refuses a value with blanks or trailing junk, and a sum
//! that overflows, where PyTorch takes `12abc` for 12 and wraps around.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::Limits;

/// Who waits. A waiter has at most one wait at a time.
pub(super) type WaiterId = u64;

/// Why a store refused a request. The store is as it was before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// ADD to a value that is not a decimal number.
    #[error("the value of key {key:?} is not a decimal 64-bit integer")]
    NotANumber {
        /// Which key.
        key: String,
    },
    /// ADD beyond the range of an `i64`.
    #[error("adding {delta} to the {value} of key {key:?} overflows a 64-bit integer")]
    Overflow {
        /// Which key.
        key: String,
        /// What it holds.
        value: i64,
        /// What should have been added.
        delta: i64,
    },
    /// One key more than [`Limits::stored_keys`].
    #[error("no room for key {key:?}: the store holds its limit of {limit} keys")]
    KeysFull {
        /// Which key.
        key: String,
        /// The limit.
        limit: usize,
    },
    /// More bytes than [`Limits::stored_bytes`].
    #[error("no room for key {key:?}: the store would hold {bytes} bytes, over its limit of {limit}")]
    BytesFull {
        /// Which key.
        key: String,
        /// What the store would hold with it.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

/// Keys, values and waiters.
#[derive(Debug)]
pub(super) struct Keyspace {
    values: BTreeMap<Bytes, Bytes>,
    /// Of all keys and values together.
    stored_bytes: usize,
    /// What each waiter still misses; never an empty set.
    missing: BTreeMap<WaiterId, BTreeSet<Bytes>>,
    /// The same by key; never an empty set.
    waiters: BTreeMap<Bytes, BTreeSet<WaiterId>>,
    stored_keys_limit: usize,
    stored_bytes_limit: usize,
}

impl Keyspace {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            values: BTreeMap::new(),
            stored_bytes: 0,
            missing: BTreeMap::new(),
            waiters: BTreeMap::new(),
            stored_keys_limit: limits.stored_keys,
            stored_bytes_limit: limits.stored_bytes,
        }
    }

    /// Stores a value; gives the waiters that this has satisfied, which wait no more.
    pub(super) fn set(&mut self, key: Bytes, value: Bytes) -> Result<Vec<WaiterId>, Refusal> {
        let (freed, new_key) = match self.values.get(&key) {
            Some(old) => (key.len() + old.len(), false),
            None => (0, true),
        };
        if new_key && self.values.len() >= self.stored_keys_limit {
            return Err(Refusal::KeysFull { key: text(&key), limit: self.stored_keys_limit });
        }
        let bytes = (self.stored_bytes - freed).saturating_add(key.len()).saturating_add(value.len());
        if bytes > self.stored_bytes_limit {
            return Err(Refusal::BytesFull { key: text(&key), bytes, limit: self.stored_bytes_limit });
        }
        self.stored_bytes = bytes;
        let satisfied = self.key_appeared(&key);
        self.values.insert(key, value);
        Ok(satisfied)
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&Bytes> {
        self.values.get(key)
    }

    /// Adds to the decimal text under `key`; gives the sum and the waiters satisfied.
    pub(super) fn add(&mut self, key: Bytes, delta: i64) -> Result<(i64, Vec<WaiterId>), Refusal> {
        let value = match self.values.get(&key) {
            Some(value) => parse_decimal(value).ok_or_else(|| Refusal::NotANumber { key: text(&key) })?,
            None => 0,
        };
        let sum =
            value.checked_add(delta).ok_or_else(|| Refusal::Overflow { key: text(&key), value, delta })?;
        let satisfied = self.set(key, Bytes::from(sum.to_string()))?;
        Ok((sum, satisfied))
    }

    pub(super) fn has_all<K: AsRef<[u8]>>(&self, keys: &[K]) -> bool {
        keys.iter().all(|key| self.values.contains_key(key.as_ref()))
    }

    pub(super) fn delete(&mut self, key: &[u8]) -> bool {
        let Some(value) = self.values.remove(key) else { return false };
        self.stored_bytes -= key.len() + value.len();
        true
    }

    /// True if all keys are there. Otherwise `waiter` is parked until each key that is missing now has
    /// been set once: a key that came counts even if it is deleted again. Replaces an earlier wait.
    pub(super) fn wait(&mut self, waiter: WaiterId, keys: Vec<Bytes>) -> bool {
        self.cancel(waiter);
        let missing: BTreeSet<Bytes> =
            keys.into_iter().filter(|key| !self.values.contains_key(key)).collect();
        if missing.is_empty() {
            return true;
        }
        for key in &missing {
            self.waiters.entry(key.clone()).or_default().insert(waiter);
        }
        self.missing.insert(waiter, missing);
        false
    }

    pub(super) fn is_waiting(&self, waiter: WaiterId) -> bool {
        self.missing.contains_key(&waiter)
    }

    /// How many waiters are parked.
    pub(super) fn waiting(&self) -> usize {
        self.missing.len()
    }

    /// Forgets the wait of `waiter`, if it has one.
    pub(super) fn cancel(&mut self, waiter: WaiterId) {
        for key in self.missing.remove(&waiter).unwrap_or_default() {
            if let Some(waiters) = self.waiters.get_mut(&key) {
                waiters.remove(&waiter);
                if waiters.is_empty() {
                    self.waiters.remove(&key);
                }
            }
        }
    }

    fn key_appeared(&mut self, key: &Bytes) -> Vec<WaiterId> {
        let mut satisfied = Vec::new();
        for waiter in self.waiters.remove(key).unwrap_or_default() {
            if let Some(missing) = self.missing.get_mut(&waiter) {
                missing.remove(key);
                if missing.is_empty() {
                    self.missing.remove(&waiter);
                    satisfied.push(waiter);
                }
            }
        }
        satisfied
    }
}

/// A key as an error names it.
pub(super) fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

fn parse_decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Keyspace {
        Keyspace::new(&Limits::default())
    }

    fn limited(stored_keys: usize, stored_bytes: usize) -> Keyspace {
        Keyspace::new(&Limits { stored_keys, stored_bytes, ..Limits::default() })
    }

    fn keys(names: &[&'static str]) -> Vec<Bytes> {
        names.iter().map(|name| Bytes::from_static(name.as_bytes())).collect()
    }

    fn set(space: &mut Keyspace, key: &'static str) -> Vec<WaiterId> {
        space.set(key.into(), "v".into()).unwrap()
    }

    #[test]
    fn a_wait_ends_once_every_key_has_come_even_if_one_is_deleted_again() {
        let mut space = empty();
        assert!(!space.wait(7, keys(&["a", "b"])));
        assert!(set(&mut space, "a").is_empty());
        assert!(space.delete(b"a"));
        assert_eq!(set(&mut space, "b"), [7]);
        assert!(!space.is_waiting(7));
    }

    #[test]
    fn a_key_named_twice_in_one_wait_wakes_once() {
        let mut space = empty();
        assert!(!space.wait(7, keys(&["a", "a"])));
        assert_eq!(set(&mut space, "a"), [7]);
        assert!(set(&mut space, "a").is_empty());
    }

    #[test]
    fn one_key_wakes_all_its_waiters_and_nobody_else() {
        let mut space = empty();
        for (waiter, key) in [(1, "a"), (2, "b"), (3, "a")] {
            assert!(!space.wait(waiter, keys(&[key])));
        }
        assert_eq!(space.add("a".into(), 1), Ok((1, vec![1, 3])));
        assert_eq!(space.waiting(), 1);
    }

    #[test]
    fn a_cancelled_wait_leaves_nothing_behind() {
        let mut space = empty();
        assert!(!space.wait(7, keys(&["a", "b"])));
        assert!(!space.wait(8, keys(&["a"])));
        space.cancel(7);
        assert_eq!(set(&mut space, "a"), [8]);
        assert!(set(&mut space, "b").is_empty());
        assert!(space.missing.is_empty() && space.waiters.is_empty());
    }

    #[test]
    fn waiting_for_no_keys_or_for_keys_at_hand_does_not_park() {
        let mut space = empty();
        assert!(space.wait(7, keys(&[])));
        set(&mut space, "a");
        assert!(space.wait(7, keys(&["a", "a"])));
        assert_eq!(space.waiting(), 0);
    }

    #[test]
    fn add_refuses_junk_and_overflow_and_leaves_the_value() {
        let mut space = empty();
        for junk in ["", "abc", "12abc", " 7", "9223372036854775808"] {
            space.set("n".into(), junk.into()).unwrap();
            assert_eq!(space.add("n".into(), 1), Err(Refusal::NotANumber { key: "n".into() }), "{junk:?}");
            assert_eq!(space.get(b"n").unwrap(), junk);
        }
        space.set("n".into(), i64::MAX.to_string().into()).unwrap();
        let overflow = Refusal::Overflow { key: "n".into(), value: i64::MAX, delta: 1 };
        assert_eq!(space.add("n".into(), 1), Err(overflow));
        assert_eq!(space.add("n".into(), -1), Ok((i64::MAX - 1, vec![])));
    }

    #[test]
    fn the_limit_on_keys_refuses_a_new_key_but_not_an_old_one() {
        let mut space = limited(1, 100);
        set(&mut space, "a");
        let full = Refusal::KeysFull { key: "b".into(), limit: 1 };
        assert_eq!(space.set("b".into(), "v".into()), Err(full));
        assert!(set(&mut space, "a").is_empty());
    }

    #[test]
    fn the_limit_on_bytes_counts_what_a_replaced_or_deleted_value_frees() {
        let mut space = limited(10, 10);
        space.set("a".into(), "123456789".into()).unwrap();
        let full = Refusal::BytesFull { key: "b".into(), bytes: 11, limit: 10 };
        assert_eq!(space.set("b".into(), "".into()), Err(full));
        space.set("a".into(), "987654321".into()).unwrap();
        space.delete(b"a");
        space.set("b".into(), "123456789".into()).unwrap();
    }

    #[test]
    fn a_refused_set_wakes_nobody() {
        let mut space = limited(0, 0);
        assert!(!space.wait(7, keys(&["a"])));
        assert!(space.set("a".into(), "v".into()).is_err());
        assert!(space.is_waiting(7));
    }
}

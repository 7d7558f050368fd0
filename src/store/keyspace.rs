//! The keys, their values and the queues: a state machine without I/O or clock.
//!
//! [`MemoryStore`](super::MemoryStore) and the TCP server both stand on it, which is what makes them
//! behave alike. The semantics are TCPStore's (torch 2.5 to 2.15, classic and libuv servers), with
//! these choices where those are lax or differ:
//!
//! | | torch | here |
//! |---|---|---|
//! | ADD to `12abc`, ` 7` | 13, 8 | refused, as ADD to `abc` is in torch |
//! | ADD beyond an `i64` | wraps around | refused |
//! | BARRIER over such a value | | refused like ADD, whose counter it is |
//! | COMPARE_SET that stores | wakes (libuv), does not (classic) | wakes, since the key is there |
//! | COMPARE_SET that does not | wakes (libuv), does not (classic) | does not: who was woken would find nothing |
//! | MULTI_SET over a limit | stores some of it | stores nothing |
//! | queues | libuv only | as libuv: names of their own, but CHECK and WAIT see what is not empty |
//!
//! **Wake-ups.** Whatever makes a key exist ends the waits that miss nothing else. A key that came
//! counts even if it is deleted again, so a wait ends once. Nobody is woken for a key that is not there
//! at that moment, but all who wait are woken for one queued value: if only one were, and died before
//! it came to take it, the others would wait for ever beside a full queue.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::stored::Stored;
use super::waits::{WaiterId, Waits};
use super::{Limits, Refusal};

/// Keys, values, queues and waiters.
#[derive(Debug)]
pub(super) struct Keyspace {
    values: BTreeMap<Bytes, Stored>,
    /// Never an empty queue.
    queues: BTreeMap<Bytes, VecDeque<Bytes>>,
    /// How many values all queues have.
    queued: usize,
    /// Of all keys, values and queues together.
    stored_bytes: usize,
    waits: Waits,
    limits: Limits,
}

impl Keyspace {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            values: BTreeMap::new(),
            queues: BTreeMap::new(),
            queued: 0,
            stored_bytes: 0,
            waits: Waits::default(),
            limits: limits.clone(),
        }
    }

    /// Stores a value; gives the waiters that this has satisfied, which wait no more.
    pub(super) fn set(&mut self, key: Bytes, value: Bytes) -> Result<Vec<WaiterId>, Refusal> {
        self.multi_set(BTreeMap::from([(key, value)]))
    }

    /// Stores all values or none; gives the waiters satisfied.
    pub(super) fn multi_set(&mut self, pairs: BTreeMap<Bytes, Bytes>) -> Result<Vec<WaiterId>, Refusal> {
        let (mut new_keys, mut freed, mut added) = (0, 0, 0_usize);
        for (key, value) in &pairs {
            added = added.saturating_add(key.len()).saturating_add(value.len());
            match self.values.get(key) {
                Some(old) => freed += key.len() + old.held_bytes(),
                None => new_keys += 1,
            }
        }
        let Some(first) = pairs.keys().next() else { return Ok(Vec::new()) };
        self.stored_bytes = self.room_for(first, new_keys, freed, added)?;
        let mut satisfied = Vec::new();
        for (key, value) in pairs {
            satisfied.extend(self.waits.key_appeared(&key));
            self.values.insert(key, Stored::new(value));
        }
        Ok(satisfied)
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&Bytes> {
        self.values.get(key).map(Stored::value)
    }

    /// Adds to the decimal text under `key`; gives the sum and the waiters satisfied.
    pub(super) fn add(&mut self, key: Bytes, delta: i64) -> Result<(i64, Vec<WaiterId>), Refusal> {
        let value = match self.get(&key) {
            Some(value) => parse_decimal(value).ok_or_else(|| Refusal::NotANumber { key: text(&key) })?,
            None => 0,
        };
        let sum =
            value.checked_add(delta).ok_or_else(|| Refusal::Overflow { key: text(&key), value, delta })?;
        // A copy, since a `String` may have a larger buffer than is counted.
        let satisfied = self.set(key, Bytes::copy_from_slice(sum.to_string().as_bytes()))?;
        Ok((sum, satisfied))
    }

    /// Puts `more` behind the value under `key`, or stores it if there is none; gives the waiters
    /// satisfied. The cost is that of `more`, on average, unless a reply still holds the value.
    pub(super) fn append(&mut self, key: Bytes, more: Bytes) -> Result<Vec<WaiterId>, Refusal> {
        let Some(old) = self.values.get(&key) else { return self.set(key, more) };
        let bytes = old.value().len().saturating_add(more.len());
        if bytes > self.limits.value_bytes {
            return Err(Refusal::ValueFull { key: text(&key), bytes, limit: self.limits.value_bytes });
        }
        let others_bytes = self.stored_bytes - old.held_bytes();
        let needed_bytes = self.room_for(&key, 0, old.held_bytes(), bytes)?;
        let slack_bytes = self.limits.stored_bytes - needed_bytes;
        if let Some(stored) = self.values.get_mut(&key) {
            stored.append(&more, slack_bytes);
            self.stored_bytes = others_bytes + stored.held_bytes();
        }
        Ok(Vec::new())
    }

    /// Stores `desired` if the value under `key` is `expected`, or if there is none and `expected` is
    /// empty. Gives what COMPARE_SET answers and the waiters satisfied. The answer is what `key` holds
    /// afterwards, except that a missing key with another `expected` is left missing and answered with
    /// that, as PyTorch's servers do.
    pub(super) fn compare_set(
        &mut self,
        key: Bytes,
        expected: Bytes,
        desired: Bytes,
    ) -> Result<(Bytes, Vec<WaiterId>), Refusal> {
        match self.get(&key) {
            Some(value) if *value != expected => Ok((value.clone(), Vec::new())),
            None if !expected.is_empty() => Ok((expected, Vec::new())),
            _ => Ok((desired.clone(), self.set(key, desired)?)),
        }
    }

    /// Whether all are there, as values or as queues that are not empty.
    pub(super) fn has_all<K: AsRef<[u8]>>(&self, keys: &[K]) -> bool {
        keys.iter().all(|key| self.has(key.as_ref()))
    }

    pub(super) fn delete(&mut self, key: &[u8]) -> bool {
        let Some(stored) = self.values.remove(key) else { return false };
        self.stored_bytes -= key.len() + stored.held_bytes();
        true
    }

    /// The keys that have a value, in the order of their bytes; queues are not among them.
    pub(super) fn keys(&self) -> impl ExactSizeIterator<Item = &Bytes> {
        self.values.keys()
    }

    /// Puts a value at the end of a queue; gives the waiters satisfied.
    pub(super) fn push(&mut self, key: Bytes, value: Bytes) -> Result<Vec<WaiterId>, Refusal> {
        let added = if self.queues.contains_key(&key) { 0 } else { key.len() };
        self.stored_bytes = self.room_for(&key, 1, 0, added.saturating_add(value.len()))?;
        self.queued += 1;
        let satisfied = self.waits.key_appeared(&key);
        self.queues.entry(key).or_default().push_back(value);
        Ok(satisfied)
    }

    /// The first value of a queue, which it takes out, and how many there were with it.
    pub(super) fn pop(&mut self, key: &[u8]) -> Option<(usize, Bytes)> {
        let queue = self.queues.get_mut(key)?;
        let length = queue.len();
        let value = queue.pop_front()?;
        self.queued -= 1;
        self.stored_bytes -= value.len();
        if queue.is_empty() {
            self.queues.remove(key);
            self.stored_bytes -= key.len();
        }
        Some((length, value))
    }

    pub(super) fn queue_len(&self, key: &[u8]) -> usize {
        self.queues.get(key).map_or(0, VecDeque::len)
    }

    /// How many values all queues have together.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// What the limit on bytes is held against.
    pub(super) fn stored_bytes(&self) -> usize {
        self.stored_bytes
    }

    /// True if all keys are there. Otherwise `waiter` is parked until each key that is missing now has
    /// come once: a key that came counts even if it is deleted again. Replaces an earlier wait.
    pub(super) fn wait(&mut self, waiter: WaiterId, keys: Vec<Bytes>) -> bool {
        self.cancel(waiter);
        let missing: BTreeSet<Bytes> = keys.into_iter().filter(|key| !self.has(key)).collect();
        if missing.is_empty() {
            return true;
        }
        self.waits.park_for_keys(waiter, missing);
        false
    }

    /// `waiter` arrives. True if it is the last of `world_size`, or late: then all who are parked here
    /// are satisfied, besides those for whom the first arrival made the key exist. Otherwise it is
    /// parked. The count is never reset. Replaces an earlier wait.
    pub(super) fn barrier(
        &mut self,
        waiter: WaiterId,
        key: Bytes,
        world_size: i64,
    ) -> Result<(bool, Vec<WaiterId>), Refusal> {
        let (arrived, mut satisfied) = self.add(key.clone(), 1)?;
        self.cancel(waiter);
        let passed = arrived >= world_size;
        if passed {
            satisfied.extend(self.waits.open_barrier(&key));
        } else {
            self.waits.park_at_barrier(waiter, key);
        }
        Ok((passed, satisfied))
    }

    pub(super) fn is_waiting(&self, waiter: WaiterId) -> bool {
        self.waits.contains(waiter)
    }

    /// How many waiters are parked.
    pub(super) fn waiting(&self) -> usize {
        self.waits.count()
    }

    /// What the parked waits cost in memory.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waits.held_bytes()
    }

    /// Forgets the wait of `waiter`, if it has one.
    pub(super) fn cancel(&mut self, waiter: WaiterId) {
        self.waits.cancel(waiter);
    }

    fn has(&self, key: &[u8]) -> bool {
        self.values.contains_key(key) || self.queues.contains_key(key)
    }

    /// What the store will hold in bytes once some are freed and others added.
    fn room_for(&self, key: &[u8], new_keys: usize, freed: usize, added: usize) -> Result<usize, Refusal> {
        let Limits { stored_keys, stored_bytes, .. } = self.limits;
        if new_keys > 0 && (self.values.len() + self.queued).saturating_add(new_keys) > stored_keys {
            return Err(Refusal::KeysFull { key: text(key), limit: stored_keys });
        }
        let bytes = (self.stored_bytes - freed).saturating_add(added);
        if bytes > stored_bytes {
            return Err(Refusal::BytesFull { key: text(key), bytes, limit: stored_bytes });
        }
        Ok(bytes)
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

    fn pairs(pairs: &[(&'static str, &'static str)]) -> BTreeMap<Bytes, Bytes> {
        pairs.iter().map(|(key, value)| (Bytes::from(*key), Bytes::from(*value))).collect()
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
    fn whatever_makes_a_key_exist_wakes_who_waits_for_it() {
        type Change = fn(&mut Keyspace) -> Vec<WaiterId>;
        let changes: [Change; 7] = [
            |space| set(space, "k"),
            |space| space.add("k".into(), 0).unwrap().1,
            |space| space.append("k".into(), "".into()).unwrap(),
            |space| space.multi_set(pairs(&[("j", "v"), ("k", "v")])).unwrap(),
            |space| space.compare_set("k".into(), "".into(), "v".into()).unwrap().1,
            |space| space.barrier(8, "k".into(), 2).unwrap().1,
            |space| space.push("k".into(), "v".into()).unwrap(),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut space = empty();
            assert!(!space.wait(7, keys(&["k"])));
            assert_eq!(change(&mut space), [7], "change {index}");
            assert!(change(&mut space).is_empty(), "change {index}");
        }
    }

    #[test]
    fn a_compare_set_that_stores_nothing_wakes_nobody() {
        let mut space = empty();
        assert!(!space.wait(7, keys(&["k"])));
        let answer = space.compare_set("k".into(), "expected".into(), "desired".into());
        assert_eq!(answer, Ok(("expected".into(), vec![])));
        assert!(space.is_waiting(7) && space.get(b"k").is_none());
    }

    #[test]
    fn compare_set_answers_with_what_is_there_afterwards() {
        let mut space = empty();
        let mut ask = |expected: &'static str, desired: &'static str| {
            space.compare_set("k".into(), expected.into(), desired.into()).unwrap().0
        };
        assert_eq!(ask("", "one"), "one");
        assert_eq!(ask("", "two"), "one");
        assert_eq!(ask("one", "two"), "two");
    }

    #[test]
    fn a_multi_set_wakes_a_waiter_for_two_of_its_keys_once() {
        let mut space = empty();
        assert!(!space.wait(7, keys(&["a", "b"])));
        assert_eq!(space.multi_set(pairs(&[("a", "1"), ("b", "2")])), Ok(vec![7]));
    }

    #[test]
    fn a_multi_set_that_does_not_fit_stores_nothing() {
        let mut space = limited(2, 100);
        set(&mut space, "a");
        let three = pairs(&[("a", "new"), ("b", "2"), ("c", "3")]);
        assert_eq!(space.multi_set(three), Err(Refusal::KeysFull { key: "a".into(), limit: 2 }));
        assert_eq!((space.get(b"a").unwrap(), space.keys().len()), (&"v".into(), 1));
        assert_eq!(space.multi_set(pairs(&[("a", "new"), ("b", "2")])), Ok(vec![]));
    }

    #[test]
    fn a_queue_gives_back_in_order_and_is_seen_by_waits_while_it_has_something() {
        let mut space = empty();
        assert!(!space.wait(7, keys(&["q"])));
        assert!(!space.wait(8, keys(&["q"])));
        assert_eq!(space.push("q".into(), "1".into()), Ok(vec![7, 8]));
        assert_eq!(space.push("q".into(), "2".into()), Ok(vec![]));
        assert!(space.wait(9, keys(&["q"])) && space.has_all(&["q"]));
        assert_eq!((space.queue_len(b"q"), space.keys().len()), (2, 0));
        assert_eq!(space.pop(b"q"), Some((2, "1".into())));
        assert_eq!(space.pop(b"q"), Some((1, "2".into())));
        assert_eq!(space.pop(b"q"), None);
        assert!(!space.has_all(&["q"]) && !space.delete(b"q"));
        assert_eq!((space.queued(), space.stored_bytes()), (0, 0));
    }

    #[test]
    fn queued_values_count_against_both_limits() {
        let mut space = limited(2, 10);
        space.push("q".into(), "1234".into()).unwrap();
        let full = Refusal::BytesFull { key: "q".into(), bytes: 11, limit: 10 };
        assert_eq!(space.push("q".into(), "123456".into()), Err(full));
        space.push("q".into(), "".into()).unwrap();
        let full = Refusal::KeysFull { key: "k".into(), limit: 2 };
        assert_eq!(space.set("k".into(), "".into()), Err(full.clone()));
        assert!(space.push("k".into(), "".into()).is_err());
        space.pop(b"q").unwrap();
        assert_eq!(space.set("k".into(), "12345678".into()), Ok(vec![]));
    }

    #[test]
    fn the_last_arrival_at_a_barrier_frees_all_and_later_ones_pass() {
        let mut space = empty();
        assert_eq!(space.barrier(1, "b".into(), 3), Ok((false, vec![])));
        assert_eq!(space.barrier(2, "b".into(), 3), Ok((false, vec![])));
        assert_eq!(space.waiting(), 2);
        assert_eq!(space.barrier(3, "b".into(), 3), Ok((true, vec![1, 2])));
        assert_eq!(space.barrier(1, "b".into(), 3), Ok((true, vec![])));
        assert_eq!((space.get(b"b").unwrap(), space.waiting()), (&"4".into(), 0));
    }

    #[test]
    fn who_leaves_a_barrier_is_counted_and_not_woken() {
        let mut space = empty();
        space.barrier(1, "b".into(), 2).unwrap();
        space.cancel(1);
        assert_eq!(space.barrier(2, "b".into(), 2), Ok((true, vec![])));
    }

    #[test]
    fn a_barrier_over_junk_is_refused_and_nobody_is_parked() {
        let mut space = empty();
        set(&mut space, "b");
        assert_eq!(space.barrier(1, "b".into(), 2), Err(Refusal::NotANumber { key: "b".into() }));
        assert_eq!((space.waiting(), space.get(b"b").unwrap()), (0, &"v".into()));
    }

    #[test]
    fn appending_takes_slack_only_where_there_is_room_and_stops_at_the_limits() {
        let limits = Limits { value_bytes: 24, stored_bytes: 25, ..Limits::default() };
        let mut space = Keyspace::new(&limits);
        space.append("k".into(), vec![1; 16].into()).unwrap();
        space.append("k".into(), vec![2; 8].into()).unwrap();
        assert_eq!(space.stored_bytes(), 25);
        let full = Refusal::ValueFull { key: "k".into(), bytes: 25, limit: 24 };
        assert_eq!(space.append("k".into(), "3".into()), Err(full));
        assert_eq!(space.get(b"k").unwrap().len(), 24);
        space.delete(b"k");
        space.set("other".into(), vec![0; 5].into()).unwrap();
        space.set("k".into(), vec![0; 14].into()).unwrap();
        let full = Refusal::BytesFull { key: "k".into(), bytes: 26, limit: 25 };
        assert_eq!(space.append("k".into(), "1".into()), Err(full));
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

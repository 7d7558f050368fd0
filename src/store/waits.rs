//! Who waits for what: for keys to come, or at a barrier for the others.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::limits::LISTED_KEY_BYTES;

/// Who waits. A waiter waits for one thing at a time.
pub(super) type WaiterId = u64;

/// All that wait.
#[derive(Debug, Default)]
pub(super) struct Waits {
    pending: BTreeMap<WaiterId, Pending>,
    /// Who waits for a key, by key; never an empty set.
    for_key: BTreeMap<Bytes, BTreeSet<WaiterId>>,
    /// Who waits at a barrier, by its key; never an empty set.
    at_barrier: BTreeMap<Bytes, BTreeSet<WaiterId>>,
    held_bytes: usize,
}

#[derive(Debug)]
enum Pending {
    /// Until each of these has come once; never an empty set.
    Keys(BTreeSet<Bytes>),
    /// Until enough have arrived at this key.
    Barrier(Bytes),
}

impl Waits {
    /// How many wait.
    pub(super) fn count(&self) -> usize {
        self.pending.len()
    }

    /// The memory that the waits take, about.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    pub(super) fn contains(&self, waiter: WaiterId) -> bool {
        self.pending.contains_key(&waiter)
    }

    /// Parks `waiter` until each of `missing`, which is not empty, has come. It does not wait already.
    pub(super) fn park_for_keys(&mut self, waiter: WaiterId, missing: BTreeSet<Bytes>) {
        for key in &missing {
            self.held_bytes += cost(key);
            self.for_key.entry(key.clone()).or_default().insert(waiter);
        }
        self.pending.insert(waiter, Pending::Keys(missing));
    }

    /// Parks `waiter` at a barrier. It does not wait already.
    pub(super) fn park_at_barrier(&mut self, waiter: WaiterId, key: Bytes) {
        self.held_bytes += cost(&key);
        self.at_barrier.entry(key.clone()).or_default().insert(waiter);
        self.pending.insert(waiter, Pending::Barrier(key));
    }

    /// Forgets the wait of `waiter`, if it has one.
    pub(super) fn cancel(&mut self, waiter: WaiterId) {
        match self.pending.remove(&waiter) {
            None => {}
            Some(Pending::Keys(keys)) => {
                for key in keys {
                    self.held_bytes -= cost(&key);
                    remove(&mut self.for_key, &key, waiter);
                }
            }
            Some(Pending::Barrier(key)) => {
                self.held_bytes -= cost(&key);
                remove(&mut self.at_barrier, &key, waiter);
            }
        }
    }

    /// A key is there; gives those whose last missing key it was, which wait no more.
    pub(super) fn key_appeared(&mut self, key: &[u8]) -> Vec<WaiterId> {
        let mut satisfied = Vec::new();
        for waiter in self.for_key.remove(key).unwrap_or_default() {
            if let Some(Pending::Keys(missing)) = self.pending.get_mut(&waiter) {
                self.held_bytes -= missing.take(key).map_or(0, |key| cost(&key));
                if missing.is_empty() {
                    self.pending.remove(&waiter);
                    satisfied.push(waiter);
                }
            }
        }
        satisfied
    }

    /// Enough have arrived; gives those who wait for them, and wait no more.
    pub(super) fn open_barrier(&mut self, key: &[u8]) -> Vec<WaiterId> {
        let waiters: Vec<WaiterId> = self.at_barrier.remove(key).unwrap_or_default().into_iter().collect();
        for waiter in &waiters {
            self.pending.remove(waiter);
            self.held_bytes -= cost(key);
        }
        waiters
    }
}

/// What `keys` of one wait cost.
pub(super) fn cost_of_all(keys: &[Bytes]) -> usize {
    keys.iter().map(|key| cost(key)).sum()
}

fn cost(key: &[u8]) -> usize {
    LISTED_KEY_BYTES + key.len()
}

fn remove(by_key: &mut BTreeMap<Bytes, BTreeSet<WaiterId>>, key: &Bytes, waiter: WaiterId) {
    if let Some(waiters) = by_key.get_mut(key) {
        waiters.remove(&waiter);
        if waiters.is_empty() {
            by_key.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &[&'static str]) -> BTreeSet<Bytes> {
        names.iter().map(|name| Bytes::from_static(name.as_bytes())).collect()
    }

    fn is_empty(waits: &Waits) -> bool {
        waits.pending.is_empty()
            && waits.for_key.is_empty()
            && waits.at_barrier.is_empty()
            && waits.held_bytes == 0
    }

    #[test]
    fn a_cancelled_wait_leaves_nothing_behind() {
        let mut waits = Waits::default();
        waits.park_for_keys(7, keys(&["a", "b"]));
        waits.park_at_barrier(8, "a".into());
        assert_eq!(waits.held_bytes(), 3 * LISTED_KEY_BYTES + 3);
        waits.cancel(7);
        waits.cancel(8);
        assert!(is_empty(&waits));
    }

    #[test]
    fn a_satisfied_wait_leaves_nothing_behind() {
        let mut waits = Waits::default();
        waits.park_for_keys(7, keys(&["a", "b"]));
        waits.park_at_barrier(8, "a".into());
        waits.park_at_barrier(9, "a".into());
        assert!(waits.key_appeared(b"a").is_empty());
        assert_eq!(waits.key_appeared(b"b"), [7]);
        assert_eq!(waits.open_barrier(b"a"), [8, 9]);
        assert!(is_empty(&waits));
    }

    #[test]
    fn who_waits_at_a_barrier_does_not_wait_for_its_key_and_the_other_way_round() {
        let mut waits = Waits::default();
        waits.park_for_keys(7, keys(&["a"]));
        waits.park_at_barrier(8, "a".into());
        assert_eq!(waits.key_appeared(b"a"), [7]);
        assert!(waits.contains(8));
        assert_eq!(waits.open_barrier(b"a"), [8]);
        assert_eq!(waits.count(), 0);
    }
}

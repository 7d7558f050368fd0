//! A store within one process.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use super::keyspace::{Keyspace, text};
use super::limits::checked_world_size;
use super::waits::WaiterId;
use super::{Keys, Limits, Refusal, Store};
use crate::error::{Error, Result};
use crate::sync::Mutex;

/// A store for the tasks and threads of one process. Clones share it.
///
/// Only what has to wait needs a tokio runtime with time, for its timeout: `get`, `multi_get`, `wait`,
/// `queue_pop` and `barrier`. Nothing else ever waits. What waits may be dropped at any time without a
/// value being lost, `queue_pop` too.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

impl MemoryStore {
    /// An empty store with the default [`Limits`].
    #[must_use]
    pub fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    /// An empty store. The limits that concern connections have no meaning here.
    #[must_use]
    pub fn with_limits(limits: Limits) -> Self {
        let inner = Inner { keyspace: Keyspace::new(&limits), wakers: BTreeMap::new(), next_waiter: 0 };
        Self { shared: Arc::new(Shared { inner: Mutex::new(inner), limits }) }
    }

    /// How many calls are waiting now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.inner.lock().keyspace.waiting()
    }

    async fn wait_for(&self, keys: &[&str], timeout: Duration) -> Result<()> {
        let waiter = self.shared.new_waiter();
        let there =
            self.shared.inner.lock().keyspace.wait(waiter, keys.iter().map(|key| owned(key)).collect());
        if there {
            return Ok(());
        }
        let waiting = Waiting { shared: &self.shared, waiter };
        tokio::time::timeout(timeout, waiting).await.map_err(|_elapsed| late(keys, timeout))
    }

    /// What `take` finds once all `keys` are there. It may find nothing, if one is gone again before it
    /// looks.
    async fn once_there<T>(
        &self,
        keys: &[&str],
        timeout: Duration,
        take: impl Fn(&mut Keyspace) -> Option<T>,
    ) -> Result<T> {
        let take = || take(&mut self.shared.inner.lock().keyspace);
        if let Some(taken) = take() {
            return Ok(taken);
        }
        let wait_and_take = async {
            loop {
                self.wait_for(keys, Duration::MAX).await?;
                if let Some(taken) = take() {
                    return Ok(taken);
                }
            }
        };
        tokio::time::timeout(timeout, wait_and_take).await.map_err(|_elapsed| late(keys, timeout))?
    }
}

fn late(keys: &[&str], timeout: Duration) -> Error {
    Error::timeout(format!("{} in the store of this process", Keys(keys)), timeout)
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for MemoryStore {
    async fn set(&self, key: &str, value: Bytes, _timeout: Duration) -> Result<()> {
        self.shared.limits.check_key(key.as_bytes())?;
        self.shared.limits.check_values(key, [&value])?;
        self.shared.change(|keyspace| Ok(((), keyspace.set(owned(key), value)?)))
    }

    async fn get(&self, key: &str, timeout: Duration) -> Result<Bytes> {
        self.shared.limits.check_key(key.as_bytes())?;
        self.once_there(&[key], timeout, |keyspace| keyspace.get(key.as_bytes()).cloned()).await
    }

    async fn add(&self, key: &str, delta: i64, _timeout: Duration) -> Result<i64> {
        self.shared.limits.check_key(key.as_bytes())?;
        self.shared.change(|keyspace| keyspace.add(owned(key), delta))
    }

    async fn check(&self, keys: &[&str], _timeout: Duration) -> Result<bool> {
        self.shared.limits.check_keys(keys)?;
        Ok(self.shared.inner.lock().keyspace.has_all(keys))
    }

    async fn wait(&self, keys: &[&str], timeout: Duration) -> Result<()> {
        self.shared.limits.check_keys(keys)?;
        self.wait_for(keys, timeout).await
    }

    async fn delete(&self, key: &str, _timeout: Duration) -> Result<bool> {
        self.shared.limits.check_key(key.as_bytes())?;
        Ok(self.shared.inner.lock().keyspace.delete(key.as_bytes()))
    }

    async fn append(&self, key: &str, value: Bytes, _timeout: Duration) -> Result<()> {
        self.shared.limits.check_key(key.as_bytes())?;
        self.shared.limits.check_values(key, [&value])?;
        self.shared.change(|keyspace| Ok(((), keyspace.append(owned(key), value)?)))
    }

    async fn compare_set(
        &self,
        key: &str,
        expected: Bytes,
        desired: Bytes,
        _timeout: Duration,
    ) -> Result<Bytes> {
        self.shared.limits.check_key(key.as_bytes())?;
        self.shared.limits.check_values(key, [&expected, &desired])?;
        self.shared.change(|keyspace| keyspace.compare_set(owned(key), expected, desired))
    }

    async fn multi_get(&self, keys: &[&str], timeout: Duration) -> Result<Vec<Bytes>> {
        self.shared.limits.check_keys(keys)?;
        let all = |keyspace: &mut Keyspace| {
            keys.iter().map(|key| keyspace.get(key.as_bytes()).cloned()).collect::<Option<Vec<Bytes>>>()
        };
        self.once_there(keys, timeout, all).await
    }

    async fn multi_set(&self, pairs: &[(&str, Bytes)], _timeout: Duration) -> Result<()> {
        self.shared.limits.check_pairs(pairs)?;
        let pairs = pairs.iter().map(|(key, value)| (owned(key), value.clone())).collect();
        self.shared.change(|keyspace| Ok(((), keyspace.multi_set(pairs)?)))
    }

    async fn num_keys(&self, _timeout: Duration) -> Result<u64> {
        Ok(self.shared.inner.lock().keyspace.keys().len() as u64)
    }

    async fn list_keys(&self, _timeout: Duration) -> Result<Vec<String>> {
        Ok(self.shared.inner.lock().keyspace.keys().map(|key| text(key)).collect())
    }

    async fn queue_push(&self, key: &str, value: Bytes, _timeout: Duration) -> Result<()> {
        self.shared.limits.check_key(key.as_bytes())?;
        self.shared.limits.check_values(key, [&value])?;
        self.shared.change(|keyspace| Ok(((), keyspace.push(owned(key), value)?)))
    }

    async fn queue_pop(&self, key: &str, timeout: Duration) -> Result<Bytes> {
        self.shared.limits.check_key(key.as_bytes())?;
        let first = |keyspace: &mut Keyspace| keyspace.pop(key.as_bytes()).map(|(_length, value)| value);
        self.once_there(&[key], timeout, first).await
    }

    async fn try_queue_pop(&self, key: &str, _timeout: Duration) -> Result<Option<Bytes>> {
        self.shared.limits.check_key(key.as_bytes())?;
        let popped = self.shared.inner.lock().keyspace.pop(key.as_bytes());
        Ok(popped.map(|(_length, value)| value))
    }

    async fn queue_len(&self, key: &str, _timeout: Duration) -> Result<u64> {
        self.shared.limits.check_key(key.as_bytes())?;
        Ok(self.shared.inner.lock().keyspace.queue_len(key.as_bytes()) as u64)
    }

    async fn barrier(&self, key: &str, world_size: usize, timeout: Duration) -> Result<()> {
        self.shared.limits.check_key(key.as_bytes())?;
        let world_size = checked_world_size(key, world_size)?;
        let waiter = self.shared.new_waiter();
        if self.shared.change(|keyspace| keyspace.barrier(waiter, owned(key), world_size))? {
            return Ok(());
        }
        let waiting = Waiting { shared: &self.shared, waiter };
        tokio::time::timeout(timeout, waiting).await.map_err(|_elapsed| late(&[key], timeout))
    }
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    limits: Limits,
}

#[derive(Debug)]
struct Inner {
    keyspace: Keyspace,
    /// Of the waiters that have been polled.
    wakers: BTreeMap<WaiterId, Waker>,
    next_waiter: WaiterId,
}

impl Shared {
    fn new_waiter(&self) -> WaiterId {
        let mut inner = self.inner.lock();
        inner.next_waiter += 1;
        inner.next_waiter
    }

    /// Changes the keyspace and wakes whom that satisfied, outside the lock: a waker may do anything,
    /// such as drop another waiter of this store.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Keyspace) -> Result<(T, Vec<WaiterId>), Refusal>,
    ) -> Result<T> {
        let (output, wakers) = {
            let mut inner = self.inner.lock();
            let (output, satisfied) =
                change(&mut inner.keyspace).map_err(|refusal| Error::Misuse(refusal.to_string()))?;
            let wakers: Vec<Waker> =
                satisfied.iter().filter_map(|waiter| inner.wakers.remove(waiter)).collect();
            (output, wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
        Ok(output)
    }
}

/// A parked wait; dropping it takes it out of the keyspace.
struct Waiting<'a> {
    shared: &'a Shared,
    waiter: WaiterId,
}

impl Future for Waiting<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.shared.inner.lock();
        if !inner.keyspace.is_waiting(self.waiter) {
            return Poll::Ready(());
        }
        inner.wakers.insert(self.waiter, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut inner = self.shared.inner.lock();
        inner.keyspace.cancel(self.waiter);
        inner.wakers.remove(&self.waiter);
    }
}

fn owned(key: &str) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_get_that_times_out_leaves_no_waiter() {
        let store = MemoryStore::new();
        let began = tokio::time::Instant::now();
        let error = store.get("k", LONG).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "timed out after 3600 s waiting for key \"k\" in the store of this process"
        );
        assert_eq!(began.elapsed(), LONG);
        assert_eq!(store.waiting(), 0);
        assert!(store.shared.inner.lock().wakers.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn set_and_add_wake_parked_tasks_at_once() {
        let store = MemoryStore::new();
        let (getter, waiter) = (store.clone(), store.clone());
        let getting = tokio::spawn(async move { getter.get("k", LONG).await });
        let waiting = tokio::spawn(async move { waiter.wait(&["k", "n"], LONG).await });
        tokio::task::yield_now().await;
        assert_eq!(store.waiting(), 2);
        let began = tokio::time::Instant::now();
        store.set("k", "v".into(), LONG).await.unwrap();
        store.add("n", 1, LONG).await.unwrap();
        assert_eq!(getting.await.unwrap().unwrap(), "v");
        waiting.await.unwrap().unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_get_that_is_dropped_leaves_no_waiter() {
        let store = MemoryStore::new();
        let waiting = tokio::select! { biased;
            _ = store.get("k", LONG) => 0,
            waiting = async { store.waiting() } => waiting,
        };
        assert_eq!((waiting, store.waiting()), (1, 0));
        assert!(store.shared.inner.lock().wakers.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_gone_before_the_woken_get_looks_is_waited_for_again() {
        let store = MemoryStore::new();
        let others = async {
            store.set("k", "first".into(), LONG).await.unwrap();
            assert!(store.delete("k", LONG).await.unwrap());
            // The get looks, and waits again.
            tokio::task::yield_now().await;
            assert_eq!(store.waiting(), 1);
            store.set("k", "second".into(), LONG).await.unwrap();
        };
        let (got, ()) = tokio::join!(biased; store.get("k", LONG), others);
        assert_eq!(got.unwrap(), "second");
    }

    #[test]
    fn what_is_at_hand_needs_no_runtime() {
        let store = MemoryStore::new();
        crate::sync::block_on(async {
            store.set("k", "v".into(), Duration::ZERO).await.unwrap();
            assert_eq!(store.get("k", Duration::ZERO).await.unwrap(), "v");
            store.wait(&["k"], Duration::ZERO).await.unwrap();
        });
    }
}

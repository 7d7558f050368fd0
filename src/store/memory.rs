//! A store within one process.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use super::keyspace::{Keyspace, Refusal, WaiterId};
use super::{Keys, Limits, Store};
use crate::error::{Error, Result};
use crate::sync::Mutex;

/// A store for the tasks and threads of one process. Clones share it.
///
/// Only a `get` or `wait` that has to wait needs a tokio runtime with time, for its timeout; nothing
/// else ever waits.
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

    /// How many calls of `get` and `wait` are waiting now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.inner.lock().keyspace.waiting()
    }

    async fn wait_for(&self, keys: &[&str], timeout: Duration) -> Result<()> {
        let waiting = {
            let mut inner = self.shared.inner.lock();
            let waiter = inner.next_waiter;
            inner.next_waiter += 1;
            if inner.keyspace.wait(waiter, keys.iter().map(|key| owned(key)).collect()) {
                return Ok(());
            }
            Waiting { shared: &self.shared, waiter }
        };
        let late = || Error::timeout(format!("{} in the store of this process", Keys(keys)), timeout);
        tokio::time::timeout(timeout, waiting).await.map_err(|_elapsed| late())
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for MemoryStore {
    async fn set(&self, key: &str, value: Bytes, _timeout: Duration) -> Result<()> {
        self.shared.limits.check_key(key.as_bytes())?;
        self.shared.limits.check_value(key, &value)?;
        self.shared.change(|keyspace| Ok(((), keyspace.set(owned(key), value)?)))
    }

    async fn get(&self, key: &str, timeout: Duration) -> Result<Bytes> {
        self.shared.limits.check_key(key.as_bytes())?;
        let found = |store: &Self| store.shared.inner.lock().keyspace.get(key.as_bytes()).cloned();
        if let Some(value) = found(self) {
            return Ok(value);
        }
        // The key may be deleted again before the woken waiter has looked.
        let wait_and_look = async {
            loop {
                self.wait_for(&[key], Duration::MAX).await?;
                if let Some(value) = found(self) {
                    return Ok(value);
                }
            }
        };
        let late = || Error::timeout(format!("{} in the store of this process", Keys(&[key])), timeout);
        tokio::time::timeout(timeout, wait_and_look).await.map_err(|_elapsed| late())?
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

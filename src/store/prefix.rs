//! A part of a store under its own names.

use std::time::Duration;

use bytes::Bytes;

use super::Store;
use crate::error::Result;

/// A store whose keys are those of another with a prefix: key `k` is key `prefix/k` there.
///
/// The naming is PyTorch's `PrefixStore` (torch 2.8, `PrefixStore.cpp`: prefix, `/`, key), so that
/// both sides may meet under one prefix. Prefixes nest; the outermost comes last in the key.
#[derive(Clone, Debug)]
pub struct PrefixStore<S> {
    prefix: String,
    store: S,
}

impl<S: Store> PrefixStore<S> {
    /// The keys under `prefix` of `store`.
    #[must_use]
    pub fn new(prefix: impl Into<String>, store: S) -> Self {
        Self { prefix: prefix.into(), store }
    }

    /// The whole store.
    #[must_use]
    pub fn inner(&self) -> &S {
        &self.store
    }

    fn prefixed(&self, key: &str) -> String {
        format!("{}/{key}", self.prefix)
    }

    fn all_prefixed(&self, keys: &[&str]) -> Vec<String> {
        keys.iter().map(|key| self.prefixed(key)).collect()
    }
}

fn borrowed(keys: &[String]) -> Vec<&str> {
    keys.iter().map(String::as_str).collect()
}

/// Cancel safety, timeouts and errors are those of the store within; errors name the whole key.
impl<S: Store> Store for PrefixStore<S> {
    async fn set(&self, key: &str, value: Bytes, timeout: Duration) -> Result<()> {
        self.store.set(&self.prefixed(key), value, timeout).await
    }

    async fn get(&self, key: &str, timeout: Duration) -> Result<Bytes> {
        self.store.get(&self.prefixed(key), timeout).await
    }

    async fn add(&self, key: &str, delta: i64, timeout: Duration) -> Result<i64> {
        self.store.add(&self.prefixed(key), delta, timeout).await
    }

    async fn check(&self, keys: &[&str], timeout: Duration) -> Result<bool> {
        self.store.check(&borrowed(&self.all_prefixed(keys)), timeout).await
    }

    async fn wait(&self, keys: &[&str], timeout: Duration) -> Result<()> {
        self.store.wait(&borrowed(&self.all_prefixed(keys)), timeout).await
    }

    async fn delete(&self, key: &str, timeout: Duration) -> Result<bool> {
        self.store.delete(&self.prefixed(key), timeout).await
    }

    async fn append(&self, key: &str, value: Bytes, timeout: Duration) -> Result<()> {
        self.store.append(&self.prefixed(key), value, timeout).await
    }

    async fn compare_set(
        &self,
        key: &str,
        expected: Bytes,
        desired: Bytes,
        timeout: Duration,
    ) -> Result<Bytes> {
        self.store.compare_set(&self.prefixed(key), expected, desired, timeout).await
    }

    async fn multi_get(&self, keys: &[&str], timeout: Duration) -> Result<Vec<Bytes>> {
        self.store.multi_get(&borrowed(&self.all_prefixed(keys)), timeout).await
    }

    async fn multi_set(&self, pairs: &[(&str, Bytes)], timeout: Duration) -> Result<()> {
        let keys: Vec<String> = pairs.iter().map(|(key, _)| self.prefixed(key)).collect();
        let pairs: Vec<(&str, Bytes)> =
            keys.iter().zip(pairs).map(|(key, (_, value))| (key.as_str(), value.clone())).collect();
        self.store.multi_set(&pairs, timeout).await
    }

    async fn num_keys(&self, timeout: Duration) -> Result<u64> {
        self.store.num_keys(timeout).await
    }

    async fn list_keys(&self, timeout: Duration) -> Result<Vec<String>> {
        let (keys, prefix) = (self.store.list_keys(timeout).await?, self.prefixed(""));
        Ok(keys.iter().filter_map(|key| key.strip_prefix(&prefix)).map(str::to_owned).collect())
    }

    async fn queue_push(&self, key: &str, value: Bytes, timeout: Duration) -> Result<()> {
        self.store.queue_push(&self.prefixed(key), value, timeout).await
    }

    async fn queue_pop(&self, key: &str, timeout: Duration) -> Result<Bytes> {
        self.store.queue_pop(&self.prefixed(key), timeout).await
    }

    async fn try_queue_pop(&self, key: &str, timeout: Duration) -> Result<Option<Bytes>> {
        self.store.try_queue_pop(&self.prefixed(key), timeout).await
    }

    async fn queue_len(&self, key: &str, timeout: Duration) -> Result<u64> {
        self.store.queue_len(&self.prefixed(key), timeout).await
    }

    async fn barrier(&self, key: &str, world_size: usize, timeout: Duration) -> Result<()> {
        self.store.barrier(&self.prefixed(key), world_size, timeout).await
    }
}

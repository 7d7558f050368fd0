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
}

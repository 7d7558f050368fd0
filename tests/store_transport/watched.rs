//! A store that breaks, and that remembers what was done to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use kvpipe::store::{MemoryStore, Store};
use kvpipe::{Error, Result};

/// A store in this process whose operations fail now and then, some before they have taken effect and
/// some after. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Watched {
    inner: MemoryStore,
    watch: Arc<Mutex<Watch>>,
}

#[derive(Default)]
struct Watch {
    /// Drawn on for each operation.
    random: u64,
    /// One operation in so many fails; 0 is none.
    fails_one_in: u64,
    /// Everything fails.
    is_away: bool,
    failed: u64,
    sizes: BTreeMap<String, usize>,
    bytes: usize,
    bytes_max: usize,
    longest_value: usize,
    deleted: BTreeSet<String>,
    /// Keys of messages that were set after they had been deleted.
    set_again: Vec<String>,
}

impl Watched {
    /// One operation in `one_in` fails from now on.
    pub(crate) fn fails(&self, one_in: u64, seed: u64) {
        let mut watch = self.watch();
        (watch.fails_one_in, watch.random) = (one_in, seed | 1);
    }

    pub(crate) fn is_away(&self, is_away: bool) {
        self.watch().is_away = is_away;
    }

    pub(crate) fn failed(&self) -> u64 {
        self.watch().failed
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.watch().sizes.keys().cloned().collect()
    }

    pub(crate) fn bytes_max(&self) -> usize {
        self.watch().bytes_max
    }

    pub(crate) fn longest_value(&self) -> usize {
        self.watch().longest_value
    }

    /// Messages that were set again after their reader had deleted them.
    pub(crate) fn set_again(&self) -> Vec<String> {
        self.watch().set_again.clone()
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap()
    }

    async fn run<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let fate = self.watch().draw();
        if fate == Fate::FailsBefore {
            return Err(broken());
        }
        let output = operation.await?;
        if fate == Fate::FailsAfter || self.watch().is_away {
            self.watch().failed += 1;
            return Err(broken());
        }
        Ok(output)
    }
}

#[derive(PartialEq, Eq)]
enum Fate {
    Succeeds,
    FailsBefore,
    FailsAfter,
}

impl Watch {
    fn draw(&mut self) -> Fate {
        if self.is_away {
            self.failed += 1;
            return Fate::FailsBefore;
        }
        if self.fails_one_in == 0 {
            return Fate::Succeeds;
        }
        // xorshift64: any sequence will do, as long as a seed always gives the same.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        match (self.random >> 8).is_multiple_of(self.fails_one_in) {
            false => Fate::Succeeds,
            true if self.random & 1 == 0 => {
                self.failed += 1;
                Fate::FailsBefore
            }
            true => Fate::FailsAfter,
        }
    }

    fn set(&mut self, key: &str, bytes: usize) {
        if self.deleted.contains(key) && is_message(key) {
            self.set_again.push(key.into());
        }
        self.bytes += bytes;
        self.bytes -= self.sizes.insert(key.into(), bytes).unwrap_or(0);
        self.bytes_max = self.bytes_max.max(self.bytes);
        self.longest_value = self.longest_value.max(bytes);
    }
}

/// A message of either track, which nobody may set twice.
fn is_message(key: &str) -> bool {
    let mut parts = key.rsplit('/');
    parts.next().is_some_and(|number| number.parse::<u64>().is_ok())
}

fn broken() -> Error {
    Error::io("a test", std::io::ErrorKind::ConnectionReset.into())
}

impl Store for Watched {
    async fn set(&self, key: &str, value: Bytes, timeout: Duration) -> Result<()> {
        let bytes = value.len();
        let setting = async {
            self.inner.set(key, value, timeout).await?;
            self.watch().set(key, bytes);
            Ok(())
        };
        self.run(setting).await
    }

    async fn get(&self, key: &str, timeout: Duration) -> Result<Bytes> {
        self.run(self.inner.get(key, timeout)).await
    }

    async fn add(&self, key: &str, delta: i64, timeout: Duration) -> Result<i64> {
        self.run(self.inner.add(key, delta, timeout)).await
    }

    async fn check(&self, keys: &[&str], timeout: Duration) -> Result<bool> {
        self.run(self.inner.check(keys, timeout)).await
    }

    async fn wait(&self, keys: &[&str], timeout: Duration) -> Result<()> {
        self.run(self.inner.wait(keys, timeout)).await
    }

    async fn delete(&self, key: &str, timeout: Duration) -> Result<bool> {
        let deleting = async {
            let deleted = self.inner.delete(key, timeout).await?;
            let mut watch = self.watch();
            watch.bytes -= watch.sizes.remove(key).unwrap_or(0);
            watch.deleted.insert(key.into());
            Ok(deleted)
        };
        self.run(deleting).await
    }

    async fn compare_set(
        &self,
        key: &str,
        expected: Bytes,
        desired: Bytes,
        timeout: Duration,
    ) -> Result<Bytes> {
        let bytes = desired.len();
        let comparing = async {
            let stored = self.inner.compare_set(key, expected, desired.clone(), timeout).await?;
            if stored == desired {
                self.watch().set(key, bytes);
            }
            Ok(stored)
        };
        self.run(comparing).await
    }

    delegate!(inner: append multi_get multi_set num_keys list_keys queue_push queue_pop try_queue_pop queue_len
        barrier);
}

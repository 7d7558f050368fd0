//! The store as an edge uses it: over connections that break, for as long as they may be away.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::keys::Track;
use crate::entropy::Entropy;
use crate::error::{Error, Link, Result};
use crate::store::Store;
use crate::sync::Mutex;
use crate::transport::store::StoreConfig;
use crate::transport::timing::Backoff;

/// A store whose outages are borne for `reconnect_timeout`, and then are the end of the edge.
///
/// Only what may be repeated is repeated: reading, deleting, and setting keys that are never deleted
/// while the edge lives. A message is set once more only after the store has shown that the first
/// attempt is neither there nor has been consumed, see [`publish`](Self::publish).
#[derive(Debug)]
pub(super) struct Patient<S> {
    store: S,
    link: Link,
    /// How long a single operation may take that does not wait for a peer.
    answer_within: Duration,
    patience: Duration,
    entropy: Entropy,
    /// Messages that were set twice: the first may still be on its way, and come after its key was
    /// consumed. They are deleted at the end.
    doubtful: Mutex<BTreeSet<String>>,
}

impl<S: Store> Patient<S> {
    pub(super) fn new(store: S, link: Link, config: &StoreConfig) -> Self {
        Self {
            store,
            link,
            answer_within: config.heartbeat,
            patience: config.reconnect_timeout,
            entropy: config.entropy.clone(),
            doubtful: Mutex::new(Default::default()),
        }
    }

    /// Sets a key that nobody deletes while the edge lives.
    pub(super) async fn set(&self, key: &str, value: Bytes) -> Result<()> {
        self.persist(|| self.store.set(key, value.clone(), self.answer_within)).await
    }

    /// The value of a key, as soon as there is one.
    pub(super) async fn get(&self, key: &str) -> Result<Bytes> {
        let mut outage = Outage::default();
        loop {
            match self.store.get(key, Duration::MAX).await {
                Ok(value) => return Ok(value),
                Err(error) => self.bear(&mut outage, Instant::now(), error).await?,
            }
            // A store that says that there is nothing to read yet is not away: the wait broke, and may
            // break as often as it likes. What is there must get through.
            if !self.is_there(key).await? {
                outage = Outage::default();
            }
        }
    }

    /// The value of a key, if there is one.
    pub(super) async fn get_if_there(&self, key: &str) -> Result<Option<Bytes>> {
        let look = || async {
            if !self.store.check(&[key], self.answer_within).await? {
                return Ok(None);
            }
            match self.store.get(key, self.answer_within).await {
                // It was deleted in between.
                Err(Error::Timeout { .. }) => Ok(None),
                value => value.map(Some),
            }
        };
        self.persist(look).await
    }

    /// As [`get_if_there`](Self::get_if_there), or `None` if `other` is not there.
    pub(super) async fn get_beside(&self, other: &str, key: &str) -> Result<Option<Option<Bytes>>> {
        // In one question, mostly.
        let both = || async { self.store.check(&[other, key], self.answer_within).await };
        if !self.persist(both).await? && !self.is_there(other).await? {
            return Ok(None);
        }
        self.get_if_there(key).await.map(Some)
    }

    /// Sets `key` if it is not there, and gives what it holds then. Repeated, it gives the same.
    pub(super) async fn claim(&self, key: &str, value: &Bytes) -> Result<Bytes> {
        self.persist(|| self.store.compare_set(key, Bytes::new(), value.clone(), self.answer_within)).await
    }

    pub(super) async fn delete(&self, key: &str) -> Result<bool> {
        self.persist(|| self.store.delete(key, self.answer_within)).await
    }

    /// Writes the message `number`, whose key has never been set before.
    ///
    /// If the connection breaks under it, it may have been set or not, and may even have been consumed
    /// and deleted. The reader counts what it consumes before it deletes it, and whoever clears up after
    /// the last word deletes `own_heartbeat` before that; so if the message is missing, the count not
    /// beyond it, and our heartbeat still there, then it was never there. Setting a consumed key again
    /// would leave a message that nobody reads.
    pub(super) async fn publish(
        &self,
        track: &Track,
        number: u64,
        value: Bytes,
        own_heartbeat: &str,
    ) -> Result<()> {
        let key = track.message(number);
        let mut outage = Outage::default();
        loop {
            let began = Instant::now();
            match self.store.set(&key, value.clone(), MESSAGE_WITHIN).await {
                Ok(()) => return Ok(()),
                Err(error) => self.bear(&mut outage, began, error).await?,
            }
            if self.is_there(&key).await?
                || self.consumed(track).await? > number
                || !self.is_there(own_heartbeat).await?
            {
                return Ok(());
            }
            self.doubtful.lock().insert(key.clone());
        }
    }

    /// Deletes the messages `from..upto`, which have been read, after noting that they were.
    pub(super) async fn consume(&self, track: &Track, from: u64, upto: u64) -> Result<()> {
        self.set(&track.consumed(), Bytes::copy_from_slice(&upto.to_le_bytes())).await?;
        for number in from..upto {
            self.delete(&track.message(number)).await?;
        }
        Ok(())
    }

    pub(super) async fn is_there(&self, key: &str) -> Result<bool> {
        self.persist(|| async { self.store.check(&[key], self.answer_within).await }).await
    }

    /// How many messages the reader of a track has consumed.
    pub(super) async fn consumed(&self, track: &Track) -> Result<u64> {
        let Some(value) = self.get_if_there(&track.consumed()).await? else { return Ok(0) };
        match <[u8; 8]>::try_from(&value[..]) {
            Ok(count) => Ok(u64::from_le_bytes(count)),
            Err(_) => {
                let violation = format!("its count of consumed messages has {} bytes, not 8", value.len());
                Err(Error::PeerMisbehaved { link: self.link.clone(), violation })
            }
        }
    }

    /// Deletes what the end of an edge leaves behind: `first`, in order, and then `messages`. As far as
    /// that takes no longer than an answer may: what stays harms nobody, since every run has its own keys.
    pub(super) async fn sweep(&self, first: Vec<String>, mut messages: Vec<String>) {
        messages.extend(std::mem::take(&mut *self.doubtful.lock()));
        let delete = async |keys: Vec<&String>| {
            for key in keys {
                self.delete(key).await?;
            }
            Ok::<(), Error>(())
        };
        // Several at a time, for a store that is far away.
        let part = |lane| messages.iter().skip(lane).step_by(4).collect();
        let deleting = async {
            delete(first.iter().collect()).await?;
            tokio::try_join!(delete(part(0)), delete(part(1)), delete(part(2)), delete(part(3)))
        };
        if !matches!(timeout(self.answer_within, deleting).await, Ok(Ok(_))) {
            tracing::debug!(link = %self.link, "some keys of the edge stay in the store");
        }
    }

    async fn persist<T, F>(&self, attempt: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut outage = Outage::default();
        loop {
            let began = Instant::now();
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => self.bear(&mut outage, began, error).await?,
            }
        }
    }

    /// Pauses before the next attempt; an error if there is to be none. `since` is when the store was
    /// first out of reach, if this is the first attempt of many.
    async fn bear(&self, outage: &mut Outage, since: Instant, error: Error) -> Result<()> {
        if !matches!(error, Error::Io { .. } | Error::Timeout { .. }) {
            return Err(error);
        }
        let since = *outage.since.get_or_insert(since);
        let backoff = outage.backoff.get_or_insert_with(|| Backoff::at_once(self.patience));
        let pause = backoff.next(self.entropy.next_u64()?);
        if since.elapsed() + pause >= self.patience {
            let patience = self.patience.as_secs_f64();
            let reason =
                format!("the store between us was out of reach, or refused us, for {patience} s: {error}");
            return Err(Error::PeerGone { link: self.link.clone(), reason });
        }
        tracing::debug!(link = %self.link, %error, "the store did not answer, trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// How long a single message may take. It may be long, and the network slow; that a store does not answer
/// at all shows in the heartbeat, which is short.
const MESSAGE_WITHIN: Duration = Duration::from_secs(60);

/// Since when the store has not answered.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
    backoff: Option<Backoff>,
}

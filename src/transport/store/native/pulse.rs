//! Signs of life: each end counts up a key of its own, and watches the other's.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::patient::Patient;
use crate::error::{Error, Link, Result};
use crate::store::Store;
use crate::sync::Mutex;
use crate::transport::session::Silence;
use crate::transport::timing::{listening, silent_for, speaking};
use crate::wire::text::Text;

/// One end's heartbeat.
pub(super) struct Pulse<'a, S> {
    store: &'a Patient<S>,
    link: &'a Link,
    own_key: String,
    peer_key: String,
    /// Set once, and there for as long as both ends live.
    run_key: String,
    /// The silence that we bear.
    limit: Duration,
    /// The silence that the peer bears.
    peer_limit: Duration,
    /// The reason of an abort, or nothing.
    farewell: Mutex<Vec<u8>>,
    waiting: Mutex<bool>,
    leaving: Notify,
    left: Notify,
}

impl<'a, S: Store> Pulse<'a, S> {
    /// The first beat, before anything else is said: as long as our key is there, so is the edge.
    pub(super) async fn begin(
        store: &'a Patient<S>,
        link: &'a Link,
        [own_key, peer_key, run_key]: [String; 3],
        limit: Duration,
        peer_limit: Duration,
    ) -> Result<Self> {
        let pulse = Self {
            store,
            link,
            own_key,
            peer_key,
            run_key,
            limit,
            peer_limit,
            farewell: Mutex::new(Vec::new()),
            waiting: Mutex::new(true),
            leaving: Notify::new(),
            left: Notify::new(),
        };
        pulse.beat(0).await?;
        Ok(pulse)
    }

    /// Our key.
    pub(super) fn own_key(&self) -> &str {
        &self.own_key
    }

    /// Counts up our key until we [leave](Self::leave), and then does nothing more. Gives why it can't.
    pub(super) async fn speak(&self) -> Error {
        let mut ticker = speaking(self.peer_limit);
        let mut number = 0;
        loop {
            number += 1;
            if let Err(error) = self.beat(number).await {
                self.left.notify_one();
                return error;
            }
            tokio::select! {
                biased;
                () = self.leaving.notified() => {
                    let farewell = [&FAREWELL.to_le_bytes(), &self.farewell.lock()[..]].concat();
                    let farewell = self.store.set(&self.own_key, farewell.into()).await;
                    self.left.notify_one();
                    match farewell {
                        Ok(()) => return std::future::pending().await,
                        Err(error) => return error,
                    }
                }
                _ = ticker.tick() => {}
            }
        }
    }

    /// [`leave`](Self::leave), and with it the reason of an abort, for a peer that can't be told otherwise.
    pub(super) async fn leave_because(&self, reason: &Text) {
        *self.farewell.lock() = reason.as_str().into();
        self.leave().await;
    }

    async fn beat(&self, number: u64) -> Result<()> {
        self.store.set(&self.own_key, Bytes::copy_from_slice(&number.to_le_bytes())).await
    }

    /// Waits until [`speak`](Self::speak), which somebody must poll, has written for the last time. To be
    /// called before the last word: whoever reads that deletes our key, and nothing may set it again.
    pub(super) async fn leave(&self) {
        self.leaving.notify_one();
        self.left.notified().await;
        // For whoever asks again.
        self.left.notify_one();
    }

    /// Says whether we are waiting for a message of the peer's. We are, until this says something else.
    pub(super) fn set_waiting(&self, waiting: bool) {
        *self.waiting.lock() = waiting;
    }

    /// Watches the peer's key until it has not changed for our limit, or the store is away, or has begun
    /// anew. A peer that has said farewell may be silent for as long as there is something to read: its
    /// last word is behind it.
    pub(super) async fn listen(&self) -> Error {
        let mut ticker = listening(self.limit);
        let mut silence = Silence::default();
        let mut last = None;
        loop {
            ticker.tick().await;
            // While the store does not answer us no time is counted: the peer may well be speaking.
            let beat = match self.store.get_beside(&self.run_key, &self.peer_key).await {
                Ok(Some(beat)) => beat,
                Ok(None) => return self.gone("the store has lost what we had in it".into()),
                Err(error) => return error,
            };
            if let Some(reason) = beat.as_deref().and_then(farewell) {
                if !reason.as_str().is_empty() {
                    let link = self.link.clone();
                    return Error::PeerAborted { link, reason: reason.as_str().into() };
                }
                if !*self.waiting.lock() {
                    silence.excuse();
                    continue;
                }
            }
            if beat.is_some() && beat != last {
                silence.hear();
                last = beat;
            }
            if silence.tick() {
                return self.gone(silent_for(self.limit));
            }
        }
    }

    fn gone(&self, reason: String) -> Error {
        Error::PeerGone { link: self.link.clone(), reason }
    }
}

/// The beat of an end that says its last word next, or, with words behind it, says it hereby.
const FAREWELL: u64 = u64::MAX;

/// The words of a farewell, perhaps none, if `beat` is one.
pub(super) fn farewell(beat: &[u8]) -> Option<Text> {
    let words = beat.strip_prefix(&FAREWELL.to_le_bytes())?;
    // Before they are copied: the store takes values far longer than any reason.
    let words = &words[..words.len().min(Text::MAX_BYTES)];
    Some(String::from_utf8_lossy(words).into_owned().into())
}

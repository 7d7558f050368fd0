//! Signs of life: each end counts up a key of its own, and watches the other's.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::patient::Patient;
use crate::error::{Error, Link, Result};
use crate::store::Store;
use crate::transport::session::Silence;
use crate::transport::timing::{listening, silent_for, speaking};

/// One end's heartbeat.
pub(super) struct Pulse<'a, S> {
    store: &'a Patient<S>,
    link: &'a Link,
    own_key: String,
    peer_key: String,
    /// The silence that we bear.
    limit: Duration,
    /// The silence that the peer bears.
    peer_limit: Duration,
    leaving: Notify,
    left: Notify,
}

impl<'a, S: Store> Pulse<'a, S> {
    pub(super) fn new(
        store: &'a Patient<S>,
        link: &'a Link,
        [own_key, peer_key]: [String; 2],
        limit: Duration,
        peer_limit: Duration,
    ) -> Self {
        Self {
            store,
            link,
            own_key,
            peer_key,
            limit,
            peer_limit,
            leaving: Notify::new(),
            left: Notify::new(),
        }
    }

    /// The first beat, before anything else is said: as long as our key is there, so is the edge.
    pub(super) async fn begin(&self) -> Result<()> {
        self.beat(0).await
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
                    self.left.notify_one();
                    return std::future::pending().await;
                }
                _ = ticker.tick() => {}
            }
        }
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

    /// Watches the peer's key until it has not changed for our limit, or the store is away.
    pub(super) async fn listen(&self) -> Error {
        let mut ticker = listening(self.limit);
        let mut silence = Silence::default();
        let mut last = None;
        loop {
            ticker.tick().await;
            // While the store does not answer us no time is counted: the peer may well be speaking.
            match self.store.get_if_there(&self.peer_key).await {
                Ok(Some(beat)) if last.as_ref() != Some(&beat) => {
                    silence.hear();
                    last = Some(beat);
                }
                Ok(_) => {}
                Err(error) => return error,
            }
            if silence.tick() {
                return Error::PeerGone { link: self.link.clone(), reason: silent_for(self.limit) };
            }
        }
    }
}

//! The pipe over a [`Store`] alone, for ranks that can reach nothing else.
//!
//! Everything travels as values of the store: twice over the network, and through the memory of the
//! server. It is slower than [`tcp`](super::tcp) by that, and made for hosts where a rank can't listen.
//!
//! There are two wires. Between two ends of kvpipe, [`StoreTransport`] acknowledges, has a heartbeat, and
//! goes on after an outage of the store. With an end that is vLLM's, [`VllmTransport`] speaks what that
//! understands, and promises none of this.

mod native;
mod vllm;

use std::time::Duration;

#[cfg(fuzzing)]
pub(super) use self::native::fuzzing;
pub use self::vllm::{VllmIncoming, VllmOutgoing, VllmTransport};
use super::{Guarantees, Inbox, Incoming, Outbox, Outgoing, Ring, Transport};
use crate::entropy::Entropy;
use crate::error::{Error, Link, Result};
use crate::store::Store;
use crate::tensor::BufferPool;
use crate::wire::text::GroupName;

/// How ranks meet and talk over a store. The group must be equal at both ends.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The name that keeps edges of different groups apart.
    pub group: GroupName,
    /// How long the two ranks of an edge wait for each other at the beginning.
    pub connect_timeout: Duration,
    /// The silence after which a peer counts as dead, at least [`HEARTBEAT_MIN`](Self::HEARTBEAT_MIN).
    /// The two ends of an edge may differ in it.
    pub heartbeat: Duration,
    /// How long the store may be out of reach. A peer that can't reach it is silent meanwhile, so let
    /// this be shorter than the heartbeat limit.
    pub reconnect_timeout: Duration,
    /// The longest value that is set, in bytes, at least [`CHUNK_BYTES_MIN`](Self::CHUNK_BYTES_MIN).
    /// PyTorch's libuv server takes no more than 8 MiB.
    pub chunk_bytes: usize,
    /// How many bytes may be in the store and not yet reported as read; at least two chunks.
    pub window_bytes: usize,
    /// Where session ids and back-off jitter come from.
    pub entropy: Entropy,
    /// Where payloads are received.
    pub pool: BufferPool,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            group: GroupName::default(),
            connect_timeout: Duration::from_secs(300),
            heartbeat: Duration::from_secs(5),
            reconnect_timeout: Duration::from_secs(3),
            chunk_bytes: 1 << 20,
            window_bytes: 32 << 20,
            entropy: Entropy::system(),
            pool: BufferPool::new(POOL_IDLE_BYTES_MAX),
        }
    }
}

/// Enough for the buffers that a consumer hands back while others are on their way.
const POOL_IDLE_BYTES_MAX: usize = 256 << 20;

impl StoreConfig {
    /// The shortest heartbeat limit. Below it a busy scheduler looks like a dead peer.
    pub const HEARTBEAT_MIN: Duration = Duration::from_millis(100);

    /// The shortest chunk, in bytes: each must have room for a frame and some payload.
    pub const CHUNK_BYTES_MIN: usize = 8 << 10;

    fn check(&self) -> Result<()> {
        if self.heartbeat < Self::HEARTBEAT_MIN {
            let least = Self::HEARTBEAT_MIN;
            let what = format!("a heartbeat limit of {:?} is below {least:?}", self.heartbeat);
            return Err(Error::Misuse(what));
        }
        if self.chunk_bytes < Self::CHUNK_BYTES_MIN {
            let (chunk, least) = (self.chunk_bytes, Self::CHUNK_BYTES_MIN);
            return Err(Error::Misuse(format!("chunks of {chunk} bytes are below {least} bytes")));
        }
        if self.window_bytes / self.chunk_bytes < 2 {
            let (window, chunk) = (self.window_bytes, self.chunk_bytes);
            return Err(Error::Misuse(format!(
                "a window of {window} bytes is less than two chunks of {chunk} bytes"
            )));
        }
        Ok(())
    }

    /// The window in messages, none of which is longer than a chunk.
    fn window_messages(&self) -> u64 {
        (self.window_bytes / self.chunk_bytes) as u64
    }
}

/// Both edges of a rank in a ring, over a store.
#[derive(Debug)]
pub struct StoreTransport<S> {
    outgoing: StoreOutgoing<S>,
    incoming: StoreIncoming<S>,
}

/// The sending end of an edge: from a rank to the next one in its ring.
#[derive(Debug)]
pub struct StoreOutgoing<S> {
    store: S,
    ring: Ring,
    config: StoreConfig,
}

/// The receiving end of an edge: at a rank, from the previous one in its ring.
#[derive(Debug)]
pub struct StoreIncoming<S> {
    store: S,
    ring: Ring,
    config: StoreConfig,
}

impl<S: Store + Clone> StoreTransport<S> {
    /// The edges of a rank. Nobody is looked for yet: that begins when the pipe's driver is polled, and
    /// how it ends is what the pipe's methods report.
    #[must_use]
    pub fn new(store: S, ring: Ring, config: StoreConfig) -> Self {
        let outgoing = StoreOutgoing::new(store.clone(), ring, config.clone());
        Self { outgoing, incoming: StoreIncoming::new(store, ring, config) }
    }
}

impl<S: Store> StoreOutgoing<S> {
    /// The edge to the next rank.
    #[must_use]
    pub fn new(store: S, ring: Ring, config: StoreConfig) -> Self {
        Self { store, ring, config }
    }
}

impl<S: Store> StoreIncoming<S> {
    /// The edge from the previous rank.
    #[must_use]
    pub fn new(store: S, ring: Ring, config: StoreConfig) -> Self {
        Self { store, ring, config }
    }
}

impl<S: Store> Transport for StoreTransport<S> {
    type Out = StoreOutgoing<S>;
    type In = StoreIncoming<S>;

    fn guarantees(&self) -> Guarantees {
        Guarantees { acknowledged: true, close_visible: true, detects_death: true, resumes: true }
    }

    fn split(self) -> (Self::Out, Self::In) {
        (self.outgoing, self.incoming)
    }
}

impl<S: Store> Outgoing for StoreOutgoing<S> {
    fn link(&self) -> Link {
        self.ring.outgoing_link()
    }

    async fn run(self, items: &Outbox) -> Result<()> {
        self.config.check()?;
        native::send(self.store, self.ring, self.config, items).await
    }
}

impl<S: Store> Incoming for StoreIncoming<S> {
    fn link(&self) -> Link {
        self.ring.incoming_link()
    }

    async fn run(self, items: &Inbox) -> Result<()> {
        self.config.check()?;
        native::receive(self.store, self.ring, self.config, items).await
    }
}

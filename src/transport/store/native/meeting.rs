//! How the two ends of an edge find each other, and make sure that they fit together.
//!
//! ```text
//! receiver                                  sender
//!    sets its Hello, with a session of its own
//!                                           reads it, and claims the session with its own Hello
//!    reads it, takes its Hello away
//!    begins to beat                         sees the first beat: the edge is there
//! ```
//!
//! A Hello that was left behind by a receiver that died is claimed like any other. It is never answered,
//! and the sender goes on to the next as soon as there is one.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout_at};

use super::keys::{EdgeName, RunKeys};
use super::patient::Patient;
use crate::error::{Error, Link, Result};
use crate::store::Store;
use crate::transport::Ring;
use crate::transport::session::{Objection, difference, rank_on_wire, strangeness};
use crate::transport::store::StoreConfig;
use crate::transport::timing::{after, ticker};
use crate::wire::DecodeError;
use crate::wire::handshake::{Endpoint, Hello, SessionId, greeting_in};

/// Two ends that have found each other.
pub(super) struct Met {
    pub(super) keys: RunKeys,
    /// The session of this end.
    pub(super) session: SessionId,
    pub(super) peer_session: SessionId,
    /// The silence after which the peer takes us for dead.
    pub(super) peer_heartbeat: Duration,
}

impl Met {
    fn new(keys: RunKeys, ours: &Endpoint, theirs: &Endpoint) -> Self {
        let (session, peer_session) = (ours.session, theirs.session);
        Self { keys, session, peer_session, peer_heartbeat: theirs.heartbeat() }
    }
}

/// How often a sender looks whether a receiver that does not answer was replaced by another.
const LOOK_PERIOD: Duration = Duration::from_millis(50);

/// The sender's side.
pub(super) async fn find_receiver<S: Store>(
    store: &Patient<S>,
    link: &Link,
    ring: Ring,
    config: &StoreConfig,
    max_item_bytes: usize,
) -> Result<Met> {
    let name = EdgeName::outgoing(&config.group, ring);
    let ours = endpoint(config, ring, [ring.rank(), ring.next()], max_item_bytes)?;
    let own_hello = encode(&ours, None);
    // The receiver that we have claimed, and that does not answer.
    let mut unanswered: Option<(RunKeys, Bytes)> = None;
    let finding = async {
        let mut silent: Option<Bytes> = None;
        loop {
            let hello = store.get(&name.receiver()).await?;
            if silent.as_ref() == Some(&hello) {
                sleep(LOOK_PERIOD).await;
                continue;
            }
            let theirs = decode(&hello).map_err(|error| error.into_error(link.clone()))?.endpoint;
            let keys = name.run(&theirs.session);
            if store.claim(&keys.sender(), &own_hello).await? == own_hello {
                agree(link, &ours, &theirs)?;
                unanswered = Some((keys.clone(), hello.clone()));
                if is_answered(store, &keys, &name, &hello).await? {
                    return Ok(Met::new(keys, &ours, &theirs));
                }
                store.sweep(vec![keys.sender()], Vec::new()).await;
            }
            silent = Some(hello);
        }
    };
    let limit = config.connect_timeout;
    if let Ok(found) = timeout_at(after(limit), finding).await {
        return found;
    }
    if let Some((keys, hello)) = unanswered {
        // It is dead, and nobody else can claim it.
        store.sweep(vec![keys.sender()], Vec::new()).await;
        withdraw(store, &name.receiver(), &hello, config.heartbeat).await;
    }
    let (peer, key) = (ring.next(), name.receiver());
    Err(Error::timeout(format!("rank {peer} to receive (store key {key:?})"), limit))
}

/// Whether the receiver whose Hello we claimed begins to beat before another takes its place.
async fn is_answered<S: Store>(
    store: &Patient<S>,
    keys: &RunKeys,
    name: &EdgeName,
    hello: &Bytes,
) -> Result<bool> {
    let (alive, receiver) = (keys.receiver_alive(), name.receiver());
    let replaced = async {
        let mut ticker = ticker(LOOK_PERIOD);
        loop {
            ticker.tick().await;
            if store.get_if_there(&receiver).await?.is_some_and(|now| now != *hello) {
                return Ok(false);
            }
        }
    };
    // Side by side: a look at a key that is just being deleted waits for it, and the peer does not.
    tokio::select! {
        biased;
        answer = store.get(&alive) => answer.map(|_beat| true),
        replaced = replaced => replaced,
    }
}

/// The receiver's side.
pub(super) async fn await_sender<S: Store>(
    store: &Patient<S>,
    link: &Link,
    ring: Ring,
    config: &StoreConfig,
    max_item_bytes: usize,
) -> Result<Met> {
    let name = EdgeName::incoming(&config.group, ring);
    let ours = endpoint(config, ring, [ring.previous(), ring.rank()], max_item_bytes)?;
    let own_hello = encode(&ours, None);
    let keys = name.run(&ours.session);
    let awaiting = async {
        store.set(&name.receiver(), own_hello.clone()).await?;
        store.get(&keys.sender()).await
    };
    let limit = config.connect_timeout;
    let hello = timeout_at(after(limit), awaiting).await;
    // Whoever comes now comes too late.
    withdraw(store, &name.receiver(), &own_hello, config.heartbeat).await;
    let met = hello.unwrap_or_else(|_| {
        let (peer, key) = (ring.previous(), name.receiver());
        Err(Error::timeout(format!("rank {peer} to send to us (store key {key:?})"), limit))
    });
    let met = met.and_then(|hello| {
        let theirs = decode(&hello).map_err(|error| error.into_error(link.clone()))?.endpoint;
        agree(link, &theirs, &ours)?;
        Ok(theirs)
    });
    match met {
        Ok(theirs) => Ok(Met::new(keys, &ours, &theirs)),
        Err(error) => {
            // A sender that fits no better has seen that as well, and reads it no more.
            store.sweep(vec![keys.sender()], Vec::new()).await;
            Err(error)
        }
    }
}

/// Deletes the Hello of a run, but not that of another in its place. That it stays in a store that is away
/// harms nobody.
///
/// It may take as long as the store may take to answer.
async fn withdraw<S: Store>(store: &Patient<S>, key: &str, own_hello: &Bytes, limit: Duration) {
    let withdrawing = async {
        if store.get_if_there(key).await?.as_ref() == Some(own_hello) {
            store.delete(key).await?;
        }
        Ok::<(), Error>(())
    };
    match tokio::time::timeout(limit, withdrawing).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, key, "our hello stays in the store"),
        Err(_) => tracing::debug!(key, "our hello stays in the store, which does not answer"),
    }
}

fn endpoint(
    config: &StoreConfig,
    ring: Ring,
    [from, to]: [usize; 2],
    max_item_bytes: usize,
) -> Result<Endpoint> {
    Ok(Endpoint {
        group: config.group.clone(),
        from_rank: rank_on_wire(from),
        to_rank: rank_on_wire(to),
        world_size: rank_on_wire(ring.world_size()),
        session: config.entropy.bytes()?,
        nonce: Default::default(),
        max_item_bytes: max_item_bytes as u64,
        heartbeat_ms: u32::try_from(config.heartbeat.as_millis()).unwrap_or(u32::MAX),
        checksum: false,
        authenticated: false,
    })
}

fn agree(link: &Link, sender: &Endpoint, receiver: &Endpoint) -> Result<()> {
    let objection: Objection = strangeness(sender, receiver).or_else(|| difference(sender, receiver));
    match objection {
        None => Ok(()),
        Some((reason, text)) => {
            Err(Error::PeerIncompatible { link: link.clone(), mismatch: format!("{reason}: {text}") })
        }
    }
}

pub(super) fn encode(endpoint: &Endpoint, peer_session: Option<SessionId>) -> Bytes {
    let mut bytes = Vec::new();
    Hello { endpoint: endpoint.clone(), peer_session }.encode_into(&mut bytes);
    bytes.into()
}

pub(super) fn decode(bytes: &[u8]) -> Result<Hello, DecodeError> {
    let body = greeting_in(bytes)?.ok_or(DecodeError::Truncated)?;
    match bytes.len() - body.end {
        0 => Hello::decode(&bytes[body]),
        count => Err(DecodeError::TrailingBytes { count }),
    }
}

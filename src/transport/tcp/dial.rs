//! Finding the peer, connecting to it, and connecting again when the connection breaks.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::handshake::{Agreed, Failure, Party};
use super::{TcpConfig, address_key};
use crate::error::{Error, Link, Result};
use crate::net::Net;
use crate::store::Store;
use crate::transport::Ring;
use crate::transport::timing::{Backoff, after};
use crate::wire::handshake::SessionId;

/// The connector of an edge: from a rank to the next one in its ring.
pub(in crate::transport) struct Dialer<N, S> {
    net: N,
    store: S,
    ring: Ring,
    config: TcpConfig,
    party: Party,
}

/// Why a broken connection was not resumed.
pub(in crate::transport) enum NotResumed {
    /// The time is up, or nobody listens where the peer was.
    Gone(String),
    /// Another session answers in the peer's place.
    Restarted,
    /// The peer answers, and makes no sense.
    Failed(Error),
}

impl<N: Net, S: Store> Dialer<N, S> {
    pub(in crate::transport) fn new(
        net: N,
        store: S,
        ring: Ring,
        config: TcpConfig,
        max_item_bytes: usize,
    ) -> Result<Self> {
        let party = Party::sender(&config, ring, max_item_bytes)?;
        Ok(Self { net, store, ring, config, party })
    }

    fn link(&self) -> Link {
        self.ring.outgoing_link()
    }

    /// Tries until the peer has accepted us, has refused us, or the time is up.
    pub(in crate::transport) async fn meet(&self) -> Result<Agreed<N::Stream>> {
        let limit = self.config.connect_timeout;
        let deadline = after(limit);
        let key = address_key(&self.config.group, self.ring.next());
        let mut backoff = Backoff::patient();
        loop {
            // Looked up again each time: what was found may be left over from an earlier run.
            let address = self.look_up(&key, deadline).await?;
            let failure = match timeout_at(deadline, self.attempt(address, None)).await {
                Ok(Ok(agreed)) => return Ok(agreed),
                Ok(Err(Failure::Fatal(error))) => return Err(error),
                Ok(Err(
                    Failure::Stranger(reason) | Failure::NobodyThere(reason) | Failure::Taken(reason),
                )) => reason,
                Err(_) => "no answer".into(),
            };
            let pause = backoff.next(self.config.entropy.next_u64()?);
            if Instant::now() + pause >= deadline {
                let peer = self.ring.next();
                let awaited = format!("rank {peer} at {address} to accept a connection ({failure})");
                return Err(Error::timeout(awaited, limit));
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Connects to where the peer was, until its session has accepted us or there is no more hope.
    /// The store has no part in it: it may be gone by now.
    pub(in crate::transport) async fn resume(
        &self,
        address: SocketAddr,
        peer: SessionId,
        backoff: &mut Backoff,
    ) -> Result<Agreed<N::Stream>, NotResumed> {
        let limit = self.config.reconnect_timeout;
        if limit.is_zero() {
            return Err(NotResumed::Gone("reconnecting is switched off".into()));
        }
        let deadline = after(limit);
        let mut last = "no answer".to_owned();
        loop {
            let random = self.config.entropy.next_u64().map_err(NotResumed::Failed)?;
            let next = Instant::now() + backoff.next(random);
            if next >= deadline {
                let tried = limit.as_secs_f64();
                return Err(NotResumed::Gone(format!("reconnecting failed for {tried} s: {last}")));
            }
            tokio::time::sleep_until(next).await;
            // One that hangs must leave time for others.
            let attempt_ends = deadline.min(after(limit / 3));
            last = match timeout_at(attempt_ends, self.attempt(address, Some(peer))).await {
                Ok(Ok(agreed)) => return Ok(agreed),
                Ok(Err(Failure::Fatal(error))) => return Err(NotResumed::Failed(error)),
                Ok(Err(Failure::Taken(_))) => return Err(NotResumed::Restarted),
                Ok(Err(Failure::NobodyThere(reason))) => {
                    return Err(NotResumed::Gone(format!("reconnecting: {reason}")));
                }
                Ok(Err(Failure::Stranger(reason))) => reason,
                Err(_) => continue,
            };
        }
    }

    /// Deletes the peer's address from the store: it is taken. That it stays behind in a store that
    /// is gone, or busy, harms nobody.
    pub(in crate::transport) async fn forget_address(&self, address: SocketAddr) {
        let key = address_key(&self.config.group, self.ring.next());
        let limit = self.config.heartbeat;
        let forgetting = async {
            // Not that of another process, which came in the peer's place.
            if self.store.check(&[&key], limit).await?
                && self.store.get(&key, limit).await? == address.to_string()
            {
                self.store.delete(&key, limit).await?;
            }
            Ok::<(), Error>(())
        };
        if let Err(error) = forgetting.await {
            tracing::debug!(%error, key, "the peer's address stays in the store");
        }
    }

    async fn look_up(&self, key: &str, deadline: Instant) -> Result<SocketAddr> {
        let remaining = deadline.saturating_duration_since(Instant::now());
        let value = self.store.get(key, remaining).await.map_err(|error| match error {
            Error::Timeout { .. } => Error::timeout(
                format!("rank {} to publish its address (store key {key:?})", self.ring.next()),
                self.config.connect_timeout,
            ),
            error => error,
        })?;
        std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
            let found = String::from_utf8_lossy(&value[..value.len().min(64)]).into_owned();
            let violation = format!("it published {found:?} under {key:?}, which is no address");
            Error::PeerMisbehaved { link: self.link(), violation }
        })
    }

    async fn attempt(
        &self,
        address: SocketAddr,
        peer: Option<SessionId>,
    ) -> Result<Agreed<N::Stream>, Failure> {
        let connecting = self.net.connect(address, &self.config.socket);
        let stream = timeout(ATTEMPT_TIMEOUT, connecting)
            .await
            .map_err(|_| Failure::Stranger("no answer to the connection".into()))?
            .map_err(|error| match error.kind() {
                io::ErrorKind::ConnectionRefused => Failure::NobodyThere(error.to_string()),
                _ => Failure::Stranger(error.to_string()),
            })?;
        timeout(self.config.heartbeat, self.party.greet(stream, address, peer))
            .await
            .map_err(|_| Failure::Stranger("no answer to the handshake".into()))?
    }
}

/// A host that drops packets must not use up all the time there is for retries.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::net::{SocketOptions, TokioNet};
    use crate::store::MemoryStore;

    /// A network without a way to anywhere; counts who tries.
    #[derive(Clone, Default)]
    struct Unreachable(Arc<AtomicU32>);

    impl Net for Unreachable {
        type Stream = TcpStream;
        type Listener = TcpListener;

        async fn connect(&self, _: SocketAddr, _: &SocketOptions) -> io::Result<TcpStream> {
            // Without pauses this would go on for ever: the paused clock stands still.
            assert!(self.0.fetch_add(1, Ordering::Relaxed) < 1000, "there is no pause between attempts");
            Err(io::ErrorKind::HostUnreachable.into())
        }

        async fn bind(&self, address: SocketAddr, options: &SocketOptions) -> io::Result<TcpListener> {
            TokioNet.bind(address, options).await
        }

        async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
            TokioNet.resolve(host, port).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_is_out_of_reach_is_tried_several_times_and_not_without_pause() {
        let net = Unreachable::default();
        let config = TcpConfig { reconnect_timeout: Duration::from_secs(3), ..TcpConfig::default() };
        let mut backoff = Backoff::at_once(config.reconnect_timeout);
        let ring = Ring::new(0, 2).unwrap();
        let dialer = Dialer::new(net.clone(), MemoryStore::new(), ring, config, 1).unwrap();
        let resumed = dialer.resume(([127, 0, 0, 1], 1).into(), [1; 16], &mut backoff).await;
        let Err(NotResumed::Gone(why)) = resumed else { panic!("nobody can be reached") };
        assert!(why.starts_with("reconnecting failed for 3 s: "), "{why}");
        let attempts = net.0.load(Ordering::Relaxed);
        assert!((6..30).contains(&attempts), "{attempts} attempts");
    }
}

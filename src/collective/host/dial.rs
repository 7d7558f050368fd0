//! Connecting to a rank whose address and session are known.

use std::io;
use std::net::SocketAddr;

use tokio::time::{Instant, timeout_at};

use super::Whereabouts;
use crate::error::{Error, Link};
use crate::net::Net;
use crate::transport::tcp::TcpConfig;
use crate::transport::tcp::handshake::{Agreed, Failure, Party};
use crate::transport::timing::{Backoff, after, silent_for};

/// The connecting end of an edge.
pub(super) struct Dialer<N> {
    pub(super) net: N,
    pub(super) config: TcpConfig,
    pub(super) party: Party,
    pub(super) link: Link,
    pub(super) peer: Whereabouts,
}

impl<N: Net> Dialer<N> {
    /// Connects. The peer listens, or did: who does not answer within the heartbeat limit is dead.
    pub(super) async fn connect(self) -> Result<Agreed<N::Stream>, Error> {
        let heartbeat = self.config.heartbeat;
        let deadline = after(heartbeat);
        let mut backoff = Backoff::at_once(heartbeat);
        let mut last = silent_for(heartbeat);
        loop {
            let next = Instant::now() + backoff.next(self.config.entropy.next_u64()?);
            if next >= deadline {
                return Err(self.gone(last));
            }
            tokio::time::sleep_until(next).await;
            last = match timeout_at(deadline, self.attempt(self.peer.address)).await {
                Ok(Ok(agreed)) if agreed.peer_session == self.peer.session => return Ok(agreed),
                Ok(Ok(_) | Err(Failure::Taken(_))) => {
                    return Err(Error::PeerRestarted { link: self.link });
                }
                Ok(Err(Failure::Fatal(error))) => return Err(error),
                Ok(Err(Failure::NobodyThere(reason))) => return Err(self.gone(reason)),
                Ok(Err(Failure::Stranger(reason))) => reason,
                Err(_) => return Err(self.gone(silent_for(heartbeat))),
            };
        }
    }

    async fn attempt(&self, address: SocketAddr) -> Result<Agreed<N::Stream>, Failure> {
        let connected = self.net.connect(address, &self.config.socket).await;
        let stream = connected.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => Failure::NobodyThere(error.to_string()),
            _ => Failure::Stranger(error.to_string()),
        })?;
        self.party.greet(stream, address, Some(self.peer.session)).await
    }

    fn gone(&self, how: String) -> Error {
        let reason = format!("{how} while connecting");
        Error::PeerGone { link: self.link.clone().at(self.peer.address), reason }
    }
}

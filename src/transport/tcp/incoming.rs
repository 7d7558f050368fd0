//! The receiving end of an edge: lets its peer in, again if need be, and takes what it sends.

use std::net::SocketAddr;
use std::pin::pin;

use bytes::Bytes;
use tokio::time::timeout;

use super::door::Door;
use super::handshake::{Agreed, Candidate, Failure, Party};
use super::intake::Intake;
use super::{Stop, TcpConfig, address_key};
use crate::error::{Error, Link, Result};
use crate::net::{Listener, Net};
use crate::store::Store;
use crate::sync::Mutex;
use crate::transport::session::{Admission, ReceiveSession};
use crate::transport::{Inbox, Incoming, Ring};
use crate::wire::handshake::RefusalReason;

/// The receiving end of an edge: at a rank, from the previous one in its ring.
pub struct TcpIncoming<N: Net> {
    listener: N::Listener,
    local_addr: SocketAddr,
    ring: Ring,
    config: TcpConfig,
}

impl<N: Net> TcpIncoming<N> {
    /// Binds a listener on exactly `address` (port 0 chooses one) and publishes it in `store`.
    ///
    /// # Errors
    /// [`Error::Io`] if the address can't be bound; [`Error::Misuse`] for an unspecified address
    /// such as 0.0.0.0, which nobody can connect to; and whatever the store answers.
    pub async fn bind(
        net: N,
        store: &impl Store,
        ring: Ring,
        address: SocketAddr,
        config: TcpConfig,
    ) -> Result<Self> {
        if address.ip().is_unspecified() {
            let what = format!("{} can't be published: give the address that peers can reach", address.ip());
            return Err(Error::Misuse(what));
        }
        let listener = net
            .bind(address, &config.socket)
            .await
            .map_err(|error| Error::io(format!("listening on {address}"), error))?;
        let local_addr =
            listener.local_addr().map_err(|error| Error::io("reading the address bound", error))?;
        let key = address_key(&config.group, ring.rank());
        store.set(&key, Bytes::from(local_addr.to_string()), config.connect_timeout).await?;
        Ok(Self { listener, local_addr, ring, config })
    }

    /// The address that is published.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }
}

impl<N: Net> TcpIncoming<N> {
    /// The listener, for an edge that speaks something else.
    pub(in crate::transport) fn into_listener(self) -> N::Listener {
        self.listener
    }
}

impl<N: Net> std::fmt::Debug for TcpIncoming<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { local_addr, ring, config, .. } = self;
        f.debug_struct("TcpIncoming")
            .field("local_addr", local_addr)
            .field("ring", ring)
            .field("config", config)
            .finish_non_exhaustive()
    }
}

impl<N: Net> Incoming for TcpIncoming<N> {
    fn link(&self) -> Link {
        self.ring.incoming_link()
    }

    async fn run(self, items: &Inbox) -> Result<()> {
        self.config.check()?;
        let link = self.link();
        let party = Party::receiver(&self.config, self.ring, items.max_item_bytes())?;
        let session = Mutex::new(ReceiveSession::new(party.session()));
        let door = Door::<N>::new(self.listener, party, self.config.heartbeat);
        let edge = Edge::new(link, items, self.config, session);
        edge.run(door, self.local_addr).await
    }
}

/// An edge, over as many connections as it takes.
pub(in crate::transport) struct Edge<'a> {
    link: Link,
    pub(in crate::transport) items: &'a Inbox,
    pub(super) config: TcpConfig,
    pub(in crate::transport) session: Mutex<ReceiveSession>,
}

/// How a conversation ended without an error.
enum Turn<S: crate::net::Stream> {
    /// The edge has ended.
    Over,
    /// The peer has connected anew.
    Displaced(Candidate<S>),
}

impl<'a> Edge<'a> {
    pub(in crate::transport) fn new(
        link: Link,
        items: &'a Inbox,
        config: TcpConfig,
        session: Mutex<ReceiveSession>,
    ) -> Self {
        Self { link, items, config, session }
    }

    async fn run<N: Net>(self, mut door: Door<N>, local_addr: SocketAddr) -> Result<()> {
        // Also if our user has left meanwhile: the peer is on its way, and is to learn of it. The
        // driver sees to it that this takes no longer than `close_timeout`.
        let mut agreed = self.meet(&mut door, local_addr).await?;
        // Without resuming one connection is enough.
        let mut door = (!self.config.reconnect_timeout.is_zero()).then_some(door);
        loop {
            let link = self.link.clone().at(agreed.address);
            let turn = match self.converse(agreed, &link, door.as_mut()).await {
                Ok(Turn::Over) => return Ok(()),
                Ok(Turn::Displaced(candidate)) => self.accept(candidate).await,
                Err(stop) => Err(stop),
            };
            agreed = match turn {
                Ok(agreed) => agreed,
                Err(Stop::Ended(error @ Error::PeerGone { .. })) => {
                    drop(door);
                    return self.lost(error).await;
                }
                Err(Stop::Ended(error)) => return Err(error),
                Err(Stop::Broken(how)) => match self.await_return(&link, how, door.as_mut()).await {
                    Ok(agreed) => agreed,
                    Err(error) => {
                        drop(door);
                        return self.lost(error).await;
                    }
                },
            };
        }
    }

    /// Refuses strangers until our peer comes, or the time is up.
    pub(in crate::transport) async fn meet<N: Net>(
        &self,
        door: &mut Door<N>,
        local_addr: SocketAddr,
    ) -> Result<Agreed<N::Stream>> {
        let limit = self.config.connect_timeout;
        let mut overdue = pin!(tokio::time::sleep(limit));
        loop {
            let candidate = tokio::select! {
                biased;
                () = &mut overdue => {
                    let awaited = format!("rank {} to connect to {local_addr}", self.link.peer_rank);
                    let refused = door.last_refused().map_or(String::new(), |who| format!(" (last refused: {who})"));
                    return Err(Error::timeout(awaited + &refused, limit));
                }
                candidate = door.next() => candidate?,
            };
            let Some(peer) = self.admit(candidate, door, false).await? else { continue };
            match self.accept(peer).await {
                Ok(agreed) => return Ok(agreed),
                Err(Stop::Broken(how)) => door.note_refused(how),
                Err(Stop::Ended(error)) => return Err(error),
            }
        }
    }

    /// Takes what comes over one connection, until the peer comes over another.
    async fn converse<N: Net>(
        &self,
        agreed: Agreed<N::Stream>,
        link: &Link,
        mut door: Option<&mut Door<N>>,
    ) -> Result<Turn<N::Stream>, Stop> {
        let mut intake = pin!(Intake::new(self, link, agreed).run());
        loop {
            let knocking = async {
                match &mut door {
                    Some(door) => door.next().await,
                    None => std::future::pending().await,
                }
            };
            let candidate = tokio::select! {
                biased;
                ended = &mut intake => return ended.map(|()| Turn::Over),
                candidate = knocking => candidate?,
            };
            let Some(door) = door.as_deref_mut() else { continue };
            if let Some(peer) = self.admit(candidate, door, true).await? {
                tracing::info!(%link, "the peer has connected anew");
                return Ok(Turn::Displaced(peer));
            }
        }
    }

    /// Waits for the peer to connect again.
    async fn await_return<N: Net>(
        &self,
        link: &Link,
        mut how: String,
        door: Option<&mut Door<N>>,
    ) -> Result<Agreed<N::Stream>> {
        let limit = self.config.reconnect_timeout;
        let mut overdue = pin!(tokio::time::sleep(limit));
        if let Some(door) = door {
            tracing::info!(%link, how, "the connection broke, waiting for the peer to come back");
            loop {
                let candidate = tokio::select! {
                    biased;
                    () = &mut overdue => break,
                    candidate = door.next() => candidate?,
                };
                let Some(peer) = self.admit(candidate, door, false).await? else { continue };
                match self.accept(peer).await {
                    Ok(agreed) => {
                        tracing::info!(%link, "the connection is back");
                        return Ok(agreed);
                    }
                    Err(Stop::Broken(again)) => how = again,
                    Err(Stop::Ended(error)) => return Err(error),
                }
            }
            let refused = door.last_refused().map_or(String::new(), |who| format!(" (last refused: {who})"));
            how = format!("{how}; it did not come back within {} s{refused}", limit.as_secs_f64());
        }
        Err(self.gone(link, &how))
    }

    /// Gives back the candidate if it is our peer; tells it why not otherwise.
    async fn admit<N: Net>(
        &self,
        candidate: Candidate<N::Stream>,
        door: &mut Door<N>,
        connected: bool,
    ) -> Result<Option<Candidate<N::Stream>>> {
        let admission = self.session.lock().judge(candidate.claim, connected);
        let (reason, text, error) = match admission {
            Admission::Welcome => match candidate.difference.clone() {
                None => return Ok(Some(candidate)),
                Some((reason, text)) => {
                    let link = self.link.clone().at(candidate.address());
                    let mismatch = format!("{reason}: {text}");
                    (reason, text, Error::PeerIncompatible { link, mismatch })
                }
            },
            Admission::Refuse(reason, text) => {
                door.refuse(candidate, reason, text.into());
                return Ok(None);
            }
            Admission::Restarted => {
                let link = self.link.clone().at(candidate.address());
                let text = "the listener served a session that is no more".to_owned();
                (RefusalReason::Session, text, Error::PeerRestarted { link })
            }
        };
        // Here and not by the door, which goes with us.
        if timeout(door.patience(), candidate.refuse(reason, &text)).await.is_err() {
            tracing::debug!(%error, "a refusal did not reach its connector");
        }
        Err(error)
    }

    /// Accepts our peer, if it is still there. Whatever connection there was before is gone.
    async fn accept<S: crate::net::Stream>(&self, peer: Candidate<S>) -> Result<Agreed<S>, Stop> {
        let received = self.session.lock().accept(peer.claim.session);
        match timeout(self.config.heartbeat, peer.accept(received)).await {
            Ok(Ok(agreed)) => Ok(agreed),
            Ok(Err(Failure::Fatal(error))) => Err(Stop::Ended(error)),
            Ok(Err(Failure::Stranger(how) | Failure::NobodyThere(how) | Failure::Taken(how))) => {
                Err(Stop::Broken(how))
            }
            Err(_) => Err(Stop::Broken("it left before it was accepted".into())),
        }
    }

    /// The peer is not coming back: an error, unless it had said that there was nothing more, or our
    /// user does not want any more.
    pub(in crate::transport) async fn lost(&self, error: Error) -> Result<()> {
        if self.session.lock().is_complete() {
            self.items.drained().await;
            return Ok(());
        }
        tokio::select! {
            biased;
            () = self.items.closed() => Ok(()),
            () = std::future::ready(()) => Err(error),
        }
    }

    pub(in crate::transport) fn gone(&self, link: &Link, how: &str) -> Error {
        let reason = format!("{how}; item {} was due", self.session.lock().received());
        Error::PeerGone { link: link.clone(), reason }
    }
}

//! The receiving end of an edge: lets its peer in, and takes what it sends.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Interval, timeout};

use super::connection::{FrameReader, FrameWriter};
use super::handshake::{Agreed, Candidate, Failure, Party};
use super::{GOODBYE, TcpConfig, address_key, listening, silent_for, speaking};
use crate::error::{Error, Link, Result};
use crate::net::{Listener, Net};
use crate::store::Store;
use crate::tensor::{BufferPool, Tensor};
use crate::transport::session::{Arrival, ReceiveSession, Silence, Violation};
use crate::transport::{Inbox, Incoming, Permit, Ring, check_item_bytes};
use crate::wire::frame::{Frame, Reply};
use crate::wire::metadata::{Metadata, TensorMetadata};

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
        // Also if our user has left meanwhile: the peer is on its way, and is to learn of it. The
        // driver sees to it that this takes no longer than `close_timeout`.
        let agreed = self.accept(items).await?;
        let checksum = self.config.checksum;
        let edge = Edge {
            link: self.link().at(agreed.address),
            items,
            pool: self.config.pool.clone(),
            heartbeat: self.config.heartbeat,
            reader: FrameReader::new(agreed.reader, checksum),
            writer: FrameWriter::new(agreed.writer, checksum),
            session: ReceiveSession::default(),
            listening: listening(self.config.heartbeat),
            silence: Silence::default(),
            speaking: speaking(agreed.peer_heartbeat),
            spoken: false,
        };
        // One peer is enough.
        drop(self);
        edge.run().await
    }
}

/// Connections that shake hands at the same time. One more displaces the oldest, so that silent
/// strangers, however many, can't keep the peer out: it needs two round trips, they need as many new
/// connections in that time.
const HANDSHAKES_MAX: usize = 64;

impl<N: Net> TcpIncoming<N> {
    /// Refuses strangers until our peer comes, or the time is up.
    async fn accept(&self, items: &Inbox) -> Result<Agreed<N::Stream>> {
        let limit = self.config.connect_timeout;
        let mut overdue = pin!(tokio::time::sleep(limit));
        let party = Arc::new(Party::receiver(&self.config, self.ring, items.max_item_bytes())?);
        // Side by side, so that a stranger who says nothing keeps nobody waiting.
        let mut handshakes = JoinSet::new();
        let mut oldest_first = VecDeque::new();
        let mut last_refused = None;
        loop {
            tokio::select! {
                biased;
                () = &mut overdue => {
                    let awaited = format!("rank {} to connect to {}", self.ring.previous(), self.local_addr);
                    let refused = last_refused.map_or(String::new(), |who| format!(" (last refused: {who})"));
                    return Err(Error::timeout(awaited + &refused, limit));
                }
                Some(ended) = handshakes.join_next() => match self.settle(ended).await {
                    Ok(agreed) => return Ok(agreed),
                    Err(Failure::Fatal(error)) => return Err(error),
                    Err(Failure::Stranger(reason)) => {
                        tracing::warn!(rank = self.ring.rank(), reason, "refused a connection");
                        last_refused = Some(reason);
                    }
                },
                incoming = self.listener.accept() => match incoming {
                    Ok((stream, address)) => {
                        let (party, patience) = (Arc::clone(&party), self.config.heartbeat);
                        oldest_first.push_back(handshakes.spawn(async move {
                            timeout(patience, party.admit(stream, address)).await.unwrap_or_else(|_| {
                                Err(Failure::Stranger(format!("{address}: no handshake within {patience:?}")))
                            })
                        }));
                        oldest_first.retain(|handshake| !handshake.is_finished());
                        if oldest_first.len() > HANDSHAKES_MAX && let Some(oldest) = oldest_first.pop_front() {
                            oldest.abort();
                        }
                    }
                    Err(error) => {
                        // Of one connection, or for want of descriptors: the next may do better.
                        tracing::warn!(%error, "accepting a connection failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    /// Accepts a candidate, if it is still there.
    async fn settle(
        &self,
        ended: Result<Result<Candidate<N::Stream>, Failure>, JoinError>,
    ) -> Result<Agreed<N::Stream>, Failure> {
        let candidate = ended.map_err(|error| match error.is_cancelled() {
            true => Failure::Stranger("a stranger was displaced by newer ones".into()),
            false => Failure::Fatal(Error::Bug(format!("a handshake ended by {error}"))),
        })??;
        timeout(self.config.heartbeat, candidate.accept())
            .await
            .map_err(|_| Failure::Stranger("a peer left before it was accepted".into()))?
    }
}

/// Keeps a listener that fails again and again from spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An edge with a connection.
struct Edge<'a, R, W> {
    link: Link,
    items: &'a Inbox,
    pool: BufferPool,
    heartbeat: Duration,
    reader: FrameReader<R>,
    writer: FrameWriter<W>,
    session: ReceiveSession,
    listening: Interval,
    silence: Silence,
    speaking: Interval,
    /// Whether something was written since we last looked whether to speak.
    spoken: bool,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Edge<'_, R, W> {
    async fn run(mut self) -> Result<()> {
        let received = self.receive().await;
        let taken = self.items.taken();
        match received {
            Ok(()) => {
                self.say_last(&Reply::Finished { taken }).await;
                Ok(())
            }
            Err(Error::Closed) => {
                self.say_last(&Reply::Closed { taken }).await;
                Ok(())
            }
            // There is nobody to tell.
            Err(error @ (Error::PeerGone { .. } | Error::PeerAborted { .. })) => Err(error),
            Err(error) => {
                self.say_last(&Reply::Abort { reason: error.to_string().into() }).await;
                Err(error)
            }
        }
    }

    /// Takes items until the peer's last one is in our user's hands; [`Error::Closed`] if the user
    /// leaves first.
    async fn receive(&mut self) -> Result<()> {
        loop {
            // A flood of tiny items must leave the thread to others now and then.
            tokio::task::consume_budget().await;
            let frame = self.next_frame().await?;
            match self.session.receive(frame).map_err(|broken| self.misbehaved(broken))? {
                Arrival::Alive => {}
                Arrival::Item(metadata) => self.receive_item(metadata).await?,
                Arrival::Duplicate(metadata) => self.skip(metadata.payload_bytes()).await?,
                Arrival::Complete => return self.drain().await,
                Arrival::Aborted(reason) => {
                    return Err(Error::PeerAborted { link: self.link.clone(), reason });
                }
            }
        }
    }

    async fn next_frame(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.reader.take().map_err(|broken| self.misbehaved(broken))? {
                return Ok(frame);
            }
            self.read_frames().await?;
        }
    }

    async fn receive_item(&mut self, metadata: Metadata) -> Result<()> {
        let permit = self.reserve(metadata.payload_bytes()).await?;
        let item = match metadata {
            Metadata::None => None,
            Metadata::Tensor(metadata) => Some(self.receive_tensor(&metadata).await?),
        };
        permit.fill(item)?;
        self.session.deliver();
        Ok(())
    }

    async fn receive_tensor(&mut self, metadata: &TensorMetadata) -> Result<Tensor> {
        let bytes = metadata.payload_bytes();
        if !self.reader.holds(bytes) {
            // It may be long in coming.
            self.acknowledge().await?;
        }
        let mut buffer = self.pool.take(bytes)?;
        let mut received = 0;
        while received < bytes {
            received += self.read_payload(&mut buffer[received..]).await?;
        }
        self.finish_payload(bytes).await?;
        Tensor::new(metadata.dtype(), *metadata.shape(), buffer.freeze())
    }

    async fn skip(&mut self, bytes: usize) -> Result<()> {
        check_item_bytes(bytes, self.items.max_item_bytes())
            .map_err(|error| self.misbehaved(Violation(format!("a duplicate: {error}"))))?;
        let mut scratch = vec![0; bytes.min(SKIP_BYTES)];
        let mut left = bytes;
        while left > 0 {
            let part = left.min(scratch.len());
            left -= self.read_payload(&mut scratch[..part]).await?;
        }
        self.finish_payload(bytes).await
    }

    /// Checks the payload's checksum. An empty one was checked together with its frame.
    async fn finish_payload(&mut self, bytes: usize) -> Result<()> {
        while bytes > 0 && !self.reader.payload_ends().map_err(|broken| self.misbehaved(broken))? {
            self.read_frames().await?;
        }
        Ok(())
    }

    /// Waits for room in the inbox. Meanwhile we don't read, so the peer's silence says nothing.
    async fn reserve(&mut self, bytes: usize) -> Result<Permit> {
        let items = self.items;
        let mut reserving = pin!(items.reserve(bytes));
        loop {
            tokio::select! {
                biased;
                reserved = &mut reserving => {
                    return reserved.map_err(|error| match error {
                        Error::TooLarge { .. } => {
                            let item = self.session.received();
                            self.misbehaved(Violation(format!("item {item}: {error}")))
                        }
                        error => error,
                    });
                }
                spoken = self.stay_alive() => spoken?,
            }
        }
    }

    /// Waits until our user has taken everything. The stream is complete: should the connection
    /// break now, nothing is lost.
    async fn drain(&mut self) -> Result<()> {
        let items = self.items;
        let mut draining = pin!(items.drained());
        loop {
            tokio::select! {
                biased;
                drained = &mut draining => return if drained { Ok(()) } else { Err(Error::Closed) },
                spoken = self.stay_alive() => if spoken.is_err() {
                    return if draining.await { Ok(()) } else { Err(Error::Closed) };
                },
            }
        }
    }

    /// Reads once into the frame buffer, keeping up the heartbeat.
    async fn read_frames(&mut self) -> Result<()> {
        self.acknowledge().await?;
        loop {
            tokio::select! {
                biased;
                // The ticks first, or a sender that always has more for us would not hear from us.
                _ = self.speaking.tick() => {}
                _ = self.listening.tick() => {
                    self.listen()?;
                    continue;
                }
                read = self.reader.fill() => return self.heard(read).map(drop),
                () = self.items.closed() => return Err(Error::Closed),
            }
            self.speak().await?;
        }
    }

    /// Reads a part of a payload into `target`, keeping up the heartbeat.
    async fn read_payload(&mut self, target: &mut [u8]) -> Result<usize> {
        loop {
            tokio::select! {
                biased;
                // The ticks first, or a sender that always has more for us would not hear from us.
                _ = self.speaking.tick() => {}
                _ = self.listening.tick() => {
                    self.listen()?;
                    continue;
                }
                read = self.reader.payload(target) => return self.heard(read),
                () = self.items.closed() => return Err(Error::Closed),
            }
            self.speak().await?;
        }
    }

    fn heard(&mut self, read: io::Result<usize>) -> Result<usize> {
        match read {
            Ok(0) => Err(self.gone("it closed the connection")),
            Ok(bytes) => {
                self.silence.hear();
                Ok(bytes)
            }
            Err(error) => Err(self.gone(&error.to_string())),
        }
    }

    /// A tick while reading.
    fn listen(&mut self) -> Result<()> {
        match self.silence.tick() {
            true => Err(self.gone(&silent_for(self.heartbeat))),
            false => Ok(()),
        }
    }

    /// Says what is to be said until the next tick, while we wait for something else than the peer:
    /// since we don't read, its silence says nothing. Cancel safe.
    async fn stay_alive(&mut self) -> Result<()> {
        self.silence.excuse();
        // The peer may wait for it before it can go on.
        self.acknowledge().await?;
        self.speaking.tick().await;
        self.speak().await
    }

    /// A sign of life, if there was no other since the last time.
    async fn speak(&mut self) -> Result<()> {
        match std::mem::take(&mut self.spoken) {
            true => Ok(()),
            false => self.say(&Reply::Alive).await,
        }
    }

    async fn acknowledge(&mut self) -> Result<()> {
        match self.session.acknowledge() {
            Some(reply) => self.say(&reply).await,
            // One that was cut off in the middle goes out first.
            None if self.writer.is_staged() => self.flush().await,
            None => Ok(()),
        }
    }

    /// Cancel safe: what was not written is written before the next reply.
    async fn say(&mut self, reply: &Reply) -> Result<()> {
        self.spoken = true;
        self.writer.write_bare(reply).await.map_err(|error| self.gone(&error.to_string()))?;
        self.flush().await
    }

    /// A peer that does not even take replies within the heartbeat limit is dead.
    async fn flush(&mut self) -> Result<()> {
        match timeout(self.heartbeat, self.writer.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.gone(&error.to_string())),
            Err(_) => Err(self.gone("it takes no replies")),
        }
    }

    /// The last word, and time for it to arrive.
    async fn say_last(mut self, reply: &Reply) {
        let goodbye = async {
            if self.acknowledge().await.is_ok() && self.say(reply).await.is_ok() {
                // The peer answers by closing the connection, whatever state it is in.
                let _ = self.writer.shutdown().await;
                self.reader.discard().await;
            }
        };
        if timeout(GOODBYE, goodbye).await.is_err() {
            tracing::debug!(link = %self.link, "the peer did not close the connection in time");
        }
    }

    fn gone(&self, how: &str) -> Error {
        let reason = format!("{how}; item {} was due", self.session.received());
        Error::PeerGone { link: self.link.clone(), reason }
    }

    fn misbehaved(&self, Violation(violation): Violation) -> Error {
        Error::PeerMisbehaved { link: self.link.clone(), violation }
    }
}

/// Bytes of a duplicate that are thrown away at a time.
const SKIP_BYTES: usize = 64 << 10;

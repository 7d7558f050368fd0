//! The sending end of an edge: moves items, over as many connections as it takes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Interval, timeout};

use super::connection::{FrameReader, FrameWriter};
use super::dial::{Dialer, NotResumed};
use super::handshake::Agreed;
use super::{Stop, TcpConfig};
use crate::device::Reading;
use crate::error::{Error, Link, Result};
use crate::net::{Net, Stream};
use crate::store::Store;
use crate::sync::Mutex;
use crate::tensor::{Payload, Tensor};
use crate::transport::session::{Heard, Reunion, SendSession, Silence, Violation};
use crate::transport::stagings::Stagings;
use crate::transport::timing::{Backoff, GOODBYE, listening, showing_progress, silent_for, speaking};
use crate::transport::{Outbox, Outgoing, Ring};
use crate::wire::frame::{Frame, Reply};
use crate::wire::metadata::Metadata;

/// The sending end of an edge: from a rank to the next one in its ring.
#[derive(Debug)]
pub struct TcpOutgoing<N, S> {
    net: N,
    store: S,
    ring: Ring,
    config: TcpConfig,
}

impl<N: Net, S: Store + Clone> TcpOutgoing<N, S> {
    /// The edge to the next rank, which is looked up in `store` and connected to once the pipe's
    /// driver is polled.
    pub fn new(net: N, store: S, ring: Ring, config: TcpConfig) -> Self {
        Self { net, store, ring, config }
    }
}

impl<N: Net, S: Store + Clone> Outgoing for TcpOutgoing<N, S> {
    fn link(&self) -> Link {
        self.ring.outgoing_link()
    }

    async fn run(self, items: &Outbox) -> Result<()> {
        self.config.check()?;
        let link = self.link();
        let (heartbeat, reconnect) = (self.config.heartbeat, self.config.reconnect_timeout);
        let checksum = self.config.checksum;
        let dialer = Dialer::new(self.net, self.store, self.ring, self.config, items.max_item_bytes())?;
        // Also for a pipe that was closed or dropped meanwhile: the peer waits for us, and is to
        // learn of it. A dropped pipe's driver sees to it that this takes no longer than
        // `close_timeout`; a close waits as long as we do.
        let agreed = showing_progress(items, dialer.meet()).await?;
        let address = agreed.address;
        let session = Mutex::new(SendSession::default());
        let edge = Edge { link: link.at(address), items, session, heartbeat, reconnect, checksum };
        let mut forgetting = pin!(dialer.forget_address(address));
        let mut forgotten = false;
        let mut running = pin!(edge.run(agreed, &dialer));
        let ended = loop {
            tokio::select! {
                biased;
                ended = &mut running => break ended,
                () = &mut forgetting, if !forgotten => forgotten = true,
            }
        };
        if !forgotten {
            let _ = timeout(GOODBYE, forgetting).await;
        }
        ended
    }
}

/// Connections that may break one after the other without an item getting through.
const FUTILE_CONNECTIONS_MAX: u32 = 16;

/// An edge whose ends have met.
struct Edge<'a> {
    link: Link,
    items: &'a Outbox,
    session: Mutex<SendSession>,
    heartbeat: Duration,
    reconnect: Duration,
    checksum: bool,
}

/// What a connection was good for.
enum Use {
    /// Items got through.
    Moved,
    /// There was nothing to do.
    Idle,
    /// There was, and it broke.
    None,
}

/// Why writing ended, short of the peer's last word.
enum Unwritten {
    /// The connection does not take any more.
    Broken(String),
    /// Our pipe failed, and the peer was told.
    Aborted(Error),
}

impl From<std::io::Error> for Unwritten {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

impl Edge<'_> {
    /// Moves items until the edge ends, over one connection after the other.
    async fn run<N: Net, S: Store>(
        &self,
        mut agreed: Agreed<N::Stream>,
        dialer: &Dialer<N, S>,
    ) -> Result<()> {
        let mut backoff = Backoff::at_once(self.reconnect);
        let mut futile_connections = 0;
        loop {
            let (address, acknowledged) = (agreed.address, self.session.lock().acknowledged());
            let how = match self.converse(agreed).await {
                Ok(()) => return Ok(()),
                Err(Stop::Ended(error)) => return Err(error),
                Err(Stop::Broken(how)) => how,
            };
            match self.use_of_a_connection(acknowledged) {
                Use::Moved => (backoff, futile_connections) = (Backoff::at_once(self.reconnect), 0),
                Use::Idle => futile_connections = 0,
                Use::None => futile_connections += 1,
            }
            if futile_connections >= FUTILE_CONNECTIONS_MAX {
                return self
                    .gone(&format!("{how}, {futile_connections} times without an item getting through"));
            }
            agreed = match self.resume(&how, address, dialer, &mut backoff).await {
                Ok(agreed) => agreed,
                Err(NotResumed::Gone(why)) => return self.gone(&format!("{how}; {why}")),
                Err(NotResumed::Restarted) => {
                    return self.lost(Error::PeerRestarted { link: self.link.clone() });
                }
                Err(NotResumed::Failed(error)) => return self.lost(error),
            };
        }
    }

    /// What a connection was good for, before which so many items were acknowledged.
    fn use_of_a_connection(&self, acknowledged: u64) -> Use {
        let session = self.session.lock();
        match session.acknowledged() > acknowledged {
            true => Use::Moved,
            false if session.is_settled() && !self.is_complete() => Use::Idle,
            false => Use::None,
        }
    }

    async fn resume<N: Net, S: Store>(
        &self,
        how: &str,
        address: SocketAddr,
        dialer: &Dialer<N, S>,
        backoff: &mut Backoff,
    ) -> Result<Agreed<N::Stream>, NotResumed> {
        let Some(peer) = self.session.lock().peer() else { return Err(NotResumed::Restarted) };
        tracing::info!(link = %self.link, how, "the connection broke, reconnecting");
        let agreed = showing_progress(self.items, dialer.resume(address, peer, backoff)).await?;
        tracing::info!(link = %self.link, received = agreed.received, "the connection is back");
        Ok(agreed)
    }

    /// Moves items over one connection.
    async fn converse<S: Stream>(&self, agreed: Agreed<S>) -> Result<(), Stop> {
        let met = self.session.lock().meet(agreed.peer_session, agreed.received);
        match met.map_err(|broken| self.misbehaved(broken))? {
            Reunion::From(received) => {
                self.items.settle(received);
                self.items.rewind(received);
            }
            Reunion::Restarted => {
                return Ok(self.lost(Error::PeerRestarted { link: self.link.clone() })?);
            }
        }
        let mut reader = FrameReader::new(agreed.reader, self.checksum);
        let mut writer = FrameWriter::new(agreed.writer, self.checksum);
        let mut reading = pin!(self.read_replies(&mut reader));
        let unwritten = tokio::select! {
            biased;
            ended = &mut reading => Ok(ended),
            unwritten = self.write_items(&mut writer, agreed.peer_heartbeat) => Err(unwritten),
        };
        let unwritten = match unwritten {
            Ok(Ok(())) => {
                self.say_goodbye(&mut writer).await;
                return Ok(());
            }
            Ok(ended) => return ended,
            Err(Err(unwritten)) => unwritten,
        };
        match unwritten {
            // It answers by closing the connection, once it has read so far: its inbox may be full. The
            // driver sees to it that this takes no longer than `close_timeout`.
            Unwritten::Aborted(error) => {
                let _ = reading.await;
                Err(Stop::Ended(error))
            }
            // What the peer said last may still be on its way, and says more than our write error.
            Unwritten::Broken(how) => match timeout(GOODBYE, reading).await {
                Ok(ended) => ended,
                Err(_) => Err(Stop::Broken(how)),
            },
        }
    }

    /// Writes items until something ends it; after the last one, signs of life.
    async fn write_items<W: AsyncWrite + Unpin>(
        &self,
        writer: &mut FrameWriter<W>,
        peer_heartbeat: Duration,
    ) -> Result<Infallible, Unwritten> {
        let mut ticker = speaking(peer_heartbeat);
        let mut spoken = false;
        let mut stagings = Stagings::default();
        let failure = loop {
            let next = match self.items.try_next() {
                Some(item) => Ok(Some(item)),
                None => {
                    if writer.is_staged() {
                        writer.flush().await?;
                        spoken = true;
                    }
                    tokio::select! {
                        biased;
                        next = self.items.next() => next,
                        _ = ticker.tick() => {
                            if !std::mem::take(&mut spoken) {
                                writer.write_bare(&Frame::Alive).await?;
                            }
                            continue;
                        }
                    }
                }
            };
            match next {
                Ok(Some((sequence, item))) => {
                    let frame = || self.session.lock().send(sequence, Metadata::of(&item));
                    match item.as_ref().map(Tensor::payload) {
                        None => writer.write_bare(&frame()).await?,
                        Some(Payload::Host(bytes)) => {
                            writer.write(&frame(), bytes, || self.items.progress()).await?;
                        }
                        Some(Payload::Device(buffer)) => {
                            let mut pieces = match stagings.read(buffer) {
                                Ok(pieces) => pieces,
                                Err(error) => break error,
                            };
                            match self.write_pieces(writer, &mut pieces, frame, &mut ticker).await? {
                                Ok(()) => spoken = true,
                                Err(error) => break error,
                            }
                        }
                    }
                }
                Ok(None) => {
                    let close = self.session.lock().close();
                    writer.write_bare(&close).await?;
                    writer.flush().await?;
                    // Nothing more is said: the peer does not read on, and knows that all is here.
                    break self.items.failed().await;
                }
                Err(failure) => break failure,
            }
        };
        writer.write_bare(&Frame::Abort { reason: failure.to_string().into() }).await?;
        writer.flush().await?;
        writer.shutdown().await?;
        Err(Unwritten::Aborted(failure))
    }

    /// Writes an item whose payload is on a device. The error inside is the device's, before anything
    /// was written that could not be followed by our last word. After that, the connection is given up: a
    /// device that fails again does so before the next frame.
    async fn write_pieces<W: AsyncWrite + Unpin>(
        &self,
        writer: &mut FrameWriter<W>,
        pieces: &mut Reading<'_>,
        frame: impl FnOnce() -> Frame,
        ticker: &mut Interval,
    ) -> Result<Result<()>, Unwritten> {
        // The producer's work may take its time.
        writer.flush().await?;
        let mut piece = {
            let mut first = pin!(pieces.next());
            loop {
                tokio::select! {
                    biased;
                    first = &mut first => match first {
                        Ok(first) => break first,
                        Err(error) => return Ok(Err(error)),
                    },
                    failure = self.items.failed() => return Ok(Err(failure)),
                    _ = ticker.tick() => {
                        writer.write_bare(&Frame::Alive).await?;
                        writer.flush().await?;
                    }
                }
            }
        };
        let mut payload = writer.begin(&frame());
        while let Some(bytes) = piece {
            payload.write(bytes, || self.items.progress()).await?;
            piece = pieces.next().await.map_err(|error| Unwritten::Broken(error.to_string()))?;
        }
        payload.end().await?;
        Ok(Ok(()))
    }

    /// Reads replies until the last one, the end of the connection, or too long a silence.
    async fn read_replies<R: AsyncRead + Unpin>(&self, reader: &mut FrameReader<R>) -> Result<(), Stop> {
        let mut ticker = listening(self.heartbeat);
        let mut silence = Silence::default();
        loop {
            while let Some(reply) = reader.take::<Reply>().map_err(|broken| self.misbehaved(broken))? {
                let heard = self.session.lock().receive(reply).map_err(|broken| self.misbehaved(broken))?;
                let link = self.link.clone();
                match heard {
                    // A flood of them must leave the thread to others now and then.
                    Heard::Alive => tokio::task::consume_budget().await,
                    Heard::Acknowledged(upto) => self.items.settle(upto),
                    Heard::Finished(upto) => {
                        self.items.settle(upto);
                        return Ok(());
                    }
                    Heard::Closed(taken) => {
                        self.clear_doubts();
                        return Err(Error::ReceiverClosed { link, taken }.into());
                    }
                    Heard::Aborted(reason) => {
                        self.clear_doubts();
                        return Err(Error::PeerAborted { link, reason }.into());
                    }
                }
            }
            tokio::select! {
                biased;
                // A silent peer is dead, and not resumed.
                _ = ticker.tick() => if silence.tick() {
                    return Ok(self.gone(&silent_for(self.heartbeat))?);
                },
                read = reader.fill() => match read {
                    Ok(0) => return Err(Stop::Broken("it closed the connection".into())),
                    Ok(_) => silence.hear(),
                    Err(error) => return Err(Stop::Broken(error.to_string())),
                },
            }
        }
    }

    /// The peer has finished. Should this not reach it, it learns of our end a little later.
    async fn say_goodbye<W: AsyncWrite + Unpin>(&self, writer: &mut FrameWriter<W>) {
        let goodbye = async {
            writer.write_bare(&Frame::Goodbye).await?;
            writer.flush().await?;
            writer.shutdown().await
        };
        if !matches!(timeout(GOODBYE, goodbye).await, Ok(Ok(()))) {
            tracing::debug!(link = %self.link, "the goodbye did not get through");
        }
    }

    /// The peer's last word comes behind its last acknowledgement: it holds nothing else.
    fn clear_doubts(&self) {
        self.items.rewind(self.items.settled());
    }

    /// The peer is gone, as far as we can tell.
    fn gone(&self, how: &str) -> Result<()> {
        let reason = format!("{how}; {}", self.session.lock().place());
        self.lost(Error::PeerGone { link: self.link.clone(), reason })
    }

    /// The end of an edge without a last word: a failure, unless everything was acknowledged and only
    /// that word, or even our close, is missing.
    fn lost(&self, error: Error) -> Result<()> {
        match self.is_complete() {
            true => Ok(()),
            false => Err(error),
        }
    }

    /// Whether our user has closed, and the peer holds everything.
    fn is_complete(&self) -> bool {
        self.items.is_closed() && self.items.settled() == self.items.accepted()
    }

    fn misbehaved(&self, Violation(violation): Violation) -> Error {
        Error::PeerMisbehaved { link: self.link.clone(), violation }
    }
}

//! The sending end of an edge: finds its peer, connects, and moves items.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout, timeout_at};

use super::connection::{FrameReader, FrameWriter};
use super::handshake::{Agreed, Failure, Party};
use super::{GOODBYE, TcpConfig, address_key, after, listening, silent_for, speaking, ticker};
use crate::error::{Error, Link, Result};
use crate::net::Net;
use crate::store::Store;
use crate::sync::Mutex;
use crate::tensor::Tensor;
use crate::transport::session::{Heard, SendSession, Silence, Violation};
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
        let agreed = self.meet(items).await?;
        let edge = Edge {
            link: self.link().at(agreed.address),
            items,
            session: Mutex::new(SendSession::default()),
            heartbeat: self.config.heartbeat,
            peer_heartbeat: agreed.peer_heartbeat,
        };
        let checksum = self.config.checksum;
        let reader = FrameReader::new(agreed.reader, checksum);
        let writer = FrameWriter::new(agreed.writer, checksum);
        let mut forgetting = pin!(self.forget_address(agreed.address));
        let mut forgotten = false;
        let mut running = pin!(edge.run(reader, writer));
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

impl<N: Net, S: Store + Clone> TcpOutgoing<N, S> {
    /// Connects, also for a pipe that was closed or dropped meanwhile: the peer waits for us, and is
    /// to learn of it. A dropped pipe's driver sees to it that this takes no longer than
    /// `close_timeout`; a close waits as long as we do.
    async fn meet(&self, items: &Outbox) -> Result<Agreed<N::Stream>> {
        let mut ticker = ticker(PROGRESS_PERIOD);
        let mut connecting = pin!(self.connect(items));
        loop {
            tokio::select! {
                biased;
                connected = &mut connecting => return connected,
                _ = ticker.tick() => items.progress(),
            }
        }
    }

    /// Deletes the peer's address from the store: it is taken. That it stays behind in a store that
    /// is gone, or busy, harms nobody.
    async fn forget_address(&self, address: SocketAddr) {
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

    /// Tries until the peer has accepted us, has refused us, or the time is up.
    async fn connect(&self, items: &Outbox) -> Result<Agreed<N::Stream>> {
        let limit = self.config.connect_timeout;
        let deadline = after(limit);
        let key = address_key(&self.config.group, self.ring.next());
        let party = Party::sender(&self.config, self.ring, items.max_item_bytes())?;
        let mut backoff = Backoff::default();
        loop {
            // Looked up again each time: what was found may be left over from an earlier run.
            let address = self.look_up(&key, deadline).await?;
            let failure = match timeout_at(deadline, self.attempt(address, &party)).await {
                Ok(Ok(agreed)) => return Ok(agreed),
                Ok(Err(Failure::Fatal(error))) => return Err(error),
                Ok(Err(Failure::Stranger(reason))) => reason,
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

    async fn attempt(&self, address: SocketAddr, party: &Party) -> Result<Agreed<N::Stream>, Failure> {
        let connecting = self.net.connect(address, &self.config.socket);
        let stream = timeout(ATTEMPT_TIMEOUT, connecting)
            .await
            .map_err(|_| Failure::Stranger("no answer to the connection".into()))?
            .map_err(|error| Failure::Stranger(error.to_string()))?;
        timeout(self.config.heartbeat, party.greet(stream, address))
            .await
            .map_err(|_| Failure::Stranger("no answer to the handshake".into()))?
    }
}

/// How often a close is told that we are still connecting.
const PROGRESS_PERIOD: Duration = Duration::from_millis(50);

/// A host that drops packets must not use up all the time there is for retries.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Pauses between attempts: doubling, with jitter, up to a second.
#[derive(Debug)]
struct Backoff {
    pause: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause: Duration::from_millis(10) }
    }
}

impl Backoff {
    fn next(&mut self, random: u64) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(Duration::from_secs(1));
        // Half of it, and a random part of the other half.
        pause / 2 + pause.mul_f64(random as f64 / u64::MAX as f64) / 2
    }
}

/// An edge with a connection. Two futures share it: one writes items, one reads replies.
struct Edge<'a> {
    link: Link,
    items: &'a Outbox,
    session: Mutex<SendSession>,
    heartbeat: Duration,
    peer_heartbeat: Duration,
}

/// Why writing ended, short of the peer's last word.
enum Stopped {
    /// The connection does not take any more.
    Broken(io::Error),
    /// Our pipe failed, and the peer was told.
    Aborted(Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl Edge<'_> {
    async fn run<R, W>(&self, mut reader: FrameReader<R>, mut writer: FrameWriter<W>) -> Result<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut reading = pin!(self.read_replies(&mut reader));
        let stopped = tokio::select! {
            biased;
            ended = &mut reading => return ended,
            stopped = self.write_items(&mut writer) => stopped,
        };
        // What the peer said last may still be on its way, and says more than our write error. After
        // an abort of ours it answers by closing the connection.
        let last_word = timeout(GOODBYE, reading).await;
        match (stopped, last_word) {
            (Err(Stopped::Aborted(error)), _) => Err(error),
            (_, Ok(ended)) => ended,
            (Err(Stopped::Broken(error)), Err(_)) => self.gone(&error.to_string()),
            (Ok(never), _) => match never {},
        }
    }

    /// Writes items until something ends it; after the last one, signs of life.
    async fn write_items<W: AsyncWrite + Unpin>(
        &self,
        writer: &mut FrameWriter<W>,
    ) -> Result<Infallible, Stopped> {
        let mut ticker = speaking(self.peer_heartbeat);
        let mut spoken = false;
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
                    let payload = match item.as_ref().map(Tensor::bytes).transpose() {
                        Ok(payload) => payload,
                        Err(error) => break error,
                    };
                    let frame = self.session.lock().send(sequence, Metadata::of(&item));
                    let payload = payload.map_or(&[][..], |bytes| bytes);
                    writer.write(&frame, payload, || self.items.progress()).await?;
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
        Err(Stopped::Aborted(failure))
    }

    /// Reads replies until the last one, the end of the connection, or too long a silence.
    async fn read_replies<R: AsyncRead + Unpin>(&self, reader: &mut FrameReader<R>) -> Result<()> {
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
                    Heard::Closed(taken) => return Err(Error::ReceiverClosed { link, taken }),
                    Heard::Aborted(reason) => return Err(Error::PeerAborted { link, reason }),
                }
            }
            tokio::select! {
                biased;
                _ = ticker.tick() => if silence.tick() {
                    return self.gone(&silent_for(self.heartbeat));
                },
                read = reader.fill() => match read {
                    Ok(0) => return self.gone("it closed the connection"),
                    Ok(_) => silence.hear(),
                    Err(error) => return self.gone(&error.to_string()),
                },
            }
        }
    }

    /// The end of a connection without a last word: a failure, unless everything was acknowledged
    /// and only that word is missing.
    fn gone(&self, how: &str) -> Result<()> {
        let session = self.session.lock();
        if session.is_complete() {
            return Ok(());
        }
        let reason = format!("{how}; {}", session.place());
        Err(Error::PeerGone { link: self.link.clone(), reason })
    }

    fn misbehaved(&self, Violation(violation): Violation) -> Error {
        Error::PeerMisbehaved { link: self.link.clone(), violation }
    }
}

//! The sending end of an edge: announces items, and sends the payloads for which there is room.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Interval, timeout};

use super::payloads::Payloads;
use super::{Lane, NcclConfig, SENDER};
use crate::device::{DeviceBuffer, Staging};
use crate::error::{Error, Link, Result};
use crate::net::{Net, Stream};
use crate::store::Store;
use crate::sync::Mutex;
use crate::tensor::Tensor;
use crate::transport::session::{Heard, SendSession, Silence, Violation};
use crate::transport::tcp::connection::{FrameReader, FrameWriter};
use crate::transport::tcp::dial::Dialer;
use crate::transport::tcp::handshake::Agreed;
use crate::transport::timing::{GOODBYE, listening, showing_progress, silent_for, speaking};
use crate::transport::{Outbox, Outgoing, Ring};
use crate::wire::UniqueId;
use crate::wire::frame::{Frame, Reply};
use crate::wire::metadata::Metadata;
use crate::wire::nccl::{NcclFrame, NcclReply};

/// The sending end of an edge: from a rank to the next one in its ring.
#[derive(Debug)]
pub struct NcclOutgoing<N, S> {
    net: N,
    store: S,
    ring: Ring,
    config: NcclConfig,
}

impl<N: Net, S: Store + Clone> NcclOutgoing<N, S> {
    /// The edge to the next rank, which is looked up in `store` and connected to once the pipe's driver
    /// is polled.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the group's name is too long.
    pub fn new(net: N, store: S, ring: Ring, config: NcclConfig) -> Result<Self> {
        Ok(Self { net, store, ring, config: config.prepared()? })
    }
}

impl<N: Net, S: Store + Clone> Outgoing for NcclOutgoing<N, S> {
    fn link(&self) -> Link {
        self.ring.outgoing_link()
    }

    async fn run(self, items: &Outbox) -> Result<()> {
        let control = self.config.control.clone();
        control.check()?;
        let link = self.link();
        let dialer = Dialer::new(self.net, self.store, self.ring, control, items.max_item_bytes())?;
        // Also for a pipe that was closed or dropped meanwhile, as on tcp.
        let agreed = showing_progress(items, dialer.meet()).await?;
        let address = agreed.address;
        let edge = Edge::new(link.at(address), items, self.config);
        let forgetting = async {
            dialer.forget_address(address).await;
            std::future::pending().await
        };
        tokio::select! {
            biased;
            ended = edge.run(agreed) => ended,
            never = forgetting => never,
        }
    }
}

/// An edge whose ends have met.
struct Edge<'a> {
    link: Link,
    items: &'a Outbox,
    config: NcclConfig,
    session: Mutex<SendSession>,
    payloads: Payloads,
    /// Why payloads can't be sent.
    stuck: watch::Sender<Option<Error>>,
}

/// Why writing ended, short of the peer's last word.
enum Unwritten {
    /// The connection does not take any more.
    Broken(String),
    /// Our pipe or NCCL failed, and the peer was told.
    Aborted(Error),
}

impl From<std::io::Error> for Unwritten {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

impl<'a> Edge<'a> {
    fn new(link: Link, items: &'a Outbox, config: NcclConfig) -> Self {
        let (session, payloads) = (Mutex::new(SendSession::default()), Payloads::new());
        Self { link, items, config, session, payloads, stuck: watch::Sender::new(None) }
    }

    async fn run<S: Stream>(&self, agreed: Agreed<S>) -> Result<()> {
        let met = self.session.lock().meet(agreed.peer_session, agreed.received);
        met.map_err(|broken| self.misbehaved(broken))?;
        let checksum = self.config.control.checksum;
        let mut reader = FrameReader::new(agreed.reader, checksum);
        let mut writer = FrameWriter::new(agreed.writer, checksum);
        let id = self.config.library.unique_id();
        let lane = tokio::sync::OnceCell::new();
        let mut reading = pin!(self.read_replies(&mut reader));
        // Beside both others, since the peer reads no more announcements while it has no room, and makes
        // room by what we send.
        let mut moving = pin!(async {
            let error = match id.clone() {
                Ok(id) => self.move_payloads(id, &lane).await,
                Err(error) => error,
            };
            self.stuck.send_replace(Some(error));
            std::future::pending::<Infallible>().await
        });
        let ended = tokio::select! {
            biased;
            ended = &mut reading => Ok(ended),
            never = &mut moving => match never {},
            Err(unwritten) = self.write_items(&mut writer, id.as_ref().ok(), agreed.peer_heartbeat) => Err(unwritten),
            error = self.stuck_for_long() => Ok(Err(error)),
        };
        let result = match ended {
            Ok(Ok(())) => {
                self.say_goodbye(&mut writer).await;
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(Unwritten::Aborted(error)) => {
                fail(&lane, &error);
                // It answers by closing the connection, at once: an abort takes no turn.
                let _ = timeout(GOODBYE, reading).await;
                Err(error)
            }
            // What the peer said last may still be on its way, and says more than our write error.
            Err(Unwritten::Broken(how)) => match timeout(GOODBYE, reading).await {
                Ok(ended) => ended,
                Err(_) => self.gone(&how),
            },
        };
        if let Err(error) = &result {
            fail(&lane, error);
        }
        result
    }

    /// Forms the communicator, and sends payloads; until that fails.
    async fn move_payloads(&self, id: UniqueId, formed: &tokio::sync::OnceCell<Lane>) -> Error {
        let forming = showing_progress(self.items, Lane::form(SENDER, id, &self.config));
        match formed.get_or_try_init(|| forming).await {
            Ok(lane) => self.payloads.send(lane, self.items, &self.link, self.config.transfer_timeout).await,
            Err(error) => error,
        }
    }

    /// Why payloads can't be sent, when the peer could not be told in time: it may not be reading.
    async fn stuck_for_long(&self) -> Error {
        let mut stuck = self.stuck.subscribe();
        // Its sender is ours.
        let _ = stuck.wait_for(Option::is_some).await;
        loop {
            tokio::time::sleep(GOODBYE).await;
            let stuck = self.stuck.borrow().clone();
            if let Some(error) = stuck.filter(|_| !self.is_complete()) {
                return error;
            }
        }
    }

    /// The memory of a tensor on our device, copied there if it is elsewhere, with signs of life meanwhile.
    async fn stage<W: AsyncWrite + Unpin>(
        &self,
        tensor: &Tensor,
        staging: &mut Staging,
        writer: &mut FrameWriter<W>,
        ticker: &mut Interval,
    ) -> Result<Result<DeviceBuffer>, Unwritten> {
        let limit = self.config.transfer_timeout;
        let staging = timeout(limit, super::on_device(tensor, &self.config.device, staging));
        let mut staging = pin!(staging);
        loop {
            tokio::select! {
                biased;
                staged = &mut staging => {
                    return Ok(staged.unwrap_or_else(|_| {
                        let awaited = format!("a copy of {} bytes to {}", tensor.byte_len(), self.config.device.location());
                        Err(Error::timeout(awaited, limit))
                    }));
                }
                _ = ticker.tick() => {
                    writer.write_bare(&NcclFrame::Edge(Frame::Alive)).await?;
                    writer.flush().await?;
                }
            }
        }
    }

    /// Announces items until something ends it; after the last one, signs of life.
    async fn write_items<W: AsyncWrite + Unpin>(
        &self,
        writer: &mut FrameWriter<W>,
        id: Option<&UniqueId>,
        peer_heartbeat: Duration,
    ) -> Result<Infallible, Unwritten> {
        let mut ticker = speaking(peer_heartbeat);
        let mut spoken = false;
        let mut stuck = self.stuck.subscribe();
        let mut staging = match Staging::new(&self.config.device) {
            Ok(staging) => staging,
            Err(error) => return self.abort(writer, error).await,
        };
        if let Some(id) = id {
            writer.write_bare(&NcclFrame::Join { id: *id }).await?;
        }
        let failure = loop {
            if let Some(failure) = stuck.borrow_and_update().clone() {
                break failure;
            }
            let next = match self.items.try_next() {
                Some(item) => Ok(Some(item)),
                None => {
                    if writer.is_staged() {
                        writer.flush().await?;
                        spoken = true;
                    }
                    tokio::select! {
                        biased;
                        _ = stuck.changed() => continue,
                        next = self.items.next() => next,
                        _ = ticker.tick() => {
                            if !std::mem::take(&mut spoken) {
                                writer.write_bare(&NcclFrame::Edge(Frame::Alive)).await?;
                            }
                            continue;
                        }
                    }
                }
            };
            match next {
                Ok(Some((sequence, item))) => {
                    let metadata = Metadata::of(&item);
                    if let Some(tensor) = item.filter(|tensor| tensor.byte_len() > 0) {
                        // What was announced before is not to wait for it.
                        writer.flush().await?;
                        match self.stage(&tensor, &mut staging, writer, &mut ticker).await? {
                            Ok(source) => self.payloads.add(sequence, source),
                            Err(failure) => break failure,
                        }
                    }
                    let frame = self.session.lock().send(sequence, metadata);
                    writer.write_bare(&NcclFrame::Edge(frame)).await?;
                }
                Ok(None) => {
                    let close = self.session.lock().close();
                    writer.write_bare(&NcclFrame::Edge(close)).await?;
                    writer.flush().await?;
                    break self.await_failure(writer, &mut ticker, &mut stuck).await?;
                }
                Err(failure) => break failure,
            }
        };
        self.abort(writer, failure).await
    }

    /// Tells the peer why there is nothing more.
    async fn abort<W: AsyncWrite + Unpin>(
        &self,
        writer: &mut FrameWriter<W>,
        failure: Error,
    ) -> Result<Infallible, Unwritten> {
        writer.write_bare(&NcclFrame::Edge(Frame::Abort { reason: failure.to_string().into() })).await?;
        writer.flush().await?;
        writer.shutdown().await?;
        Err(Unwritten::Aborted(failure))
    }

    /// After the close, while payloads are still on their way and the peer waits for them.
    async fn await_failure<W: AsyncWrite + Unpin>(
        &self,
        writer: &mut FrameWriter<W>,
        ticker: &mut Interval,
        stuck: &mut watch::Receiver<Option<Error>>,
    ) -> Result<Error, Unwritten> {
        loop {
            // What is acknowledged needs NCCL no more; only the peer's user may still have to take it.
            if let Some(failure) = stuck.borrow_and_update().clone().filter(|_| !self.is_complete()) {
                return Ok(failure);
            }
            tokio::select! {
                biased;
                failure = self.items.failed() => return Ok(failure),
                _ = stuck.changed() => {}
                _ = ticker.tick() => {
                    writer.write_bare(&NcclFrame::Edge(Frame::Alive)).await?;
                    writer.flush().await?;
                }
            }
        }
    }

    /// Reads replies until the last one, the end of the connection, or too long a silence.
    async fn read_replies<R: AsyncRead + Unpin>(&self, reader: &mut FrameReader<R>) -> Result<()> {
        let mut ticker = listening(self.config.control.heartbeat);
        let mut silence = Silence::default();
        loop {
            while let Some(reply) = reader.take().map_err(|broken| self.misbehaved(broken))? {
                match reply {
                    NcclReply::Ready { upto } => self.hear_ready(upto)?,
                    NcclReply::Edge(reply) => {
                        if self.hear(reply)? {
                            return Ok(());
                        }
                    }
                }
                // A flood of them must leave the thread to others now and then.
                tokio::task::consume_budget().await;
            }
            tokio::select! {
                biased;
                _ = ticker.tick() => if silence.tick() {
                    return self.gone(&silent_for(self.config.control.heartbeat));
                },
                read = reader.fill() => match read {
                    Ok(0) => return self.gone("it closed the connection"),
                    Ok(_) => silence.hear(),
                    Err(error) => return self.gone(&error.to_string()),
                },
            }
        }
    }

    fn hear_ready(&self, upto: u64) -> Result<()> {
        let announced = self.session.lock().sent();
        self.payloads.hear_ready(upto, announced).map_err(|broken| self.misbehaved(broken))?;
        self.items.progress();
        Ok(())
    }

    /// True once the peer's user has taken everything.
    fn hear(&self, reply: Reply) -> Result<bool> {
        let heard = self.session.lock().receive(reply).map_err(|broken| self.misbehaved(broken))?;
        if let Heard::Acknowledged(upto) | Heard::Finished(upto) = heard {
            self.payloads.hear_acknowledged(upto).map_err(|broken| self.misbehaved(broken))?;
        }
        let link = self.link.clone();
        match heard {
            Heard::Alive => Ok(false),
            Heard::Acknowledged(upto) => {
                self.items.settle(upto);
                Ok(false)
            }
            Heard::Finished(upto) => {
                self.items.settle(upto);
                Ok(true)
            }
            Heard::Closed(taken) => {
                self.items.rewind(self.items.settled());
                Err(Error::ReceiverClosed { link, taken })
            }
            Heard::Aborted(reason) => {
                self.items.rewind(self.items.settled());
                Err(Error::PeerAborted { link, reason })
            }
        }
    }

    /// The peer has finished. Should this not reach it, it learns of our end a little later.
    async fn say_goodbye<W: AsyncWrite + Unpin>(&self, writer: &mut FrameWriter<W>) {
        let goodbye = async {
            writer.write_bare(&NcclFrame::Edge(Frame::Goodbye)).await?;
            writer.flush().await?;
            writer.shutdown().await
        };
        if !matches!(timeout(GOODBYE, goodbye).await, Ok(Ok(()))) {
            tracing::debug!(link = %self.link, "the goodbye did not get through");
        }
    }

    /// The peer is gone: a failure, unless everything was acknowledged and only its last word is missing.
    fn gone(&self, how: &str) -> Result<()> {
        if self.is_complete() {
            return Ok(());
        }
        let reason = format!("{how}; {}", self.session.lock().place());
        Err(Error::PeerGone { link: self.link.clone(), reason })
    }

    /// Whether our user has closed, and the peer holds everything.
    fn is_complete(&self) -> bool {
        self.items.is_closed() && self.items.settled() == self.items.accepted()
    }

    fn misbehaved(&self, Violation(violation): Violation) -> Error {
        Error::PeerMisbehaved { link: self.link.clone(), violation }
    }
}

/// Aborts what has been formed.
fn fail(lane: &tokio::sync::OnceCell<Lane>, error: &Error) {
    if let Some(lane) = lane.get() {
        lane.fail(error);
    }
}

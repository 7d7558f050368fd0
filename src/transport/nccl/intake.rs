//! The one connection of a receiving end.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Interval, Sleep, timeout};

use super::{Lane, NcclConfig, RECEIVER, SENDER};
use crate::error::{Error, Link, Result};
use crate::net::Stream;
use crate::tensor::{Item, Tensor};
use crate::transport::session::{Arrival, Silence, Violation};
use crate::transport::tcp::connection::{FrameReader, FrameWriter};
use crate::transport::tcp::handshake::Agreed;
use crate::transport::tcp::incoming::Edge;
use crate::transport::timing::{GOODBYE, after, listening, silent_for, speaking};
use crate::transport::{Inbox, Permit};
use crate::wire::frame::{Frame, Reply};
use crate::wire::metadata::Metadata;
use crate::wire::nccl::{NcclFrame, NcclReply};

/// A connection whose peer has been accepted.
pub(super) struct Intake<'a, R, W> {
    edge: &'a Edge<'a>,
    link: &'a Link,
    config: &'a NcclConfig,
    reader: FrameReader<R>,
    writer: FrameWriter<W>,
    listening: Interval,
    silence: Silence,
    speaking: Interval,
    /// Whether something was written since we last looked whether to speak.
    spoken: bool,
    /// Frames that wait for their turn.
    next: VecDeque<NcclFrame>,
    /// What we are preparing for: one thing at a time, in the order of the frames.
    preparing: Option<Preparing<'a>>,
    lane: Option<Arc<Lane>>,
    /// What was announced and prepared for, in order, and has not all arrived.
    expected: VecDeque<Expected>,
    /// The sequence number of the next announcement.
    due: u64,
    /// When the first of the payloads on their way is overdue.
    overdue: Pin<Box<Sleep>>,
}

/// What has to be done before the next frame is looked at.
type Preparing<'a> = Pin<Box<dyn Future<Output = Result<Prepared>> + Send + 'a>>;

enum Prepared {
    Lane(Lane),
    Item(Box<Expected>),
}

/// A frame whose turn comes when all before it is done.
enum Expected {
    Item {
        frame: Frame,
        permit: Permit,
        payload: Arriving,
    },
    /// The close.
    End(Frame),
}

enum Arriving {
    Payload(Pin<Box<dyn Future<Output = Result<Tensor>> + Send>>),
    There(Item),
}

/// Frames that are taken before their turn, each of less than 200 bytes. A peer with more to announce waits.
const LOOKED_AHEAD_MAX: usize = 4096;

/// Idle bytes that the pool may keep beside a full window.
const IDLE_BYTES_MIN: usize = 16 << 20;

/// Payloads on their way at the same time: enough to hide the time between one and the next.
const ARRIVING_MAX: usize = 16;

impl<'a, R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Intake<'a, R, W> {
    pub(super) fn new<S: Stream<Reader = R, Writer = W>>(
        edge: &'a Edge<'a>,
        link: &'a Link,
        agreed: Agreed<S>,
        config: &'a NcclConfig,
    ) -> Self {
        let (checksum, heartbeat) = (config.control.checksum, config.control.heartbeat);
        Self {
            edge,
            link,
            config,
            reader: FrameReader::new(agreed.reader, checksum),
            writer: FrameWriter::new(agreed.writer, checksum),
            listening: listening(heartbeat),
            silence: Silence::default(),
            speaking: speaking(agreed.peer_heartbeat),
            spoken: false,
            next: VecDeque::new(),
            preparing: None,
            lane: None,
            expected: VecDeque::new(),
            due: 0,
            overdue: Box::pin(tokio::time::sleep(Duration::ZERO)),
        }
    }

    /// Takes what comes, and says the last word.
    pub(super) async fn run(mut self) -> Result<()> {
        let received = self.receive().await;
        if let (Err(error), Some(lane)) = (&received, &self.lane) {
            lane.fail(error);
        }
        let taken = self.edge.items.taken();
        match received {
            Ok(()) => self.finish(taken).await,
            Err(Error::Closed) => self.say_last(Reply::Closed { taken }).await,
            // There is nobody to tell.
            Err(error @ (Error::PeerGone { .. } | Error::PeerAborted { .. })) => Err(error),
            Err(error) => {
                // Whether it arrives or not, this is the end.
                let _ = self.say_last(Reply::Abort { reason: error.to_string().into() }).await;
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
            if self.deliver().await? {
                return self.drain().await;
            }
            self.look_ahead()?;
            while self.preparing.is_none() && self.arriving() < ARRIVING_MAX {
                let Some(frame) = self.next.pop_front() else { break };
                self.prepare(frame)?;
                self.look_ahead()?;
            }
            self.step().await?;
        }
    }

    /// Takes frames that have to wait for their turn. An abort has not: what is on its way will not arrive
    /// any more.
    fn look_ahead(&mut self) -> Result<()> {
        while self.next.len() < LOOKED_AHEAD_MAX {
            match self.reader.take().map_err(|broken| self.misbehaved(broken))? {
                Some(NcclFrame::Edge(Frame::Alive)) => {}
                Some(NcclFrame::Edge(Frame::Abort { reason })) => {
                    let reason = reason.as_str().to_owned();
                    return Err(Error::PeerAborted { link: self.link.clone(), reason });
                }
                None => break,
                Some(frame) => self.next.push_back(frame),
            }
        }
        Ok(())
    }

    /// Waits until anything happens.
    async fn step(&mut self) -> Result<()> {
        let items = self.edge.items;
        let lane = self.lane.clone();
        let has_room = self.reader.has_room();
        let awaits_payload =
            matches!(self.expected.front(), Some(Expected::Item { payload: Arriving::Payload(_), .. }));
        if !has_room {
            self.silence.excuse();
        }
        tokio::select! {
            biased;
            // The ticks first, or a sender that always has more for us would not hear from us.
            _ = self.speaking.tick() => self.speak().await,
            // Nor would our user who leaves.
            () = items.closed() => Err(Error::Closed),
            failure = failed(lane.as_deref()) => Err(failure),
            arrived = first(&mut self.expected), if awaits_payload => arrived,
            prepared = prepared(&mut self.preparing) => {
                self.preparing = None;
                self.take_prepared(prepared.map_err(|error| self.too_large(error))?).await
            }
            () = &mut self.overdue, if awaits_payload => {
                let awaited = format!("the payload of item {} from rank {}", self.edge.session.lock().received(), self.link.peer_rank);
                Err(Error::timeout(awaited, self.config.transfer_timeout))
            }
            read = self.reader.fill(), if has_room => self.heard(read),
            _ = self.listening.tick(), if has_room => self.listen(),
        }
    }

    /// Begins with what a frame asks for.
    fn prepare(&mut self, frame: NcclFrame) -> Result<()> {
        let violation = |text: String| Err(self.misbehaved(Violation(text)));
        let frame = match frame {
            NcclFrame::Join { .. } if self.lane.is_some() => {
                return violation("sent a second communicator's id".into());
            }
            NcclFrame::Join { id } => {
                let config = self.config;
                let forming = async move { Lane::form(RECEIVER, id, config).await.map(Prepared::Lane) };
                self.preparing = Some(Box::pin(forming));
                return Ok(());
            }
            NcclFrame::Edge(frame) => frame,
        };
        match frame {
            Frame::Item { sequence, .. } | Frame::Close { items: sequence } if sequence != self.due => {
                violation(format!("announced item {sequence} or closed there, where {} was due", self.due))
            }
            _ if matches!(self.expected.back(), Some(Expected::End(_))) => {
                violation("went on after it had closed".into())
            }
            Frame::Item { metadata, .. } => match &self.lane {
                None => violation("announced an item before a communicator".into()),
                Some(lane) => {
                    self.due += 1;
                    let room = make_room(self.edge.items, frame, metadata, Arc::clone(lane), self.config);
                    self.preparing = Some(Box::pin(room));
                    Ok(())
                }
            },
            Frame::Close { .. } => {
                self.expected.push_back(Expected::End(frame));
                Ok(())
            }
            Frame::Goodbye => violation("said goodbye before we had finished".into()),
            Frame::Alive | Frame::Abort { .. } => {
                Err(Error::Bug("a frame that needs no turn got one".into()))
            }
        }
    }

    async fn take_prepared(&mut self, prepared: Prepared) -> Result<()> {
        match prepared {
            Prepared::Lane(lane) => {
                self.lane = Some(Arc::new(lane));
                Ok(())
            }
            Prepared::Item(item) => {
                if self.arriving() == 0 {
                    self.restart_clock();
                }
                self.expected.push_back(*item);
                self.say(NcclReply::Ready { upto: self.due }).await
            }
        }
    }

    /// Puts all that has arrived into the inbox, and acknowledges it. True after the peer's last item.
    async fn deliver(&mut self) -> Result<bool> {
        let mut delivered = false;
        let complete = loop {
            match self.expected.pop_front() {
                Some(Expected::Item { frame, permit, payload: Arriving::There(item) }) => {
                    self.deliver_item(frame, permit, item)?;
                    delivered = true;
                }
                Some(unfinished @ Expected::Item { .. }) => {
                    self.expected.push_front(unfinished);
                    break false;
                }
                Some(Expected::End(frame)) => break self.hear(frame)? == Arrival::Complete,
                None => break false,
            }
        };
        if delivered {
            self.restart_clock();
            self.acknowledge().await?;
        }
        Ok(complete)
    }

    fn deliver_item(&mut self, frame: Frame, permit: Permit, item: Item) -> Result<()> {
        let Arrival::Item(_) = self.hear(frame)? else {
            return Err(Error::Bug("an item that was announced in order is none".into()));
        };
        permit.fill(item)?;
        self.edge.session.lock().deliver();
        Ok(())
    }

    fn hear(&self, frame: Frame) -> Result<Arrival> {
        self.edge.session.lock().receive(frame).map_err(|broken| self.misbehaved(broken))
    }

    /// Waits until our user has taken everything.
    async fn drain(&mut self) -> Result<()> {
        let items = self.edge.items;
        let mut draining = std::pin::pin!(items.drained());
        loop {
            tokio::select! {
                biased;
                drained = &mut draining => return if drained { Ok(()) } else { Err(Error::Closed) },
                _ = self.speaking.tick() => self.speak().await?,
            }
        }
    }

    fn arriving(&self) -> usize {
        self.expected
            .iter()
            .filter(|item| matches!(item, Expected::Item { payload: Arriving::Payload(_), .. }))
            .count()
    }

    /// From now on the first payload on its way has so much time.
    fn restart_clock(&mut self) {
        self.overdue.as_mut().reset(after(self.config.transfer_timeout));
    }

    fn heard(&mut self, read: io::Result<usize>) -> Result<()> {
        match read {
            Ok(0) => Err(self.gone("it closed the connection")),
            Ok(_) => {
                self.silence.hear();
                Ok(())
            }
            Err(error) => Err(self.gone(&error.to_string())),
        }
    }

    fn listen(&mut self) -> Result<()> {
        match self.silence.tick() {
            true => Err(self.gone(&silent_for(self.config.control.heartbeat))),
            false => Ok(()),
        }
    }

    /// A sign of life, if there was no other since the last time.
    async fn speak(&mut self) -> Result<()> {
        match std::mem::take(&mut self.spoken) {
            true => Ok(()),
            false => self.say(Reply::Alive.into()).await,
        }
    }

    async fn acknowledge(&mut self) -> Result<()> {
        let due = self.edge.session.lock().acknowledge();
        match due {
            Some(reply) => self.say(reply.into()).await,
            None => Ok(()),
        }
    }

    /// A peer that does not even take replies within the heartbeat limit is dead.
    async fn say(&mut self, reply: NcclReply) -> Result<()> {
        self.spoken = true;
        let saying = async {
            self.writer.write_bare(&reply).await?;
            self.writer.flush().await
        };
        match timeout(self.config.control.heartbeat, saying).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.gone(&error.to_string())),
            Err(_) => Err(self.gone("it takes no replies")),
        }
    }

    /// Says that everything is taken, until the peer has heard it.
    async fn finish(mut self, taken: u64) -> Result<()> {
        let deadline = Instant::now() + GOODBYE;
        let finished = self.edge.session.lock().finish(taken);
        let heard = async {
            self.say(finished.into()).await?;
            loop {
                while let Some(frame) = self.reader.take().map_err(|broken| self.misbehaved(broken))? {
                    match frame {
                        NcclFrame::Edge(frame) if self.hear(frame.clone())? == Arrival::Goodbye => {
                            return Ok(());
                        }
                        NcclFrame::Edge(_) => {}
                        NcclFrame::Join { .. } => {
                            return Err(
                                self.misbehaved(Violation("sent a communicator's id at the end".into()))
                            );
                        }
                    }
                }
                let read = self.reader.fill().await;
                self.heard(read)?;
            }
        };
        tokio::time::timeout_at(deadline, heard)
            .await
            .unwrap_or_else(|_| Err(self.gone("it did not say goodbye")))
    }

    /// The last word, and time for it to arrive.
    async fn say_last(mut self, reply: Reply) -> Result<()> {
        let goodbye = async {
            self.acknowledge().await?;
            self.say(reply.into()).await?;
            self.writer.shutdown().await.map_err(|error| self.gone(&error.to_string()))?;
            // The peer answers by closing the connection, whatever state it is in.
            self.reader.discard().await.map_err(|error| self.gone(&error.to_string()))
        };
        timeout(GOODBYE, goodbye).await.unwrap_or_else(|_| {
            tracing::debug!(link = %self.link, "the peer did not close the connection in time");
            Ok(())
        })
    }

    /// An item over the limit is the peer's fault.
    fn too_large(&self, error: Error) -> Error {
        match error {
            Error::TooLarge { .. } => self.misbehaved(Violation(format!("item {}: {error}", self.due - 1))),
            error => error,
        }
    }

    fn gone(&self, how: &str) -> Error {
        self.edge.gone(self.link, how)
    }

    fn misbehaved(&self, Violation(violation): Violation) -> Error {
        Error::PeerMisbehaved { link: self.link.clone(), violation }
    }
}

/// Reserves room for an item, and posts the receive of its payload.
async fn make_room(
    items: &Inbox,
    frame: Frame,
    metadata: Metadata,
    lane: Arc<Lane>,
    config: &NcclConfig,
) -> Result<Prepared> {
    let bytes = metadata.payload_bytes();
    let permit = items.reserve(bytes).await?;
    let payload = match metadata {
        Metadata::None => Arriving::There(None),
        Metadata::Tensor(metadata) => {
            let idle_bytes_max = items.spare_bytes().max(IDLE_BYTES_MIN);
            let allocating = config.pool.take_beside(bytes, idle_bytes_max);
            let buffer = timeout(config.transfer_timeout, allocating).await.unwrap_or_else(|_| {
                let awaited = format!("{} to allocate {bytes} bytes", config.device.location());
                Err(Error::timeout(awaited, config.transfer_timeout))
            })?;
            let (dtype, shape, config) = (metadata.dtype(), *metadata.shape(), config.clone());
            if bytes == 0 {
                Arriving::There(Some(config.hand_out(dtype, shape, buffer, &lane.staging).await?))
            } else {
                let flying_on = Arc::clone(&lane);
                let flight = lane.communicator.begin_recv(buffer, SENDER, &lane.stream).await?;
                Arriving::Payload(Box::pin(async move {
                    let buffer = flight.done().await?;
                    // An abort ends the work on the stream as if it were done.
                    if let Some(failure) = flying_on.communicator.failure() {
                        return Err(failure);
                    }
                    config.hand_out(dtype, shape, buffer, &flying_on.staging).await
                }))
            }
        }
    };
    Ok(Prepared::Item(Box::new(Expected::Item { frame, permit, payload })))
}

/// Waits until NCCL fails, if there is a communicator.
async fn failed(lane: Option<&Lane>) -> Error {
    match lane {
        Some(lane) => lane.communicator.failed().await,
        None => std::future::pending().await,
    }
}

async fn prepared(preparing: &mut Option<Preparing<'_>>) -> Result<Prepared> {
    match preparing {
        Some(preparing) => preparing.await,
        None => std::future::pending().await,
    }
}

/// Waits for the first payload, and marks it as there. Cancel safe.
async fn first(expected: &mut VecDeque<Expected>) -> Result<()> {
    if let Some(Expected::Item { payload, .. }) = expected.front_mut()
        && let Arriving::Payload(arriving) = payload
    {
        *payload = Arriving::There(Some(arriving.await?));
    }
    Ok(())
}

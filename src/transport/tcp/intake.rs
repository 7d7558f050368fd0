//! One connection of a receiving end, from its handshake to its end.

use std::io;
use std::pin::pin;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Interval, timeout};

use super::Stop;
use super::connection::{FrameReader, FrameWriter};
use super::handshake::Agreed;
use super::incoming::Edge;
use crate::error::{Error, Link, Result};
use crate::net::Stream;
use crate::tensor::Tensor;
use crate::transport::session::{Arrival, Silence, Violation};
use crate::transport::timing::{GOODBYE, listening, silent_for, speaking};
use crate::transport::{Permit, check_item_bytes};
use crate::wire::frame::{Frame, Reply};
use crate::wire::metadata::{Metadata, TensorMetadata};

/// A connection whose peer has been accepted.
pub(super) struct Intake<'a, R, W> {
    edge: &'a Edge<'a>,
    link: &'a Link,
    reader: FrameReader<R>,
    writer: FrameWriter<W>,
    listening: Interval,
    silence: Silence,
    speaking: Interval,
    /// Whether something was written since we last looked whether to speak.
    spoken: bool,
    /// What has been delivered since the last acknowledgement.
    unacknowledged_bytes: usize,
}

impl<'a, R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Intake<'a, R, W> {
    pub(super) fn new<S: Stream<Reader = R, Writer = W>>(
        edge: &'a Edge<'a>,
        link: &'a Link,
        agreed: Agreed<S>,
    ) -> Self {
        let checksum = edge.config.checksum;
        Self {
            edge,
            link,
            reader: FrameReader::new(agreed.reader, checksum),
            writer: FrameWriter::new(agreed.writer, checksum),
            listening: listening(edge.config.heartbeat),
            silence: Silence::default(),
            speaking: speaking(agreed.peer_heartbeat),
            spoken: false,
            unacknowledged_bytes: 0,
        }
    }

    /// Takes what comes, and says the last word.
    pub(super) async fn run(mut self) -> Result<(), Stop> {
        let received = self.receive().await;
        let taken = self.edge.items.taken();
        match received {
            Ok(()) => self.finish(taken).await,
            Err(Stop::Ended(Error::Closed)) => self.say_last(&Reply::Closed { taken }).await,
            // There is nobody to tell.
            Err(
                stop @ (Stop::Broken(_) | Stop::Ended(Error::PeerGone { .. } | Error::PeerAborted { .. })),
            ) => Err(stop),
            Err(Stop::Ended(error)) => {
                // Whether it arrives or not, this is the end.
                let _ = self.say_last(&Reply::Abort { reason: error.to_string().into() }).await;
                Err(Stop::Ended(error))
            }
        }
    }

    /// Takes items until the peer's last one is in our user's hands; [`Error::Closed`] if the user
    /// leaves first.
    async fn receive(&mut self) -> Result<(), Stop> {
        loop {
            // A flood of tiny items must leave the thread to others now and then.
            tokio::task::consume_budget().await;
            let frame = self.next_frame().await?;
            let arrival = self.edge.session.lock().receive(frame);
            match arrival.map_err(|broken| self.misbehaved(broken))? {
                Arrival::Alive | Arrival::Goodbye => {}
                Arrival::Item(metadata) => self.receive_item(metadata).await?,
                Arrival::Duplicate(metadata) => self.skip(metadata.payload_bytes()).await?,
                Arrival::Complete => return self.drain().await,
                Arrival::Aborted(reason) => {
                    return Err(Error::PeerAborted { link: self.link.clone(), reason }.into());
                }
            }
        }
    }

    async fn next_frame(&mut self) -> Result<Frame, Stop> {
        loop {
            if let Some(frame) = self.reader.take().map_err(|broken| self.misbehaved(broken))? {
                return Ok(frame);
            }
            self.read(None).await?;
        }
    }

    async fn receive_item(&mut self, metadata: Metadata) -> Result<(), Stop> {
        let bytes = metadata.payload_bytes();
        let permit = self.reserve(bytes).await?;
        let item = match metadata {
            Metadata::None => None,
            Metadata::Tensor(metadata) => Some(self.receive_tensor(&metadata).await?),
        };
        permit.fill(item)?;
        self.edge.session.lock().deliver();
        self.unacknowledged_bytes += bytes + ITEM_BYTES;
        if self.unacknowledged_bytes >= UNACKNOWLEDGED_BYTES_MAX {
            self.acknowledge().await?;
        }
        if bytes >= PROMPT_BYTES {
            turn().await;
        }
        Ok(())
    }

    async fn receive_tensor(&mut self, metadata: &TensorMetadata) -> Result<Tensor, Stop> {
        let bytes = metadata.payload_bytes();
        let idle_bytes_max = self.edge.items.spare_bytes().max(IDLE_BYTES_MIN);
        let mut buffer = self.edge.config.pool.take_beside(bytes, idle_bytes_max)?;
        let mut received = 0;
        while received < bytes {
            received += self.read(Some(&mut buffer[received..])).await?;
        }
        self.finish_payload(bytes).await?;
        Ok(Tensor::new(metadata.dtype(), *metadata.shape(), buffer.freeze())?)
    }

    async fn skip(&mut self, bytes: usize) -> Result<(), Stop> {
        check_item_bytes(bytes, self.edge.items.max_item_bytes())
            .map_err(|error| self.misbehaved(Violation(format!("a duplicate: {error}"))))?;
        let mut scratch = vec![0; bytes.min(SKIP_BYTES)];
        let mut left = bytes;
        while left > 0 {
            let part = left.min(scratch.len());
            left -= self.read(Some(&mut scratch[..part])).await?;
        }
        self.finish_payload(bytes).await
    }

    /// Checks the payload's checksum. An empty one was checked together with its frame.
    async fn finish_payload(&mut self, bytes: usize) -> Result<(), Stop> {
        while bytes > 0 && !self.reader.payload_ends().map_err(|broken| self.misbehaved(broken))? {
            self.read(None).await?;
        }
        Ok(())
    }

    /// Waits for room in the inbox. Meanwhile we don't read, so the peer's silence says nothing.
    async fn reserve(&mut self, bytes: usize) -> Result<Permit, Stop> {
        let items = self.edge.items;
        let mut reserving = pin!(items.reserve(bytes));
        loop {
            tokio::select! {
                biased;
                reserved = &mut reserving => {
                    return reserved.map_err(|error| match error {
                        Error::TooLarge { .. } => {
                            let item = self.edge.session.lock().received();
                            self.misbehaved(Violation(format!("item {item}: {error}")))
                        }
                        error => error,
                    }.into());
                }
                spoken = self.stay_alive() => spoken?,
            }
        }
    }

    /// Waits until our user has taken everything.
    async fn drain(&mut self) -> Result<(), Stop> {
        let items = self.edge.items;
        let mut draining = pin!(items.drained());
        loop {
            tokio::select! {
                biased;
                drained = &mut draining => return if drained { Ok(()) } else { Err(Error::Closed.into()) },
                spoken = self.stay_alive() => spoken?,
            }
        }
    }

    /// Reads once, into `payload` or else into the frame buffer, keeping up the heartbeat.
    ///
    /// What has arrived is acknowledged when there is nothing to read, and not at once: while there is
    /// more, one acknowledgement may do for all of it, and our user, who has been waiting for the item,
    /// and may have an answer to send, comes first.
    async fn read(&mut self, mut payload: Option<&mut [u8]>) -> Result<usize, Stop> {
        let mut turns = 0;
        loop {
            let owing = turns < TURNS && self.owes_acknowledgement();
            tokio::select! {
                biased;
                // The ticks first, or a sender that always has more for us would not hear from us.
                _ = self.speaking.tick() => self.speak().await?,
                // Nor would our user who leaves.
                () = self.edge.items.closed() => return Err(Error::Closed.into()),
                read = self.reader.read(payload.as_deref_mut()) => return self.heard(read),
                () = turn(), if owing => {
                    turns += 1;
                    if turns == TURNS {
                        self.acknowledge().await?;
                    }
                }
                _ = self.listening.tick() => self.listen()?,
            }
        }
    }

    fn heard(&mut self, read: io::Result<usize>) -> Result<usize, Stop> {
        match read {
            Ok(0) => Err(Stop::Broken("it closed the connection".into())),
            Ok(bytes) => {
                self.silence.hear();
                Ok(bytes)
            }
            Err(error) => Err(Stop::Broken(error.to_string())),
        }
    }

    /// A tick while reading. A silent peer is dead, and not resumed.
    fn listen(&mut self) -> Result<(), Stop> {
        match self.silence.tick() {
            true => Err(self.gone(&silent_for(self.edge.config.heartbeat))),
            false => Ok(()),
        }
    }

    /// Says what is to be said until the next tick, while we wait for something else than the peer:
    /// since we don't read, its silence says nothing. Cancel safe.
    async fn stay_alive(&mut self) -> Result<(), Stop> {
        self.silence.excuse();
        // The peer may wait for it before it can go on.
        self.acknowledge().await?;
        self.speaking.tick().await;
        self.speak().await
    }

    fn owes_acknowledgement(&self) -> bool {
        self.unacknowledged_bytes > 0 || self.writer.is_staged()
    }

    /// A sign of life, if there was no other since the last time.
    async fn speak(&mut self) -> Result<(), Stop> {
        match std::mem::take(&mut self.spoken) {
            true => Ok(()),
            false => self.say(&Reply::Alive).await,
        }
    }

    async fn acknowledge(&mut self) -> Result<(), Stop> {
        self.unacknowledged_bytes = 0;
        let due = self.edge.session.lock().acknowledge();
        match due {
            Some(reply) => self.say(&reply).await,
            // One that was cut off in the middle goes out first.
            None if self.writer.is_staged() => self.flush().await,
            None => Ok(()),
        }
    }

    /// Cancel safe: what was not written is written before the next reply.
    async fn say(&mut self, reply: &Reply) -> Result<(), Stop> {
        self.spoken = true;
        self.writer.write_bare(reply).await.map_err(broken)?;
        self.flush().await
    }

    /// A peer that does not even take replies within the heartbeat limit is dead.
    async fn flush(&mut self) -> Result<(), Stop> {
        match timeout(self.edge.config.heartbeat, self.writer.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(broken(error)),
            Err(_) => Err(self.gone("it takes no replies")),
        }
    }

    /// Says that everything is taken, until the peer has heard it.
    async fn finish(mut self, taken: u64) -> Result<(), Stop> {
        let heard = async {
            self.acknowledge().await?;
            let finished = self.edge.session.lock().finish(taken);
            self.say(&finished).await?;
            loop {
                while let Some(frame) = self.reader.take().map_err(|broken| self.misbehaved(broken))? {
                    let arrival = self.edge.session.lock().receive(frame);
                    if arrival.map_err(|broken| self.misbehaved(broken))? == Arrival::Goodbye {
                        return Ok(());
                    }
                }
                let read = self.reader.fill().await;
                self.heard(read)?;
            }
        };
        timeout(GOODBYE, heard).await.unwrap_or_else(|_| Err(Stop::Broken("it did not say goodbye".into())))
    }

    /// The last word, and time for it to arrive.
    async fn say_last(mut self, reply: &Reply) -> Result<(), Stop> {
        let goodbye = async {
            self.acknowledge().await?;
            self.say(reply).await?;
            self.writer.shutdown().await.map_err(broken)?;
            // The peer answers by closing the connection, whatever state it is in.
            self.reader.discard().await.map_err(broken)
        };
        timeout(GOODBYE, goodbye).await.unwrap_or_else(|_| {
            tracing::debug!(link = %self.link, "the peer did not close the connection in time");
            Ok(())
        })
    }

    fn gone(&self, how: &str) -> Stop {
        Stop::Ended(self.edge.gone(self.link, how))
    }

    fn misbehaved(&self, Violation(violation): Violation) -> Error {
        Error::PeerMisbehaved { link: self.link.clone(), violation }
    }
}

/// Bytes of a duplicate that are thrown away at a time.
const SKIP_BYTES: usize = 64 << 10;

/// Idle bytes that the pool may keep beside a full window.
const IDLE_BYTES_MIN: usize = 16 << 20;

/// Delivered bytes after which an acknowledgement goes out though there is more to read.
const UNACKNOWLEDGED_BYTES_MAX: usize = 1 << 20;

/// What an item counts for besides its payload, so that many empty ones are acknowledged too.
const ITEM_BYTES: usize = 256;

/// Items from this size on are passed to the user one by one: a heap of them would not stay in the
/// cache, nor would the buffers that come back.
const PROMPT_BYTES: usize = 32 << 10;

/// Turns that others get before an acknowledgement is written: our user to take the item, and the
/// other direction to send the answer.
const TURNS: u32 = 2;

/// Lets other tasks have their turn. Unlike tokio's own it does not ask the system for events.
async fn turn() {
    let mut waited = false;
    std::future::poll_fn(|context| match std::mem::replace(&mut waited, true) {
        true => Poll::Ready(()),
        false => {
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

fn broken(error: io::Error) -> Stop {
    Stop::Broken(error.to_string())
}

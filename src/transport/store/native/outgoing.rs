//! The sending end of an edge over the store.

use std::pin::pin;

use bytes::Bytes;
use tokio::sync::Notify;

use super::keys::{RunKeys, Track};
use super::meeting::find_receiver;
use super::message::Report;
use super::patient::Patient;
use super::pulse::Pulse;
use super::slot::Slot;
use super::{LANES, REPLIES_MAX, fall_silent, lane};
use crate::device::Reading;
use crate::error::{Error, Link, Result};
use crate::store::Store;
use crate::sync::Mutex;
use crate::tensor::{Item, Payload, Tensor};
use crate::transport::session::{Heard, SendSession, Violation};
use crate::transport::stagings::Stagings;
use crate::transport::store::StoreConfig;
use crate::transport::timing::showing_progress;
use crate::transport::{Outbox, Ring};
use crate::wire::frame::{Frame, MAX_FRAME_BYTES, PREFIX_BYTES};
use crate::wire::metadata::Metadata;
use crate::wire::text::Text;

/// Moves items to the next rank until the pipe or the edge ends.
pub(in crate::transport::store) async fn run<S: Store>(
    store: S,
    ring: Ring,
    config: StoreConfig,
    items: &Outbox,
) -> Result<()> {
    let link = ring.outgoing_link();
    let store = Patient::new(store, link.clone(), &config);
    // Also for a pipe that was closed or dropped meanwhile: the peer waits for us, and is to learn of it.
    let meeting = find_receiver(&store, &link, ring, &config, items.max_item_bytes());
    let met = showing_progress(items, meeting).await?;
    let mut session = SendSession::default();
    // The first meeting is of strangers, which hold nothing.
    if let Err(Violation(violation)) = session.meet(met.peer_session, 0) {
        return Err(Error::Bug(violation));
    }
    tracing::debug!(%link, session = ?met.session, "the edge is there");
    let alive = [met.keys.sender_alive(), met.keys.receiver_alive(), met.keys.sender()];
    let pulse = Pulse::begin(&store, &link, alive, config.heartbeat, met.peer_heartbeat).await?;
    let end = SendingEnd {
        link: &link,
        items,
        store: &store,
        pulse: &pulse,
        data: met.keys.data(),
        replies: met.keys.replies(),
        session: Mutex::new(session),
        flow: Mutex::new(Default::default()),
        flow_changed: Notify::new(),
        lanes: Default::default(),
        chunk_bytes: config.chunk_bytes,
        window: config.window_messages(),
    };
    let mut speaking = pin!(pulse.speak());
    let ending = tokio::select! {
        biased;
        ended = end.read_replies() => ended,
        aborted = end.write_items() => aborted,
        failure = end.publish(0) => Ending::Lost(failure),
        failure = end.publish(1) => Ending::Lost(failure),
        failure = &mut speaking => Ending::Lost(failure),
        failure = pulse.listen() => Ending::Lost(failure),
    };
    fall_silent(&pulse, speaking).await;
    end.end(ending, &met.keys).await
}

/// How an edge ended, as its sender sees it.
enum Ending {
    /// The peer said its last word, and reads no more.
    PeerDone(Result<()>),
    /// Our pipe failed, and the peer finds that in the store.
    WeAborted(Error),
    /// Without a word.
    Lost(Error),
}

/// How far messages have come.
#[derive(Debug, Default)]
struct Flow {
    /// Messages below it were given to the lanes.
    handed_over: u64,
    /// So many are in the store, or were.
    published: u64,
    /// Messages below it were consumed by the peer.
    consumed: u64,
    /// Messages below it were deleted by the peer, which does so after each report.
    deleted: u64,
    /// Replies below it were read.
    heard: u64,
    /// The frame of an item may have been handed over, and its payload not all of it.
    is_inside_payload: bool,
}

struct SendingEnd<'a, S> {
    link: &'a Link,
    items: &'a Outbox,
    store: &'a Patient<S>,
    pulse: &'a Pulse<'a, S>,
    data: Track,
    replies: Track,
    session: Mutex<SendSession>,
    flow: Mutex<Flow>,
    /// For the one future that writes items.
    flow_changed: Notify,
    /// Messages on their way to the store: several at a time, so that one is copied while another waits
    /// for its answer.
    lanes: [Slot<(u64, Bytes)>; LANES],
    chunk_bytes: usize,
    /// How many messages may be in the store at a time.
    window: u64,
}

impl<S: Store> SendingEnd<'_, S> {
    /// Writes items until our pipe fails.
    async fn write_items(&self) -> Ending {
        let failure = tokio::select! {
            biased;
            // Also while we wait for room: the peer may not read for long.
            failure = self.items.failed() => failure,
            failure = self.write_until_failure() => failure.unwrap_or_else(|error| error),
        };
        let reason = Text::from(failure.to_string());
        if self.flow.lock().is_inside_payload {
            // Nothing but its rest may follow in the stream.
            self.pulse.leave_because(&reason).await;
            return Ending::WeAborted(failure);
        }
        self.pulse.leave().await;
        let mut abort = Vec::new();
        Frame::Abort { reason }.encode_into(&mut abort);
        self.put(abort.into()).await;
        self.all_published().await;
        Ending::WeAborted(failure)
    }

    /// The failure of our pipe; an error is the item's that can't be sent.
    async fn write_until_failure(&self) -> Result<Error> {
        let mut batch = Vec::new();
        let mut stagings = Stagings::default();
        loop {
            let next = match self.items.try_next() {
                Some(item) => Ok(Some(item)),
                None => {
                    self.flush(&mut batch).await;
                    self.items.next().await
                }
            };
            match next {
                Ok(Some((sequence, item))) => {
                    self.write_item(&mut batch, sequence, &item, &mut stagings).await?
                }
                Ok(None) => {
                    self.session.lock().close().encode_into(&mut batch);
                    self.flush(&mut batch).await;
                    return Ok(self.items.failed().await);
                }
                Err(failure) => {
                    self.flush(&mut batch).await;
                    return Ok(failure);
                }
            }
        }
    }

    async fn write_item(
        &self,
        batch: &mut Vec<u8>,
        sequence: u64,
        item: &Item,
        stagings: &mut Stagings,
    ) -> Result<()> {
        let frame = || self.session.lock().send(sequence, Metadata::of(item));
        let payload = match item.as_ref().map(Tensor::payload) {
            Some(Payload::Host(payload)) => payload,
            Some(Payload::Device(buffer)) => {
                return self.write_pieces(batch, stagings.read(buffer)?, buffer.len(), frame).await;
            }
            None => &Bytes::new(),
        };
        frame().encode_into(batch);
        if payload.len() <= self.batched_payload_bytes() {
            batch.extend_from_slice(payload);
            return self.flush_if_full(batch).await;
        }
        self.flow.lock().is_inside_payload = true;
        self.flush(batch).await;
        for begin in (0..payload.len()).step_by(self.chunk_bytes) {
            let end = payload.len().min(begin.saturating_add(self.chunk_bytes));
            self.hand_over(payload.slice(begin..end)).await;
        }
        self.flow.lock().is_inside_payload = false;
        Ok(())
    }

    /// Writes an item whose payload is on a device.
    async fn write_pieces(
        &self,
        batch: &mut Vec<u8>,
        mut pieces: Reading<'_>,
        payload_bytes: usize,
        frame: impl FnOnce() -> Frame,
    ) -> Result<()> {
        // The producer's work may take its time, and what fails before the frame can be followed by our
        // last word.
        self.flush(batch).await;
        let mut piece = pieces.next().await?;
        frame().encode_into(batch);
        let is_batched = payload_bytes <= self.batched_payload_bytes();
        if !is_batched {
            self.flow.lock().is_inside_payload = true;
            self.flush(batch).await;
        }
        while let Some(mut bytes) = piece {
            while !is_batched && batch.len() + bytes.len() >= self.chunk_bytes {
                let (fitting, rest) = bytes.split_at(self.chunk_bytes - batch.len());
                batch.extend_from_slice(fitting);
                self.flush(batch).await;
                bytes = rest;
            }
            batch.extend_from_slice(bytes);
            piece = pieces.next().await?;
        }
        if !is_batched {
            self.flush(batch).await;
            self.flow.lock().is_inside_payload = false;
        }
        self.flush_if_full(batch).await
    }

    /// Payloads up to this length travel with their frames, and with their neighbours. A batch that was
    /// not full before has room for one more frame and such a payload.
    fn batched_payload_bytes(&self) -> usize {
        BATCHED_PAYLOAD_BYTES.min(self.chunk_bytes / 2 - FRAME_BYTES_MAX)
    }

    async fn flush_if_full(&self, batch: &mut Vec<u8>) -> Result<()> {
        if batch.len() >= BATCH_BYTES.min(self.chunk_bytes / 2) {
            self.flush(batch).await;
        }
        Ok(())
    }

    async fn flush(&self, batch: &mut Vec<u8>) {
        if !batch.is_empty() {
            self.hand_over(std::mem::take(batch).into()).await;
        }
    }

    /// Gives a message to its lane, once the window has room for it. Cancel safe.
    async fn hand_over(&self, message: Bytes) {
        loop {
            {
                let flow = self.flow.lock();
                if flow.handed_over - flow.consumed < self.window {
                    break;
                }
            }
            self.flow_changed.notified().await;
        }
        self.put(message).await;
    }

    /// Gives a message to its lane. Cancel safe: it has a number only once it is there, or the peer would
    /// wait for it for ever.
    async fn put(&self, message: Bytes) {
        let number = self.flow.lock().handed_over;
        self.lanes[lane(number)].room().await;
        self.flow.lock().handed_over += 1;
        self.lanes[lane(number)].fill((number, message));
    }

    async fn all_published(&self) {
        loop {
            {
                let flow = self.flow.lock();
                if flow.published == flow.handed_over {
                    return;
                }
            }
            self.flow_changed.notified().await;
        }
    }

    /// One lane: puts every so manieth message into the store. Gives why it can't.
    async fn publish(&self, lane: usize) -> Error {
        loop {
            let (number, message) = self.lanes[lane].take().await;
            if let Err(error) = self.store.publish(&self.data, number, message, self.pulse.own_key()).await {
                return error;
            }
            self.flow.lock().published += 1;
            self.flow_changed.notify_one();
            self.items.progress();
        }
    }

    /// Reads what the peer says until its last word.
    async fn read_replies(&self) -> Ending {
        let mut number = 0;
        loop {
            let report = match self.store.get(&self.replies.message(number)).await {
                Ok(report) => report,
                Err(error) => return Ending::Lost(error),
            };
            let heard = self.hear(&report);
            number += 1;
            self.flow.lock().heard = number;
            match heard {
                Ok(None) => {}
                Ok(Some(last_word)) => return Ending::PeerDone(last_word),
                Err(violation) => return Ending::PeerDone(Err(self.misbehaved(violation))),
            }
            if let Err(error) = self.store.consume(&self.replies, number - 1, number).await {
                return Ending::Lost(error);
            }
        }
    }

    /// What one report says; its last word, if it has one.
    fn hear(&self, report: &[u8]) -> Result<Option<Result<()>>, Violation> {
        let Report { consumed, replies } = Report::decode(report)?;
        self.give_room(consumed)?;
        for reply in replies {
            let heard = self.session.lock().receive(reply)?;
            let link = self.link.clone();
            match heard {
                Heard::Alive => {}
                Heard::Acknowledged(upto) => self.items.settle(upto),
                Heard::Finished(upto) => {
                    self.items.settle(upto);
                    return Ok(Some(Ok(())));
                }
                // The peer's last word comes behind its last acknowledgement: it holds nothing else.
                Heard::Closed(taken) => {
                    self.items.rewind(self.items.settled());
                    return Ok(Some(Err(Error::ReceiverClosed { link, taken })));
                }
                Heard::Aborted(reason) => {
                    self.items.rewind(self.items.settled());
                    return Ok(Some(Err(Error::PeerAborted { link, reason })));
                }
            }
        }
        Ok(None)
    }

    fn give_room(&self, consumed: u64) -> Result<(), Violation> {
        let mut flow = self.flow.lock();
        if !(flow.consumed..=flow.handed_over).contains(&consumed) {
            let Flow { handed_over, consumed: before, .. } = *flow;
            return Err(Violation(format!(
                "consumed {consumed} messages, of {handed_over} sent and {before} consumed before"
            )));
        }
        flow.deleted = flow.consumed;
        if consumed > flow.consumed {
            flow.consumed = consumed;
            self.flow_changed.notify_one();
            self.items.progress();
        }
        Ok(())
    }

    /// Clears up, and says how it ended.
    async fn end(&self, ending: Ending, keys: &RunKeys) -> Result<()> {
        let (unread, unheard) = {
            let flow = self.flow.lock();
            (flow.deleted..flow.handed_over, flow.heard.saturating_sub(1)..flow.heard + REPLIES_MAX)
        };
        let mut messages: Vec<_> = unread.map(|number| self.data.message(number)).collect();
        match ending {
            Ending::PeerDone(result) => {
                messages.extend(self.flow.lock().heard.checked_sub(1).map(|last| self.replies.message(last)));
                self.store.sweep(keys.all_but_messages(), messages).await;
                result
            }
            // The peer clears up when it has read it.
            Ending::WeAborted(error) => Err(error),
            Ending::Lost(error) => {
                messages.extend(unheard.map(|number| self.replies.message(number)));
                self.store.sweep(keys.all_but_messages(), messages).await;
                self.lost(error)
            }
        }
    }

    /// The end of an edge without a last word: a failure, unless our user has closed, everything was
    /// acknowledged, and only that word is missing.
    fn lost(&self, error: Error) -> Result<()> {
        if self.items.is_closed() && self.items.settled() == self.items.accepted() {
            return Ok(());
        }
        Err(match error {
            Error::PeerGone { link, reason } => {
                Error::PeerGone { link, reason: format!("{reason}; {}", self.session.lock().place()) }
            }
            error => error,
        })
    }

    fn misbehaved(&self, Violation(violation): Violation) -> Error {
        Error::PeerMisbehaved { link: self.link.clone(), violation }
    }
}

/// See [`SendingEnd::batched_payload_bytes`].
const BATCHED_PAYLOAD_BYTES: usize = 64 << 10;

/// A batch of small items is sent when it is so long, or when there is nothing to add.
const BATCH_BYTES: usize = 256 << 10;

/// The longest frame.
const FRAME_BYTES_MAX: usize = PREFIX_BYTES + MAX_FRAME_BYTES;

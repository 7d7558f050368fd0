//! The receiving end of an edge over the store.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::keys::Track;
use super::meeting::await_sender;
use super::message::{Report, Stream};
use super::patient::Patient;
use super::pulse::Pulse;
use super::slot::Slot;
use super::{LANES, REPLIES_MAX, fall_silent, lane};
use crate::error::{Error, Link, Result};
use crate::store::Store;
use crate::sync::Mutex;
use crate::tensor::{BufferPool, Tensor};
use crate::transport::session::{Arrival, ReceiveSession, Violation};
use crate::transport::store::StoreConfig;
use crate::transport::timing::ticker;
use crate::transport::{Inbox, Ring};
use crate::wire::frame::Reply;
use crate::wire::metadata::{Metadata, TensorMetadata};

/// Takes items from the previous rank until the peer finishes or our user leaves.
pub(in crate::transport::store) async fn run<S: Store>(
    store: S,
    ring: Ring,
    config: StoreConfig,
    items: &Inbox,
) -> Result<()> {
    let link = ring.incoming_link();
    let store = Patient::new(store, link.clone(), &config);
    // Also if our user has left meanwhile: the peer is on its way, and is to learn of it.
    let met = await_sender(&store, &link, ring, &config, items.max_item_bytes()).await?;
    let mut session = ReceiveSession::new(met.session);
    session.accept(met.peer_session);
    tracing::debug!(%link, session = ?met.session, "the edge is there");
    let alive = [met.keys.receiver_alive(), met.keys.sender_alive(), met.keys.sender()];
    let pulse = Pulse::begin(&store, &link, alive, config.heartbeat, met.peer_heartbeat).await?;
    let end = ReceivingEnd {
        link: &link,
        items,
        store: &store,
        pulse: &pulse,
        data: met.keys.data(),
        replies: met.keys.replies(),
        session: Mutex::new(session),
        state: Mutex::new(Default::default()),
        state_changed: Notify::new(),
        lanes: Default::default(),
        pool: config.pool.clone(),
    };
    let mut speaking = pin!(pulse.speak());
    let mut listening = pin!(pulse.listen());
    let mut reporting = pin!(end.report());
    // Whether reports can still be written: of these futures none has ended.
    let mut is_reachable = false;
    let received = tokio::select! {
        biased;
        received = end.receive() => {
            is_reachable = true;
            received
        }
        failure = end.fetch(0) => Err(failure),
        failure = end.fetch(1) => Err(failure),
        failure = &mut reporting => Err(failure.err().unwrap_or_else(|| Error::Bug("a word too many".into()))),
        failure = &mut speaking => Err(failure),
        failure = &mut listening => Err(failure),
    };
    let said = match end.last_word(&received).filter(|_| is_reachable) {
        None => false,
        Some(word) => {
            fall_silent(&pulse, speaking).await;
            // A peer that has said farewell and then died would be excused for ever.
            pulse.set_waiting(true);
            end.say_last(word);
            // The peer clears up when it has read it; one that has given up on us does not.
            let heard = async {
                (&mut reporting).await?;
                end.last_word_is_read().await
            };
            tokio::select! {
                biased;
                heard = heard => heard.is_ok(),
                _gone = &mut listening => false,
            }
        }
    };
    if !said {
        store.sweep(met.keys.all_but_messages(), end.known_messages(config.window_messages())).await;
    }
    match received {
        Err(Error::Closed) => Ok(()),
        Err(error @ Error::PeerGone { .. }) => end.lost(error).await,
        received => received,
    }
}

/// What there is to report.
#[derive(Debug, Default)]
struct State {
    /// Messages below it were taken out of the store.
    fetched: u64,
    /// Those below it were deleted there.
    consumed: u64,
    /// Reports below it were written.
    reported: u64,
    last_word: Option<Reply>,
}

struct ReceivingEnd<'a, S> {
    link: &'a Link,
    items: &'a Inbox,
    store: &'a Patient<S>,
    pulse: &'a Pulse<'a, S>,
    data: Track,
    replies: Track,
    session: Mutex<ReceiveSession>,
    state: Mutex<State>,
    /// For the one future that reports.
    state_changed: Notify,
    /// Messages from the store: several at a time, so that one arrives while another is taken apart.
    lanes: [Slot<Bytes>; LANES],
    pool: BufferPool,
}

impl<S: Store> ReceivingEnd<'_, S> {
    /// One lane: fetches every so manieth message. Gives why it can't.
    async fn fetch(&self, lane: usize) -> Error {
        for number in (lane as u64..).step_by(LANES) {
            match self.store.get(&self.data.message(number)).await {
                Ok(message) => {
                    self.lanes[lane].room().await;
                    self.lanes[lane].fill(message);
                }
                Err(error) => return error,
            }
        }
        Error::Bug("the numbers of messages have run out".into())
    }

    /// Takes items until the peer's last one is in our user's hands; [`Error::Closed`] if the user
    /// leaves first.
    async fn receive(&self) -> Result<()> {
        let mut stream = Stream::default();
        loop {
            // Over a store in memory nothing ever waits for the system.
            tokio::task::consume_budget().await;
            self.refill(&mut stream).await?;
            let frame = stream.frame().map_err(|broken| self.misbehaved(broken))?;
            let arrival = self.session.lock().receive(frame);
            match arrival.map_err(|broken| self.misbehaved(broken))? {
                Arrival::Alive => {}
                Arrival::Item(metadata) => self.receive_item(&mut stream, metadata).await?,
                Arrival::Duplicate(_) => {
                    return Err(self.misbehaved(Violation("sent an item twice".into())));
                }
                Arrival::Goodbye => {
                    return Err(self.misbehaved(Violation("said goodbye, which has no meaning here".into())));
                }
                Arrival::Complete if self.items.drained().await => return Ok(()),
                Arrival::Complete => return Err(Error::Closed),
                Arrival::Aborted(reason) => {
                    return Err(Error::PeerAborted { link: self.link.clone(), reason });
                }
            }
        }
    }

    /// Sees to it that the stream has something.
    async fn refill(&self, stream: &mut Stream) -> Result<()> {
        if !stream.is_empty() {
            return Ok(());
        }
        let number = self.state.lock().fetched;
        self.pulse.set_waiting(true);
        let message = tokio::select! {
            biased;
            () = self.items.closed() => return Err(Error::Closed),
            message = self.lanes[lane(number)].take() => message,
        };
        self.pulse.set_waiting(false);
        self.state.lock().fetched += 1;
        self.state_changed.notify_one();
        stream.go_on(message).map_err(|broken| self.misbehaved(broken))
    }

    async fn receive_item(&self, stream: &mut Stream, metadata: Metadata) -> Result<()> {
        let permit = self.items.reserve(metadata.payload_bytes()).await.map_err(|error| match error {
            Error::TooLarge { .. } => {
                let item = self.session.lock().received();
                self.misbehaved(Violation(format!("item {item}: {error}")))
            }
            error => error,
        })?;
        let item = match metadata {
            Metadata::None => None,
            Metadata::Tensor(metadata) => Some(self.receive_tensor(stream, &metadata).await?),
        };
        permit.fill(item)?;
        self.session.lock().deliver();
        self.state_changed.notify_one();
        Ok(())
    }

    async fn receive_tensor(&self, stream: &mut Stream, metadata: &TensorMetadata) -> Result<Tensor> {
        let bytes = metadata.payload_bytes();
        let idle_bytes_max = self.items.spare_bytes().max(IDLE_BYTES_MIN);
        let mut buffer = self.pool.take_beside(bytes, idle_bytes_max)?;
        let mut received = 0;
        while received < bytes {
            self.refill(stream).await?;
            received += stream.payload(&mut buffer[received..]);
        }
        Tensor::new(metadata.dtype(), *metadata.shape(), buffer.freeze())
    }

    /// Tells the peer what has arrived, and deletes what was fetched, until the last word is written.
    async fn report(&self) -> Result<()> {
        loop {
            self.state_changed.notified().await;
            let (fetched, number, last_word) = {
                let state = self.state.lock();
                (state.fetched, state.reported, state.last_word.clone())
            };
            let is_last = last_word.is_some();
            let acknowledgement = self.session.lock().acknowledge();
            let replies: Vec<_> = acknowledgement.into_iter().chain(last_word).collect();
            let report = Report { consumed: fetched, replies };
            self.wait_for_reader(number).await?;
            if is_last {
                // Nobody does it after that.
                self.delete_fetched(fetched).await?;
            }
            self.store.publish(&self.replies, number, report.encode(), self.pulse.own_key()).await?;
            self.state.lock().reported += 1;
            if is_last {
                return Ok(());
            }
            // Behind the report, which the peer may be waiting for.
            self.delete_fetched(fetched).await?;
        }
    }

    async fn delete_fetched(&self, fetched: u64) -> Result<()> {
        let consumed = self.state.lock().consumed;
        if consumed < fetched {
            self.store.consume(&self.data, consumed, fetched).await?;
            self.state.lock().consumed = fetched;
        }
        Ok(())
    }

    /// Not too many reports are in the store, however slowly the peer reads them.
    async fn wait_for_reader(&self, number: u64) -> Result<()> {
        if !number.is_multiple_of(REPLIES_MAX / 2) {
            return Ok(());
        }
        let oldest = number.saturating_sub(REPLIES_MAX / 2);
        let mut ticker = ticker(READ_POLL);
        // The count alone may lag behind for ever, if an attempt to set it came late.
        while self.store.consumed(&self.replies).await? < oldest
            && self.store.is_there(&self.replies.message(oldest - 1)).await?
        {
            ticker.tick().await;
        }
        Ok(())
    }

    /// What the peer is to hear at the end, if there is anybody to hear it.
    fn last_word(&self, received: &Result<()>) -> Option<Reply> {
        let taken = self.items.taken();
        match received {
            Ok(()) => Some(self.session.lock().finish(taken)),
            Err(Error::Closed) => Some(Reply::Closed { taken }),
            Err(Error::PeerGone { .. } | Error::PeerAborted { .. }) => None,
            Err(error) => Some(Reply::Abort { reason: error.to_string().into() }),
        }
    }

    fn say_last(&self, word: Reply) {
        self.state.lock().last_word = Some(word);
        self.state_changed.notify_one();
    }

    /// Waits until the peer has taken our last report away.
    async fn last_word_is_read(&self) -> Result<()> {
        let reported = self.state.lock().reported;
        let Some(last) = reported.checked_sub(1) else { return Ok(()) };
        let mut ticker = ticker(READ_POLL);
        while self.store.is_there(&self.replies.message(last)).await? {
            ticker.tick().await;
        }
        Ok(())
    }

    /// The messages that may be left when the peer is gone.
    fn known_messages(&self, window: u64) -> Vec<String> {
        let state = self.state.lock();
        let data = (state.consumed..state.fetched + window).map(|number| self.data.message(number));
        let unread = state.reported.saturating_sub(REPLIES_MAX)..state.reported + 1;
        let replies = unread.map(|number| self.replies.message(number));
        data.chain(replies).collect()
    }

    /// The peer is not coming back: an error, unless it had said that there was nothing more, or our
    /// user does not want any more.
    async fn lost(&self, error: Error) -> Result<()> {
        if self.session.lock().is_complete() {
            self.items.drained().await;
            return Ok(());
        }
        let left = tokio::select! {
            biased;
            () = self.items.closed() => true,
            () = std::future::ready(()) => false,
        };
        match error {
            _ if left => Ok(()),
            Error::PeerGone { link, reason } => {
                let due = self.session.lock().received();
                Err(Error::PeerGone { link, reason: format!("{reason}; item {due} was due") })
            }
            error => Err(error),
        }
    }

    fn misbehaved(&self, Violation(violation): Violation) -> Error {
        Error::PeerMisbehaved { link: self.link.clone(), violation }
    }
}

/// Idle bytes that the pool may keep beside a full window.
const IDLE_BYTES_MIN: usize = 16 << 20;

/// How often we look whether the peer has read what we wrote.
const READ_POLL: Duration = Duration::from_millis(10);

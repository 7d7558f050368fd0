//! The ends of a pipe that the oracle watches.

use std::fmt::Display;
use std::time::Duration;

use kvpipe::pipe::{Receiver, Sender};
use kvpipe::{Error, Item, PipeConfig, Result};
use tokio::time::Instant;

use super::limits::Watched;
use super::{Rank, name_of};
use crate::oracle::{EdgeName, EndId, ReceiverEnd, SenderEnd, Violation};

/// How late a deadline may be noticed: two ticks of the simulation, and tokio's timers round up.
const TICKS: Duration = Duration::from_millis(4);

/// The sending end of a watched pipe. The calls are those of [`Sender`].
#[derive(Debug)]
pub struct SendingEnd {
    rank: Rank,
    id: EndId,
    name: String,
    sender: Sender,
    close_timeout: Duration,
}

/// The receiving end of a watched pipe. The calls are those of [`Receiver`].
#[derive(Debug)]
pub struct ReceivingEnd {
    rank: Rank,
    id: EndId,
    name: String,
    receiver: Receiver,
    close_timeout: Duration,
}

impl SendingEnd {
    pub(super) fn new(rank: &Rank, name: &str, sender: Sender, config: &PipeConfig) -> Self {
        let edge = EdgeName { pipe: name.into(), from: rank.number() };
        let mut state = rank.shared().lock();
        let id = state.oracle.opens_sender(edge, config);
        state.senders.push(Watched::new(id.clone(), sender.clone()));
        drop(state);
        Self { rank: rank.clone(), id, name: name.into(), sender, close_timeout: config.close_timeout }
    }

    /// See [`Sender::send`].
    ///
    /// # Errors
    /// As there.
    pub async fn send(&self, item: Item) -> Result<u64> {
        let sent = self.rank.waits("send", self.sender.send(item.clone())).await;
        self.sent("send", &item, sent)
    }

    /// See [`Sender::try_send`].
    ///
    /// # Errors
    /// As there.
    pub fn try_send(&self, item: Item) -> Result<u64> {
        let sent = self.sender.try_send(item.clone());
        self.sent("try_send", &item, sent)
    }

    /// See [`Sender::send_timeout`].
    ///
    /// # Errors
    /// As there.
    pub async fn send_timeout(&self, item: Item, timeout: Duration) -> Result<u64> {
        let clock = Stopwatch::start(&self.rank);
        let sent = self.rank.waits("send_timeout", self.sender.send_timeout(item.clone(), timeout)).await;
        clock.check("send_timeout", timeout, self.is_a_deadline(&sent));
        self.sent("send_timeout", &item, sent)
    }

    /// [`Sender::reserve`], and after a while the permit is used.
    ///
    /// # Errors
    /// As there.
    pub async fn reserve_and_send(&self, bytes: usize, pause: Duration, item: Item) -> Result<u64> {
        let permit = match self.rank.waits("reserve", self.sender.reserve(bytes)).await {
            Ok(permit) => permit,
            Err(error) => return self.sent("reserve", &item, Err(error)),
        };
        tokio::time::sleep(pause).await;
        let sent = permit.send(item.clone());
        self.sent("a permit's send", &item, sent)
    }

    /// [`Sender::reserve`], and after a while the permit is dropped.
    ///
    /// # Errors
    /// As there.
    pub async fn reserve_in_vain(&self, bytes: usize, pause: Duration) -> Result<()> {
        let permit = self.rank.waits("reserve", self.sender.reserve(bytes)).await;
        let permit = permit.inspect_err(|error| self.judge("reserve", error))?;
        tokio::time::sleep(pause).await;
        drop(permit);
        Ok(())
    }

    /// See [`Sender::flush`].
    ///
    /// # Errors
    /// As there.
    pub async fn flush(&self) -> Result<()> {
        let before = self.rank.shared().lock().oracle.accepted_items(&self.id);
        let flushed = self.rank.waits("flush", self.sender.flush()).await;
        match &flushed {
            Ok(()) => self.rank.shared().lock().flushed(&self.id, before),
            Err(error) => self.judge("flush", error),
        }
        flushed
    }

    /// See [`Sender::finish`].
    pub fn finish(&self) {
        self.rank.shared().lock().oracle.finishes(&self.id);
        self.note("finishes");
        self.sender.finish();
    }

    /// See [`Sender::abort`].
    pub fn abort(&self, reason: &str) {
        {
            let mut state = self.rank.shared().lock();
            state.oracle.aborts(&self.id);
            state.causes.leaves(self.id.edge());
        }
        self.note("aborts");
        self.sender.abort(reason);
    }

    /// See [`Sender::close`]. What it leaves undelivered is judged.
    ///
    /// # Errors
    /// As there.
    pub async fn close(&self) -> Result<()> {
        self.rank.shared().lock().oracle.finishes(&self.id);
        self.note("closes");
        let closing = self.rank.closes(&self.id, self.close_timeout);
        let closed = self.rank.waits("close", self.sender.close()).await;
        drop(closing);
        let (undelivered, stats) = (self.sender.undelivered(), self.sender.stats());
        let in_doubt = undelivered.iter().filter(|item| item.in_doubt).count();
        match &closed {
            Ok(()) => {
                self.note("closed");
                let now = self.rank.now();
                if self.rank.shared().lock().causes().spare(self.id.edge(), now) {
                    self.rank.happened("closed out of harm's reach");
                }
            }
            Err(error) => {
                let left = undelivered.len();
                self.note(format_args!("close failed: {error}; {left} undelivered, {in_doubt} in doubt"));
                self.judge("close", error);
            }
        }
        let acknowledged = stats.delivered_items;
        let in_flight = stats.in_flight_items;
        let end = SenderEnd { closed: closed.clone(), undelivered, acknowledged, in_flight };
        self.rank.shared().lock().look_and_end(&self.id, end);
        closed
    }

    fn sent(&self, call: &'static str, item: &Item, sent: Result<u64>) -> Result<u64> {
        match &sent {
            Ok(sequence) => {
                self.rank.shared().lock().oracle.accepted(&self.id, *sequence, item);
                self.note(format_args!("accepted {sequence}: {}", Look(item)));
            }
            Err(Error::Full) if call == "try_send" => {}
            Err(_) if call == "send_timeout" && self.is_a_deadline(&sent) => {}
            Err(error) => self.judge(call, error),
        }
        sent
    }

    /// Why the stream failed, if it did. It tells a call's own deadline from one that ended the stream.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.sender.failure()
    }

    fn is_a_deadline<T>(&self, result: &Result<T>) -> bool {
        matches!(result, Err(Error::Timeout { .. })) && self.failure().is_none()
    }

    fn judge(&self, call: &'static str, error: &Error) {
        judge(&self.rank, (&self.id, true), call, error);
    }

    fn note(&self, event: impl Display) {
        self.rank.note(format_args!("{} {event}", self.name));
    }
}

impl Drop for SendingEnd {
    fn drop(&mut self) {
        let dropped = {
            let mut state = self.rank.shared().lock();
            if !state.oracle.has_ended(&self.id, true) {
                state.causes.leaves(self.id.edge());
            }
            let at = state.senders.iter().position(|watched| watched.end == self.id);
            at.map(|at| state.senders.remove(at))
        };
        // Not under the lock: it may wake anybody.
        drop(dropped);
    }
}

impl ReceivingEnd {
    pub(super) fn new(rank: &Rank, name: &str, receiver: Receiver, config: &PipeConfig) -> Self {
        let from = (rank.number() + rank.world_size() - 1) % rank.world_size();
        let mut state = rank.shared().lock();
        let id = state.oracle.opens_receiver(EdgeName { pipe: name.into(), from }, config);
        state.receivers.push(Watched::new(id.clone(), receiver.clone()));
        drop(state);
        Self { rank: rank.clone(), id, name: name.into(), receiver, close_timeout: config.close_timeout }
    }

    /// See [`Receiver::recv`].
    ///
    /// # Errors
    /// As there.
    pub async fn recv(&self) -> Result<Item> {
        let received = self.rank.waits("recv", self.receiver.recv()).await;
        self.received("recv", received)
    }

    /// See [`Receiver::try_recv`].
    ///
    /// # Errors
    /// As there.
    pub fn try_recv(&self) -> Result<Item> {
        self.received("try_recv", self.receiver.try_recv())
    }

    /// See [`Receiver::recv_timeout`].
    ///
    /// # Errors
    /// As there.
    pub async fn recv_timeout(&self, timeout: Duration) -> Result<Item> {
        let clock = Stopwatch::start(&self.rank);
        let received = self.rank.waits("recv_timeout", self.receiver.recv_timeout(timeout)).await;
        clock.check("recv_timeout", timeout, self.is_a_deadline(&received));
        self.received("recv_timeout", received)
    }

    /// See [`Receiver::close`].
    pub async fn close(&self) {
        {
            let mut state = self.rank.shared().lock();
            // What it leaves behind was received, since the last step perhaps.
            state.look();
            state.leaves(&self.id);
            state.oracle.receiver_ended(&self.id, ReceiverEnd::Left);
        }
        self.note("leaves");
        self.rank.waits_within("close of a receiver", self.close_timeout, self.receiver.close()).await;
    }

    /// Why the stream failed, if it did. It tells a call's own deadline from one that ended the stream.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.receiver.failure()
    }

    fn is_a_deadline<T>(&self, result: &Result<T>) -> bool {
        matches!(result, Err(Error::Timeout { .. })) && self.failure().is_none()
    }

    fn received(&self, call: &'static str, received: Result<Item>) -> Result<Item> {
        match &received {
            Ok(item) => {
                self.rank.shared().lock().oracle.delivered(&self.id, item);
                self.note(format_args!("took {}", Look(item)));
            }
            Err(Error::Empty) if call == "try_recv" => {}
            Err(_) if call == "recv_timeout" && self.is_a_deadline(&received) => {}
            Err(error) => {
                self.note(format_args!("ended: {error}"));
                judge(&self.rank, (&self.id, false), call, error);
                let end = ReceiverEnd::Saw(error.clone());
                self.rank.shared().lock().oracle.receiver_ended(&self.id, end);
            }
        }
        received
    }

    fn note(&self, event: impl Display) {
        self.rank.note(format_args!("{} {event}", self.name));
    }
}

impl Drop for ReceivingEnd {
    fn drop(&mut self) {
        let dropped = {
            let mut state = self.rank.shared().lock();
            state.look();
            state.leaves(&self.id);
            let at = state.receivers.iter().position(|watched| watched.end == self.id);
            at.map(|at| state.receivers.remove(at))
        };
        drop(dropped);
    }
}

impl super::State {
    /// The receiver's side may have moved since the last step.
    fn flushed(&mut self, id: &EndId, accepted: usize) {
        self.look();
        self.oracle.flushed(id, accepted);
    }

    /// A receiver goes, perhaps before its end.
    fn leaves(&mut self, id: &EndId) {
        if !self.oracle.has_ended(id, false) {
            self.causes.leaves(id.edge());
        }
    }

    fn look_and_end(&mut self, id: &EndId, end: SenderEnd) {
        self.look();
        self.oracle.sender_ended(id, end);
    }
}

fn judge(rank: &Rank, (id, sends): (&EndId, bool), call: &'static str, error: &Error) {
    rank.happened(name_of(error));
    let now = rank.now();
    let mut state = rank.shared().lock();
    let has_met = state.oracle.has_met(id, sends);
    if !state.causes().of_edge(id.edge(), has_met, now).explains(error) {
        state.oracle.finds(id, Violation::no_cause(call, error));
    }
}

/// Measures a call on its host's clock, which may jump meanwhile.
pub(super) struct Stopwatch<'a> {
    rank: &'a Rank,
    began: Instant,
    jumped: Duration,
}

impl<'a> Stopwatch<'a> {
    pub(super) fn start(rank: &'a Rank) -> Self {
        Self { rank, began: Instant::now(), jumped: rank.jumped() }
    }

    pub(super) fn check(self, call: &'static str, deadline: Duration, timed_out: bool) {
        let after = self.began.elapsed();
        let jumped = self.rank.jumped() - self.jumped;
        if timed_out && after < deadline || after > deadline + jumped + TICKS {
            let who = format!("rank {}", self.rank.number());
            self.rank.shared().lock().oracle.finds(who, Violation::Deadline { call, deadline, after });
        }
    }
}

/// An item in a trace.
struct Look<'a>(&'a Item);

impl Display for Look<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            None => f.write_str("None"),
            Some(tensor) => write!(f, "{} bytes", tensor.byte_len()),
        }
    }
}

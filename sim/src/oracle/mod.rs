//! [`Oracle`]: judges what senders and receivers saw by kvpipe's promises, from the outside: it knows
//! what each end did and saw, of all ranks at once, and nothing of how a pipe works.
//!
//! 1. First in, first out, each item exactly once: what is delivered is a prefix of what was accepted.
//! 2. `None` is an item and keeps its place.
//! 3. Every accepted item is delivered, or its sender is told: a close that succeeds means that all
//!    are; after a failure `undelivered` is exactly what is not acknowledged, and what was received of
//!    it comes first and is in doubt.
//! 4. Memory is bounded: what is held never exceeds the budget.
//!
//! At any time *acknowledged ≤ received ≤ accepted*. An edge has several sending and receiving pipes,
//! one after the other, if ranks restart. Which of them belong together the items tell: they differ
//! from pipe to pipe.

mod stream;
mod violation;

use std::collections::BTreeMap;

use kvpipe::pipe::{ReceiveStats, SendStats, Undelivered};
use kvpipe::{Error, Item, PipeConfig};

use self::stream::{Edge, Received, Sent};
pub use self::violation::Violation;

/// The history of all streams. It is told what happens when it happens: an item is accepted before it
/// can be delivered.
#[derive(Debug, Default)]
pub struct Oracle {
    edges: BTreeMap<EdgeName, Edge>,
    violations: Vec<(String, Violation)>,
}

/// Pipes of one name from one rank to the next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EdgeName {
    /// What the pipe is called.
    pub pipe: String,
    /// The sending rank.
    pub from: usize,
}

/// One end of one pipe: of all pipes of its edge that were opened at that end, the so-manieth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndId {
    edge: EdgeName,
    number: usize,
}

impl EndId {
    /// The edge whose end it is.
    pub(crate) fn edge(&self) -> &EdgeName {
        &self.edge
    }

    /// The rank that sends.
    pub(crate) fn from(&self) -> usize {
        self.edge.from
    }
}

impl std::fmt::Display for EndId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {} of rank {}", self.edge.pipe, self.number, self.edge.from)
    }
}

/// How a sender's end ended.
#[derive(Clone, Debug)]
pub struct SenderEnd {
    /// What `close` gave.
    pub closed: Result<(), Error>,
    /// What `undelivered` gave after that.
    pub undelivered: Vec<Undelivered>,
    /// How many items the statistics say are acknowledged.
    pub acknowledged: u64,
    /// How many the statistics say are on their way.
    pub in_flight: usize,
}

/// How a receiver's end ended.
#[derive(Clone, Debug)]
pub enum ReceiverEnd {
    /// It has taken what there was, and got this error instead of one more.
    Saw(Error),
    /// It left by itself.
    Left,
}

/// What the streams came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Pipes that were opened at a sending end.
    pub streams: usize,
    /// Items accepted by senders.
    pub accepted: usize,
    /// Items that receiving users took.
    pub delivered: usize,
    /// Senders that were told of a failure.
    pub failed: usize,
}

/// A look at a sending pipe: what its statistics say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderLook {
    /// Items acknowledged.
    pub acknowledged: u64,
    /// Items accepted and not acknowledged.
    pub held_items: usize,
    /// Bytes counted against the budget.
    pub held_bytes: usize,
    /// Those of them that permits hold which are not used yet.
    pub permit_bytes: usize,
}

/// A look at a receiving pipe: what its statistics say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiverLook {
    /// Items that the user took.
    pub taken: u64,
    /// Items in the inbox.
    pub queued_items: usize,
    /// Bytes counted against the window.
    pub held_bytes: usize,
    /// Those of them that are arriving.
    pub arriving_bytes: usize,
}

impl From<&SendStats> for SenderLook {
    fn from(stats: &SendStats) -> Self {
        Self {
            acknowledged: stats.delivered_items,
            held_items: stats.queued_items + stats.in_flight_items,
            held_bytes: stats.held_bytes,
            permit_bytes: stats.held_bytes - stats.queued_bytes - stats.in_flight_bytes,
        }
    }
}

impl From<&ReceiveStats> for ReceiverLook {
    fn from(stats: &ReceiveStats) -> Self {
        Self {
            taken: stats.taken_items,
            queued_items: stats.queued_items,
            held_bytes: stats.held_bytes,
            arriving_bytes: stats.held_bytes - stats.queued_bytes,
        }
    }
}

impl Oracle {
    /// A sending pipe was opened.
    pub fn opens_sender(&mut self, edge: EdgeName, config: &PipeConfig) -> EndId {
        let senders = &mut self.edges.entry(edge.clone()).or_default().senders;
        senders.push(Sent::new(config));
        EndId { edge, number: senders.len() - 1 }
    }

    /// A receiving pipe was opened.
    pub fn opens_receiver(&mut self, edge: EdgeName, config: &PipeConfig) -> EndId {
        let receivers = &mut self.edges.entry(edge.clone()).or_default().receivers;
        receivers.push(Received::new(config));
        EndId { edge, number: receivers.len() - 1 }
    }

    /// The sender accepted `item` and numbered it.
    pub fn accepted(&mut self, end: &EndId, sequence: u64, item: &Item) {
        self.with(end, |edge, number| edge.senders[number].accept(sequence, item));
    }

    /// The receiving user took `item`.
    pub fn delivered(&mut self, end: &EndId, item: &Item) {
        self.with(end, |edge, number| edge.deliver(number, item, &end.edge.pipe));
    }

    /// A look at a sending pipe.
    pub fn sees_sender(&mut self, end: &EndId, look: SenderLook) {
        self.with(end, |edge, number| edge.look_at_sender(number, look));
    }

    /// A look at a receiving pipe.
    pub fn sees_receiver(&mut self, end: &EndId, look: ReceiverLook) {
        self.with(end, |edge, number| edge.look_at_receiver(number, look));
    }

    /// How many items the sender has accepted so far.
    #[must_use]
    pub fn accepted_items(&self, end: &EndId) -> usize {
        self.edges.get(&end.edge).map_or(0, |edge| edge.senders[end.number].accepted.len())
    }

    /// Whether items have got through to a receiver, or from a sender.
    #[must_use]
    pub fn has_met(&self, end: &EndId, sends: bool) -> bool {
        self.edges.get(&end.edge).is_some_and(|edge| edge.has_met(end.number, sends))
    }

    /// Whether a sender or a receiver has come to its end.
    #[must_use]
    pub fn has_ended(&self, end: &EndId, sends: bool) -> bool {
        self.edges.get(&end.edge).is_some_and(|edge| match sends {
            true => edge.senders[end.number].end.is_some(),
            false => edge.receivers[end.number].end.is_some(),
        })
    }

    /// Whether a receiver has got nothing, not even word of a sender that has finished.
    #[must_use]
    pub fn expects_anybody(&self, receiver: &EndId) -> bool {
        self.edges.get(&receiver.edge).is_some_and(|edge| edge.expects_anybody(receiver.number))
    }

    /// Whether a receiver has got items, and expects more.
    #[must_use]
    pub fn expects_more(&self, receiver: &EndId) -> bool {
        self.edges.get(&receiver.edge).is_some_and(|edge| edge.expects_more(receiver.number))
    }

    /// Whether the items of a sender get through, and its user has not finished.
    #[must_use]
    pub fn has_more(&self, sender: &EndId) -> bool {
        self.edges.get(&sender.edge).is_some_and(|edge| edge.has_more(sender.number))
    }

    /// A flush succeeded that began when so many items were accepted.
    pub fn flushed(&mut self, end: &EndId, accepted: usize) {
        self.with(end, |edge, number| edge.flushed(number, accepted));
    }

    /// The user ends the stream here and now, and not gracefully.
    pub fn aborts(&mut self, end: &EndId) {
        self.with(end, |edge, number| {
            edge.senders[number].aborted = true;
            Ok(())
        });
    }

    /// The user ends the stream after what was accepted.
    pub fn finishes(&mut self, end: &EndId) {
        self.with(end, |edge, number| {
            edge.senders[number].finishing = true;
            Ok(())
        });
    }

    /// The sender's end is over.
    pub fn sender_ended(&mut self, end: &EndId, how: SenderEnd) {
        self.with(end, |edge, number| {
            edge.senders[number].end = Some(how);
            Ok(())
        });
    }

    /// The receiver's end is over. What it came to first is what counts.
    pub fn receiver_ended(&mut self, end: &EndId, how: ReceiverEnd) {
        self.with(end, |edge, number| {
            edge.receivers[number].end.get_or_insert(how);
            Ok(())
        });
    }

    /// Something else is wrong.
    pub fn finds(&mut self, who: impl std::fmt::Display, violation: Violation) {
        self.violations.push((who.to_string(), violation));
    }

    /// Whether all is well so far.
    #[must_use]
    pub fn is_content(&self) -> bool {
        self.violations.is_empty()
    }

    /// What the streams have come to so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for edge in self.edges.values() {
            totals.streams += edge.senders.len();
            totals.accepted += edge.senders.iter().map(|sent| sent.accepted.len()).sum::<usize>();
            totals.delivered += edge.receivers.iter().map(|received| received.delivered.len()).sum::<usize>();
            let failed = |sent: &&Sent| matches!(&sent.end, Some(SenderEnd { closed: Err(_), .. }));
            totals.failed += edge.senders.iter().filter(failed).count();
        }
        totals
    }

    /// What the streams came to, once all ends are over.
    ///
    /// # Errors
    /// Every promise that was broken, and at which end.
    pub fn judge(mut self) -> Result<Totals, Vec<(String, Violation)>> {
        for (name, edge) in &self.edges {
            edge.judge(&mut |end, violation| {
                let (pipe, from) = (&name.pipe, name.from);
                self.violations.push((format!("{pipe} from rank {from}, {end}"), violation));
            });
        }
        if self.violations.is_empty() { Ok(self.totals()) } else { Err(self.violations) }
    }

    fn with(&mut self, end: &EndId, tell: impl FnOnce(&mut Edge, usize) -> Result<(), Violation>) {
        // Every id was made by this oracle, together with its edge.
        if let Some(edge) = self.edges.get_mut(&end.edge)
            && let Err(violation) = tell(edge, end.number)
        {
            self.violations.push((end.to_string(), violation));
        }
    }
}

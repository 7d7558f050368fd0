//! What a [`ByteQueue`](super::ByteQueue) knows: plain data and the rules, no locks and no futures.

use std::collections::VecDeque;
use std::task::Poll;

use super::waiters::{Aftermath, Ticket, WaitList};
use super::{Limits, QueueStats, Unsettled};
use crate::error::{Error, Result};

/// The state of a queue.
///
/// Sequence numbers count the items from 0. Until the consumer leaves,
/// `settled <= handed_out <= settled + slots.len()`.
#[derive(Debug)]
pub(super) struct State<T> {
    limits: Limits,
    /// Filled and not yet settled; `slots[0]` has the sequence number `settled`.
    slots: VecDeque<Slot<T>>,
    settled: u64,
    settled_bytes: u64,
    /// The sequence number that the consumer gets next. Everything below it was handed to the wire
    /// and may have reached the peer.
    handed_out: u64,
    /// Payload bytes of the slots in `settled..handed_out`.
    in_flight_bytes: usize,
    /// Payload bytes of all slots.
    filled_bytes: usize,
    /// Reserved or filled, and not settled.
    held_items: usize,
    held_bytes: usize,
    held_bytes_max: usize,
    /// The producer has ended; what is queued still goes out.
    closed: bool,
    /// The consumer has left; nothing is taken any more.
    abandoned: bool,
    failure: Option<Error>,
    /// Counts acknowledgements, and whatever else the transport calls progress.
    progress_made: u64,
    /// The transport has returned.
    ended: bool,
    /// Producers waiting for room. Only the first is ever admitted, so that a large item is not
    /// starved by small ones.
    pub(super) producers: WaitList,
    /// Consumers waiting for an item.
    pub(super) consumers: WaitList,
    /// Waiting for acknowledgements, or for any progress.
    pub(super) flushers: WaitList,
    /// Waiting for the queue to fail, or to be abandoned, or to run empty.
    pub(super) watchers: WaitList,
}

#[derive(Debug)]
struct Slot<T> {
    item: T,
    bytes: usize,
}

impl<T: Clone> State<T> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            slots: VecDeque::new(),
            settled: 0,
            settled_bytes: 0,
            handed_out: 0,
            in_flight_bytes: 0,
            filled_bytes: 0,
            held_items: 0,
            held_bytes: 0,
            held_bytes_max: 0,
            closed: false,
            abandoned: false,
            failure: None,
            progress_made: 0,
            ended: false,
            producers: WaitList::default(),
            consumers: WaitList::default(),
            flushers: WaitList::default(),
            watchers: WaitList::default(),
        }
    }

    /// Admits `bytes` if it is this producer's turn and there is room.
    pub(super) fn admit(&mut self, bytes: usize, ticket: Option<Ticket>) -> Poll<Result<()>> {
        if let Some(error) = self.refusal() {
            return Poll::Ready(Err(error));
        }
        if !self.producers.is_first(ticket) || !self.fits(bytes) {
            return Poll::Pending;
        }
        self.held_items += 1;
        self.held_bytes += bytes;
        self.held_bytes_max = self.held_bytes_max.max(self.held_bytes);
        Poll::Ready(Ok(()))
    }

    /// Gives back the room of a permit, or part of it.
    pub(super) fn release(&mut self, items: usize, bytes: usize, after: &mut Aftermath<T>) {
        self.held_items -= items;
        self.held_bytes -= bytes;
        after.wake_first(&self.producers);
    }

    /// Turns admitted room into an item and gives its sequence number.
    pub(super) fn fill(&mut self, item: T, bytes: usize, after: &mut Aftermath<T>) -> Result<u64> {
        if let Some(error) = self.refusal() {
            self.release(1, bytes, after);
            after.release([item]);
            return Err(error);
        }
        self.filled_bytes += bytes;
        self.slots.push_back(Slot { item, bytes });
        after.wake_first(&self.consumers);
        Ok(self.accepted() - 1)
    }

    /// The next item for a consumer that settles later; `None` after the last one.
    pub(super) fn next(&mut self) -> Poll<Result<Option<(u64, T)>>> {
        if let Some(error) = &self.failure {
            return Poll::Ready(Err(error.clone()));
        }
        let sequence = self.handed_out;
        let Some(slot) = self.slots.get(index(sequence - self.settled)) else {
            return if self.closed { Poll::Ready(Ok(None)) } else { Poll::Pending };
        };
        self.handed_out += 1;
        self.in_flight_bytes += slot.bytes;
        Poll::Ready(Ok(Some((sequence, slot.item.clone()))))
    }

    /// The next item for a consumer that settles at once. A failure comes after what is queued:
    /// those items were acknowledged.
    pub(super) fn pop(&mut self, after: &mut Aftermath<T>) -> Poll<Result<T>> {
        if self.abandoned {
            return Poll::Ready(Err(Error::Closed));
        }
        if let Some(slot) = self.slots.pop_front() {
            self.settled += 1;
            self.settled_bytes += slot.bytes as u64;
            self.filled_bytes -= slot.bytes;
            self.handed_out = self.settled;
            self.release(1, slot.bytes, after);
            if self.slots.is_empty() {
                after.wake_all(&self.watchers);
            }
            return Poll::Ready(Ok(slot.item));
        }
        match &self.failure {
            Some(error) => Poll::Ready(Err(error.clone())),
            None if self.closed => Poll::Ready(Err(Error::Closed)),
            None => Poll::Pending,
        }
    }

    /// Everything below `upto` has arrived. Never more than was handed out.
    pub(super) fn settle(&mut self, upto: u64, after: &mut Aftermath<T>) {
        let upto = upto.min(self.handed_out);
        if upto <= self.settled {
            // No progress, however often it is said.
            return;
        }
        while self.settled < upto {
            let Some(slot) = self.slots.pop_front() else { break };
            self.settled += 1;
            self.settled_bytes += slot.bytes as u64;
            self.in_flight_bytes -= slot.bytes;
            self.filled_bytes -= slot.bytes;
            self.held_items -= 1;
            self.held_bytes -= slot.bytes;
            after.release([slot.item]);
        }
        after.wake_first(&self.producers);
        self.progress(after);
    }

    /// Something moved: a close that waits goes on waiting.
    pub(super) fn progress(&mut self, after: &mut Aftermath<T>) {
        self.progress_made += 1;
        after.wake_all(&self.flushers);
    }

    pub(super) fn progress_made(&self) -> u64 {
        self.progress_made
    }

    /// Whether more than `made` has moved.
    pub(super) fn is_beyond(&self, made: u64) -> Poll<Result<()>> {
        match &self.failure {
            Some(error) => Poll::Ready(Err(error.clone())),
            None if self.progress_made > made => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }

    /// Hands out again from `to`: the peer has said that it holds nothing at or above it, so those
    /// items are no longer in doubt.
    pub(super) fn rewind(&mut self, to: u64, after: &mut Aftermath<T>) {
        let to = to.clamp(self.settled, self.handed_out);
        let again = index(to - self.settled)..index(self.handed_out - self.settled);
        self.in_flight_bytes -= self.slots.range(again).map(|slot| slot.bytes).sum::<usize>();
        self.handed_out = to;
        after.wake_first(&self.consumers);
    }

    /// The producer's graceful end.
    pub(super) fn close(&mut self, after: &mut Aftermath<T>) {
        self.closed = true;
        self.wake_everybody(after);
    }

    /// The end of the link. The first failure is the one that everybody is told.
    pub(super) fn fail(&mut self, error: Error, after: &mut Aftermath<T>) {
        if self.failure.is_none() {
            self.failure = Some(error);
            self.wake_everybody(after);
        }
    }

    /// The consumer's end: what is queued is dropped, and nothing more is admitted.
    pub(super) fn abandon(&mut self, after: &mut Aftermath<T>) {
        if self.abandoned {
            return;
        }
        self.abandoned = true;
        self.held_items -= self.slots.len();
        self.held_bytes -= self.filled_bytes;
        self.filled_bytes = 0;
        self.in_flight_bytes = 0;
        after.release(self.slots.drain(..).map(|slot| slot.item));
        self.wake_everybody(after);
    }

    /// The transport has returned: if with an error, and without an earlier one, that is the failure.
    pub(super) fn end(&mut self, result: Result<()>, after: &mut Aftermath<T>) {
        if let Err(error) = result {
            self.fail(error, after);
        }
        self.ended = true;
        after.wake_all(&self.watchers);
    }

    /// How the stream ended, once it has.
    pub(super) fn ending(&self) -> Option<Result<()>> {
        self.ended.then(|| self.failure.clone().map_or(Ok(()), Err))
    }

    /// Whether everything below `upto` has arrived.
    pub(super) fn is_settled(&self, upto: u64) -> Poll<Result<()>> {
        match &self.failure {
            _ if self.settled >= upto => Poll::Ready(Ok(())),
            Some(error) => Poll::Ready(Err(error.clone())),
            None => Poll::Pending,
        }
    }

    pub(super) fn unsettled(&self) -> Vec<Unsettled<T>> {
        (self.settled..)
            .zip(&self.slots)
            .map(|(sequence, slot)| Unsettled {
                sequence,
                item: slot.item.clone(),
                in_doubt: sequence < self.handed_out,
            })
            .collect()
    }

    pub(super) fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn spare_bytes(&self) -> usize {
        self.limits.bytes.saturating_sub(self.held_bytes)
    }

    /// How many items were ever filled: the sequence number of the next one.
    pub(super) fn accepted(&self) -> u64 {
        self.settled + self.slots.len() as u64
    }

    pub(super) fn settled(&self) -> u64 {
        self.settled
    }

    pub(super) fn stats(&self) -> QueueStats {
        let in_flight_items = index(self.handed_out - self.settled);
        QueueStats {
            settled_items: self.settled,
            settled_bytes: self.settled_bytes,
            in_flight_items,
            in_flight_bytes: self.in_flight_bytes,
            queued_items: self.slots.len() - in_flight_items,
            queued_bytes: self.filled_bytes - self.in_flight_bytes,
            held_bytes: self.held_bytes,
            held_bytes_max: self.held_bytes_max,
        }
    }

    /// Why nothing more may come in, if so.
    fn refusal(&self) -> Option<Error> {
        match &self.failure {
            Some(error) => Some(error.clone()),
            None if self.closed || self.abandoned => Some(Error::Closed),
            None => None,
        }
    }

    /// An item without payload needs a slot only; one larger than the whole budget goes alone.
    fn fits(&self, bytes: usize) -> bool {
        let within_budget = bytes <= self.spare_bytes();
        self.held_items == 0 || (self.held_items < self.limits.items && (bytes == 0 || within_budget))
    }

    fn wake_everybody(&self, after: &mut Aftermath<T>) {
        for list in [&self.producers, &self.consumers, &self.flushers, &self.watchers] {
            after.wake_all(list);
        }
    }
}

/// Distances between sequence numbers of held items; they are bounded by `Limits::items`.
fn index(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}

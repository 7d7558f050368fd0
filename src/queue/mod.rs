//! [`ByteQueue`]: the only state that a user and a transport share, and the same type at both ends
//! of a pipe.
//!
//! ```text
//!            reserve, fill                       next, settle (or pop)
//! producer ───────────────▶ queued ─▶ in flight ───────────────────────▶ consumer
//!            └───────── held: never above the budget ────────┘
//! ```
//!
//! At the sending end the user produces and the transport consumes: an item stays until the
//! transport *settles* it, so the queue is also the replay buffer and the list of what was not
//! delivered. At the receiving end the transport produces and the user *pops*.
//!
//! # Promises
//!
//! - **Bounded.** Held bytes (reserved, queued, in flight) never exceed the budget, except for one
//!   item larger than the whole budget, which is admitted when nothing else is held. Held items
//!   never exceed `Limits::items`.
//! - **Fair.** Producers are admitted in the order in which they began to wait, a newcomer after all
//!   of them: a large item waits for room while small ones queue up behind it. Consumers are woken
//!   in order.
//! - **No lost wake-ups.** Being woken is a baton: a future that is dropped, or satisfied, wakes the
//!   next one in line.
//! - **No foreign code under the lock.** Wakers and destructors run after it is released.
//!
//! The queue knows no clock and no runtime; every step goes through one mutex from `crate::sync`,
//! so that loom sees it.

mod state;
mod waiters;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use self::state::State;
use self::waiters::{Aftermath, Ticket, WaitList};
use crate::error::{Error, Result};
use crate::sync::Mutex;

/// How much a queue may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Payload bytes, reserved ones included.
    pub(crate) bytes: usize,
    /// Items, whatever their size, reserved ones included.
    pub(crate) items: usize,
}

/// An item that was accepted and not settled.
#[derive(Clone, Debug)]
pub(crate) struct Unsettled<T> {
    pub(crate) sequence: u64,
    pub(crate) item: T,
    /// It was handed to the wire, so the peer may hold it.
    pub(crate) in_doubt: bool,
}

/// A look at a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueStats {
    pub(crate) settled_items: u64,
    pub(crate) settled_bytes: u64,
    pub(crate) in_flight_items: usize,
    pub(crate) in_flight_bytes: usize,
    pub(crate) queued_items: usize,
    pub(crate) queued_bytes: usize,
    pub(crate) held_bytes: usize,
    pub(crate) held_bytes_max: usize,
}

/// A first-in first-out queue with a byte budget. See the [module](self).
#[derive(Debug)]
pub(crate) struct ByteQueue<T> {
    state: Mutex<State<T>>,
}

/// Room for one item. Dropping it gives the room back.
#[derive(Debug)]
#[must_use = "dropping a permit gives its room back"]
pub(crate) struct Permit<T: Clone> {
    queue: Arc<ByteQueue<T>>,
    bytes: usize,
    filled: bool,
}

impl<T: Clone> ByteQueue<T> {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State::new(limits)) })
    }

    /// Waits for room. Cancel safe: dropping the future gives up the place in line.
    pub(crate) async fn reserve(self: &Arc<Self>, bytes: usize) -> Result<Permit<T>> {
        self.wait(|state| &mut state.producers, |state, ticket, _| state.admit(bytes, ticket)).await?;
        Ok(self.permit(bytes))
    }

    /// Takes room if there is some now and nobody waits for it: [`Error::Full`] otherwise.
    pub(crate) fn try_reserve(self: &Arc<Self>, bytes: usize) -> Result<Permit<T>> {
        match self.update(|state, _| state.admit(bytes, None)) {
            Poll::Ready(admitted) => admitted.map(|()| self.permit(bytes)),
            Poll::Pending => Err(Error::Full),
        }
    }

    /// The next item and its sequence number, `None` after the last one. The item stays until it is
    /// settled. Cancel safe.
    pub(crate) async fn next(&self) -> Result<Option<(u64, T)>> {
        self.wait(|state| &mut state.consumers, |state, _, _| state.next()).await
    }

    /// The next item, if there is one now.
    pub(crate) fn try_next(&self) -> Option<(u64, T)> {
        match self.update(|state, _| state.next()) {
            Poll::Ready(Ok(next)) => next,
            Poll::Ready(Err(_)) | Poll::Pending => None,
        }
    }

    /// Takes the next item out. A failure or the end comes after what is queued. Cancel safe.
    pub(crate) async fn pop(&self) -> Result<T> {
        self.wait(|state| &mut state.consumers, |state, _, after| state.pop(after)).await
    }

    /// Takes the next item out, if there is one now: [`Error::Empty`] otherwise.
    pub(crate) fn try_pop(&self) -> Result<T> {
        match self.update(State::pop) {
            Poll::Ready(popped) => popped,
            Poll::Pending => Err(Error::Empty),
        }
    }

    /// Everything below `upto` has arrived: frees its room.
    pub(crate) fn settle(&self, upto: u64) {
        self.update(|state, after| state.settle(upto, after));
    }

    /// Hands out again from `to`, which the peer does not hold.
    pub(crate) fn rewind(&self, to: u64) {
        self.update(|state, after| state.rewind(to, after));
    }

    /// The producer's graceful end: nothing more comes in, what is queued still goes out.
    pub(crate) fn close(&self) {
        self.update(State::close);
    }

    /// The end of the link, for everybody. The first failure counts.
    pub(crate) fn fail(&self, error: Error) {
        self.update(|state, after| state.fail(error, after));
    }

    /// The consumer's end: drops what is queued and admits nothing more.
    pub(crate) fn abandon(&self) {
        self.update(State::abandon);
    }

    /// The transport has ended, and how: nothing moves any more.
    pub(crate) fn end(&self, result: Result<()>) {
        self.update(|state, after| state.end(result, after));
    }

    /// Waits until the transport has ended. Cancel safe.
    pub(crate) async fn ended(&self) -> Result<()> {
        self.watch(State::ending).await
    }

    /// Waits until everything accepted so far is settled. Cancel safe.
    pub(crate) async fn settled(&self) -> Result<()> {
        let upto = self.accepted();
        self.wait(|state| &mut state.flushers, |state, _, _| state.is_settled(upto)).await
    }

    /// Something moved that is not settled yet.
    pub(crate) fn progress(&self) {
        self.update(State::progress);
    }

    /// How much has moved; only good for [`progress_beyond`](Self::progress_beyond).
    pub(crate) fn progress_made(&self) -> u64 {
        self.update(|state, _| state.progress_made())
    }

    /// Waits until more has moved, or the queue has failed. Cancel safe.
    pub(crate) async fn progress_beyond(&self, made: u64) -> Result<()> {
        self.wait(|state| &mut state.flushers, |state, _, _| state.is_beyond(made)).await
    }

    /// Waits for the queue to fail, and gives the failure. Cancel safe.
    pub(crate) async fn failed(&self) -> Error {
        self.watch(|state| state.failure().cloned()).await
    }

    /// Waits until the producer has ended or the queue has failed. Cancel safe.
    pub(crate) async fn closed(&self) {
        self.watch(|state| (state.is_closed() || state.failure().is_some()).then_some(())).await;
    }

    /// Waits until the consumer has left. Cancel safe.
    pub(crate) async fn abandoned(&self) {
        self.watch(|state| state.is_abandoned().then_some(())).await;
    }

    /// Waits until everything queued was popped (true), or the consumer has left (false), which it may
    /// do with the last item. Cancel safe.
    pub(crate) async fn drained(&self) -> bool {
        self.watch(|state| match state.is_abandoned() {
            true => Some(false),
            false => state.is_empty().then_some(true),
        })
        .await
    }

    /// Bytes that the budget has room for.
    pub(crate) fn spare_bytes(&self) -> usize {
        self.update(|state, _| state.spare_bytes())
    }

    /// What was accepted and not settled, oldest first.
    pub(crate) fn unsettled(&self) -> Vec<Unsettled<T>> {
        self.update(|state, _| state.unsettled())
    }

    /// How many items were ever filled.
    pub(crate) fn accepted(&self) -> u64 {
        self.update(|state, _| state.accepted())
    }

    /// How many items were settled or popped.
    pub(crate) fn settled_items(&self) -> u64 {
        self.update(|state, _| state.settled())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.update(|state, _| state.is_closed())
    }

    pub(crate) fn failure(&self) -> Option<Error> {
        self.update(|state, _| state.failure().cloned())
    }

    pub(crate) fn stats(&self) -> QueueStats {
        self.update(|state, _| state.stats())
    }

    fn permit(self: &Arc<Self>, bytes: usize) -> Permit<T> {
        Permit { queue: Arc::clone(self), bytes, filled: false }
    }

    async fn watch<R>(&self, seen: impl Fn(&State<T>) -> Option<R>) -> R {
        let ready = |state: &mut State<T>| seen(state).map_or(Poll::Pending, Poll::Ready);
        self.wait(|state| &mut state.watchers, |state, _, _| ready(state)).await
    }

    /// Waits in `list` until `ready` is.
    async fn wait<R>(
        &self,
        list: fn(&mut State<T>) -> &mut WaitList,
        mut ready: impl FnMut(&mut State<T>, Option<Ticket>, &mut Aftermath<T>) -> Poll<R>,
    ) -> R {
        let mut place = Place { queue: self, list, ticket: None };
        poll_fn(|context| {
            self.update(|state, after| match ready(state, place.ticket, after) {
                Poll::Ready(output) => {
                    place.leave(state, after);
                    Poll::Ready(output)
                }
                Poll::Pending => {
                    after.retire(list(state).enrol(&mut place.ticket, context.waker()));
                    Poll::Pending
                }
            })
        })
        .await
    }

    fn update<R>(&self, change: impl FnOnce(&mut State<T>, &mut Aftermath<T>) -> R) -> R {
        let mut after = Aftermath::new();
        let result = change(&mut self.state.lock(), &mut after);
        after.run();
        result
    }
}

impl<T: Clone> Permit<T> {
    /// Puts the item at the end of the queue and gives its sequence number.
    ///
    /// Fails if the queue has failed or was closed since the permit was given; then the item was
    /// not accepted.
    pub(crate) fn fill(mut self, item: T) -> Result<u64> {
        self.filled = true;
        self.queue.update(|state, after| state.fill(item, self.bytes, after))
    }

    /// Gives back what is beyond `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let spare = self.bytes.saturating_sub(bytes);
        self.bytes -= spare;
        self.queue.update(|state, after| state.release(0, spare, after));
    }

    /// The reserved room.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<T: Clone> Drop for Permit<T> {
    fn drop(&mut self) {
        if !self.filled {
            self.queue.update(|state, after| state.release(1, self.bytes, after));
        }
    }
}

/// A place in one of the queue's lists, given up on drop.
struct Place<'a, T: Clone> {
    queue: &'a ByteQueue<T>,
    list: fn(&mut State<T>) -> &mut WaitList,
    ticket: Option<Ticket>,
}

impl<T: Clone> Place<'_, T> {
    fn leave(&mut self, state: &mut State<T>, after: &mut Aftermath<T>) {
        if let Some(ticket) = self.ticket.take() {
            let list = (self.list)(state);
            after.retire(list.leave(ticket));
            // The baton: the condition may hold for the next one as well.
            after.wake_first(list);
        }
    }
}

impl<T: Clone> Drop for Place<'_, T> {
    fn drop(&mut self) {
        if self.ticket.is_some() {
            self.queue.update(|state, after| self.leave(state, after));
        }
    }
}

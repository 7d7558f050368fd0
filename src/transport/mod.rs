//! [`Transport`]: how items get from one rank to the next.
//!
//! A transport is two plain futures, one a direction: [`Outgoing::run`] pulls items from an
//! [`Outbox`], [`Incoming::run`] fills an [`Inbox`]. Everything that differs between NCCL, TCP, the
//! store and the simulations is inside them, and nothing else is: budgets, order at the ends,
//! waiting, and what is told to the user after a failure are the same code for all.
//!
//! | transport | acknowledged | close visible | detects death | resumes |
//! |---|---|---|---|---|
//! | [`memory`] | yes | yes | yes, of an end that is dropped | no |
//! | [`tcp`] | yes | yes | yes, of a silent peer too | yes |
//! | [`nccl`] | yes | yes | yes, of a silent peer too | no |
//! | [`nccl`], vLLM's wire | no | no | no | no |
//! | [`store`], native | yes | yes | yes, of a silent peer too | yes, after an outage of the store |
//! | [`store`], vLLM's wire | no | no | no | no |
//!
//! # Writing one
//!
//! `Outgoing::run`:
//! 1. take items with [`Outbox::next`], hand them to the wire in order;
//! 2. [`settle`](Outbox::settle) what the peer acknowledges;
//! 3. when `next` gives `None`, tell the peer that the stream has ended, and return `Ok` once all
//!    is acknowledged and the peer's user has taken it, or the link is gone;
//! 4. when `next` (or [`Outbox::failed`]) gives an error, tell the peer and return it.
//!
//! `Incoming::run`:
//! 1. learn an item's size, [`reserve`](Inbox::reserve) room, only then allocate and receive;
//! 2. [`fill`](Permit::fill) the permit, acknowledge;
//! 3. at the peer's graceful end wait for [`Inbox::drained`], tell the peer, return `Ok`;
//! 4. when the user leaves ([`Inbox::closed`], or `reserve` gives [`Error::Closed`]), tell the peer
//!    how many items were [`taken`](Inbox::taken), and return `Ok`.

#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod memory;
#[cfg(not(loom))]
pub mod nccl;
mod ring;
#[cfg(not(loom))]
pub(crate) mod session;
#[cfg(not(loom))]
mod stagings;
#[cfg(not(loom))]
pub mod store;
#[cfg(not(loom))]
pub mod tcp;
#[cfg(not(loom))]
pub(crate) mod timing;

use std::future::Future;
use std::sync::Arc;

pub use self::ring::Ring;
use crate::error::{Error, Link, Result};
use crate::queue::{self, ByteQueue};
use crate::tensor::{Item, Tensor};

/// The sending direction of a transport.
pub trait Outgoing: Send + 'static {
    /// Between whom, for errors.
    fn link(&self) -> Link;

    /// Refuses what this wire can't carry, such as a dtype that its encoding does not have, before it
    /// is accepted: the caller gets the error, and the pipe goes on.
    fn admission(&self) -> fn(&Item) -> Result<()> {
        |_item| Ok(())
    }

    /// Moves items until `items` gives `None`, then tells the peer. Acknowledgements, heartbeats and
    /// reconnection live here, so a direction that never moves an item is still alive.
    ///
    /// # Errors
    /// Why the direction ended before every item was acknowledged.
    fn run(self, items: &Outbox) -> impl Future<Output = Result<()>> + Send;
}

/// The receiving direction of a transport.
pub trait Incoming: Send + 'static {
    /// Between whom, for errors.
    fn link(&self) -> Link;

    /// Receives items until the peer finishes or our user leaves. Keeps answering heartbeats while
    /// it waits for room.
    ///
    /// # Errors
    /// Why the direction ended before the peer finished.
    fn run(self, items: &Inbox) -> impl Future<Output = Result<()>> + Send;
}

/// A way to one peer and from another, not yet running.
pub trait Transport {
    /// The direction to the next rank.
    type Out: Outgoing;
    /// The direction from the previous rank.
    type In: Incoming;

    /// Which promises hold on this wire.
    fn guarantees(&self) -> Guarantees;

    /// The two directions.
    fn split(self) -> (Self::Out, Self::In);
}

/// What a wire can promise. The conformance suite tests exactly what is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guarantees {
    /// An item counts as delivered only once the peer pipe's inbox has it.
    pub acknowledged: bool,
    /// The peer can tell a graceful close from a failure.
    pub close_visible: bool,
    /// A peer that is gone is found out in bounded time; over a network also one that is frozen, and
    /// says nothing any more.
    pub detects_death: bool,
    /// A broken connection is resumed without loss or duplicate.
    pub resumes: bool,
}

/// What a transport may do with the queue of items to be sent.
#[derive(Debug)]
pub struct Outbox {
    pub(crate) queue: Arc<ByteQueue<Item>>,
    pub(crate) max_item_bytes: usize,
}

impl Outbox {
    /// The next item and its sequence number (counted from 0), or `None` once the user has closed
    /// and everything was given out. The item is a cheap clone; it stays in the outbox until it is
    /// settled. Cancel safe.
    ///
    /// # Errors
    /// The local failure of the pipe, such as its being dropped without a close: tell the peer.
    pub async fn next(&self) -> Result<Option<(u64, Item)>> {
        self.queue.next().await
    }

    /// The next item if there is one now; for filling a batch.
    #[must_use]
    pub fn try_next(&self) -> Option<(u64, Item)> {
        self.queue.try_next()
    }

    /// Every item below `upto` is in the peer pipe's inbox. Cumulative; frees their budget. Numbers
    /// beyond what [`next`](Self::next) gave are taken as the last given.
    pub fn settle(&self, upto: u64) {
        self.queue.settle(upto);
    }

    /// Something moved that is not an acknowledgement, such as a part of a payload or a step of
    /// connecting: a close that waits (see [`PipeConfig::close_timeout`](crate::PipeConfig)) goes on
    /// waiting.
    pub fn progress(&self) {
        self.queue.progress();
    }

    /// After a resume: the peer holds nothing at or above `to`. `next` gives out again from there.
    pub fn rewind(&self, to: u64) {
        self.queue.rewind(to);
    }

    /// Waits until the pipe fails locally and gives the reason; for a transport that is busy with
    /// the wire. Cancel safe.
    pub async fn failed(&self) -> Error {
        self.queue.failed().await
    }

    /// Whether the user has closed: no further item is accepted.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// How many items are settled.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.queue.settled_items()
    }

    /// How many items the user has put in so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.queue.accepted()
    }

    /// The largest payload in bytes that the pipe takes. Both ends must agree on it.
    #[must_use]
    pub fn max_item_bytes(&self) -> usize {
        self.max_item_bytes
    }
}

/// What a transport may do with the queue of received items.
#[derive(Debug)]
pub struct Inbox {
    pub(crate) queue: Arc<ByteQueue<Item>>,
    pub(crate) max_item_bytes: usize,
}

impl Inbox {
    /// Waits for room for an item with `bytes` of payload. Reserve before you allocate. Cancel safe.
    ///
    /// # Errors
    /// - [`Error::TooLarge`] above [`max_item_bytes`](Self::max_item_bytes): the peer broke the
    ///   agreement;
    /// - [`Error::Closed`] once the user has left.
    pub async fn reserve(&self, bytes: usize) -> Result<Permit> {
        check_item_bytes(bytes, self.max_item_bytes)?;
        self.queue.reserve(bytes).await.map(Permit)
    }

    /// Waits until the user has closed or dropped its receiving end. Cancel safe.
    pub async fn closed(&self) {
        self.queue.abandoned().await;
    }

    /// Waits until the user has taken every item (true) or has left (false), perhaps with the last
    /// item: [`taken`](Self::taken) says. Cancel safe.
    pub async fn drained(&self) -> bool {
        self.queue.drained().await
    }

    /// How many bytes more the window has room for.
    #[must_use]
    pub fn spare_bytes(&self) -> usize {
        self.queue.spare_bytes()
    }

    /// How many items the user took.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.queue.settled_items()
    }

    /// The largest payload in bytes that the pipe takes. Both ends must agree on it.
    #[must_use]
    pub fn max_item_bytes(&self) -> usize {
        self.max_item_bytes
    }
}

/// Room in an [`Inbox`]. Dropping it gives the room back.
#[derive(Debug)]
#[must_use = "dropping a permit gives its room back"]
pub struct Permit(queue::Permit<Item>);

impl Permit {
    /// Puts the item at the end of the inbox.
    ///
    /// # Errors
    /// [`Error::Closed`] if the user has left meanwhile: the item must not be acknowledged.
    pub fn fill(self, item: Item) -> Result<()> {
        self.0.fill(item).map(drop)
    }
}

/// Refuses payloads over the limit of a pipe.
pub(crate) fn check_item_bytes(bytes: usize, limit: usize) -> Result<()> {
    match bytes <= limit {
        true => Ok(()),
        false => Err(Error::TooLarge { bytes: bytes as u64, limit: limit as u64 }),
    }
}

/// The payload of an item in bytes; a `None` has none.
pub(crate) fn item_bytes(item: &Item) -> usize {
    item.as_ref().map_or(0, Tensor::byte_len)
}

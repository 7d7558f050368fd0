//! The sending half of a pipe.

use std::sync::Arc;
use std::time::Duration;

use super::stats::{BlockedTime, SendStats};
use crate::error::{Error, Link, Result};
use crate::queue::{self, ByteQueue};
use crate::sync::{block_on, timeout as within};
use crate::tensor::Item;
use crate::transport::{check_item_bytes, item_bytes};

/// The sending half of a [`Pipe`](super::Pipe). Clones share it.
///
/// An item that a send method returned `Ok` for is *accepted*: it is delivered, or it stands in
/// [`undelivered`](Self::undelivered).
#[derive(Clone, Debug)]
pub struct Sender {
    side: Arc<SendSide>,
}

#[derive(Debug)]
struct SendSide {
    queue: Arc<ByteQueue<Item>>,
    max_item_bytes: usize,
    admission: Admission,
    link: Link,
    blocked: BlockedTime,
}

/// See [`Outgoing::admission`](crate::transport::Outgoing::admission).
type Admission = fn(&Item) -> Result<()>;

impl Drop for SendSide {
    fn drop(&mut self) {
        if !self.queue.is_closed() {
            self.queue.fail(Error::Misuse("the sender was dropped without a close".into()));
        }
    }
}

/// An item that was accepted and not acknowledged.
#[derive(Clone, Debug, PartialEq)]
pub struct Undelivered {
    /// Its place in the stream, counted from 0, as the send method returned it.
    pub sequence: u64,
    /// The item.
    pub item: Item,
    /// It was handed to the wire: the peer may hold it, or not.
    pub in_doubt: bool,
}

impl Sender {
    pub(super) fn new(
        queue: Arc<ByteQueue<Item>>,
        max_item_bytes: usize,
        admission: Admission,
        link: Link,
    ) -> Self {
        let blocked = BlockedTime::default();
        Self { side: Arc::new(SendSide { queue, max_item_bytes, admission, link, blocked }) }
    }

    /// Waits for room in the budget and puts the item at the end of the stream. Gives its sequence
    /// number.
    ///
    /// # Cancel safety
    /// If the future is dropped before it is ready, the item was not accepted and is dropped with
    /// it; keep a clone (they are cheap) or use [`reserve`](Self::reserve). The place in line is
    /// lost.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; [`Error::Misuse`] for an item that the transport can't carry;
    /// [`Error::Closed`] after a local close; else why the stream ended. The item was not accepted.
    pub async fn send(&self, item: Item) -> Result<u64> {
        check_item_bytes(item_bytes(&item), self.side.max_item_bytes)?;
        (self.side.admission)(&item)?;
        let permit = self.reserve(item_bytes(&item)).await?;
        permit.send(item)
    }

    /// Sends if there is room now and nobody waits for it.
    ///
    /// # Errors
    /// [`Error::Full`], and as [`send`](Self::send).
    pub fn try_send(&self, item: Item) -> Result<u64> {
        let bytes = item_bytes(&item);
        check_item_bytes(bytes, self.side.max_item_bytes)?;
        (self.side.admission)(&item)?;
        self.side.queue.try_reserve(bytes)?.fill(item)
    }

    /// [`send`](Self::send) with a deadline; needs a tokio runtime with time.
    ///
    /// # Cancel safety
    /// As [`send`](Self::send).
    ///
    /// # Errors
    /// [`Error::Timeout`], and as [`send`](Self::send). A stream that has ended because its peer did not
    /// come in time gives a `Timeout` as well: then [`failure`](Self::failure) has it.
    pub async fn send_timeout(&self, item: Item, timeout: Duration) -> Result<u64> {
        let bytes = item_bytes(&item);
        match within(timeout, self.send(item)).await {
            Ok(sent) => sent,
            Err(_) => {
                let link = &self.side.link;
                Err(Error::timeout(format!("room for an item of {bytes} bytes ({link})"), timeout))
            }
        }
    }

    /// [`send`](Self::send) for a thread outside of any runtime. On a runtime's own thread it would
    /// block the tasks there, perhaps the driver.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn blocking_send(&self, item: Item) -> Result<u64> {
        block_on(self.send(item))
    }

    /// Waits for room for an item of at most `bytes` of payload. What follows can't wait and, short
    /// of the end of the stream, can't fail: for callers who can't afford to lose an item to
    /// cancellation, or who want room before they compute.
    ///
    /// # Cancel safety
    /// Nothing is lost but the place in line.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn reserve(&self, bytes: usize) -> Result<SendPermit> {
        check_item_bytes(bytes, self.side.max_item_bytes)?;
        let permit = match self.side.queue.try_reserve(bytes) {
            Err(Error::Full) => {
                let _timing = self.side.blocked.start();
                self.side.queue.reserve(bytes).await
            }
            decided => decided,
        };
        Ok(SendPermit { permit: permit?, admission: self.side.admission })
    }

    /// Waits until everything accepted so far is delivered: in the peer pipe's inbox, and
    /// acknowledged.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    ///
    /// # Errors
    /// Why the stream ended before that.
    pub async fn flush(&self) -> Result<()> {
        self.side.queue.settled().await
    }

    /// Ends the stream after what was accepted; returns at once. Further sends get
    /// [`Error::Closed`]. Follow it with [`close`](Self::close) to learn the outcome.
    pub fn finish(&self) {
        self.side.queue.close();
    }

    /// Ends the stream here and now; returns at once. What was not yet sent stays in
    /// [`undelivered`](Self::undelivered), and the peer is told `reason` with
    /// [`Error::PeerAborted`], after the items that it got.
    pub fn abort(&self, reason: &str) {
        self.side.queue.fail(Error::Misuse(format!("the stream was aborted: {reason}")));
    }

    /// [`finish`](Self::finish), then waits until the peer's user has taken everything, or at least
    /// until everything is acknowledged and the peer's last word is overdue or can't come.
    ///
    /// # Cancel safety
    /// The close goes on without the caller; calling again waits for the same end.
    ///
    /// # Errors
    /// Why not every item was delivered; [`undelivered`](Self::undelivered) has the items.
    /// [`Error::ReceiverClosed`] also if every item was acknowledged, but the peer's user left
    /// before it took them all.
    pub async fn close(&self) -> Result<()> {
        self.finish();
        match self.side.queue.ended().await {
            // It left, but not before it had taken everything: nothing was lost.
            Err(Error::ReceiverClosed { taken, .. }) if taken == self.side.queue.accepted() => Ok(()),
            ended => ended,
        }
    }

    /// Every item that was accepted and is not acknowledged, oldest first. After a failure that is
    /// what was not, or perhaps not, delivered; while the pipe runs it is a snapshot.
    #[must_use]
    pub fn undelivered(&self) -> Vec<Undelivered> {
        let unsettled = self.side.queue.unsettled().into_iter();
        unsettled
            .map(|queue::Unsettled { sequence, item, in_doubt }| Undelivered { sequence, item, in_doubt })
            .collect()
    }

    /// Why the stream failed, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.side.queue.failure()
    }

    /// A look at this half.
    #[must_use]
    pub fn stats(&self) -> SendStats {
        SendStats::new(&self.side.queue.stats(), self.side.blocked.total())
    }
}

/// Room for one item in a pipe's outbox, from [`Sender::reserve`]. Dropping it gives the room back.
#[derive(Debug)]
#[must_use = "dropping a permit gives its room back"]
pub struct SendPermit {
    permit: queue::Permit<Item>,
    admission: Admission,
}

impl SendPermit {
    /// Puts the item at the end of the stream and gives its sequence number. Room that the item
    /// does not need is given back.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the item is larger than what was reserved, or the transport can't carry it;
    /// [`Error::Closed`] or the failure if the stream has ended since. The item was not accepted.
    pub fn send(mut self, item: Item) -> Result<u64> {
        (self.admission)(&item)?;
        let bytes = item_bytes(&item);
        let reserved = self.permit.bytes();
        if bytes > reserved {
            return Err(Error::Misuse(format!("an item of {bytes} bytes on a permit for {reserved} bytes")));
        }
        if bytes < reserved {
            self.permit.shrink_to(bytes);
        }
        self.permit.fill(item)
    }
}

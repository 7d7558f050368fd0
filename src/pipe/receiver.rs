//! The receiving half of a pipe.

use std::sync::Arc;
use std::time::Duration;

use super::stats::{BlockedTime, ReceiveStats};
use crate::error::{Error, Link, Result};
use crate::queue::ByteQueue;
use crate::sync::{block_on, timeout as within};
use crate::tensor::Item;

/// The receiving half of a [`Pipe`](super::Pipe). Clones share it: each item goes to one of them.
#[derive(Clone, Debug)]
pub struct Receiver {
    side: Arc<ReceiveSide>,
}

#[derive(Debug)]
struct ReceiveSide {
    queue: Arc<ByteQueue<Item>>,
    link: Link,
    blocked: BlockedTime,
}

impl Drop for ReceiveSide {
    fn drop(&mut self) {
        self.queue.abandon();
    }
}

impl Receiver {
    pub(super) fn new(queue: Arc<ByteQueue<Item>>, link: Link) -> Self {
        Self { side: Arc::new(ReceiveSide { queue, link, blocked: BlockedTime::default() }) }
    }

    /// Waits for the next item: a tensor, or a `None` that the peer sent.
    ///
    /// An idle pipe waits as long as the peer is alive; for a deadline of your own see
    /// [`recv_timeout`](Self::recv_timeout).
    ///
    /// # Cancel safety
    /// No item is lost: it is taken in the same step in which the future becomes ready.
    ///
    /// # Errors
    /// After the last item that arrived: [`Error::Closed`] if the peer has closed gracefully, or
    /// this side has; else why the stream ended.
    pub async fn recv(&self) -> Result<Item> {
        match self.side.queue.try_pop() {
            Err(Error::Empty) => {
                let _timing = self.side.blocked.start();
                self.side.queue.pop().await
            }
            decided => decided,
        }
    }

    /// The next item, if it is here now.
    ///
    /// # Errors
    /// [`Error::Empty`], and as [`recv`](Self::recv).
    pub fn try_recv(&self) -> Result<Item> {
        self.side.queue.try_pop()
    }

    /// [`recv`](Self::recv) with a deadline; needs a tokio runtime with time.
    ///
    /// # Cancel safety
    /// As [`recv`](Self::recv).
    ///
    /// # Errors
    /// [`Error::Timeout`], after which the pipe is as good as before, and as [`recv`](Self::recv). A stream
    /// that has ended because its peer did not come in time gives a `Timeout` as well: then
    /// [`failure`](Self::failure) has it.
    pub async fn recv_timeout(&self, timeout: Duration) -> Result<Item> {
        match within(timeout, self.recv()).await {
            Ok(received) => received,
            Err(_) => Err(Error::timeout(format!("an item ({})", self.side.link), timeout)),
        }
    }

    /// [`recv`](Self::recv) for a thread outside of any runtime. On a runtime's own thread it would
    /// block the tasks there, perhaps the driver.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn blocking_recv(&self) -> Result<Item> {
        block_on(self.recv())
    }

    /// Drops what was not taken, refuses what still arrives, and waits until the peer was told (or
    /// can't be) how many items were taken. After the peer's own close, with everything taken, there
    /// is nothing to refuse.
    ///
    /// # Cancel safety
    /// The close goes on without the caller.
    pub async fn close(&self) {
        self.refuse();
        // How the other direction of the peer ended is no concern of one who has left.
        let _ = self.side.queue.ended().await;
    }

    /// Why the stream failed, if it did; items that arrived before can still be taken.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.side.queue.failure()
    }

    /// A look at this half.
    #[must_use]
    pub fn stats(&self) -> ReceiveStats {
        ReceiveStats::new(&self.side.queue.stats(), self.side.blocked.total())
    }

    pub(super) fn refuse(&self) {
        self.side.queue.abandon();
    }
}

//! Polls the two directions of a pipe, and sees to it that each ends in exactly one way.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::receiver::Receiver;
use super::sender::Sender;
use crate::config::PipeConfig;
use crate::error::{Error, Result};
use crate::queue::{ByteQueue, Limits};
use crate::sync::{sleep, timeout};
use crate::tensor::Item;
use crate::transport::{Inbox, Incoming, Outbox, Outgoing};

/// The futures that move a pipe's items; ready when both directions have ended.
///
/// Whoever owns the runtime polls it. Dropping it ends the pipe: both halves fail with
/// [`Error::Misuse`], and the peer sees the link go.
#[must_use = "a pipe does nothing unless its driver is polled"]
pub struct Driver {
    outgoing: Option<Direction>,
    incoming: Option<Direction>,
    incoming_first: bool,
}

pub(super) type Direction = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Driver {
    pub(super) fn new(outgoing: Option<Direction>, incoming: Option<Direction>) -> Self {
        Self { outgoing, incoming, incoming_first: false }
    }

    /// Hands the driver to the current tokio runtime, or to a thread of its own where there is none.
    /// A driver on a runtime ends with the runtime.
    ///
    /// # Errors
    /// [`Error::Io`] if the thread or its runtime can't be started.
    pub fn spawn(self) -> Result<()> {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn(self));
            return Ok(());
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::io("starting a runtime for a pipe's driver", error))?;
        std::thread::Builder::new()
            .name("kvpipe-driver".into())
            .spawn(move || runtime.block_on(self))
            .map_err(|error| Error::io("starting a thread for a pipe's driver", error))?;
        Ok(())
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Self { outgoing, incoming, incoming_first } = &mut *self;
        // In turns: a runtime gives a task only so much each time, and the first may take it all.
        *incoming_first = !*incoming_first;
        let order = if *incoming_first { [incoming, outgoing] } else { [outgoing, incoming] };
        for direction in order {
            // An ended direction is dropped at once, and with it its connection.
            if direction.as_mut().is_some_and(|running| running.as_mut().poll(context).is_ready()) {
                *direction = None;
            }
        }
        match self.outgoing.is_none() && self.incoming.is_none() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("sends", &self.outgoing.is_some())
            .field("receives", &self.incoming.is_some())
            .finish()
    }
}

pub(super) fn outgoing(transport: impl Outgoing, config: &PipeConfig) -> (Sender, Direction) {
    let queue = ByteQueue::new(Limits { bytes: config.budget_bytes, items: config.max_items });
    let max_item_bytes = config.max_item_bytes;
    let sender = Sender::new(Arc::clone(&queue), max_item_bytes, transport.admission(), transport.link());
    let outbox = Outbox { queue: Arc::clone(&queue), max_item_bytes };
    let end = End { queue, result: None };
    let patience = config.close_timeout;
    let direction = async move {
        let result = send_until_the_end(transport, &outbox, patience).await;
        let complete = outbox.queue.is_closed() && outbox.settled() == outbox.accepted();
        end.with(match result {
            Ok(()) if !complete => Err(Error::Bug("the transport ended before its outbox".into())),
            result => result,
        });
    };
    (sender, Box::pin(direction))
}

pub(super) fn incoming(transport: impl Incoming, config: &PipeConfig) -> (Receiver, Direction) {
    let queue = ByteQueue::new(Limits { bytes: config.window_bytes, items: config.max_items });
    let receiver = Receiver::new(Arc::clone(&queue), transport.link());
    let inbox = Inbox { queue: Arc::clone(&queue), max_item_bytes: config.max_item_bytes };
    let end = End { queue, result: None };
    let patience = config.close_timeout;
    let direction = async move {
        let result = receive_until_the_end(transport, &inbox, patience).await;
        if result.is_ok() {
            inbox.queue.close();
        }
        end.with(result);
    };
    (receiver, Box::pin(direction))
}

/// Runs the transport; once the user has closed or dropped the pipe, no longer than `patience`
/// without progress.
async fn send_until_the_end(transport: impl Outgoing, outbox: &Outbox, patience: Duration) -> Result<()> {
    let peer = transport.link().peer_rank;
    let mut running = std::pin::pin!(transport.run(outbox));
    tokio::select! {
        biased;
        result = &mut running => return result,
        () = stalled_close(&outbox.queue, patience) => {}
    }
    if let Some(failure) = outbox.queue.failure() {
        return Err(failure);
    }
    let missing = outbox.accepted() - outbox.settled();
    if missing == 0 {
        // Only the peer's last word is overdue; what counts is that every item was acknowledged.
        return Ok(());
    }
    let items = if missing == 1 { "item" } else { "items" };
    let error = Error::timeout(format!("rank {peer} to acknowledge the last {missing} {items}"), patience);
    outbox.queue.fail(error.clone());
    // The transport tells the peer, if it still can.
    let _ = timeout(GOODBYE, running).await;
    Err(error)
}

/// Ready when nothing has moved for `patience` since the user closed, or since the pipe failed.
async fn stalled_close(queue: &ByteQueue<Item>, patience: Duration) {
    queue.closed().await;
    loop {
        let progress = queue.progress_beyond(queue.progress_made());
        match timeout(patience, progress).await {
            Ok(Ok(())) => {}
            Ok(Err(_failed)) => return sleep(patience).await,
            Err(_) => return,
        }
    }
}

/// Runs the transport; once the user has left, no longer than `patience`.
async fn receive_until_the_end(transport: impl Incoming, inbox: &Inbox, patience: Duration) -> Result<()> {
    let left = async {
        inbox.closed().await;
        sleep(patience).await;
    };
    tokio::select! {
        biased;
        result = transport.run(inbox) => result,
        () = left => Ok(()),
    }
}

/// Time that a transport gets to tell the peer of a local failure.
const GOODBYE: Duration = Duration::from_secs(1);

/// Ends a queue with a result, or with an error if the driver is dropped before there is one.
struct End {
    queue: Arc<ByteQueue<Item>>,
    result: Option<Result<()>>,
}

impl End {
    fn with(mut self, result: Result<()>) {
        self.result = Some(result);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let dropped = || {
            Err(match std::thread::panicking() {
                true => Error::Bug("the transport panicked".into()),
                false => Error::Misuse("the pipe's driver was dropped before the pipe had ended".into()),
            })
        };
        self.queue.end(self.result.take().unwrap_or_else(dropped));
    }
}

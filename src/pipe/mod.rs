//! [`Pipe`]: what a user holds.
//!
//! ```text
//!  user ─send─▶ Outbox ─▶ Outgoing::run ~~~wire~~~ Incoming::run ─▶ Inbox ─recv─▶ user
//!              ByteQueue                Transport                   ByteQueue
//! ```
//!
//! A pipe has one or two directions, which never wait for each other. Each is a queue that the user
//! and the transport share, and a future that moves items between that queue and the wire. The
//! futures together are the pipe's [`Driver`]; somebody has to poll it: [`Pipe::spawn`] finds a
//! runtime or starts a thread, [`Pipe::new`] leaves it to the caller.
//!
//! # How a direction ends
//!
//! | | the sender sees | the receiver sees, after the items that arrived |
//! |---|---|---|
//! | [`Sender::close`], all taken | `Ok` | [`Error::Closed`] |
//! | [`Receiver::close`] before the end | [`Error::ReceiverClosed`] with the number of items taken | [`Error::Closed`] |
//! | the sender is dropped without a close, or [`Sender::abort`] | what it was told | [`Error::PeerAborted`] |
//! | the peer dies, the wire breaks | [`Error::PeerGone`]; see [`Sender::undelivered`] | [`Error::PeerGone`] |
//! | the driver is dropped | [`Error::Misuse`] | [`Error::Misuse`] |
//!
//! # Example
//!
//! ```
//! # fn main() -> kvpipe::Result<()> {
//! use kvpipe::{Pipe, PipeConfig, Tensor, transport::memory};
//!
//! let (left, right) = memory::pair();
//! let prefill = Pipe::spawn(left, PipeConfig::default())?;
//! let decode = Pipe::spawn(right, PipeConfig::default())?;
//!
//! prefill.blocking_send(Some(Tensor::from_slice(&[2, 3], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0])?))?;
//! prefill.blocking_send(None)?;
//!
//! assert_eq!(decode.blocking_recv()?.unwrap().shape().dims(), [2, 3]);
//! assert_eq!(decode.blocking_recv()?, None);
//! prefill.blocking_close()
//! # }
//! ```

mod driver;
mod receiver;
mod sender;
mod stats;

use std::time::Duration;

pub use self::driver::Driver;
pub use self::receiver::Receiver;
pub use self::sender::{SendPermit, Sender, Undelivered};
pub use self::stats::{ReceiveStats, SendStats, Stats};
use crate::config::PipeConfig;
use crate::error::{Error, Result};
use crate::sync::block_on;
use crate::tensor::Item;
use crate::transport::{Incoming, Outgoing, Transport};

/// A first-in first-out pipe of `Option<Tensor>`. See the [module](self).
///
/// Any number of threads and tasks may use one pipe, or clones of it. The last clone (with its
/// [`Sender`]s and [`Receiver`]s) that is dropped without [`close`](Self::close) tells the peer that
/// the stream was cut off, and returns at once.
#[derive(Clone, Debug)]
pub struct Pipe {
    sender: Option<Sender>,
    receiver: Option<Receiver>,
}

impl Pipe {
    /// A pipe with both directions, and the driver that the caller has to poll.
    pub fn new(outgoing: impl Outgoing, incoming: impl Incoming, config: PipeConfig) -> (Self, Driver) {
        let (sender, send_driver) = driver::outgoing(outgoing, &config);
        let (receiver, receive_driver) = driver::incoming(incoming, &config);
        let pipe = Self { sender: Some(sender), receiver: Some(receiver) };
        (pipe, Driver::new(Some(send_driver), Some(receive_driver)))
    }

    /// A pipe that only sends.
    pub fn send_only(outgoing: impl Outgoing, config: PipeConfig) -> (Self, Driver) {
        let (sender, driver) = driver::outgoing(outgoing, &config);
        (Self { sender: Some(sender), receiver: None }, Driver::new(Some(driver), None))
    }

    /// A pipe that only receives.
    pub fn receive_only(incoming: impl Incoming, config: PipeConfig) -> (Self, Driver) {
        let (receiver, driver) = driver::incoming(incoming, &config);
        (Self { sender: None, receiver: Some(receiver) }, Driver::new(None, Some(driver)))
    }

    /// A pipe with both directions, driven by the current tokio runtime, or by a thread of its own
    /// where there is none.
    ///
    /// # Errors
    /// [`Error::Io`] if that thread can't be started.
    pub fn spawn<T: Transport>(transport: T, config: PipeConfig) -> Result<Self> {
        let (outgoing, incoming) = transport.split();
        let (pipe, driver) = Self::new(outgoing, incoming, config);
        driver.spawn()?;
        Ok(pipe)
    }

    /// The sending half.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the pipe only receives.
    pub fn sender(&self) -> Result<&Sender> {
        self.sender.as_ref().ok_or_else(|| Error::Misuse("this pipe only receives".into()))
    }

    /// The receiving half.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the pipe only sends.
    pub fn receiver(&self) -> Result<&Receiver> {
        self.receiver.as_ref().ok_or_else(|| Error::Misuse("this pipe only sends".into()))
    }

    /// See [`Sender::send`].
    ///
    /// # Errors
    /// As there.
    pub async fn send(&self, item: Item) -> Result<u64> {
        self.sender()?.send(item).await
    }

    /// See [`Sender::try_send`].
    ///
    /// # Errors
    /// As there.
    pub fn try_send(&self, item: Item) -> Result<u64> {
        self.sender()?.try_send(item)
    }

    /// See [`Sender::send_timeout`].
    ///
    /// # Errors
    /// As there.
    pub async fn send_timeout(&self, item: Item, timeout: Duration) -> Result<u64> {
        self.sender()?.send_timeout(item, timeout).await
    }

    /// See [`Sender::blocking_send`].
    ///
    /// # Errors
    /// As there.
    pub fn blocking_send(&self, item: Item) -> Result<u64> {
        self.sender()?.blocking_send(item)
    }

    /// See [`Sender::reserve`].
    ///
    /// # Errors
    /// As there.
    pub async fn reserve(&self, bytes: usize) -> Result<SendPermit> {
        self.sender()?.reserve(bytes).await
    }

    /// See [`Sender::flush`].
    ///
    /// # Errors
    /// As there.
    pub async fn flush(&self) -> Result<()> {
        self.sender()?.flush().await
    }

    /// See [`Sender::undelivered`]. A pipe that only receives has none.
    #[must_use]
    pub fn undelivered(&self) -> Vec<Undelivered> {
        self.sender.as_ref().map(Sender::undelivered).unwrap_or_default()
    }

    /// See [`Receiver::recv`].
    ///
    /// # Errors
    /// As there.
    pub async fn recv(&self) -> Result<Item> {
        self.receiver()?.recv().await
    }

    /// See [`Receiver::try_recv`].
    ///
    /// # Errors
    /// As there.
    pub fn try_recv(&self) -> Result<Item> {
        self.receiver()?.try_recv()
    }

    /// See [`Receiver::recv_timeout`].
    ///
    /// # Errors
    /// As there.
    pub async fn recv_timeout(&self, timeout: Duration) -> Result<Item> {
        self.receiver()?.recv_timeout(timeout).await
    }

    /// See [`Receiver::blocking_recv`].
    ///
    /// # Errors
    /// As there.
    pub fn blocking_recv(&self) -> Result<Item> {
        self.receiver()?.blocking_recv()
    }

    /// Closes both directions and waits until they have ended: refuses what still arrives (the peer
    /// is told [`Error::ReceiverClosed`]), and at the same time sends the rest, tells the peer that
    /// it was the rest, and waits for it to be taken.
    ///
    /// To end only our direction and go on receiving, use [`Sender::finish`]. Refusing comes first
    /// and not last, because two ends that close at once with full inboxes would otherwise wait for
    /// each other.
    ///
    /// It succeeds once every item is acknowledged, even if the peer's last word is lost, and never
    /// waits longer than [`PipeConfig::close_timeout`] without progress.
    ///
    /// # Cancel safety
    /// The close goes on without the caller; calling again waits for the same end.
    ///
    /// # Errors
    /// Why not every item was delivered: [`Error::ReceiverClosed`], [`Error::PeerGone`],
    /// [`Error::Timeout`] and the like. [`undelivered`](Self::undelivered) has the items.
    pub async fn close(&self) -> Result<()> {
        if let Some(receiver) = &self.receiver {
            receiver.refuse();
        }
        let sent = match &self.sender {
            Some(sender) => sender.close().await,
            None => Ok(()),
        };
        if let Some(receiver) = &self.receiver {
            receiver.close().await;
        }
        sent
    }

    /// [`close`](Self::close) for a thread outside of any runtime.
    ///
    /// # Errors
    /// As there.
    pub fn blocking_close(&self) -> Result<()> {
        block_on(self.close())
    }

    /// A look at both directions.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            send: self.sender.as_ref().map(Sender::stats),
            receive: self.receiver.as_ref().map(Receiver::stats),
        }
    }
}

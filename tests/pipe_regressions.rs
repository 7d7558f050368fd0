//! Faults that the queue, the driver and the memory transport once had.

#![allow(missing_docs, reason = "a test binary")]

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use kvpipe::transport::memory::{self, Fault, Gate, Script};
use kvpipe::transport::{Outbox, Outgoing};
use kvpipe::{Error, Link, Pipe, PipeConfig, Result};

/// A wait that a healthy run never comes near.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_peer_that_never_acknowledges_does_not_finish_either() {
    let (outgoing, incoming) = memory::edge(Script::new().at(0, Fault::NeverAcknowledge));
    let hasty = PipeConfig { close_timeout: Duration::from_millis(200), ..PipeConfig::default() };
    let (sender, driver) = Pipe::send_only(outgoing, hasty);
    driver.spawn().unwrap();
    let (receiver, driver) = Pipe::receive_only(incoming, PipeConfig::default());
    driver.spawn().unwrap();
    sender.send(None).await.unwrap();
    let (closed, received) = tokio::join!(sender.close(), receiver.recv());
    received.unwrap();
    assert!(matches!(closed, Err(Error::Timeout { .. })), "{closed:?}");
    assert_eq!(sender.undelivered().len(), 1);
}

#[tokio::test]
async fn one_gate_holds_back_two_edges_and_lets_both_go() {
    let gate = Gate::new();
    let mut edges = Vec::new();
    for _ in 0..2 {
        let (outgoing, incoming) = memory::edge(Script::new().at(0, Fault::Stall(gate.clone())));
        let (sender, driver) = Pipe::send_only(outgoing, PipeConfig::default());
        driver.spawn().unwrap();
        let (receiver, driver) = Pipe::receive_only(incoming, PipeConfig::default());
        driver.spawn().unwrap();
        sender.send(None).await.unwrap();
        edges.push((sender, receiver));
    }
    // On one thread, with no time involved: this often, and everybody has come to a halt.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    gate.open();
    for (_, receiver) in &edges {
        receiver.recv_timeout(PATIENCE).await.unwrap();
    }
}

/// A waker whose task, dropped with the last reference, owns a pipe and looks at it.
struct Looks(Pipe, Arc<AtomicBool>);

impl Wake for Looks {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Looks {
    fn drop(&mut self) {
        let _ = self.0.stats();
        self.1.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_waker_that_is_replaced_is_dropped_outside_of_the_lock() {
    let (done, finished) = mpsc::channel();
    #[allow(clippy::disallowed_methods, reason = "a thread that may deadlock must be no test's own")]
    std::thread::spawn(move || {
        let (_, incoming) = memory::edge(Script::new());
        let (pipe, _driver) = Pipe::receive_only(incoming, PipeConfig::default());
        let dropped = Arc::new(AtomicBool::new(false));
        let mut receiving = pin!(pipe.recv());
        let first = Waker::from(Arc::new(Looks(pipe.clone(), Arc::clone(&dropped))));
        assert!(receiving.as_mut().poll(&mut Context::from_waker(&first)).is_pending());
        drop(first);
        // The task has moved: it is polled with another waker, and the first one is forgotten.
        assert!(receiving.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(dropped.load(Ordering::Relaxed));
        done.send(()).unwrap();
    });
    finished.recv_timeout(PATIENCE).expect("deadlock");
}

struct Overeager;

impl Outgoing for Overeager {
    fn link(&self) -> Link {
        Link::new(0, 1)
    }

    async fn run(self, items: &Outbox) -> Result<()> {
        items.next().await?;
        // "Numbers beyond what `next` gave are taken as the last given."
        items.settle(7);
        items.next().await.map(drop)
    }
}

#[tokio::test]
async fn settling_more_than_was_given_settles_what_was_given() {
    let (pipe, driver) = Pipe::send_only(Overeager, PipeConfig::default());
    driver.spawn().unwrap();
    pipe.send(None).await.unwrap();
    pipe.close().await.unwrap();
}

/// An outgoing direction that always has something to do, as one with a fast peer has.
struct Busy;

impl Outgoing for Busy {
    fn link(&self) -> Link {
        Link::new(0, 1)
    }

    async fn run(self, _: &Outbox) -> Result<()> {
        loop {
            tokio::task::coop::consume_budget().await;
        }
    }
}

#[tokio::test]
async fn a_busy_direction_leaves_the_other_its_share_of_the_runtime() {
    use kvpipe::net::TokioNet;
    use kvpipe::store::MemoryStore;
    use kvpipe::transport::Ring;
    use kvpipe::transport::tcp::{TcpConfig, TcpIncoming, TcpOutgoing};

    let store = MemoryStore::new();
    let address = "127.0.0.1:0".parse().unwrap();
    let config = TcpConfig { connect_timeout: PATIENCE, ..TcpConfig::default() };
    let ring = |rank| Ring::new(rank, 2).unwrap();
    let incoming = TcpIncoming::bind(TokioNet, &store, ring(1), address, config.clone()).await.unwrap();
    let (busy, driver) = Pipe::new(Busy, incoming, PipeConfig::default());
    let driver = tokio::spawn(driver);
    let outgoing = TcpOutgoing::new(TokioNet, store, ring(0), config);
    let (sender, sending) = Pipe::send_only(outgoing, PipeConfig::default());
    sending.spawn().unwrap();
    sender.send(None).await.unwrap();
    let received = busy.recv_timeout(PATIENCE).await;
    driver.abort();
    assert_eq!(received.unwrap(), None);
}

struct Panics;

impl Outgoing for Panics {
    fn link(&self) -> Link {
        Link::new(0, 1)
    }

    async fn run(self, _: &Outbox) -> Result<()> {
        panic!("as a broken transport does")
    }
}

#[tokio::test]
async fn a_transport_that_panics_is_told_from_a_driver_that_was_dropped() {
    let (pipe, driver) = Pipe::send_only(Panics, PipeConfig::default());
    let _panicked = tokio::spawn(driver).await.unwrap_err();
    let closed = pipe.close().await;
    assert!(matches!(closed, Err(Error::Bug(_))), "{closed:?}");
}

/// An outgoing direction that takes itself for done.
struct Quits;

impl Outgoing for Quits {
    fn link(&self) -> Link {
        Link::new(0, 1)
    }

    async fn run(self, _: &Outbox) -> Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_transport_that_ends_before_its_user_has_closed_is_a_bug() {
    let (pipe, driver) = Pipe::send_only(Quits, PipeConfig::default());
    assert_eq!(format!("{driver:?}"), "Driver { sends: true, receives: false }");
    // There is nothing that it has not sent.
    driver.await;
    let sent = pipe.send(None).await;
    assert!(matches!(sent, Err(Error::Bug(_))), "{sent:?}");
}

//! A slow consumer is not a dead one, an idle pipe is not a dead pipe, and a frozen peer is dead.
//!
//! The passing of time is the scenario here, so these tests sleep; nothing else in the suite does. A
//! wire without a clock has nothing to be impatient with, and skips them by name.

#![allow(missing_docs, reason = "a scenario is named after what must hold")]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use kvpipe::transport::Transport;
use kvpipe::{Error, Pipe, PipeConfig};

use super::support::{drain_numbers, edge, numbered, peek, room, saturate};
use super::{AnyBackend, HEARTBEAT};

/// How many heartbeat limits go by.
const LIMITS: u32 = 6;

pub async fn a_slow_consumer_far_past_the_heartbeat_limit_is_not_dead(backend: AnyBackend) {
    let Some(backend) = impatient(backend) else { return };
    let config = room(4_000);
    let (sender, receiver) = edge(&backend, config.clone()).await;
    let accepted = saturate(&sender, &receiver, &config, 1_000).await;
    let mut last = pin!(sender.send(numbered(accepted, 1_000)));
    assert!(peek(&mut last).await.is_none(), "both ends are full");
    tokio::time::sleep(HEARTBEAT * LIMITS).await;
    assert!(peek(&mut last).await.is_none(), "it waits, unharmed");

    let sending = async {
        assert_eq!(last.await.unwrap(), accepted);
        sender.close().await.unwrap();
    };
    let ((), (received, end)) = tokio::join!(sending, drain_numbers(&receiver));
    assert_eq!(received, (0..=accepted).collect::<Vec<_>>());
    assert!(end.is_closed(), "{end}");
}

pub async fn a_consumer_slow_in_the_middle_of_a_large_item_is_not_dead(backend: AnyBackend) {
    const LARGE: usize = 32 << 20;
    let Some(backend) = impatient(backend) else { return };
    let (sender, receiver) = edge(&backend, room(1_000)).await;
    // Far more than any socket holds waits behind an item that nobody takes.
    sender.send(numbered(0, 1_000)).await.unwrap();
    sender.flush().await.unwrap();
    sender.send(numbered(1, LARGE)).await.unwrap();
    tokio::time::sleep(HEARTBEAT * LIMITS).await;
    sender.sender().unwrap().finish();
    let (received, end) = drain_numbers(&receiver).await;
    assert_eq!(received, [0, 1]);
    assert!(end.is_closed(), "{end}");
}

pub async fn a_long_idle_pipe_still_takes_a_burst(backend: AnyBackend) {
    const BURST: u64 = 500;
    let Some(backend) = impatient(backend) else { return };
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    sender.send(numbered(0, 8)).await.unwrap();
    sender.flush().await.unwrap();
    tokio::time::sleep(HEARTBEAT * LIMITS).await;
    for sequence in 1..BURST {
        sender.send(numbered(sequence, 1_000)).await.unwrap();
    }
    let (closed, (received, end)) = tokio::join!(sender.close(), drain_numbers(&receiver));
    closed.unwrap();
    assert_eq!(received, (0..BURST).collect::<Vec<_>>());
    assert!(end.is_closed(), "{end}");
}

/// Frozen, not ended: its sockets stay open, as those of a stopped process do.
pub async fn a_frozen_peer_is_found_out_by_both_directions(backend: AnyBackend) {
    let Some(backend) = impatient(backend) else { return };
    let (left, right) = backend.pair().await;
    let left = Pipe::spawn(left, PipeConfig::default()).unwrap();
    let (outgoing, incoming) = right.split();
    let (right, driver) = Pipe::new(outgoing, incoming, PipeConfig::default());
    let frozen = Arc::new(AtomicBool::new(false));
    let _driver = tokio::spawn(freezable(driver, Arc::clone(&frozen)));
    for (from, to) in [(&left, &right), (&right, &left)] {
        from.send(numbered(0, 8)).await.unwrap();
        from.flush().await.unwrap();
        to.recv().await.unwrap();
    }

    frozen.store(true, Ordering::Relaxed);
    left.send(numbered(1, 8)).await.unwrap();
    let (received, flushed) = tokio::join!(left.recv(), left.flush());
    assert!(matches!(received, Err(Error::PeerGone { .. })), "{received:?}");
    assert!(matches!(flushed, Err(Error::PeerGone { .. })), "{flushed:?}");
    let undelivered: Vec<_> = left.undelivered().iter().map(|item| (item.sequence, item.in_doubt)).collect();
    assert_eq!(undelivered, [(1, true)]);
}

/// Polls `future` until it is frozen; from then on it stays as it is.
async fn freezable(future: impl Future<Output = ()>, frozen: Arc<AtomicBool>) {
    let mut future = pin!(future);
    std::future::poll_fn(|context| match frozen.load(Ordering::Relaxed) {
        true => Poll::Pending,
        false => future.as_mut().poll(context),
    })
    .await;
}

fn impatient(backend: AnyBackend) -> Option<AnyBackend> {
    let impatient = backend.impatient();
    if impatient.is_none() {
        println!("skipped: the wire has no clock");
    }
    impatient
}

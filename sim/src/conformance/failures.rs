//! A peer dies, or our own driver does: nothing hangs, and every item is accounted for.

#![allow(missing_docs, reason = "a scenario is named after what must hold")]

use std::pin::pin;

use kvpipe::transport::Transport;
use kvpipe::{Error, Pipe, PipeConfig};

use super::AnyBackend;
use super::support::{
    assert_accounted, drain_numbers, eventually, is_gone, kill, numbered, peek, receiving, room, saturate,
    sending,
};

pub async fn a_dead_receiver_leaves_every_item_accounted_for(backend: AnyBackend) {
    let config = room(4_000);
    let (outgoing, incoming) = backend.edge().await;
    let (sender, _) = sending(outgoing, config.clone());
    let (receiver, driver) = receiving(incoming, config.clone());
    let accepted = saturate(&sender, &receiver, &config, 1_000).await;
    kill(driver).await;

    let closed = sender.close().await;
    assert!(is_gone(&closed), "{closed:?}");
    // What was acknowledged is still there to be taken, and only then comes the end.
    let (received, end) = drain_numbers(&receiver).await;
    assert_eq!(received, [0, 1, 2, 3]);
    assert!(matches!(end, Error::Misuse(_)), "{end}");
    assert_accounted(&sender, accepted, received.len() as u64);
    assert_eq!(sender.undelivered()[0].sequence, 4);
}

pub async fn a_dead_sender_is_seen_after_the_items_that_arrived(backend: AnyBackend) {
    let (outgoing, incoming) = backend.edge().await;
    let (sender, driver) = sending(outgoing, PipeConfig::default());
    let (receiver, _) = receiving(incoming, PipeConfig::default());
    for sequence in 0..3 {
        sender.send(numbered(sequence, 1_000)).await.unwrap();
    }
    sender.flush().await.unwrap();
    kill(driver).await;
    // The death is known before anything is taken.
    eventually(|| receiver.receiver().unwrap().failure().is_some()).await;
    let (received, end) = drain_numbers(&receiver).await;
    assert_eq!(received, [0, 1, 2]);
    assert!(matches!(end, Error::PeerGone { .. }), "{end}");
}

pub async fn a_peers_death_wakes_whoever_waits(backend: AnyBackend) {
    let config = room(4_000);
    let (left, right) = backend.pair().await;
    let left = Pipe::spawn(left, config.clone()).unwrap();
    let (outgoing, incoming) = right.split();
    let (right, driver) = Pipe::new(outgoing, incoming, config.clone());
    let driver = tokio::spawn(driver);
    let accepted = saturate(&left, &right, &config, 1_000).await;

    let mut sent = pin!(left.send(numbered(accepted, 1_000)));
    let mut received = pin!(left.recv());
    let mut flushed = pin!(left.flush());
    assert!(peek(&mut sent).await.is_none(), "there is no room");
    assert!(peek(&mut received).await.is_none(), "nothing was sent");
    assert!(peek(&mut flushed).await.is_none(), "half of it is not delivered");
    kill(driver).await;
    let (sent, received, flushed) = tokio::join!(sent, received, flushed);
    assert!(is_gone(&sent), "{sent:?}");
    assert!(is_gone(&received), "{received:?}");
    assert!(is_gone(&flushed), "{flushed:?}");
}

pub async fn a_failure_is_the_same_for_every_later_call(backend: AnyBackend) {
    let (outgoing, incoming) = backend.edge().await;
    let (sender, _) = sending(outgoing, PipeConfig::default());
    let (receiver, driver) = receiving(incoming, PipeConfig::default());
    sender.send(numbered(0, 8)).await.unwrap();
    sender.flush().await.unwrap();
    kill(driver).await;
    drop(receiver);
    eventually(|| sender.sender().unwrap().failure().is_some()).await;

    let failure = sender.sender().unwrap().failure().unwrap().to_string();
    assert_eq!(sender.send(None).await.unwrap_err().to_string(), failure);
    assert_eq!(sender.try_send(None).unwrap_err().to_string(), failure);
    assert_eq!(sender.reserve(1).await.unwrap_err().to_string(), failure);
    assert_eq!(sender.close().await.unwrap_err().to_string(), failure);
    assert_eq!(sender.close().await.unwrap_err().to_string(), failure);
    // Everything accepted had been delivered before.
    sender.flush().await.unwrap();
    assert!(sender.undelivered().is_empty());
}

pub async fn a_dropped_driver_ends_its_own_pipe_and_loses_no_item_silently(backend: AnyBackend) {
    let config = room(4_000);
    let (outgoing, incoming) = backend.edge().await;
    let (sender, driver) = sending(outgoing, config.clone());
    let (receiver, _) = receiving(incoming, config.clone());
    let accepted = saturate(&sender, &receiver, &config, 1_000).await;
    kill(driver).await;

    let sent = sender.send(numbered(99, 8)).await.unwrap_err();
    assert!(matches!(sent, Error::Misuse(_)), "{sent}");
    let closed = sender.close().await.unwrap_err();
    assert!(matches!(closed, Error::Misuse(_)), "{closed}");
    let (received, end) = drain_numbers(&receiver).await;
    assert!(matches!(end, Error::PeerGone { .. }), "{end}");
    assert_eq!(received, (0..received.len() as u64).collect::<Vec<_>>());
    assert_accounted(&sender, accepted, received.len() as u64);
}

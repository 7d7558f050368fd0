//! Memory is bounded, waiting is fair, and giving up loses nothing.

#![allow(missing_docs, reason = "a scenario is named after what must hold")]

use std::pin::pin;
use std::time::Duration;

use kvpipe::{Error, PipeConfig};

use super::AnyBackend;
use super::support::{
    breathe, drain_numbers, edge, eventually, number, numbered, peek, poll_once, room, saturate,
};

/// Long enough to be a wait, short enough to be given up often.
const MOMENT: Duration = Duration::from_millis(10);

pub async fn held_bytes_never_exceed_the_budget_at_either_end(backend: AnyBackend) {
    const BUDGET: usize = 10_000;
    let config = PipeConfig { budget_bytes: BUDGET, window_bytes: 7_000, ..PipeConfig::default() };
    let (sender, receiver) = edge(&backend, config).await;
    let senders: Vec<_> = (0..4_usize)
        .map(|task| {
            let sender = sender.clone();
            tokio::spawn(async move {
                for item in 0..100 {
                    let bytes = 8 + (item * 997 + task * 331) % 6_000;
                    sender.send(numbered(0, bytes)).await.unwrap();
                }
            })
        })
        .collect();
    for _ in 0..400 {
        receiver.recv().await.unwrap();
    }
    for sender in senders {
        sender.await.unwrap();
    }
    let (sent, received) = (sender.stats().send.unwrap(), receiver.stats().receive.unwrap());
    assert!((BUDGET / 2..=BUDGET).contains(&sent.held_bytes_max), "{}", sent.held_bytes_max);
    assert!((3_500..=7_000).contains(&received.held_bytes_max), "{}", received.held_bytes_max);
}

pub async fn held_items_never_exceed_their_limit(backend: AnyBackend) {
    let config = PipeConfig { max_items: 3, ..PipeConfig::default() };
    let (sender, receiver) = edge(&backend, config).await;
    // Three in the inbox, three in the outbox, whatever their size.
    for _ in 0..6 {
        sender.send(None).await.unwrap();
    }
    eventually(|| receiver.stats().receive.unwrap().queued_items == 3).await;
    assert!(matches!(sender.try_send(None), Err(Error::Full)));
    receiver.recv().await.unwrap();
    sender.send(None).await.unwrap();
}

pub async fn a_sender_waits_for_a_receiver_that_does_not_take(backend: AnyBackend) {
    let config = room(4_000);
    let (sender, receiver) = edge(&backend, config.clone()).await;
    let accepted = saturate(&sender, &receiver, &config, 1_000).await;
    assert_eq!(accepted, 8);

    let mut waiting = pin!(sender.send(numbered(accepted, 1_000)));
    assert!(peek(&mut waiting).await.is_none(), "both ends are full");
    assert_eq!(number(&receiver.recv().await.unwrap()), 0);
    assert_eq!(waiting.await.unwrap(), accepted);
}

pub async fn try_send_is_full_without_room_and_takes_again_with_it(backend: AnyBackend) {
    let config = room(4_000);
    let (sender, receiver) = edge(&backend, config.clone()).await;
    let accepted = saturate(&sender, &receiver, &config, 1_000).await;
    let full = sender.try_send(numbered(99, 1_000)).unwrap_err();
    assert!(matches!(full, Error::Full), "{full}");
    // What has no payload needs none of the budget.
    assert_eq!(sender.try_send(None).unwrap(), accepted);

    receiver.recv().await.unwrap();
    eventually(|| sender.stats().send.unwrap().held_bytes < 4_000).await;
    assert_eq!(sender.try_send(numbered(99, 1_000)).unwrap(), accepted + 1);
}

pub async fn send_timeout_gives_up_and_loses_nothing(backend: AnyBackend) {
    let config = room(4_000);
    let (sender, receiver) = edge(&backend, config.clone()).await;
    let accepted = saturate(&sender, &receiver, &config, 1_000).await;
    let late = sender.send_timeout(numbered(99, 1_000), MOMENT).await.unwrap_err();
    assert!(matches!(late, Error::Timeout { after: MOMENT, .. }), "{late}");

    assert_eq!(number(&receiver.recv().await.unwrap()), 0);
    assert_eq!(sender.send(numbered(accepted, 1_000)).await.unwrap(), accepted);
    sender.sender().unwrap().finish();
    let (rest, end) = drain_numbers(&receiver).await;
    assert_eq!(rest, (1..=accepted).collect::<Vec<_>>());
    assert!(end.is_closed(), "{end}");
}

pub async fn recv_timeout_gives_up_and_loses_nothing(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    let late = receiver.recv_timeout(MOMENT).await.unwrap_err();
    assert!(matches!(late, Error::Timeout { after: MOMENT, .. }), "{late}");
    sender.send(numbered(0, 8)).await.unwrap();
    assert_eq!(number(&receiver.recv().await.unwrap()), 0);
    let empty = receiver.try_recv().unwrap_err();
    assert!(matches!(empty, Error::Empty), "{empty}");
}

pub async fn flush_means_delivered(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    sender.flush().await.unwrap();
    for sequence in 0..20 {
        sender.send(numbered(sequence, 1_000)).await.unwrap();
    }
    sender.flush().await.unwrap();
    assert!(sender.undelivered().is_empty());
    assert_eq!(receiver.stats().receive.unwrap().queued_items, 20);
}

pub async fn a_permit_holds_room_until_it_is_used_or_dropped(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, room(1_000)).await;
    let permit = sender.reserve(1_000).await.unwrap();
    assert!(matches!(sender.try_send(numbered(9, 8)), Err(Error::Full)));
    drop(permit);
    let permit = sender.reserve(1_000).await.unwrap();
    assert_eq!(permit.send(numbered(0, 1_000)).unwrap(), 0);
    assert_eq!(number(&receiver.recv().await.unwrap()), 0);
}

pub async fn a_permit_takes_no_more_than_it_reserved_and_gives_the_rest_back(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, room(1_000)).await;
    // It fills the inbox, so that what follows is not delivered and keeps its room.
    sender.send(numbered(0, 1_000)).await.unwrap();
    sender.flush().await.unwrap();
    let permit = sender.reserve(100).await.unwrap();
    let misuse = permit.send(numbered(9, 101)).unwrap_err();
    assert!(matches!(misuse, Error::Misuse(_)), "{misuse}");
    assert_eq!(sender.stats().send.unwrap().held_bytes, 0);

    let reserved = sender.reserve(1_000).await.unwrap();
    let mut waiting = pin!(sender.reserve(900));
    assert!(peek(&mut waiting).await.is_none(), "all of the room is reserved");
    reserved.send(numbered(1, 100)).unwrap();
    waiting.await.unwrap().send(numbered(2, 900)).unwrap();
    assert_eq!(sender.stats().send.unwrap().held_bytes, 1_000);
    for sequence in 0..3 {
        assert_eq!(number(&receiver.recv().await.unwrap()), sequence);
    }
}

/// Waits that are dropped after a single poll take nothing, or what they report.
pub async fn a_cancelled_recv_takes_nothing(backend: AnyBackend) {
    const ITEMS: u64 = 500;
    let (sender, receiver) = edge(&backend, room(1_000)).await;
    let sending = tokio::spawn(async move {
        for sequence in 0..ITEMS {
            sender.send(numbered(sequence, 100)).await.unwrap();
        }
        sender.close().await
    });
    let (mut received, mut cancelled) = (Vec::new(), 0);
    let end = loop {
        match poll_once(receiver.recv()).await {
            Some(Ok(item)) => received.push(number(&item)),
            Some(Err(end)) => break end,
            None => {
                cancelled += 1;
                breathe(cancelled).await;
            }
        }
    };
    assert!(end.is_closed(), "{end}");
    assert_eq!(received, (0..ITEMS).collect::<Vec<_>>());
    sending.await.unwrap().unwrap();
}

pub async fn a_cancelled_reserve_gives_up_its_place_only(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, room(1_000)).await;
    let held = sender.reserve(600).await.unwrap();
    {
        let mut large = pin!(sender.reserve(1_000));
        assert!(peek(&mut large).await.is_none(), "there is no room");
        // There would be room for this one, but it came second.
        assert!(matches!(sender.try_send(numbered(0, 100)), Err(Error::Full)));
    }
    assert_eq!(sender.try_send(numbered(0, 100)).unwrap(), 0);
    held.send(numbered(1, 600)).unwrap();
    drop(sender.reserve(1_000).await.unwrap());
    assert_eq!(number(&receiver.recv().await.unwrap()), 0);
    assert_eq!(number(&receiver.recv().await.unwrap()), 1);
}

pub async fn a_cancelled_send_leaves_no_gap(backend: AnyBackend) {
    const ITEMS: u64 = 500;
    let (sender, receiver) = edge(&backend, room(1_000)).await;
    let sending = tokio::spawn(async move {
        let (mut sequence, mut cancelled) = (0, 0);
        while sequence < ITEMS {
            match poll_once(sender.send(numbered(sequence, 300))).await {
                Some(sent) => {
                    assert_eq!(sent.unwrap(), sequence);
                    sequence += 1;
                }
                None => {
                    cancelled += 1;
                    breathe(cancelled).await;
                }
            }
        }
        sender.close().await
    });
    let (received, end) = drain_numbers(&receiver).await;
    assert_eq!(received, (0..ITEMS).collect::<Vec<_>>());
    assert!(end.is_closed(), "{end}");
    sending.await.unwrap().unwrap();
}

//! Many users of one pipe, and two directions at once.

#![allow(missing_docs, reason = "a scenario is named after what must hold")]

use std::pin::pin;

use kvpipe::{Pipe, PipeConfig};

use super::AnyBackend;
use super::support::{drain_numbers, edge, number, numbered, peek, pipes, room, saturate};

pub async fn both_directions_flow_at_once(backend: AnyBackend) {
    const ITEMS: u64 = 200;
    let config = room(4_000);
    let (left, right) = pipes(&backend, config.clone()).await;
    // Nobody takes anything until both directions are full.
    let fits = saturate(&left, &right, &config, 1_000).await;
    assert_eq!(saturate(&right, &left, &config, 1_000).await, fits);

    let flow = |sender: Pipe| async move {
        let sending = async {
            for sequence in fits..ITEMS {
                sender.send(numbered(sequence, 1_000)).await.unwrap();
            }
            sender.sender().unwrap().finish();
        };
        tokio::join!(sending, drain_numbers(&sender)).1
    };
    let (left, right) = tokio::join!(flow(left), flow(right));
    for (received, end) in [left, right] {
        assert_eq!(received, (0..ITEMS).collect::<Vec<_>>());
        assert!(end.is_closed(), "{end}");
    }
}

pub async fn a_blocked_direction_does_not_hold_up_the_other(backend: AnyBackend) {
    let config = room(4_000);
    let (left, right) = pipes(&backend, config.clone()).await;
    let fits = saturate(&left, &right, &config, 1_000).await;
    let mut blocked = pin!(left.send(numbered(fits, 1_000)));
    assert!(peek(&mut blocked).await.is_none(), "right takes nothing");

    for sequence in 0..100 {
        right.send(numbered(sequence, 1_000)).await.unwrap();
        assert_eq!(number(&left.recv().await.unwrap()), sequence);
    }
    right.flush().await.unwrap();
    assert!(peek(&mut blocked).await.is_none(), "right has still taken nothing");
    assert_eq!(number(&right.recv().await.unwrap()), 0);
    assert_eq!(blocked.await.unwrap(), fits);
}

pub async fn one_direction_alone_needs_no_other(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    assert!(sender.receiver().is_err() && sender.recv().await.is_err(), "it only sends");
    assert!(receiver.sender().is_err() && receiver.send(None).await.is_err(), "it only receives");
    sender.send(numbered(0, 8)).await.unwrap();
    assert_eq!(number(&receiver.recv().await.unwrap()), 0);
    sender.close().await.unwrap();
    assert!(receiver.recv().await.unwrap_err().is_closed());
    receiver.close().await.unwrap();
}

const TASKS: u64 = 8;
const ITEMS_EACH: u64 = 250;

/// Tasks that send `ITEMS_EACH` items each, numbered by task and place. The numbers and the
/// sequences that they got.
fn senders(sender: &Pipe) -> Vec<tokio::task::JoinHandle<Vec<(u64, u64)>>> {
    let send = |task: u64| {
        let sender = sender.clone();
        tokio::spawn(async move {
            let mut sent = Vec::new();
            for place in 0..ITEMS_EACH {
                let number = task * ITEMS_EACH + place;
                sent.push((sender.send(numbered(number, 100)).await.unwrap(), number));
            }
            sent
        })
    };
    (0..TASKS).map(send).collect()
}

pub async fn many_senders_keep_their_own_order_and_lose_nothing(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, room(1_000)).await;
    let sending = senders(&sender);
    let mut due: Vec<u64> = (0..TASKS).map(|task| task * ITEMS_EACH).collect();
    for _ in 0..TASKS * ITEMS_EACH {
        let number = number(&receiver.recv().await.unwrap());
        let due = &mut due[(number / ITEMS_EACH) as usize];
        assert_eq!(number, *due, "a sender's items keep their order");
        *due += 1;
    }
    for task in sending {
        task.await.unwrap();
    }
    sender.close().await.unwrap();
    assert!(receiver.recv().await.unwrap_err().is_closed(), "nothing came twice");
}

pub async fn many_receivers_take_each_item_once(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, room(1_000)).await;
    let receivers: Vec<_> = (0..TASKS)
        .map(|_| {
            let receiver = receiver.clone();
            tokio::spawn(async move { drain_numbers(&receiver).await })
        })
        .collect();
    for sequence in 0..1_000 {
        sender.send(numbered(sequence, 100)).await.unwrap();
    }
    sender.close().await.unwrap();
    let mut all = Vec::new();
    for task in receivers {
        let (mine, end) = task.await.unwrap();
        assert!(mine.is_sorted(), "each receiver sees the order of the stream");
        assert!(end.is_closed(), "{end}");
        all.extend(mine);
    }
    all.sort_unstable();
    assert_eq!(all, (0..1_000).collect::<Vec<_>>());
}

pub async fn sequence_numbers_are_places_in_the_stream(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, room(1_000)).await;
    let sending = senders(&sender);
    let mut received = Vec::new();
    for _ in 0..TASKS * ITEMS_EACH {
        received.push(number(&receiver.recv().await.unwrap()));
    }
    for task in sending {
        for (sequence, number) in task.await.unwrap() {
            assert_eq!(received[sequence as usize], number);
        }
    }
}

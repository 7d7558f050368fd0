//! How a direction ends when everybody is well: the table in `kvpipe::pipe`.

#![allow(missing_docs, reason = "a scenario is named after what must hold")]

use kvpipe::{Error, Pipe, PipeConfig};

use super::AnyBackend;
use super::support::{assert_accounted, drain_numbers, edge, numbered, pipes, room, saturate};

pub async fn close_delivers_everything_and_the_receiver_sees_closed_last(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, room(1_000)).await;
    let receiving = tokio::spawn(async move { drain_numbers(&receiver).await });
    for sequence in 0..50 {
        sender.send(numbered(sequence, 400)).await.unwrap();
    }
    sender.close().await.unwrap();
    assert!(sender.undelivered().is_empty());
    let (received, end) = receiving.await.unwrap();
    assert_eq!(received, (0..50).collect::<Vec<_>>());
    assert!(end.is_closed(), "{end}");
}

pub async fn close_twice_and_from_two_tasks_is_one_close(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    sender.send(numbered(0, 8)).await.unwrap();
    let (first, second, received) = tokio::join!(sender.close(), sender.close(), drain_numbers(&receiver));
    first.unwrap();
    second.unwrap();
    sender.close().await.unwrap();
    assert_eq!(received.0, [0]);
    assert!(receiver.recv().await.unwrap_err().is_closed(), "the end stays the end");
}

pub async fn a_closed_pipe_refuses_further_items(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    let permit = sender.reserve(8).await.unwrap();
    sender.sender().unwrap().finish();
    assert!(permit.send(numbered(9, 8)).unwrap_err().is_closed());
    assert!(sender.send(numbered(9, 8)).await.unwrap_err().is_closed());
    assert!(sender.try_send(None).unwrap_err().is_closed());
    assert!(drain_numbers(&receiver).await.0.is_empty());
    sender.close().await.unwrap();
}

pub async fn finish_ends_one_direction_only(backend: AnyBackend) {
    let (left, right) = pipes(&backend, PipeConfig::default()).await;
    left.send(numbered(0, 8)).await.unwrap();
    left.sender().unwrap().finish();
    let (received, end) = drain_numbers(&right).await;
    assert_eq!(received, [0]);
    assert!(end.is_closed(), "{end}");

    for sequence in 0..10 {
        right.send(numbered(sequence, 8)).await.unwrap();
    }
    right.sender().unwrap().finish();
    assert_eq!(drain_numbers(&left).await.0, (0..10).collect::<Vec<_>>());
    left.close().await.unwrap();
    right.close().await.unwrap();
}

pub async fn a_receiver_that_took_everything_and_left_has_lost_nothing(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    sender.send(numbered(0, 8)).await.unwrap();
    receiver.recv().await.unwrap();
    receiver.close().await.unwrap();
    sender.close().await.unwrap();
}

pub async fn closing_against_a_peer_still_sending_tells_it_how_many_were_taken(backend: AnyBackend) {
    let config = room(4_000);
    let (sender, receiver) = edge(&backend, config.clone()).await;
    let mut accepted = saturate(&sender, &receiver, &config, 1_000).await;
    for _ in 0..3 {
        receiver.recv().await.unwrap();
    }
    // Still sending: waits for room when the receiver leaves, or is about to.
    let sending = tokio::spawn({
        let sender = sender.clone();
        async move {
            loop {
                match sender.send(numbered(accepted, 1_000)).await {
                    Ok(_) => accepted += 1,
                    Err(end) => return (accepted, end),
                }
            }
        }
    });
    receiver.close().await.unwrap();
    let (accepted, end) = sending.await.unwrap();
    assert!(matches!(end, Error::ReceiverClosed { taken: 3, .. }), "{end}");
    let closed = sender.close().await.unwrap_err();
    assert!(matches!(closed, Error::ReceiverClosed { taken: 3, .. }), "{closed}");
    // Whatever arrived was acknowledged, taken or not; only it may be missing from the rest.
    let delivered = sender.stats().send.unwrap().delivered_items;
    assert!((4..=7).contains(&delivered), "{delivered} delivered, 3 taken, 4 fit the inbox");
    assert_accounted(&sender, accepted, delivered);
    assert!(receiver.recv().await.unwrap_err().is_closed());
}

pub async fn both_close_at_once(backend: AnyBackend) {
    let (left, right) = pipes(&backend, PipeConfig::default()).await;
    left.send(numbered(0, 8)).await.unwrap();
    right.send(numbered(0, 8)).await.unwrap();
    left.recv().await.unwrap();
    right.recv().await.unwrap();
    let (left, right) = tokio::join!(left.close(), right.close());
    left.unwrap();
    right.unwrap();
}

pub async fn both_close_at_once_with_full_inboxes(backend: AnyBackend) {
    let config = room(4_000);
    let (left, right) = pipes(&backend, config.clone()).await;
    let accepted = saturate(&left, &right, &config, 1_000).await;
    saturate(&right, &left, &config, 1_000).await;
    let (left_closed, right_closed) = tokio::join!(left.close(), right.close());
    for (pipe, closed) in [(left, left_closed), (right, right_closed)] {
        assert!(matches!(closed, Err(Error::ReceiverClosed { taken: 0, .. })), "{closed:?}");
        let delivered = pipe.stats().send.unwrap().delivered_items;
        assert_accounted(&pipe, accepted, delivered);
    }
}

pub async fn a_sender_dropped_without_a_close_is_an_abort(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    sender.send(numbered(0, 8)).await.unwrap();
    sender.flush().await.unwrap();
    drop(sender);
    // What had arrived is not lost.
    let (received, end) = drain_numbers(&receiver).await;
    assert_eq!(received, [0]);
    assert!(matches!(end, Error::PeerAborted { .. }), "{end}");
    assert!(end.to_string().contains("dropped without a close"), "{end}");
}

pub async fn an_abort_tells_the_peer_why_and_keeps_account(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    sender.send(numbered(0, 8)).await.unwrap();
    sender.flush().await.unwrap();
    sender.sender().unwrap().abort("out of patience");
    let refused = sender.send(numbered(1, 8)).await.unwrap_err();
    assert!(refused.to_string().contains("out of patience"), "{refused}");
    let (received, end) = drain_numbers(&receiver).await;
    assert_eq!(received, [0]);
    assert!(matches!(end, Error::PeerAborted { .. }), "{end}");
    assert!(end.to_string().contains("out of patience"), "{end}");
    assert_accounted(&sender, 1, 1);
}

pub async fn a_receiver_dropped_without_a_close_tells_the_sender(backend: AnyBackend) {
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    for sequence in 0..3 {
        sender.send(numbered(sequence, 8)).await.unwrap();
    }
    receiver.recv().await.unwrap();
    drop(receiver);
    let end = sender.close().await.unwrap_err();
    assert!(matches!(end, Error::ReceiverClosed { taken: 1, .. }), "{end}");
}

pub async fn a_whole_pipe_dropped_tells_both_directions_of_the_peer(backend: AnyBackend) {
    let (left, right) = pipes(&backend, PipeConfig::default()).await;
    left.send(numbered(0, 8)).await.unwrap();
    right.recv().await.unwrap();
    drop(right);
    let end = left.recv().await.unwrap_err();
    assert!(matches!(end, Error::PeerAborted { .. }), "{end}");
    let end = loop {
        if let Err(end) = left.send(numbered(0, 8)).await {
            break end;
        }
        tokio::task::yield_now().await;
    };
    assert!(matches!(end, Error::ReceiverClosed { taken: 1, .. }), "{end}");
}

/// The peer comes later, and still learns that it came too late.
pub async fn a_pipe_dropped_before_the_two_have_met_tells_both_directions_of_the_peer(backend: AnyBackend) {
    let (left, right) = backend.pair().await;
    drop(Pipe::spawn(right, PipeConfig::default()).unwrap());
    let left = Pipe::spawn(left, PipeConfig::default()).unwrap();
    let end = left.recv().await.unwrap_err();
    assert!(matches!(end, Error::PeerAborted { .. }), "{end}");
    // It may have been told before it sends; then there is nothing that a close could have lost.
    let end = match left.send(numbered(0, 8)).await {
        Ok(_) => left.close().await.unwrap_err(),
        Err(end) => end,
    };
    assert!(matches!(end, Error::ReceiverClosed { taken: 0, .. }), "{end}");
}

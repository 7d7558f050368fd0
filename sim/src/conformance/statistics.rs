//! What a metrics exporter reads adds up.

#![allow(missing_docs, reason = "a scenario is named after what must hold")]

use std::time::Duration;

use kvpipe::PipeConfig;

use super::AnyBackend;
use super::support::{edge, numbered, pipes, room, saturate};

pub async fn totals_count_what_was_delivered_and_taken(backend: AnyBackend) {
    let (left, right) = pipes(&backend, PipeConfig::default()).await;
    for item in [numbered(0, 100), None, numbered(1, 23)] {
        left.send(item).await.unwrap();
        right.recv().await.unwrap();
    }
    left.flush().await.unwrap();
    let (sent, received) = (left.stats().send.unwrap(), right.stats().receive.unwrap());
    assert_eq!((sent.delivered_items, sent.delivered_bytes), (3, 123));
    assert_eq!((received.taken_items, received.taken_bytes), (3, 123));
    assert_eq!((sent.held_bytes, sent.queued_items, sent.in_flight_items), (0, 0, 0));
    assert_eq!((received.held_bytes, received.queued_items), (0, 0));
    // The other direction has moved nothing.
    assert_eq!(left.stats().receive.unwrap().taken_items, 0);
    assert_eq!(right.stats().send.unwrap().delivered_items, 0);
}

pub async fn gauges_show_what_waits_where(backend: AnyBackend) {
    let config = room(4_000);
    let (sender, receiver) = edge(&backend, config.clone()).await;
    let accepted = saturate(&sender, &receiver, &config, 1_000).await;
    assert!(receiver.stats().send.is_none() && sender.stats().receive.is_none());

    let (sent, received) = (sender.stats().send.unwrap(), receiver.stats().receive.unwrap());
    assert_eq!((received.queued_items, received.queued_bytes, received.held_bytes), (4, 4_000, 4_000));
    assert_eq!(sent.queued_items + sent.in_flight_items, 4);
    assert_eq!(sent.queued_bytes + sent.in_flight_bytes, 4_000);
    assert_eq!((sent.held_bytes, sent.held_bytes_max), (4_000, 4_000));
    let everywhere = sent.delivered_items + (sent.queued_items + sent.in_flight_items) as u64;
    assert_eq!(everywhere, accepted);
    assert_eq!(sent.delivered_items, received.queued_items as u64);
}

pub async fn waiting_is_counted_as_time_blocked(backend: AnyBackend) {
    const WAIT: Duration = Duration::from_millis(20);
    let config = room(4_000);
    let (sender, receiver) = edge(&backend, config.clone()).await;
    receiver.recv_timeout(WAIT).await.unwrap_err();
    assert!(receiver.stats().receive.unwrap().blocked >= WAIT);

    let accepted = saturate(&sender, &receiver, &config, 1_000).await;
    let before = sender.stats().send.unwrap().blocked;
    sender.send_timeout(numbered(accepted, 1_000), WAIT).await.unwrap_err();
    assert!(sender.stats().send.unwrap().blocked >= before + WAIT);
}

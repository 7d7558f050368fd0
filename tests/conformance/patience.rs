//! A slow consumer is not a dead one, and an idle pipe is not a dead pipe.
//!
//! The passing of time is the scenario here, so these tests sleep; nothing else in the suite does.

use kvpipe::PipeConfig;

use crate::backend::Backend;
use crate::support::{drain_numbers, edge, numbered, room, saturate};

/// How many heartbeat limits go by.
const LIMITS: u32 = 6;

pub(crate) async fn a_slow_consumer_far_past_the_heartbeat_limit_is_not_dead<B: Backend>(backend: B) {
    let config = room(4_000);
    let (sender, receiver) = edge(&backend, config.clone()).await;
    let accepted = saturate(&sender, &receiver, &config, 1_000).await;
    let last = tokio::spawn({
        let sender = sender.clone();
        async move { sender.send(numbered(accepted, 1_000)).await }
    });
    tokio::time::sleep(backend.heartbeat_limit() * LIMITS).await;
    assert!(sender.sender().unwrap().failure().is_none() && !last.is_finished(), "it waits, unharmed");

    let (closed, (received, end)) = tokio::join!(
        async {
            assert_eq!(last.await.unwrap().unwrap(), accepted);
            sender.close().await
        },
        drain_numbers(&receiver)
    );
    closed.unwrap();
    assert_eq!(received, (0..=accepted).collect::<Vec<_>>());
    assert!(end.is_closed(), "{end}");
}

pub(crate) async fn a_long_idle_pipe_still_takes_a_burst<B: Backend>(backend: B) {
    const BURST: u64 = 500;
    let (sender, receiver) = edge(&backend, PipeConfig::default()).await;
    sender.send(numbered(0, 8)).await.unwrap();
    sender.flush().await.unwrap();
    tokio::time::sleep(backend.heartbeat_limit() * LIMITS).await;
    for sequence in 1..BURST {
        sender.send(numbered(sequence, 1_000)).await.unwrap();
    }
    let (closed, (received, end)) = tokio::join!(sender.close(), drain_numbers(&receiver));
    closed.unwrap();
    assert_eq!(received, (0..BURST).collect::<Vec<_>>());
    assert!(end.is_closed(), "{end}");
}

//! A wire that resumes, over a connection that breaks again and again.

#![allow(missing_docs, reason = "a scenario is named after what must hold")]

use kvpipe::{PipeConfig, Result};

use super::AnyBackend;
use super::support::{drain_numbers, numbered, receiving, sending};

pub async fn connections_that_break_lose_and_double_nothing(backend: AnyBackend) {
    let Some((outgoing, incoming, _wire)) = backend.breaking_edge().await else {
        panic!("a wire that declares that it resumes must have a way to break");
    };
    let (sender, _) = sending(outgoing, PipeConfig::default().with_buffer_bytes(1 << 20));
    let (receiver, _) = receiving(incoming, PipeConfig::default());
    let sent = 200;
    let sending = async {
        for sequence in 0..sent {
            sender.send(numbered(sequence, 8 << (sequence % 14))).await?;
        }
        sender.close().await
    };
    let (closed, (received, end)): (Result<()>, _) = tokio::join!(sending, drain_numbers(&receiver));
    closed.unwrap();
    assert!(end.is_closed(), "{end}");
    assert_eq!(received, (0..sent).collect::<Vec<_>>());
    assert_eq!(sender.undelivered().len(), 0);
}

//! What breaks, and who is told.

use std::time::Duration;

use kvpipe::{Error, Pipe, PipeConfig};

use crate::ranks::{config, edge, failure, pipes, send_failure, tensor};

on_fakes!(a_send_that_nccl_refuses_is_told_to_both_ends, "rank=0,fail=ncclSend:3:3", async || {
    let (sender, receiver) = pipes(config(), PipeConfig::default()).await;
    for mark in 0..4 {
        // The later of them may be refused already.
        let _ = sender.send(Some(tensor(100, mark))).await;
    }
    let error = send_failure(&sender).await;
    assert!(matches!(error, Error::Nccl { call: "ncclSend", code: 3, .. }), "{error}");
    let told = failure(&receiver).await;
    let Error::PeerAborted { reason, .. } = &told else { panic!("{told:?}") };
    assert!(reason.starts_with("ncclSend: "), "{reason}");
    // The first went through with the forming of the communicator.
    assert_eq!(sender.undelivered().first().unwrap().sequence, sender.stats().send.unwrap().delivered_items);
});

on_fakes!(a_receive_that_nccl_refuses_is_told_to_both_ends, "rank=1,fail=ncclRecv:2:1", async || {
    let (sender, receiver) = pipes(config(), PipeConfig::default()).await;
    sender.send(Some(tensor(100, 0))).await.unwrap();
    let error = failure(&receiver).await;
    assert!(matches!(error, Error::Nccl { call: "ncclRecv", code: 1, .. }), "{error}");
    let told = send_failure(&sender).await;
    assert!(matches!(told, Error::PeerAborted { .. }), "{told:?}");
    assert_eq!(sender.undelivered().len(), 1);
});

on_fakes!(a_payload_that_never_arrives_ends_the_edge, "rank=0,async_error=1:6", async || {
    // After the exchange that forms it, the sender's next operation never ends.
    let mut config = config();
    config.transfer_timeout = Duration::from_millis(500);
    let (sender, receiver) = pipes(config, PipeConfig::default()).await;
    sender.send(Some(tensor(100, 0))).await.unwrap();
    let error = failure(&receiver).await;
    assert!(matches!(error, Error::Timeout { .. } | Error::PeerAborted { .. }), "{error}");
    let told = send_failure(&sender).await;
    assert!(matches!(told, Error::PeerAborted { .. } | Error::Nccl { .. }), "{told}");
    assert_eq!(sender.undelivered().len(), 1);
});

on_fakes!(a_receiver_that_is_gone_is_found_by_its_control_connection, "", async || {
    let (outgoing, incoming) = edge(config()).await;
    let limits = PipeConfig::default().with_buffer_bytes(1 << 20);
    let (sender, driver) = Pipe::send_only(outgoing, limits.clone());
    tokio::spawn(driver);
    let (receiver, driver) = Pipe::receive_only(incoming, limits);
    let driver = tokio::spawn(driver);
    sender.send(Some(tensor(1000, 0))).await.unwrap();
    receiver.recv().await.unwrap();
    // Its window is full, so that payloads are announced and not sent.
    for mark in 0..2 {
        sender.send(Some(tensor(1 << 19, mark))).await.unwrap();
    }
    driver.abort();
    assert!(driver.await.unwrap_err().is_cancelled());
    let error = send_failure(&sender).await;
    assert!(matches!(error, Error::PeerGone { .. }), "{error}");
});

on_fakes!(a_sender_that_is_gone_in_the_middle_of_a_payload_is_found, "", async || {
    let (outgoing, incoming) = edge(config()).await;
    let (sender, driver) = Pipe::send_only(outgoing, PipeConfig::default());
    let driver = tokio::spawn(driver);
    let (receiver, receiving) = Pipe::receive_only(incoming, PipeConfig::default());
    tokio::spawn(receiving);
    sender.send(Some(tensor(1000, 0))).await.unwrap();
    receiver.recv().await.unwrap();
    sender.send(Some(tensor(64 << 20, 0))).await.unwrap();
    driver.abort();
    let _ = driver.await;
    let error = failure(&receiver).await;
    assert!(matches!(error, Error::PeerGone { .. } | Error::PeerAborted { .. }), "{error}");
});

on_fakes!(a_user_that_leaves_is_told_to_the_sender, "", async || {
    let (sender, receiver) = pipes(config(), PipeConfig::default()).await;
    for mark in 0..3 {
        sender.send(Some(tensor(100, mark))).await.unwrap();
    }
    receiver.recv().await.unwrap();
    receiver.close().await.unwrap();
    let error = send_failure(&sender).await;
    assert!(matches!(error, Error::ReceiverClosed { taken: 1, .. }), "{error}");
});

on_fakes!(a_sender_that_is_dropped_tells_its_receiver, "", async || {
    let (sender, receiver) = pipes(config(), PipeConfig::default()).await;
    sender.send(Some(tensor(100, 0))).await.unwrap();
    receiver.recv().await.unwrap();
    drop(sender);
    let error = failure(&receiver).await;
    assert!(matches!(error, Error::PeerAborted { .. }), "{error}");
});

//! What breaks, and who is told.

use std::sync::mpsc::Sender;
use std::time::Duration;

use kvpipe::device::{CudaDevice, DeviceBufferMut};
use kvpipe::{Error, Pipe, PipeConfig};
use tokio::task::JoinHandle;

use crate::child::cuda;
use crate::ranks::{
    HANG, config, config_on, edge, edge_between, eventually, failure, pipes, promised, receive, send_failure,
    tensor,
};

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

/// Two ends, the second of which waits on its device for a payload that the first has handed to NCCL: they,
/// the driver of the first, and what holds up the payload.
async fn in_the_middle(devices: [usize; 2]) -> (Pipe, Pipe, JoinHandle<()>, Sender<()>) {
    let [from, to] = devices.map(config_on);
    let (outgoing, incoming) = edge_between(from, to).await;
    let (sender, driver) = Pipe::send_only(outgoing, PipeConfig::default());
    let driver = tokio::spawn(driver);
    let (receiver, receiving) = Pipe::receive_only(incoming, PipeConfig::default());
    tokio::spawn(receiving);
    sender.send(None).await.unwrap();
    assert_eq!(receiver.recv().await.unwrap(), None);
    let (item, gate) = promised(1 << 20).await;
    // Of all that was before, that of the producer is left.
    eventually(|| cuda().events == 1).await;
    sender.send(Some(item)).await.unwrap();
    // One of the send and one of the receive.
    eventually(|| cuda().events == 3).await;
    (sender, receiver, driver, gate)
}

on_fakes!(a_sender_that_is_gone_in_the_middle_of_a_payload_is_found, "", async || {
    let (_sender, receiver, driver, gate) = in_the_middle([0, 0]).await;
    driver.abort();
    let _ = driver.await;
    let error = failure(&receiver).await;
    assert!(matches!(error, Error::PeerGone { .. } | Error::PeerAborted { .. }), "{error}");
    drop(gate);
});

// On a real device, too, nothing but the process's end would stop what NCCL has there.
on_fakes!(an_abort_that_hangs_keeps_only_its_device, "abort_hangs", "waits,devices=3", async || {
    let (_sender, receiver, driver, gate) = in_the_middle([0, 1]).await;
    driver.abort();
    let _ = driver.await;
    let error = failure(&receiver).await;
    assert!(matches!(error, Error::PeerGone { .. } | Error::PeerAborted { .. }), "{error}");
    // The receive stays.
    let [here, elsewhere] = [1, 2].map(|index| CudaDevice::open(index).unwrap());
    tokio::select! {
        biased;
        allocated = DeviceBufferMut::allocated(&here, 8) => panic!("nothing had to wait: {allocated:?}"),
        allocated = DeviceBufferMut::allocated(&elsewhere, 8) => drop(allocated.unwrap()),
        () = tokio::time::sleep(HANG) => panic!("one device waits for another"),
    }
    drop(gate);
});

on_fakes!(a_sender_that_fails_is_heard_by_a_receiver_without_room, "", async || {
    let (outgoing, incoming) = edge(config()).await;
    let limits = PipeConfig::default().with_buffer_bytes(1000);
    let (sender, driver) = Pipe::send_only(outgoing, PipeConfig::default());
    tokio::spawn(driver);
    let (receiver, driver) = Pipe::receive_only(incoming, limits);
    let driver = tokio::spawn(driver);
    for mark in 0..3 {
        sender.send(Some(tensor(1000, mark))).await.unwrap();
    }
    // The second waits for room, and the third behind it.
    eventually(|| sender.stats().send.unwrap().delivered_items == 1).await;
    drop(sender);
    tokio::time::timeout(HANG, driver).await.expect("it waits for room").unwrap();
    assert_eq!(receive(&receiver).await.unwrap().unwrap(), tensor(1000, 0));
    let error = failure(&receiver).await;
    assert!(matches!(error, Error::PeerAborted { .. }), "{error}");
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

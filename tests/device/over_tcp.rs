//! Device tensors over a tcp edge.

use std::time::Duration;

use kvpipe::net::TokioNet;
use kvpipe::store::MemoryStore;
use kvpipe::transport::Ring;
use kvpipe::transport::tcp::{TcpConfig, TcpIncoming, TcpOutgoing};
use kvpipe::{Error, Item, Pipe, PipeConfig, Tensor};

use crate::support::{PATIENCE, content, device_tensor, eventually, live, on_gpu, promised};

/// Rank 0, sending, and rank 1, receiving.
async fn edge(config: TcpConfig, limits: PipeConfig) -> (Pipe, Pipe) {
    let (store, ring) = (MemoryStore::new(), |rank| Ring::new(rank, 2).unwrap());
    let here = "127.0.0.1:0".parse().unwrap();
    let incoming = TcpIncoming::bind(TokioNet, &store, ring(1), here, config.clone()).await.unwrap();
    let outgoing = TcpOutgoing::new(TokioNet, store, ring(0), config);
    let (sender, sending) = Pipe::send_only(outgoing, limits.clone());
    let (receiver, receiving) = Pipe::receive_only(incoming, limits);
    sending.spawn().unwrap();
    receiving.spawn().unwrap();
    (sender, receiver)
}

fn host_item(len: usize, mark: u64) -> Item {
    Some(Tensor::from_vec([len], content(len, mark)).unwrap())
}

/// The next item's bytes.
async fn received(receiver: &Pipe) -> Vec<u8> {
    receiver.recv_timeout(PATIENCE).await.unwrap().unwrap().bytes().unwrap().to_vec()
}

#[test]
fn device_tensors_arrive_in_host_memory_in_their_place_among_others() {
    let name = "over_tcp::device_tensors_arrive_in_host_memory_in_their_place_among_others";
    on_gpu(name, "slow=20", async |device| {
        let inline = 16 << 10;
        let lengths =
            [0, 1, 5000, inline, inline + 1, (1 << 20) - 1, (1 << 20) + 1, (5 << 20) + 3, inline, 2 << 20];
        for checksum in [false, true] {
            let config = TcpConfig { checksum, ..TcpConfig::default() };
            // Far less than there is: so the sender waits for room again and again.
            let (sender, receiver) = edge(config, PipeConfig::default().with_buffer_bytes(3 << 20)).await;
            let sending = async {
                for (mark, length) in (0..).zip(lengths) {
                    sender.send(Some(device_tensor(&device, length, mark).await)).await.unwrap();
                    sender.send(None).await.unwrap();
                    sender.send(host_item(length, mark + 100)).await.unwrap();
                }
                sender.close().await.unwrap();
            };
            let receiving = async {
                for (mark, length) in (0..).zip(lengths) {
                    for expected in [host_item(length, mark), None, host_item(length, mark + 100)] {
                        assert_eq!(receiver.recv_timeout(PATIENCE).await.unwrap(), expected);
                    }
                }
                assert!(receiver.recv_timeout(PATIENCE).await.unwrap_err().is_closed());
            };
            tokio::join!(sending, receiving);
        }
    });
}

#[test]
fn many_large_tensors_take_four_pieces_of_pinned_memory() {
    let name = "over_tcp::many_large_tensors_take_four_pieces_of_pinned_memory";
    on_gpu(name, "", async |device| {
        let (sender, receiver) = edge(TcpConfig::default(), PipeConfig::default()).await;
        let tensor = device_tensor(&device, 8 << 20, 1).await;
        eventually(|| live().pinned == 0).await;
        for _ in 0..10 {
            sender.send(Some(tensor.clone())).await.unwrap();
        }
        let expected = content(8 << 20, 1);
        for _ in 0..10 {
            assert!(received(&receiver).await == expected);
            assert!((1..=4).contains(&live().pinned), "{:?}", live());
        }
        sender.close().await.unwrap();
    });
}

#[test]
fn while_a_producer_takes_its_time_the_edge_is_alive_and_earlier_items_arrive() {
    let name = "over_tcp::while_a_producer_takes_its_time_the_edge_is_alive_and_earlier_items_arrive";
    on_gpu(name, "", async |device| {
        let heartbeat = Duration::from_millis(500);
        let config = TcpConfig { heartbeat, reconnect_timeout: Duration::ZERO, ..TcpConfig::default() };
        let (sender, receiver) = edge(config, PipeConfig::default()).await;
        let (item, gate) = promised(&device, 3 << 20).await;
        sender.send(host_item(10, 1)).await.unwrap();
        sender.send(item).await.unwrap();
        assert!(received(&receiver).await == content(10, 1));
        let nothing = receiver.recv_timeout(heartbeat * 4).await.unwrap_err();
        assert!(matches!(nothing, Error::Timeout { .. }), "{nothing}");
        gate.open();
        assert!(received(&receiver).await == content(3 << 20, 2));
        sender.close().await.unwrap();
    });
}

#[test]
fn what_was_sent_before_does_not_wait_for_a_producer() {
    let name = "over_tcp::what_was_sent_before_does_not_wait_for_a_producer";
    on_gpu(name, "", async |device| {
        // Nothing else is sent meanwhile.
        let config = TcpConfig { heartbeat: PATIENCE * 100, ..TcpConfig::default() };
        let (sender, receiver) = edge(config, PipeConfig::default()).await;
        let (item, gate) = promised(&device, 3 << 20).await;
        sender.send(host_item(10, 1)).await.unwrap();
        sender.send(item).await.unwrap();
        assert!(received(&receiver).await == content(10, 1));
        gate.open();
        assert!(received(&receiver).await == content(3 << 20, 2));
        sender.close().await.unwrap();
    });
}

#[test]
fn a_pipe_that_is_dropped_does_not_wait_for_a_producer() {
    let name = "over_tcp::a_pipe_that_is_dropped_does_not_wait_for_a_producer";
    on_gpu(name, "", async |device| {
        let (sender, receiver) = edge(TcpConfig::default(), PipeConfig::default()).await;
        let (item, gate) = promised(&device, 3 << 20).await;
        sender.send(item).await.unwrap();
        sender.send(host_item(10, 1)).await.unwrap();
        eventually(|| live().pinned > 0).await;
        drop(sender);
        let error = receiver.recv_timeout(PATIENCE).await.unwrap_err();
        assert!(matches!(error, Error::PeerAborted { .. }), "{error}");
        gate.open();
    });
}

#[test]
fn a_device_that_fails_ends_the_pipe_and_the_peer_is_told_why() {
    let name = "over_tcp::a_device_that_fails_ends_the_pipe_and_the_peer_is_told_why";
    on_gpu(name, "fail=cuMemcpyDtoHAsync_v2:3+:700", async |device| {
        let (sender, receiver) = edge(TcpConfig::default(), PipeConfig::default()).await;
        // Two pieces go before the device fails, and nothing of the next item.
        sender.send(Some(device_tensor(&device, 2 << 20, 3).await)).await.unwrap();
        sender.send(Some(device_tensor(&device, 2 << 20, 4).await)).await.unwrap();
        assert!(received(&receiver).await == content(2 << 20, 3));
        let error = receiver.recv_timeout(PATIENCE).await.unwrap_err();
        let Error::PeerAborted { reason, .. } = &error else { panic!("{error:?}") };
        assert!(reason.starts_with("cuMemcpyDtoHAsync_v2: CUDA_ERROR_ILLEGAL_ADDRESS, "), "{reason}");
        let error = sender.flush().await.unwrap_err();
        assert!(matches!(error, Error::Cuda { code: 700, .. }), "{error:?}");
        let undelivered = sender.undelivered();
        assert_eq!(undelivered.len(), 1);
    });
}

#[test]
fn a_device_that_fails_within_a_frame_costs_the_connection_and_no_item() {
    let name = "over_tcp::a_device_that_fails_within_a_frame_costs_the_connection_and_no_item";
    on_gpu(name, "fail=cuMemcpyDtoHAsync_v2:7:700", async |device| {
        let (sender, receiver) = edge(TcpConfig::default(), PipeConfig::default()).await;
        // The seventh piece of nine is begun when two or three are on the wire.
        sender.send(Some(device_tensor(&device, 9 << 20, 5).await)).await.unwrap();
        assert!(received(&receiver).await == content(9 << 20, 5));
        sender.close().await.unwrap();
    });
}

//! Device tensors over the store, on kvpipe's own wire and on vLLM's.

use std::sync::Arc;

use kvpipe::device::Device;
use kvpipe::group::{GroupConfig, StatelessProcessGroup, WireMode};
use kvpipe::net::TokioNet;
use kvpipe::store::tcp::{TcpStore, TcpStoreServer};
use kvpipe::store::{Limits, MemoryStore};
use kvpipe::tensor::BufferPool;
use kvpipe::transport::store::{StoreConfig, StoreIncoming, StoreOutgoing, VllmTransport};
use kvpipe::transport::{Ring, Transport};
use kvpipe::{DType, Error, Pipe, PipeConfig, Tensor};

use crate::support::{PATIENCE, content, device_tensor, on_device, on_gpu, promised};

/// Rank 0, sending, and rank 1, receiving.
fn edge(config: &StoreConfig) -> (Pipe, Pipe) {
    let (store, ring) = (MemoryStore::new(), |rank| Ring::new(rank, 2).unwrap());
    let limits = PipeConfig::default().with_buffer_bytes(3 << 20);
    let outgoing = StoreOutgoing::new(store.clone(), ring(0), config.clone());
    let incoming = StoreIncoming::new(store, ring(1), config.clone());
    let (sender, sending) = Pipe::send_only(outgoing, limits.clone());
    let (receiver, receiving) = Pipe::receive_only(incoming, limits);
    sending.spawn().unwrap();
    receiving.spawn().unwrap();
    (sender, receiver)
}

#[test]
fn device_tensors_arrive_over_the_store_in_their_place_among_others() {
    let name = "over_store::device_tensors_arrive_over_the_store_in_their_place_among_others";
    on_gpu(name, "slow=20", async |device| {
        let chunk = 100_000;
        // About what travels with its frame, about one value and several, and about a piece.
        let lengths =
            [0, 1, 40_000, 50_000, 60_000, chunk - 1, chunk, chunk + 1, 3 * chunk, 1 << 20, (2 << 20) + 9];
        for chunk_bytes in [chunk, 3 << 20] {
            let config = StoreConfig { chunk_bytes, window_bytes: 8 << 20, ..StoreConfig::default() };
            let (sender, receiver) = edge(&config);
            let host = |length, mark| Some(Tensor::from_vec([length], content(length, mark)).unwrap());
            let sending = async {
                for (mark, length) in (0..).zip(lengths) {
                    sender.send(host(1000, mark)).await.unwrap();
                    sender.send(Some(device_tensor(&device, length, mark + 100).await)).await.unwrap();
                    sender.send(None).await.unwrap();
                }
                sender.close().await.unwrap();
            };
            let receiving = async {
                for (mark, length) in (0..).zip(lengths) {
                    for expected in [host(1000, mark), host(length, mark + 100), None] {
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
fn what_was_sent_before_arrives_while_a_producer_takes_its_time() {
    let name = "over_store::what_was_sent_before_arrives_while_a_producer_takes_its_time";
    on_gpu(name, "", async |device| {
        let (sender, receiver) = edge(&StoreConfig::default());
        let (item, gate) = promised(&device, 2 << 20).await;
        let before = Some(Tensor::from_vec([10], content(10, 1)).unwrap());
        sender.send(before.clone()).await.unwrap();
        sender.send(item).await.unwrap();
        assert_eq!(receiver.recv_timeout(PATIENCE).await.unwrap(), before);
        gate.open();
        let late = receiver.recv_timeout(PATIENCE).await.unwrap().unwrap();
        assert!(late.bytes().unwrap()[..] == content(2 << 20, 2));
        sender.close().await.unwrap();
    });
}

#[test]
fn a_device_that_fails_before_a_frame_ends_the_edge_and_the_peer_is_told_why() {
    let name = "over_store::a_device_that_fails_before_a_frame_ends_the_edge_and_the_peer_is_told_why";
    on_gpu(name, "fail=cuMemcpyDtoHAsync_v2:3+:700", fails_at_the_second_item);
}

#[test]
fn a_device_that_fails_within_a_frame_ends_the_edge_and_the_peer_is_told_why() {
    let name = "over_store::a_device_that_fails_within_a_frame_ends_the_edge_and_the_peer_is_told_why";
    on_gpu(name, "fail=cuMemcpyDtoHAsync_v2:8+:700", fails_at_the_second_item);
}

/// The first item takes two pieces, the second nine.
async fn fails_at_the_second_item(device: Arc<dyn Device>) {
    let (sender, receiver) = edge(&StoreConfig::default());
    sender.send(Some(device_tensor(&device, 2 << 20, 1).await)).await.unwrap();
    sender.send(Some(device_tensor(&device, 9 << 20, 2).await)).await.unwrap();
    let first = receiver.recv_timeout(PATIENCE).await.unwrap().unwrap();
    assert!(first.bytes().unwrap()[..] == content(2 << 20, 1));
    let error = receiver.recv_timeout(PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{error}");
    let error = sender.flush().await.unwrap_err();
    assert!(matches!(error, Error::Cuda { code: 700, .. }), "{error:?}");
    assert_eq!(sender.undelivered().len(), 1);
}

type Group = StatelessProcessGroup<TcpStore<TokioNet>>;

/// A pipe of two ranks on vLLM's wire, and the groups under it: the store's server first.
async fn vllm_pair() -> [(Pipe, Arc<Group>); 2] {
    let config = || GroupConfig { wire: WireMode::Vllm, timeout: PATIENCE, ..GroupConfig::default() };
    let address = "127.0.0.1:0".parse().unwrap();
    let server = TcpStoreServer::bind(&TokioNet, address, Limits::default()).await.unwrap();
    let port = server.local_addr().port();
    let (first, second) = tokio::join!(
        Group::serve(TokioNet, server, 2, config()),
        Group::create(TokioNet, "127.0.0.1", port, 1, 2, config())
    );
    let pipe = async |group: Group| {
        let group = Arc::new(group);
        let transport = VllmTransport::meet(Arc::clone(&group), BufferPool::new(0)).await.unwrap();
        let (outgoing, incoming) = transport.split();
        let (pipe, driver) = Pipe::new(outgoing, incoming, PipeConfig::default());
        driver.spawn().unwrap();
        (pipe, group)
    };
    let (first, second) = tokio::join!(pipe(first.unwrap()), pipe(second.unwrap()));
    [first, second]
}

#[test]
fn device_tensors_arrive_on_vllms_wire_and_what_torch_cant_load_is_refused() {
    let name = "over_store::device_tensors_arrive_on_vllms_wire_and_what_torch_cant_load_is_refused";
    on_gpu(name, "slow=20", async |device| {
        let [(sender, server), (receiver, _client)] = vllm_pair().await;
        for (mark, length) in (0..).zip([0, 1, (3 << 20) + 5]) {
            sender.send(Some(device_tensor(&device, length, mark).await)).await.unwrap();
            sender.send(None).await.unwrap();
            let received = receiver.recv_timeout(PATIENCE).await.unwrap().unwrap();
            assert!(received.bytes().unwrap()[..] == content(length, mark), "{length} bytes");
            assert_eq!(receiver.recv_timeout(PATIENCE).await.unwrap(), None);
        }
        let refused = Tensor::on_device(DType::UInt16, [4], on_device(&device, 8, 1).await).unwrap();
        let error = sender.send(Some(refused)).await.unwrap_err();
        assert!(error.to_string().starts_with("torch can't load a pickled tensor of uint16"), "{error}");
        drop((sender, receiver, server));
    });
}

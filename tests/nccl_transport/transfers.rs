//! What arrives, and when.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use kvpipe::device::{DeviceBuffer, DeviceBufferMut, Location, Stream};
use kvpipe::net::TokioNet;
use kvpipe::store::MemoryStore;
use kvpipe::transport::nccl::{HandOut, NcclIncoming, NcclTransport};
use kvpipe::transport::tcp::{TcpConfig, TcpOutgoing};
use kvpipe::{DType, Item, Pipe, PipeConfig, Tensor};

use crate::child::cuda;
use crate::ranks::{config, config_on, device, hold_up, pipes, receive, ring, send_failure, tensor};

on_fakes!(items_of_all_kinds_arrive_in_order_on_the_device, "in_progress=2", async || {
    let (sender, receiver) = pipes(config(), PipeConfig::default()).await;
    let empty = Tensor::new(DType::Float32, [0, 5], bytes::Bytes::new()).unwrap();
    let items: Vec<Item> = vec![
        None,
        Some(tensor(1, 1)),
        Some(empty),
        Some(tensor(3 << 20, 2).to_device(&device()).await.unwrap()),
        None,
        Some(tensor(4097, 3)),
    ];
    for item in &items {
        sender.send(item.clone()).await.unwrap();
    }
    for item in &items {
        let expected = match item {
            Some(tensor) => Some(tensor.to_host().await.unwrap()),
            None => None,
        };
        let received = receiver.recv().await.unwrap();
        if let Some(tensor) = &received {
            assert_eq!(tensor.location(), Location::Cuda(0));
        }
        let received = match received {
            Some(tensor) => Some(tensor.to_host().await.unwrap()),
            None => None,
        };
        assert_eq!(received, expected);
    }
    sender.close().await.unwrap();
    assert!(receiver.recv().await.unwrap_err().is_closed());
    assert!(sender.undelivered().is_empty());
});

on_fakes!(tensors_are_handed_out_on_the_host_where_that_is_asked_for, "", async || {
    let mut config = config();
    config.hand_out = HandOut::OnHost;
    let (sender, receiver) = pipes(config, PipeConfig::default()).await;
    for (mark, bytes) in [0, 1, 5 << 20].into_iter().enumerate() {
        sender.send(Some(tensor(bytes, mark))).await.unwrap();
        let received = receiver.recv().await.unwrap().unwrap();
        assert_eq!(received.location(), Location::Cpu);
        assert_eq!(received, tensor(bytes, mark));
    }
    sender.close().await.unwrap();
});

on_fakes!(more_items_than_fit_wait_for_room_and_lose_nothing, "", async || {
    // Two fit at each end.
    let limits = PipeConfig::default().with_buffer_bytes(2 << 20);
    let (sender, receiver) = pipes(config(), limits).await;
    let sending = tokio::spawn(async move {
        for mark in 0..40 {
            sender.send(Some(tensor(1 << 20, mark))).await.unwrap();
        }
        sender.close().await.unwrap();
    });
    for mark in 0..40 {
        assert_eq!(receive(&receiver).await.unwrap().unwrap(), tensor(1 << 20, mark));
        // Two at the sender's staging, two that have arrived, one that we hold; and the pool's idle ones.
        assert!(cuda().bytes <= 48 << 20, "{:?}", cuda());
    }
    sending.await.unwrap();
});

on_fakes!(a_source_is_read_only_once_its_producer_is_done, "", async || {
    let (sender, receiver) = pipes(config(), PipeConfig::default()).await;
    let produced = tensor(1 << 16, 7).to_device(&device()).await.unwrap();
    let producer = Stream::new(&device()).unwrap();
    let gate = hold_up(&producer);
    let target = DeviceBufferMut::allocate(&device(), 1 << 16).unwrap();
    let address = target.address();
    let copying = producer.copy(produced.device_buffer().unwrap(), target).unwrap();
    let event = copying.event().clone();
    // As torch would: the memory is shown while the producer's stream still has to write it.
    // SAFETY: the flight is kept until the end, and with it the memory.
    let buffer = unsafe { DeviceBuffer::from_raw(&device(), address, 1 << 16, ()) };
    let tensor_to_be = Tensor::on_device(DType::UInt8, [1 << 16], buffer.with_ready(event)).unwrap();
    sender.send(Some(tensor_to_be)).await.unwrap();
    sender.send(None).await.unwrap();
    tokio::task::yield_now().await;
    assert!(receiver.try_recv().is_err(), "nothing can have arrived");
    gate.send(()).unwrap();
    assert_eq!(receive(&receiver).await.unwrap().unwrap(), tensor(1 << 16, 7));
    assert_eq!(receive(&receiver).await.unwrap(), None);
    sender.close().await.unwrap();
    drop(copying.done().await.unwrap());
});

on_fakes!(ten_thousand_items_leak_nothing, "", async || {
    // What is alive for good reasons is counted in hundreds then, and any leak of an item in thousands.
    let limits = PipeConfig { max_items: 50, ..PipeConfig::default() };
    let (sender, receiver) = pipes(config(), limits).await;
    let item = Some(tensor(64, 1).to_device(&device()).await.unwrap());
    let sending = tokio::spawn(async move {
        for _ in 0..10_000 {
            sender.send(item.clone()).await.unwrap();
        }
        sender.close().await.unwrap();
    });
    for _ in 0..10_000 {
        receiver.recv().await.unwrap();
        let alive = cuda();
        assert!(alive.allocations < 500 && alive.events < 500 && alive.pinned < 10, "{alive:?}");
    }
    sending.await.unwrap();
});

// Each rank has its GPU, and there the other way's receives, which wait for the peer.
on_fakes!(
    two_ways_of_host_tensors_dont_wait_for_each_other_by_way_of_the_device,
    "",
    "waits,devices=2",
    async || {
        let exchange = async |pipe: &Pipe| {
            let sending = async {
                for mark in 0..10 {
                    pipe.send(Some(tensor(1 << 20, mark))).await.unwrap();
                }
                pipe.flush().await.unwrap();
            };
            let receiving = async {
                for mark in 0..10 {
                    assert_eq!(receive(pipe).await.unwrap().unwrap(), tensor(1 << 20, mark));
                }
            };
            tokio::join!(sending, receiving);
        };
        // Also while communicators are formed.
        for _ in 0..5 {
            let (store, address) = (MemoryStore::new(), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0));
            let pipe = async |rank| {
                let bound =
                    NcclTransport::bind(TokioNet, store.clone(), ring(rank), address, config_on(rank));
                // Two fit at each end.
                Pipe::spawn(bound.await.unwrap(), PipeConfig::default().with_buffer_bytes(2 << 20)).unwrap()
            };
            let pipes = (pipe(0).await, pipe(1).await);
            tokio::join!(exchange(&pipes.0), exchange(&pipes.1));
            let closed = tokio::join!(pipes.0.close(), pipes.1.close());
            assert!(closed.0.is_ok() && closed.1.is_ok(), "{closed:?}");
        }
    }
);

on_fakes!(an_end_on_plain_tcp_never_meets_one_on_nccl, "", async || {
    let (store, address) = (MemoryStore::new(), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0));
    let _incoming = NcclIncoming::bind(TokioNet, &store, ring(1), address, config()).await.unwrap();
    let impatient = TcpConfig { connect_timeout: Duration::from_millis(500), ..TcpConfig::default() };
    let plain = TcpOutgoing::new(TokioNet, store, ring(0), impatient);
    let (sender, driver) = Pipe::send_only(plain, PipeConfig::default());
    tokio::spawn(driver);
    sender.send(None).await.unwrap();
    assert_eq!(
        send_failure(&sender).await.to_string(),
        "timed out after 0.5 s waiting for rank 1 to publish its address (store key \"kvpipe//1/address\")"
    );
});

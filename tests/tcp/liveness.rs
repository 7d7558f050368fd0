//! Who is taken for dead, and who is kept waiting, although all are healthy.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kvpipe::net::{Net, SocketOptions, TokioNet};
use kvpipe::store::{MemoryStore, Store};
use kvpipe::transport::tcp::{TcpConfig, TcpIncoming, TcpOutgoing};
use kvpipe::wire::frame::Reply;
use kvpipe::{Error, Pipe, PipeConfig, Result, Tensor};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::hostile::{bytes_of, connector, listener, plain, read_reply, tensor};
use crate::proxy::{Flow, Proxy, Way};
use crate::support::{PATIENCE, SHORT, V4, config, item, limits, receiver, ring, sender, transfers};

fn heartbeat(limit: Duration) -> TcpConfig {
    TcpConfig { heartbeat: limit, ..config() }
}

/// A store that stops answering `delete`, as one does whose host is gone.
#[derive(Clone)]
struct StoreWithoutDelete(MemoryStore);

impl Store for StoreWithoutDelete {
    delegate!(0: set get add check wait append compare_set multi_get multi_set num_keys list_keys
        queue_push queue_pop try_queue_pop queue_len barrier);

    async fn delete(&self, _: &str, timeout: Duration) -> Result<bool> {
        tokio::time::sleep(timeout).await;
        Err(Error::timeout("the store", timeout))
    }
}

#[tokio::test]
async fn an_edge_outlives_a_store_that_stops_answering_once_the_ranks_have_met() {
    let store = MemoryStore::new();
    let config = heartbeat(Duration::from_millis(800));
    let (receiver, _) = receiver(&store, V4, config.clone(), limits()).await;
    let outgoing = TcpOutgoing::new(TokioNet, StoreWithoutDelete(store), ring(0), config);
    let (sender, driver) = Pipe::send_only(outgoing, limits());
    driver.spawn().unwrap();
    transfers(&sender, &receiver, &[item(5, 1), None]).await;
}

/// A store in which, once the ranks have met, another process has published its address.
#[derive(Clone)]
struct StoreWithSuccessor(MemoryStore, Arc<AtomicUsize>);

const SUCCESSOR: &str = "127.0.0.1:9";

impl Store for StoreWithSuccessor {
    delegate!(0: set add check wait delete append compare_set multi_get multi_set num_keys
        list_keys queue_push queue_pop try_queue_pop queue_len barrier);

    async fn get(&self, key: &str, timeout: Duration) -> Result<Bytes> {
        match self.1.fetch_add(1, Ordering::Relaxed) {
            0 => self.0.get(key, timeout).await,
            _ => Ok(SUCCESSOR.into()),
        }
    }
}

#[tokio::test]
async fn the_address_of_another_process_is_not_deleted() {
    let store = MemoryStore::new();
    let (receiver, _) = receiver(&store, V4, config(), limits()).await;
    let later = StoreWithSuccessor(store.clone(), Arc::default());
    let outgoing = TcpOutgoing::new(TokioNet, later, ring(0), config());
    let (sender, driver) = Pipe::send_only(outgoing, limits());
    driver.spawn().unwrap();
    transfers(&sender, &receiver, &[item(5, 1)]).await;
    assert!(store.check(&["kvpipe//1/address"], PATIENCE).await.unwrap());
}

#[tokio::test]
async fn an_idle_pipe_whose_ends_have_different_heartbeat_limits_is_not_dead() {
    let store = MemoryStore::new();
    let quick = heartbeat(Duration::from_millis(400));
    let (receiver, _) = receiver(&store, V4, quick.clone(), limits()).await;
    let sender = sender(&store, heartbeat(Duration::from_secs(5)), limits());
    sender.send(None).await.unwrap();
    sender.flush().await.unwrap();
    assert_eq!(receiver.recv().await.unwrap(), None);
    tokio::time::sleep(Duration::from_secs(1)).await;
    transfers(&sender, &receiver, &[item(5, 1)]).await;
}

#[tokio::test]
async fn neither_a_slow_consumer_nor_a_long_rest_nor_a_burst_after_it_is_death() {
    let store = MemoryStore::new();
    let quick = heartbeat(Duration::from_millis(300));
    let narrow = PipeConfig { max_items: 4, ..limits() };
    let (receiver, _) = receiver(&store, V4, quick.clone(), narrow).await;
    let sender = sender(&store, quick, limits());
    let items: Vec<_> = (0..200).map(|mark| item(usize::from(mark) * 50, mark)).collect();
    for item in &items {
        sender.send(item.clone()).await.unwrap();
    }
    // Its inbox is full, and stays so for a while.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for item in &items {
        assert_eq!(&receiver.recv_timeout(PATIENCE).await.unwrap(), item);
    }
    sender.flush().await.unwrap();
    // Nobody has anything to say.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    transfers(&sender, &receiver, &items).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_stays_alive_through_a_payload_that_takes_longer_than_the_heartbeat_limit() {
    const LARGE: usize = 512 << 20;
    let store = MemoryStore::new();
    let limits = PipeConfig { max_item_bytes: LARGE, ..PipeConfig::default() };
    let config = heartbeat(Duration::from_millis(100));
    let (receiver, _) = receiver(&store, V4, config.clone(), limits.clone()).await;
    let sender = sender(&store, config, limits);
    sender.send(None).await.unwrap();
    sender.flush().await.unwrap();
    let large = Tensor::from_vec([LARGE], vec![1_u8; LARGE]).unwrap();
    sender.send(Some(large)).await.unwrap();
    let flushed = sender.flush().await;
    flushed.unwrap();
    drop(receiver);
}

/// A network that is out of descriptors for good.
#[derive(Clone)]
struct Exhausted;
struct ExhaustedListener(tokio::net::TcpListener);

impl Net for Exhausted {
    type Stream = TcpStream;
    type Listener = ExhaustedListener;

    async fn connect(&self, address: SocketAddr, options: &SocketOptions) -> io::Result<TcpStream> {
        TokioNet.connect(address, options).await
    }
    async fn bind(&self, address: SocketAddr, options: &SocketOptions) -> io::Result<ExhaustedListener> {
        Ok(ExhaustedListener(TokioNet.bind(address, options).await?))
    }
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        TokioNet.resolve(host, port).await
    }
}

impl kvpipe::net::Listener for ExhaustedListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        Err(io::Error::other("too many open files"))
    }
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

#[tokio::test]
async fn a_listener_that_can_accept_nothing_still_gives_up_in_time() {
    let store = MemoryStore::new();
    let impatient = TcpConfig { connect_timeout: Duration::from_millis(300), ..config() };
    let address = V4.parse().unwrap();
    let incoming = TcpIncoming::bind(Exhausted, &store, ring(1), address, impatient).await.unwrap();
    let (receiver, driver) = Pipe::receive_only(incoming, limits());
    driver.spawn().unwrap();
    let error = receiver.recv_timeout(Duration::from_secs(3)).await.unwrap_err();
    assert!(error.to_string().contains("rank 0 to connect"), "{error}");
}

#[tokio::test]
async fn silent_strangers_in_any_number_do_not_keep_the_peer_out() {
    let store = MemoryStore::new();
    let config = heartbeat(Duration::from_millis(500));
    let (receiver, address) = receiver(&store, V4, config.clone(), limits()).await;
    // 48 that say nothing, and come back as soon as they are thrown out.
    for _ in 0..48 {
        tokio::spawn(async move {
            loop {
                let Ok(mut silent) = TcpStream::connect(address).await else { return };
                let _ = tokio::io::AsyncReadExt::read(&mut silent, &mut [0; 1]).await;
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let sender = sender(&store, config, limits());
    sender.send(None).await.unwrap();
    let got = receiver.recv_timeout(Duration::from_secs(15)).await;
    assert_eq!(got.unwrap(), None);
}

#[tokio::test]
async fn an_item_is_acknowledged_while_the_next_one_is_still_arriving() {
    let store = MemoryStore::new();
    let (_receiver, address) = receiver(&store, V4, plain(), limits()).await;
    let mut stream = connector(address).await;
    let mut bytes = bytes_of(&tensor(0, 3));
    bytes.extend(b"abc");
    bytes.extend(bytes_of(&tensor(1, 10)));
    bytes.extend(b"0123456");
    stream.write_all(&bytes).await.unwrap();
    let reply = tokio::time::timeout(Duration::from_secs(2), read_reply(&mut stream)).await;
    assert_eq!(reply.unwrap(), Some(Reply::Acknowledge { upto: 1 }));
}

/// One rank with both edges: the next rank floods it with signs of life, the previous one is
/// healthy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_floods_one_edge_does_not_stop_the_other() {
    use kvpipe::transport::Transport;
    use kvpipe::transport::tcp::TcpTransport;

    let store = MemoryStore::new();
    let quick = TcpConfig { heartbeat: Duration::from_millis(800), ..plain() };
    let (mut flood, rank) = {
        let store_of_rank = store.clone();
        let quick = quick.clone();
        let rank =
            TcpTransport::bind(TokioNet, store_of_rank, ring(0), V4.parse().unwrap(), quick).await.unwrap();
        let (outgoing, incoming) = rank.split();
        listener(&store, || {
            let (pipe, driver) = Pipe::new(outgoing, incoming, limits());
            driver.spawn().unwrap();
            pipe
        })
        .await
    };
    // The healthy one: rank 1's outgoing edge, to rank 0.
    let outgoing = TcpOutgoing::new(TokioNet, store.clone(), ring(1), quick);
    let (healthy, driver) = Pipe::send_only(outgoing, limits());
    driver.spawn().unwrap();
    healthy.send(None).await.unwrap();
    assert_eq!(rank.recv().await.unwrap(), None);

    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let (begun, flooded) = oneshot::channel();
    #[allow(clippy::disallowed_methods, reason = "the flood must not share a runtime with its victim")]
    let flooding = std::thread::spawn(move || {
        let mut chunk = Vec::new();
        while chunk.len() < 60_000 {
            Reply::Alive.encode_into(&mut chunk);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            flood.write_all(&chunk).await.unwrap();
            begun.send(()).unwrap();
            while !stopped.load(Ordering::Relaxed) && flood.write_all(&chunk).await.is_ok() {}
        });
        flood
    });
    flooded.await.unwrap();
    for mark in 0..20 {
        healthy.send(item(100, mark)).await.unwrap();
        assert_eq!(rank.recv_timeout(PATIENCE).await.unwrap(), item(100, mark));
    }
    stop.store(true, Ordering::Relaxed);
    flooding.join().unwrap();
}

#[tokio::test]
async fn a_close_before_the_peer_has_come_waits_for_it_as_long_as_a_connection_may_take() {
    let store = MemoryStore::new();
    let hasty = PipeConfig { close_timeout: Duration::from_millis(300), ..limits() };
    let sender = sender(&store, config(), hasty.clone());
    sender.send(None).await.unwrap();
    let late = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (receiver, _) = receiver(&store, V4, config(), limits()).await;
        receiver.recv_timeout(Duration::from_secs(2)).await
    };
    let (closed, received) = tokio::join!(sender.close(), late);
    closed.unwrap();
    assert_eq!(received.unwrap(), None);
}

#[tokio::test]
async fn a_close_that_never_reached_the_peer_is_no_success() {
    let store = MemoryStore::new();
    let hasty = PipeConfig { close_timeout: Duration::from_millis(300), ..limits() };
    let impatient = TcpConfig { connect_timeout: SHORT, ..config() };
    let closed = sender(&store, impatient, hasty).close().await;
    assert!(matches!(closed, Err(Error::Timeout { .. })), "nobody was ever connected: {closed:?}");
}

#[tokio::test]
async fn a_close_does_not_give_up_while_a_large_payload_is_moving() {
    let store = MemoryStore::new();
    let hasty = PipeConfig { close_timeout: Duration::from_secs(2), max_item_bytes: 64 << 20, ..limits() };
    let (receiver, address) = receiver(&store, V4, config(), hasty.clone()).await;
    let proxy = Proxy::before(address, &store).await;
    // Longer than the timeout in all, but what the sockets on the way hold passes within it.
    proxy.flows(Way::Forth, Flow::Slow { bytes_per_second: 10_000_000 });
    let pipe = sender(&store, config(), hasty);
    pipe.try_send(item(40 << 20, 1)).unwrap();
    let (closed, received) = tokio::join!(pipe.close(), receiver.recv());
    closed.unwrap();
    received.unwrap();
}

#[tokio::test]
async fn a_heartbeat_limit_that_no_scheduler_keeps_is_refused() {
    let hasty = heartbeat(Duration::from_millis(99));
    let (receiver, _) = receiver(&MemoryStore::new(), V4, hasty, limits()).await;
    let error = receiver.recv().await.unwrap_err();
    assert!(matches!(error, Error::Misuse(_)), "{error}");
    assert!(error.to_string().contains("99ms is below 100ms"), "{error}");
}

//! Two ranks on loopback, and a hand-made peer.

use std::net::SocketAddr;
use std::time::Duration;

use kvpipe::net::TokioNet;
use kvpipe::store::MemoryStore;
use kvpipe::transport::Ring;
use kvpipe::transport::tcp::{GroupName, Secret, TcpConfig, TcpIncoming, TcpOutgoing};
use kvpipe::{Item, Pipe, PipeConfig, Tensor};

pub(crate) const V4: &str = "127.0.0.1:0";
pub(crate) const V6: &str = "[::1]:0";

/// Waits that a healthy run never comes near.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A deadline that is meant to pass.
pub(crate) const SHORT: Duration = Duration::from_millis(400);

pub(crate) fn ring(rank: usize) -> Ring {
    Ring::new(rank, 2).unwrap()
}

pub(crate) fn config() -> TcpConfig {
    TcpConfig { connect_timeout: PATIENCE, ..TcpConfig::default() }
}

pub(crate) fn group(name: &str) -> TcpConfig {
    TcpConfig { group: GroupName::new(name).unwrap(), ..config() }
}

pub(crate) fn secret(text: &str) -> TcpConfig {
    TcpConfig { secret: Some(Secret::new(text).unwrap()), ..config() }
}

pub(crate) fn limits() -> PipeConfig {
    PipeConfig { max_item_bytes: 1 << 20, ..PipeConfig::default() }
}

/// Rank 0, sending to rank 1.
pub(crate) fn sender(store: &MemoryStore, config: TcpConfig, limits: PipeConfig) -> Pipe {
    let outgoing = TcpOutgoing::new(TokioNet, store.clone(), ring(0), config);
    let (pipe, driver) = Pipe::send_only(outgoing, limits);
    driver.spawn().unwrap();
    pipe
}

/// Rank 1, receiving from rank 0.
pub(crate) async fn receiver(
    store: &MemoryStore,
    address: &str,
    config: TcpConfig,
    limits: PipeConfig,
) -> (Pipe, SocketAddr) {
    let address = address.parse().unwrap();
    let incoming = TcpIncoming::bind(TokioNet, store, ring(1), address, config).await.unwrap();
    let address = incoming.local_addr();
    let (pipe, driver) = Pipe::receive_only(incoming, limits);
    driver.spawn().unwrap();
    (pipe, address)
}

/// A tensor of `bytes` bytes that differ from those of any other `mark`.
pub(crate) fn item(bytes: usize, mark: u8) -> Item {
    let content: Vec<u8> = (0..bytes).map(|at| (at as u8).wrapping_mul(31).wrapping_add(mark)).collect();
    Some(Tensor::from_vec([bytes], content).unwrap())
}

/// What `sent` items the receiver gets, until its stream ends.
pub(crate) async fn transfers(sender: &Pipe, receiver: &Pipe, sent: &[Item]) {
    for item in sent {
        sender.send(item.clone()).await.unwrap();
    }
    let (closed, received) = tokio::join!(sender.close(), async {
        let mut received = Vec::new();
        while let Ok(item) = receiver.recv().await {
            received.push(item);
        }
        received
    });
    closed.unwrap();
    assert_eq!(received, sent);
}

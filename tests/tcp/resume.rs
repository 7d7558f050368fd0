//! Connections that break and come back.

use std::net::SocketAddr;

use kvpipe::store::{MemoryStore, Store};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use crate::support::{PATIENCE, V4, config, item, limits, receiver, sender, transfers};

/// Between sender and receiver; breaks each connection once `bytes` came from the sender, and gives
/// the next one half as many again.
async fn breaking_proxy(store: &MemoryStore, target: SocketAddr, mut bytes: u64) {
    let listener = TcpListener::bind(V4).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    store.set("kvpipe//1/address", address.into(), PATIENCE).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let (mut far_reader, mut far_writer) = TcpStream::connect(target).await.unwrap().into_split();
            let (near_reader, mut near_writer) = near.into_split();
            let mut limited = near_reader.take(bytes);
            tokio::select! {
                biased;
                _ = tokio::io::copy(&mut limited, &mut far_writer) => {}
                _ = tokio::io::copy(&mut far_reader, &mut near_writer) => {}
            }
            bytes += bytes / 2;
        }
    });
}

#[tokio::test]
async fn a_connection_that_breaks_at_any_moment_is_resumed_without_loss_or_duplicate() {
    let store = MemoryStore::new();
    let (receiver, address) = receiver(&store, V4, config(), limits()).await;
    breaking_proxy(&store, address, 200).await;
    let sender = sender(&store, config(), limits());
    let items: Vec<_> = (0..400).map(|n| if n % 5 == 4 { None } else { item(n * 97, n as u8) }).collect();
    transfers(&sender, &receiver, &items).await;
}

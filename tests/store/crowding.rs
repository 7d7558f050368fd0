//! Clients that crowd the server: whoever takes most goes first.

use std::time::Duration;

use kvpipe::net::TokioNet;
use kvpipe::store::tcp::{ConnectOptions, TcpStore, TcpStoreServer};
use kvpipe::store::{Limits, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Two that stall within large requests, which take all the room there is for such.
#[tokio::test]
async fn a_client_that_stalls_within_a_request_does_not_cost_a_smaller_one_its_connection() {
    let mut limits = Limits::default();
    limits.unfinished_bytes = (4 << 20) + (64 << 10);
    limits.value_bytes = 2 << 20;
    let server = TcpStoreServer::bind(&TokioNet, "127.0.0.1:0".parse().unwrap(), limits).await.unwrap();
    let address = server.local_addr();
    let mut stalled = Vec::new();
    for _ in 0..2 {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut request = vec![0, 0xCE, 0xF7, 0x85, 0x3C, 1];
        request.extend([2, 0, 0, 0, 0, 0, 0, 0, b'/', b'k']);
        request.extend((2_u64 << 20).to_le_bytes());
        request.extend(vec![0; (2 << 20) - 1]);
        stream.write_all(&request).await.unwrap();
        stalled.push(stream);
    }
    while server.stats().bytes_in < (4 << 20) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let port = address.port();
    let store = TcpStore::connect(TokioNet, "127.0.0.1", port, ConnectOptions::default()).await.unwrap();
    let long = Duration::from_secs(60);
    store.set("small", "v".into(), long).await.unwrap();
    store.set("large", vec![1; 1 << 20].into(), long).await.unwrap();
    assert_eq!(store.get("large", long).await.unwrap().len(), 1 << 20);
    // One of them had to go, and is told; one was enough.
    let [first, second] = &mut stalled[..] else { panic!("two stall") };
    tokio::select! {
        biased;
        gone = first.read_u8() => drop(gone.unwrap_err()),
        gone = second.read_u8() => drop(gone.unwrap_err()),
        () = tokio::time::sleep(long) => panic!("both are still there"),
    }
    assert_eq!(server.stats().refused, 1);
}

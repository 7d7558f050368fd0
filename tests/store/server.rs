//! Where the server listens, whom it admits, and how it ends.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvpipe::Error;
use kvpipe::net::{Net, SocketOptions, TokioNet};
use kvpipe::store::tcp::protocol::{MAGIC, Request};
use kvpipe::store::tcp::{ServerStats, TcpStoreServer};
use kvpipe::store::{Limits, Store};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use crate::support::{LONG, Raw, connect, encoded, in_time, listener, server, server_with, until};

#[tokio::test]
async fn it_listens_on_exactly_the_given_address() {
    let server = server().await;
    let address = server.local_addr();
    assert_eq!(address.ip(), Ipv4Addr::LOCALHOST);
    Raw::validated(address).await;
    let other = SocketAddr::new(Ipv4Addr::new(127, 0, 0, 2).into(), address.port());
    TcpStream::connect(other).await.unwrap_err();
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_it() {
    let server = server().await;
    let address = server.local_addr();
    let error = TcpStoreServer::bind(&TokioNet, address, Limits::default()).await.unwrap_err();
    let Error::Io { doing, source } = &error else { panic!("{error}") };
    assert!(doing.contains(&address.to_string()), "{error}");
    assert_eq!(source.kind(), std::io::ErrorKind::AddrInUse);
}

/// The system's network, and what was asked of the last socket that listens.
#[derive(Clone, Default)]
struct Noting(Arc<Mutex<SocketOptions>>);

impl Net for Noting {
    type Stream = TcpStream;
    type Listener = TcpListener;

    async fn connect(&self, address: SocketAddr, options: &SocketOptions) -> io::Result<TcpStream> {
        TokioNet.connect(address, options).await
    }

    async fn bind(&self, address: SocketAddr, options: &SocketOptions) -> io::Result<TcpListener> {
        *self.0.lock().unwrap() = options.clone();
        TokioNet.bind(address, options).await
    }

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        TokioNet.resolve(host, port).await
    }
}

#[tokio::test]
async fn a_client_whose_host_is_gone_is_noticed_by_the_system_for_a_store_has_no_heartbeats() {
    let net = Noting::default();
    TcpStoreServer::bind(&net, (Ipv4Addr::LOCALHOST, 0).into(), Limits::default()).await.unwrap();
    assert!(net.0.lock().unwrap().keepalive.is_some());
}

#[tokio::test]
async fn it_takes_a_socket_that_listens_already() {
    let (listener, address) = listener().await;
    let server = TcpStoreServer::serve(listener, Limits::default()).unwrap();
    assert_eq!(server.local_addr(), address);
    connect(address).await.set("k", "v".into(), LONG).await.unwrap();
}

#[tokio::test]
async fn one_client_over_the_limit_is_turned_away_and_may_come_when_another_has_left() {
    let mut limits = Limits::default();
    limits.clients = 1;
    let server = server_with(limits).await;
    let first = Raw::validated(server.local_addr()).await;
    Raw::connect(server.local_addr()).await.expect_closed().await;
    assert_eq!(server.clients(), 1);
    drop(first);
    server.wait_until_idle(LONG).await.unwrap();
    Raw::validated(server.local_addr()).await;
}

#[tokio::test]
async fn it_is_idle_once_the_last_client_has_left() {
    let server = server().await;
    let (one, two) = (connect(server.local_addr()).await, connect(server.local_addr()).await);
    let error = server.wait_until_idle(Duration::from_millis(10)).await.unwrap_err();
    assert!(error.to_string().contains("2 connections to leave"), "{error}");
    drop(one);
    until(|| server.clients() == 1).await;
    let (idle, ()) = tokio::join!(biased; server.wait_until_idle(LONG), async { drop(two) });
    idle.unwrap();
}

#[tokio::test]
async fn shutdown_closes_every_connection_and_the_port() {
    let server = server().await;
    let address = server.local_addr();
    let mut idle = Raw::validated(address).await;
    let mut waiting = Raw::validated(address).await;
    waiting.send(&[Request::Wait { keys: vec!["/never".into()] }]).await;
    waiting.ping().await;
    in_time(server.shutdown()).await;
    idle.expect_closed().await;
    waiting.expect_closed().await;
    TcpStream::connect(address).await.unwrap_err();
}

#[tokio::test]
async fn dropping_it_closes_every_connection_and_the_port() {
    let server = server().await;
    let address = server.local_addr();
    let mut client = Raw::validated(address).await;
    drop(server);
    client.expect_closed().await;
    TcpStream::connect(address).await.unwrap_err();
}

#[tokio::test]
async fn dropping_it_abandons_the_replies_that_nobody_has_read() {
    const VALUE_BYTES: usize = 8 << 20;
    const REPLIES: usize = 8;
    let mut limits = Limits::default();
    limits.outbound_bytes = 2 * REPLIES * VALUE_BYTES;
    let server = server_with(limits).await;
    let store = connect(server.local_addr()).await;
    store.set("large", vec![1; VALUE_BYTES].into(), LONG).await.unwrap();
    let mut requests = vec![Request::Get { key: "/large".into() }; REPLIES];
    requests.push(Request::Set { key: "/all/asked".into(), value: "v".into() });
    let mut client = Raw::validated(server.local_addr()).await;
    client.send(&requests).await;
    store.wait(&["all/asked"], LONG).await.unwrap();
    drop(server);
    let mut received = Vec::new();
    // It ends with a reset where the system had queued less than was promised.
    let _reset = in_time(client.0.read_to_end(&mut received)).await;
    assert!(received.len() < REPLIES * VALUE_BYTES, "all was written");
}

#[tokio::test]
async fn a_client_that_has_finished_its_direction_still_gets_its_replies() {
    let server = server().await;
    let mut client = Raw::validated(server.local_addr()).await;
    client.send(&[Request::Add { key: "/n".into(), delta: 7 }]).await;
    tokio::io::AsyncWriteExt::shutdown(&mut client.0).await.unwrap();
    client.expect(&7i64.to_le_bytes()).await;
    client.expect_closed().await;
}

#[tokio::test]
async fn its_statistics_are_what_happened() {
    let server = server().await;
    assert_eq!(server.stats(), ServerStats::default());
    let mut client = Raw::connect(server.local_addr()).await;
    let requests = encoded(&[
        Request::Validate { magic: MAGIC },
        Request::Set { key: "/k".into(), value: "value".into() },
        Request::QueuePush { key: "/q".into(), value: "queued".into() },
        Request::Add { key: "/n".into(), delta: 1 },
        Request::Wait { keys: vec!["/never".into()] },
    ]);
    client.write(&requests).await;
    client.expect(&1i64.to_le_bytes()).await;
    until(|| server.waiting() == 1).await;
    // What was read out is counted a moment later.
    until(|| server.stats().bytes_out == 8).await;
    let stats = server.stats();
    assert_eq!((stats.clients, stats.waiting, stats.keys, stats.queued), (1, 1, 2, 1));
    assert_eq!(stats.stored_bytes, "/kvalue/qqueued/n1".len());
    assert_eq!((stats.requests, stats.refused), (5, 0));
    assert_eq!(stats.bytes_in, requests.len() as u64);

    client.send(&[Request::Wait { keys: vec!["/never".into()] }]).await;
    client.expect_closed().await;
    until(|| server.clients() == 0).await;
    let stats = server.stats();
    assert_eq!((stats.requests, stats.refused, stats.waiting, stats.clients), (5, 1, 0, 0));
}

#[tokio::test]
async fn a_client_too_many_counts_as_refused() {
    let mut limits = Limits::default();
    limits.clients = 0;
    let server = server_with(limits).await;
    Raw::connect(server.local_addr()).await.expect_closed().await;
    assert_eq!(server.stats().refused, 1);
}

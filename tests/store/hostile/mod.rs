//! Clients that stall, flood, lie or send garbage harm themselves and nobody else.

mod malformed;
mod onslaught;
mod shapes;

use bytes::Bytes;
use kvpipe::store::tcp::protocol::Request;
use kvpipe::store::tcp::{TcpStore, TcpStoreServer};
use kvpipe::store::{Limits, Store};

use crate::support::{LONG, Raw, connect, encoded, server, server_with, until};

/// Everything still works for somebody else.
async fn others_proceed(server: &TcpStoreServer) {
    let store: TcpStore<_> = connect(server.local_addr()).await;
    store.set("others", "v".into(), LONG).await.unwrap();
    assert_eq!(store.get("others", LONG).await.unwrap(), "v");
    store.delete("others", LONG).await.unwrap();
}

#[tokio::test]
async fn garbage_closes_its_own_connection_only() {
    let server = server().await;
    let mut bystander = Raw::validated(server.local_addr()).await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xFF; 1000], &[0, 1, 2, 3, 4], &[13, 1, 2, 3, 4]] {
        let mut hostile = Raw::connect(server.local_addr()).await;
        hostile.write(garbage).await;
        hostile.expect_closed().await;
    }
    bystander.ping().await;
    others_proceed(&server).await;
}

#[tokio::test]
async fn a_wrong_magic_is_refused() {
    let server = server().await;
    let mut stranger = Raw::connect(server.local_addr()).await;
    stranger.send(&[Request::Validate { magic: 0x3C85_F7CF }, Request::Ping { nonce: 1 }]).await;
    stranger.expect_closed().await;
}

#[tokio::test]
async fn a_second_validate_closes_the_connection() {
    let server = server().await;
    let mut client = Raw::validated(server.local_addr()).await;
    client.send(&[Request::Validate { magic: 0x3C85_F7CE }]).await;
    client.expect_closed().await;
}

#[tokio::test]
async fn a_client_that_stalls_at_any_byte_of_a_request_delays_nobody() {
    let server = server().await;
    let requests = encoded(&[Request::Set { key: "/stalled".into(), value: "value".into() }]);
    let mut stalled = Vec::new();
    for stall in 1..requests.len() {
        let mut client = Raw::validated(server.local_addr()).await;
        client.write(&requests[..stall]).await;
        stalled.push((stall, client));
    }
    others_proceed(&server).await;
    // Those who stall are still connected, and nobody else is.
    until(|| server.clients() == stalled.len()).await;
    let (stall, mut client) = stalled.pop().unwrap();
    client.write(&requests[stall..]).await;
    client.ping().await;
    assert_eq!(connect(server.local_addr()).await.get("stalled", LONG).await.unwrap(), "value");
}

#[tokio::test]
async fn a_client_that_reads_no_replies_is_not_read_from_and_delays_nobody() {
    const REPLIES: usize = 64;
    let server = server().await;
    let store = connect(server.local_addr()).await;
    let value = Bytes::from(vec![9; 1 << 20]);
    store.set("large", value.clone(), LONG).await.unwrap();

    let mut flood = vec![Request::Get { key: "/large".into() }; REPLIES];
    flood.push(Request::Set { key: "/marker".into(), value: "v".into() });
    let mut flooding = Raw::validated(server.local_addr()).await;
    flooding.send(&flood).await;
    for _ in 0..20 {
        others_proceed(&server).await;
    }
    // The last request comes after 64 MiB of replies, more than all sockets hold.
    assert!(!store.check(&["marker"], LONG).await.unwrap());

    let reply = [&(value.len() as u64).to_le_bytes()[..], &value].concat();
    for _ in 0..REPLIES {
        flooding.expect(&reply).await;
    }
    store.wait(&["marker"], LONG).await.unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_midway_leaves_nothing_behind() {
    let server = server().await;
    let mut waiting = Raw::validated(server.local_addr()).await;
    waiting.send(&[Request::Wait { keys: vec!["/never".into()] }]).await;
    waiting.ping().await;
    let mut midway = Raw::validated(server.local_addr()).await;
    midway.write(&[1, 5, 0, 0]).await;
    assert_eq!((server.clients(), server.waiting()), (2, 1));
    drop((waiting, midway));
    server.wait_until_idle(LONG).await.unwrap();
    assert_eq!(server.waiting(), 0);
}

#[tokio::test]
async fn a_request_over_the_stores_bounds_closes_its_own_connection_only() {
    let mut limits = Limits::default();
    (limits.stored_keys, limits.stored_bytes) = (2, 100);
    let server = server_with(limits).await;
    let store = connect(server.local_addr()).await;
    store.set("a", "v".into(), LONG).await.unwrap();
    let error = store.set("b", vec![0; 100].into(), LONG).await.unwrap_err();
    assert!(error.to_string().contains("setting key \"b\""), "{error}");
    store.set("b", "v".into(), LONG).await.unwrap();
    store.set("c", "v".into(), LONG).await.unwrap_err();
    assert!(store.check(&["a", "b"], LONG).await.unwrap());
    assert!(!store.check(&["c"], LONG).await.unwrap());
}

#[tokio::test]
async fn a_bare_get_of_a_missing_key_closes_the_connection() {
    let server = server().await;
    let mut client = Raw::validated(server.local_addr()).await;
    client.send(&[Request::Get { key: "/never".into() }]).await;
    client.expect_closed().await;
}

#[tokio::test]
async fn replies_before_a_violation_still_arrive() {
    let server = server().await;
    let mut client = Raw::validated(server.local_addr()).await;
    client.send(&[Request::Ping { nonce: 7 }, Request::Get { key: "/never".into() }]).await;
    client.expect(&[7, 0, 0, 0]).await;
    client.expect_closed().await;
}

#[tokio::test]
async fn many_half_requests_hold_no_more_memory_than_allowed_and_harm_only_the_last() {
    const HALF: usize = 300_000;
    let mut limits = Limits::default();
    limits.unfinished_bytes = 4 << 20;
    let server = server_with(limits).await;
    let store = connect(server.local_addr()).await;
    let request = encoded(&[Request::Set { key: "/half".into(), value: vec![1; 2 * HALF].into() }]);
    let mut patient = Vec::new();
    let refused_before = server.stats().refused;
    while server.stats().refused == refused_before {
        let mut client = Raw::validated(server.local_addr()).await;
        client.write(&request[..HALF]).await;
        patient.push(client);
        // It was read, or it was closed.
        let come = |count| server.stats().bytes_in >= (count * HALF) as u64;
        until(|| come(patient.len()) || server.stats().refused > refused_before).await;
    }
    // What is allocated grows by a factor beyond what has come.
    assert!((4..=14).contains(&patient.len()), "{} half requests", patient.len());
    patient.pop().unwrap().expect_closed().await;
    others_proceed(&server).await;
    // The others may finish theirs.
    let mut first = patient.swap_remove(0);
    first.write(&request[HALF..]).await;
    first.ping().await;
    assert_eq!(store.get("half", LONG).await.unwrap().len(), 2 * HALF);
}

#[tokio::test]
async fn a_second_wait_or_barrier_closes_the_connection() {
    let server = server().await;
    let wait = || Request::Wait { keys: vec!["/never".into()] };
    let barrier = || Request::Barrier { key: "/b".into(), world_size: 100 };
    for [first, second] in
        [[wait(), barrier()], [barrier(), wait()], [barrier(), barrier()], [wait(), wait()]]
    {
        let mut client = Raw::validated(server.local_addr()).await;
        client.send(&[first]).await;
        client.ping().await;
        client.send(&[second]).await;
        client.expect_closed().await;
    }
    until(|| server.waiting() == 0).await;
    others_proceed(&server).await;
}

#[tokio::test]
async fn a_multi_set_that_never_comes_whole_stores_nothing_of_it() {
    let server = server().await;
    let pairs = vec![("/first".into(), "1".into()), ("/second".into(), "2".into())];
    let request = encoded(&[Request::MultiSet { pairs }]);
    let mut client = Raw::validated(server.local_addr()).await;
    client.write(&request[..request.len() - 1]).await;
    drop(client);
    server.wait_until_idle(LONG).await.unwrap();
    let store = connect(server.local_addr()).await;
    assert_eq!(store.num_keys(LONG).await.unwrap(), 0);
}

//! `kvpipe store`, and the store that rank 0 serves.

use std::net::TcpListener;
use std::time::Duration;

use bytes::Bytes;
use kvpipe::net::TokioNet;
use kvpipe::store::Store;
use kvpipe::store::tcp::{ConnectOptions, TcpStore};
use serde_json::{Value, json};

use crate::support::{Process, run};

async fn connect(address: &str) -> TcpStore<TokioNet> {
    let (host, port) = address.rsplit_once(':').unwrap();
    TcpStore::connect(TokioNet, host, port.parse().unwrap(), ConnectOptions::default()).await.unwrap()
}

async fn assert_ends_well_on(signal: &str) {
    let mut store = Process::start("store --listen 127.0.0.1:0");
    let line = store.line().await;
    let address = line.strip_prefix("listening on ").unwrap();
    // A client that waits must not keep it up.
    let client = connect(address).await;
    client.set("key", Bytes::from_static(b"value"), Duration::from_secs(60)).await.unwrap();
    store.signal(signal).await;
    let finished = store.finish().await.exited(0);
    assert_eq!(finished.stdout, [format!("stopped by SIG{signal}")]);
}

#[tokio::test]
async fn sigterm_ends_a_store_with_code_0() {
    assert_ends_well_on("TERM").await;
}

#[tokio::test]
async fn sigint_ends_a_store_with_code_0() {
    assert_ends_well_on("INT").await;
}

#[tokio::test]
async fn json_says_where_it_listens_and_why_it_stopped() {
    let mut store = Process::start("store --listen 127.0.0.1:0 --json");
    let ready: Value = serde_json::from_str(&store.line().await).unwrap();
    connect(ready["listening"].as_str().unwrap()).await;
    store.signal("TERM").await;
    assert_eq!(store.finish().await.exited(0).stdout, [r#"{"stopped":"SIGTERM"}"#]);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for command in
        [format!("store --listen {address}"), format!("send --store {address} --rank 0 --world-size 2 none")]
    {
        run(&command).await.exited(1).says(&["kvpipe: error: ", &address, "in use", "choose another port"]);
    }
}

/// A store, and where it listens.
async fn listening(options: &str) -> (Process, String) {
    let mut store = Process::start(&format!("store --listen 127.0.0.1:0 {options}"));
    let address = store.line().await.split_off("listening on ".len());
    (store, address)
}

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_value_of_the_limit_is_taken_and_one_byte_more_is_not() {
    let (store, address) = listening("--max-value-bytes 1KiB").await;
    let client = connect(&address).await;
    client.set("fits", vec![0; 1024].into(), PATIENCE).await.unwrap();
    client.get("fits", PATIENCE).await.unwrap();
    // The server closes the connection of a client that declares too much.
    let refused = async {
        client.set("too long", vec![0; 1025].into(), PATIENCE).await?;
        client.get("too long", PATIENCE).await
    };
    refused.await.unwrap_err();
    connect(&address).await.get("fits", PATIENCE).await.unwrap();
    store.signal("TERM").await;
    store.finish().await.exited(0).says(&["1025", "limit"]);
}

#[tokio::test]
async fn a_client_beyond_the_limit_is_closed_and_one_that_leaves_makes_room() {
    let (mut store, address) = listening("--max-clients 1").await;
    let client = connect(&address).await;
    client.set("key", Bytes::new(), PATIENCE).await.unwrap();
    let mut options = ConnectOptions::default();
    options.timeout = Duration::from_millis(500);
    let (host, port) = address.rsplit_once(':').unwrap();
    TcpStore::connect(TokioNet, host, port.parse().unwrap(), options).await.unwrap_err();
    store.note("the store has its limit of clients").await;
    drop(client);
    // Connecting tries again until there is room.
    connect(&address).await.get("key", PATIENCE).await.unwrap();
}

#[tokio::test]
async fn statistics_come_every_so_often_and_at_the_end() {
    let mut store = Process::start("store --listen 127.0.0.1:0 --stats 0.01 --json");
    let ready: Value = serde_json::from_str(&store.line().await).unwrap();
    let client = connect(ready["listening"].as_str().unwrap()).await;
    client.set("key", vec![7; 1000].into(), PATIENCE).await.unwrap();
    // A reply proves that the request before it was counted.
    client.get("key", PATIENCE).await.unwrap();
    let stats = loop {
        let line: Value = serde_json::from_str(&store.line().await).unwrap();
        if line["stats"]["keys"] == 1 && line["stats"]["bytes_out"].as_u64() > Some(1000) {
            break line["stats"].clone();
        }
    };
    assert_eq!((&stats["queued"], &stats["waiting"], &stats["refused"]), (&json!(0), &json!(0), &json!(0)));
    for (name, least) in [("clients", 1), ("stored_bytes", 1003), ("requests", 3), ("bytes_in", 1003)] {
        assert!(stats[name].as_u64() >= Some(least), "{name} of {stats}");
    }
    assert_eq!(stats.as_object().unwrap().len(), 9, "{stats}");
    store.signal("TERM").await;
    let lines = store.finish().await.exited(0).json();
    let [.., last, stopped] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((&last["stats"]["keys"], stopped), (&json!(1), &json!({"stopped": "SIGTERM"})));
}

#[tokio::test]
async fn people_get_statistics_in_one_line() {
    let (store, address) = listening("--stats").await;
    let client = connect(&address).await;
    client.set("key", Bytes::from_static(b"value"), PATIENCE).await.unwrap();
    client.get("key", PATIENCE).await.unwrap();
    drop(client);
    store.signal("INT").await;
    let lines = store.finish().await.exited(0).stdout;
    // The last ones, however slow the machine is.
    let [.., stats, stopped] = &lines[..] else { panic!("{lines:?}") };
    assert!(
        stats.contains(" waiting; 1 key, 0 queued, ") && stats.contains(" requests, 0 refused; "),
        "{stats}"
    );
    assert_eq!(stopped, "stopped by SIGINT");
}

#[tokio::test]
async fn a_store_without_stats_prints_none() {
    let (store, _) = listening("").await;
    store.signal("TERM").await;
    assert_eq!(store.finish().await.exited(0).stdout, ["stopped by SIGTERM"]);
}

#[tokio::test]
async fn a_store_may_be_on_every_address_if_asked_for() {
    let mut store = Process::start("store --listen 0.0.0.0:0 --allow-remote");
    let line = store.line().await;
    let port = line.strip_prefix("listening on 0.0.0.0:").unwrap();
    connect(&format!("127.0.0.1:{port}")).await;
}

#[tokio::test]
async fn a_rank_may_serve_the_store_on_every_address_if_asked_for() {
    let mut sender = Process::start("send --store 0.0.0.0:0 --rank 0 --world-size 2 --allow-remote none");
    let store = sender.store_address().await.replace("0.0.0.0", "127.0.0.1");
    run(&format!("recv --store {store} --rank 1 --world-size 2")).await.exited(0);
    sender.finish().await.exited(0);
}

/// Rank 0 of three has finished with rank 1; rank 2 is still out.
async fn rank_0_that_waits(timeout: &str) -> (Process, String) {
    let mut sender =
        Process::start(&format!("send --store 127.0.0.1:0 --rank 0 --world-size 3 {timeout} none"));
    let store = sender.store_address().await;
    run(&format!("recv --store {store} --rank 1 --world-size 3")).await.exited(0);
    sender.note("until rank 2 has finished with it").await;
    (sender, store)
}

#[tokio::test]
async fn rank_0_serves_the_store_until_the_last_rank_has_left() {
    let (sender, store) = rank_0_that_waits("--timeout 100000").await;
    connect(&store).await.set("kvpipe/left/2", Bytes::new(), Duration::from_secs(60)).await.unwrap();
    sender.finish().await.exited(0);
}

#[tokio::test]
async fn rank_0_waits_no_longer_than_its_timeout() {
    let (sender, _) = rank_0_that_waits("--timeout 3").await;
    sender.finish().await.exited(0).says(&["the store stops without rank 2 after 3 s"]);
}

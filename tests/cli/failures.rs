//! Peers that don't come, don't fit, leave early or die.

use kvpipe::net::TokioNet;
use kvpipe::store::Limits;
use kvpipe::store::tcp::{ConnectOptions, TcpStore, TcpStoreServer};
use kvpipe::tensor::{DType, Tensor};
use kvpipe::transport::Ring;
use kvpipe::transport::tcp::{TcpConfig, TcpOutgoing};
use kvpipe::{Error, Pipe, PipeConfig};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Process, bytes, directory, file, run, send_to_recv, text};

#[tokio::test]
async fn a_sender_without_peer_says_whom_it_awaited_and_for_how_long() {
    run("send --store 127.0.0.1:0 --rank 0 --world-size 2 --timeout 1 none").await.exited(1).says(&[
        "timed out after 1 s waiting for rank 1",
        "delivered: 0 of 1 item",
        "not delivered: 1 item: #0 none",
    ]);
}

#[tokio::test]
async fn a_sender_whose_buffer_is_full_names_the_missing_peer_as_well() {
    let directory = directory();
    let input = file(&directory, "in.safetensors", &[("a", bytes(9, 0)), ("b", bytes(9, 1))]);
    run(&format!("send --store 127.0.0.1:0 --rank 0 --world-size 2 --timeout 1 --buffer-size 8 {input}"))
        .await
        .exited(1)
        .says(&["timed out after 1 s waiting for rank 1", "not delivered: 2 items: #0 \"a\" of "]);
}

#[tokio::test]
async fn a_receiver_without_peer_says_whom_it_awaited_and_for_how_long() {
    let finished = run("recv --store 127.0.0.1:0 --rank 0 --world-size 3 --timeout 1 --json").await.exited(1);
    let finished = finished.says(&["timed out after 1 s waiting for rank 2", "received 0 items"]);
    assert_eq!(finished.json(), [json!({"received": 0, "tensors": 0, "bytes": 0, "complete": false})]);
}

#[tokio::test]
async fn a_rank_without_store_says_where_it_looked() {
    // Nobody listens on a port that was bound and is not any more.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let says = format!("timed out after 0.5 s waiting for the store at {address}");
    run(&format!("recv --store {address} --rank 1 --world-size 2 --timeout 0.5"))
        .await
        .exited(1)
        .says(&[&says]);
}

#[tokio::test]
async fn a_receiver_that_closes_early_makes_the_sender_name_what_it_did_not_take() {
    let directory = directory();
    let tensors = ["a", "b", "c"].map(|name| (name, bytes(8, 0)));
    let input = file(&directory, "in.safetensors", &tensors);
    let output = directory.path().join("out.safetensors");
    let options = format!("--count 2 --output {}", text(&output));
    let (sender, receiver) = send_to_recv(&format!("--json {input} none"), &options).await;
    receiver.exited(0);
    assert!(output.exists());
    let named = format!("not delivered: 2 items: #2 \"c\" of {input}, #3 none");
    let sender =
        sender.exited(1).says(&["closed after taking 2 items", "taken by the receiver: 2 items", &named]);
    let [summary] = &sender.json()[..] else { panic!("one line is expected: {sender:?}") };
    assert_eq!((&summary["taken"], &summary["complete"]), (&json!(2), &json!(false)));
    let lost = json!([{"sequence": 2, "name": format!("\"c\" of {input}")}, {"sequence": 3, "name": "none"}]);
    assert_eq!(summary["undelivered"], lost);
}

/// A sender and a receiver in the middle of a transfer: the receiver has shown its first item, and
/// can't come to the end, because nobody reads what it shows; nor can the sender, because what is
/// left is more than fits into buffers.
async fn in_the_middle(directory: &TempDir, options: &str) -> (Process, Process) {
    let small: Vec<(String, Tensor)> =
        (0..2000).map(|index| (format!("small.{index:04}"), bytes(16, index))).collect();
    let small_file = directory.path().join("small.safetensors");
    kvpipe::tensor::safetensors::write(&small_file, &small).unwrap();
    let large = file(directory, "large.safetensors", &[("large", bytes(32 << 20, 0))]);
    let send = format!(
        "send --json --store 127.0.0.1:0 --rank 0 --world-size 2 --timeout 5 {} {large}",
        text(&small_file)
    );
    let mut sender = Process::start(&send);
    let store = sender.store_address().await;
    let recv = format!("recv --json --buffer-size 16 --store {store} --rank 1 --world-size 2 {options}");
    let mut receiver = Process::start(&recv);
    assert_eq!(serde_json::from_str::<Value>(&receiver.line().await).unwrap()["index"], 0);
    (sender, receiver)
}

#[tokio::test]
async fn a_receiver_that_is_killed_makes_the_sender_name_what_is_in_doubt() {
    let directory = directory();
    let (sender, receiver) = in_the_middle(&directory, "").await;
    receiver.signal("KILL").await;
    let sender = sender.finish().await.exited(1);
    let sender = sender.says(&["the peer is gone", " of 2001 items", "in doubt: ", " \"small.", " more"]);
    assert!(receiver.finish().await.code.is_none());

    let [summary] = &sender.json()[..] else { panic!("one line is expected: {sender:?}") };
    let count = |name: &str| summary[name].as_array().unwrap().len() as u64;
    let delivered = summary["delivered"].as_u64().unwrap();
    assert_eq!(delivered + count("in_doubt") + count("undelivered"), 2001, "{summary}");
    assert_eq!(summary["in_doubt"][0]["sequence"], delivered);
    assert_eq!(summary["complete"], false);
}

#[tokio::test]
async fn a_sender_that_is_killed_makes_the_receiver_fail_without_a_file() {
    let directory = directory();
    let output = directory.path().join("out.safetensors");
    std::fs::write(&output, "old").unwrap();
    let (sender, receiver) = in_the_middle(&directory, &format!("--output {}", text(&output))).await;
    sender.signal("KILL").await;
    assert!(sender.finish().await.code.is_none());
    let receiver = receiver.finish().await.exited(1);
    let receiver = receiver.says(&["the peer is gone", "received ", "out.safetensors was not written"]);
    assert_eq!(receiver.json().last().unwrap()["complete"], false);
    assert_eq!(std::fs::read_to_string(&output).unwrap(), "old");
    let names: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "nothing is left behind: {names:?}");
}

#[tokio::test]
async fn how_long_to_wait_for_a_sender_that_is_gone_or_frozen_is_the_users_choice() {
    for (signal, options, says) in [
        ("KILL", "--reconnect 0.2", "it did not come back within 0.2 s"),
        ("KILL", "--reconnect none", "the peer is gone"),
        ("STOP", "--heartbeat 0.3", "silent for 0.3 s"),
    ] {
        let directory = directory();
        let (sender, receiver) = in_the_middle(&directory, options).await;
        sender.signal(signal).await;
        receiver.finish().await.exited(1).says(&[says]);
        sender.signal("KILL").await;
    }
}

/// A sender and a receiver that differ in their options, and give up after a second or two.
async fn assert_no_meeting(send: &str, recv: &str, says: &str) {
    let mut sender =
        Process::start(&format!("send --store 127.0.0.1:0 --rank 0 --world-size 2 --timeout 2 {send} none"));
    let store = sender.store_address().await;
    let receiver =
        Process::start(&format!("recv --store {store} --rank 1 --world-size 2 --timeout 2 {recv}"));
    let (sender, receiver) = tokio::join!(sender.finish(), receiver.finish());
    sender.exited(1).says(&[says, "not delivered: 1 item"]);
    receiver.exited(1);
}

#[tokio::test]
async fn ranks_with_different_secrets_dont_meet() {
    let directory = directory();
    let secret = |name: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, name).unwrap();
        format!("--secret-file {}", text(&path))
    };
    assert_no_meeting(&secret("one"), &secret("two"), "secret").await;
}

#[tokio::test]
async fn ranks_of_different_groups_dont_meet() {
    assert_no_meeting("--group red", "--group blue", "timed out after 2 s waiting for rank 1").await;
}

#[tokio::test]
async fn ranks_with_different_item_limits_are_told_both() {
    assert_no_meeting("--max-item-size 1000", "--max-item-size 2000", "1000").await;
    assert_no_meeting("--checksum", "", "checksum").await;
}

#[tokio::test]
async fn a_tensor_over_the_limit_is_not_sent() {
    let directory = directory();
    let input = file(&directory, "in.safetensors", &[("k", bytes(101, 0))]);
    let (sender, receiver) =
        send_to_recv(&format!("--max-item-size 100 {input}"), "--max-item-size 100").await;
    sender.exited(1).says(&[
        "101 bytes is over the limit of 100 bytes",
        "--max-item-size",
        "not delivered: 1 item: #0",
    ]);
    receiver.exited(1);
}

#[tokio::test]
async fn a_dtype_that_a_file_cant_hold_is_refused_when_it_comes() {
    let directory = directory();
    let output = directory.path().join("out.safetensors");
    let local = "127.0.0.1:0".parse().unwrap();
    let server = TcpStoreServer::bind(&TokioNet, local, Limits::default()).await.unwrap();
    let address = server.local_addr();
    let store =
        TcpStore::connect(TokioNet, "127.0.0.1", address.port(), ConnectOptions::default()).await.unwrap();
    let outgoing = TcpOutgoing::new(TokioNet, store, Ring::new(0, 2).unwrap(), TcpConfig::default());
    let (sender, driver) = Pipe::send_only(outgoing, PipeConfig::default());
    driver.spawn().unwrap();
    sender.send(Some(Tensor::new(DType::Complex128, [1], vec![0; 16].into()).unwrap())).await.unwrap();
    sender.send(None).await.unwrap();

    let line =
        format!("recv --store {address} --rank 1 --world-size 2 --external-store --output {}", text(&output));
    let receiver = run(&line).await;
    receiver.exited(1).says(&["item 0 is of dtype complex128", "out.safetensors was not written"]);
    assert!(!output.exists());
    assert!(matches!(sender.close().await, Err(Error::ReceiverClosed { taken: 1, .. })));
}

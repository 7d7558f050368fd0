//! `send`, `recv` and `demo` through the store, on both wires.

use kvpipe::Tensor;
use kvpipe::tensor::{DType, Shape, safetensors};

use crate::support::{Process, bytes, directory, file, run, send_to_recv, text};

/// A tensor larger than a chunk, small ones, and an empty one.
fn tensors() -> Vec<(&'static str, Tensor)> {
    let empty = Tensor::new(DType::Float16, Shape::new(&[0, 3]).unwrap(), "".into()).unwrap();
    vec![("a", bytes(9 << 20, 3)), ("b", bytes(5, 2)), ("c", empty), ("d", bytes(100_000, 7))]
}

async fn assert_copied(send_options: &str, recv_options: &str) {
    let directory = directory();
    let input = file(&directory, "in.safetensors", &tensors());
    let output = text(&directory.path().join("out.safetensors"));
    let (sender, receiver) = send_to_recv(
        &format!("{send_options} {input} none {input}"),
        &format!("{recv_options} --output {output}"),
    )
    .await;
    receiver.exited(0);
    sender.exited(0);
    let sent: Vec<Tensor> = safetensors::read(&input).unwrap().into_iter().map(|(_, sent)| sent).collect();
    let mut received = safetensors::read(&output).unwrap();
    received.sort_by(|left, right| left.0.cmp(&right.0));
    let names: Vec<&str> = received.iter().map(|(name, _)| name.as_str()).collect();
    let places = ["000000", "000001", "000002", "000003", "000005", "000006", "000007", "000008"];
    assert_eq!(names, places, "the None keeps its place");
    for ((_, received), sent) in received.iter().zip(sent.iter().cycle()) {
        assert_eq!(received, sent);
    }
}

#[tokio::test]
async fn files_arrive_byte_for_byte_through_the_store() {
    assert_copied("--transport store", "--transport store").await;
}

#[tokio::test]
async fn files_arrive_byte_for_byte_on_vllms_wire() {
    assert_copied("--wire vllm", "--wire vllm --count 9").await;
}

#[tokio::test]
async fn a_dtype_that_torch_can_not_load_is_a_failure_that_says_what_to_do() {
    let directory = directory();
    let fp8 = Tensor::new(DType::Float8E4m3fn, Shape::new(&[2]).unwrap(), vec![1, 2].into()).unwrap();
    let input = file(&directory, "in.safetensors", &[("fp8", fp8)]);
    let (sender, receiver) =
        send_to_recv(&format!("--wire vllm none {input}"), "--wire vllm --count 1").await;
    receiver.exited(0);
    sender.exited(1).says(&["torch can't load a pickled tensor of float8_e4m3fn", "uint8"]);
}

#[tokio::test]
async fn what_has_no_meaning_through_a_store_is_refused() {
    let send = "send --store 127.0.0.1:1 --rank 0 --world-size 2";
    let recv = "recv --store 127.0.0.1:1 --rank 1 --world-size 2";
    for (line, says) in [
        (format!("{send} --transport tcp --wire vllm none"), "vllm's wire goes through the store"),
        (format!("{send} --transport store --checksum none"), "--checksum has no meaning through a store"),
        (format!("{send} --wire vllm --checksum none"), "--checksum has no meaning through a store"),
        (format!("{send} --wire vllm --group g none"), "no names of groups"),
        (format!("{send} --wire vllm --heartbeat 1 none"), "--heartbeat has no meaning on vllm's wire"),
        (format!("{send} --wire vllm --reconnect none none"), "--reconnect has no meaning on vllm's wire"),
        (format!("{send} --wire grpc none"), "grpc"),
        (format!("{recv} --wire vllm --output x.safetensors"), "--output needs --count on vllm's wire"),
        (format!("{send} --transport store --host 127.0.0.1 none"), "--host has no meaning through a store"),
        ("demo --wire vllm --checksum".into(), "--checksum has no meaning through a store"),
        ("demo --wire vllm --ranks 1".into(), "a rank can't send to itself"),
        ("demo --transport memory --wire vllm".into(), "in memory there is no wire"),
    ] {
        run(&line).await.exited(2).says(&[says]);
    }
}

#[tokio::test]
async fn a_store_of_an_earlier_run_is_refused_on_vllms_wire() {
    let mut store = Process::start("store --listen 127.0.0.1:0");
    let address = store.line().await.trim_start_matches("listening on ").to_owned();
    let common = format!("--store {address} --world-size 2 --external-store --wire vllm");
    let both = async || {
        let sender = Process::start(&format!("send {common} --rank 0 none none"));
        let receiver = Process::start(&format!("recv {common} --rank 1 --count 1"));
        tokio::join!(sender.finish(), receiver.finish())
    };
    let (sender, receiver) = both().await;
    sender.exited(0);
    receiver.exited(0);
    // The second None is still there.
    for late in <[_; 2]>::from(both().await) {
        late.exited(1).says(&["has been used before", "a store of its own"]);
    }
}

#[tokio::test]
async fn a_secret_is_not_silently_ignored() {
    let directory = directory();
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "hunter2").unwrap();
    let line = format!(
        "recv --transport store --store 127.0.0.1:1 --rank 1 --world-size 2 --secret-file {}",
        text(&secret)
    );
    run(&line).await.exited(2).says(&["has no meaning through a store", "read and change"]);
}

#[tokio::test]
async fn a_demo_checks_every_byte_through_the_store_on_both_wires() {
    for (line, wire) in [
        ("demo --model tiny --transport store --json", "native"),
        ("demo --model tiny --wire vllm --ranks 3 --json", "vllm"),
    ] {
        let demo = run(line).await.exited(0);
        let summary = &demo.json()[0];
        assert_eq!(summary["verified"], true);
        assert_eq!((summary["transport"].as_str(), summary["wire"].as_str()), (Some("store"), Some(wire)));
    }
}

//! What `send` is given is what `recv` gets.

use kvpipe::Tensor;
use kvpipe::tensor::{DType, Shape, safetensors};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{Process, bytes, directory, file, send_to_recv, text};

/// A tensor of a dtype with bytes that count up.
fn counting(dtype: DType, dims: &[usize]) -> Tensor {
    let shape = Shape::new(dims).unwrap();
    let len = shape.byte_len(dtype).unwrap();
    let limit = if dtype == DType::Bool { 2 } else { 251 };
    let payload: Vec<u8> = (0..len).map(|index| (index % limit) as u8).collect();
    Tensor::new(dtype, shape, payload.into()).unwrap()
}

/// One tensor of each dtype that the format has, a scalar, and two without elements.
fn of_all_dtypes() -> Vec<(String, Tensor)> {
    let storable = |dtype: &&DType| dtype.safetensors_name().is_some() || **dtype == DType::Float4E2m1fnX2;
    let mut tensors: Vec<_> = DType::ALL
        .iter()
        .filter(storable)
        .map(|&dtype| (format!("layer.{dtype}"), counting(dtype, &[2, 3, 5])))
        .collect();
    tensors.push(("scalar".into(), counting(DType::Float64, &[])));
    tensors.push(("empty".into(), counting(DType::BFloat16, &[0, 3])));
    tensors.push(("also empty".into(), counting(DType::Int8, &[4, 0])));
    tensors
}

/// Sends the file of all dtypes and asserts that the copy has them byte for byte.
async fn assert_copied(directory: &TempDir, send_options: &str, recv_options: &str) {
    let input = directory.path().join("all.safetensors");
    safetensors::write(&input, &of_all_dtypes()).unwrap();
    let output = directory.path().join("copy.safetensors");
    let options = format!("{recv_options} --output {}", text(&output));
    let (sender, receiver) = send_to_recv(&format!("{send_options} {}", text(&input)), &options).await;
    receiver.exited(0);
    sender.exited(0);

    let sent = safetensors::read(&input).unwrap();
    let mut received = safetensors::read(&output).unwrap();
    received.sort_by(|left, right| left.0.cmp(&right.0));
    assert_eq!(sent.len(), 20 + 3, "safetensors has 20 dtypes that torch has, too");
    assert_eq!(received.len(), sent.len());
    for (index, ((_, sent), (name, received))) in sent.iter().zip(&received).enumerate() {
        assert_eq!(*name, format!("{index:06}"));
        assert_eq!(received, sent);
    }
}

#[tokio::test]
async fn a_file_of_all_dtypes_arrives_byte_for_byte() {
    assert_copied(&directory(), "", "").await;
}

#[tokio::test]
async fn buffers_smaller_than_a_tensor_change_nothing() {
    assert_copied(&directory(), "--buffer-size 16", "--buffer-size 7B").await;
}

#[tokio::test]
async fn nones_keep_their_place_and_leave_a_gap_in_the_names() {
    let directory = directory();
    let input = file(&directory, "in.safetensors", &[("a", bytes(4, 1)), ("b", bytes(5, 2))]);
    let output = text(&directory.path().join("out.safetensors"));
    let (sender, receiver) =
        send_to_recv(&format!("none {input} none {input}"), &format!("--output {output} --json")).await;
    sender.exited(0);
    let nones: Vec<bool> = receiver.exited(0).json()[..6].iter().map(|line| line["none"] == true).collect();
    assert_eq!(nones, [true, false, false, true, false, false]);
    let names: Vec<String> = safetensors::read(&output).unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["000001", "000002", "000004", "000005"]);
}

#[tokio::test]
async fn json_has_a_line_for_each_item_with_exactly_these_fields() {
    let directory = directory();
    let tensor = counting(DType::BFloat16, &[2, 3]);
    let crc32c = format!("{:08x}", crc32c::crc32c(tensor.bytes().unwrap()));
    let input = file(&directory, "in.safetensors", &[("k", tensor)]);
    let (sender, receiver) = send_to_recv(&format!("--json {input} none"), "--json").await;
    let receiver = receiver.exited(0);
    assert_eq!(
        receiver.stdout[0],
        format!(r#"{{"index":0,"dtype":"BF16","shape":[2,3],"bytes":12,"crc32c":"{crc32c}"}}"#)
    );
    assert_eq!(receiver.stdout[1], r#"{"index":1,"none":true}"#);
    let summary = json!({"received": 2, "tensors": 1, "bytes": 12, "complete": true});
    assert_eq!(receiver.json()[2..], [summary]);

    let [summary] = &sender.exited(0).json()[..] else { panic!("one line is expected") };
    assert_eq!((&summary["items"], &summary["delivered"]), (&json!(2), &json!(2)));
    assert_eq!((&summary["bytes"], &summary["complete"]), (&json!(12), &json!(true)));
    assert_eq!((&summary["undelivered"], &summary["in_doubt"]), (&json!([]), &json!([])));
}

#[tokio::test]
async fn people_get_a_line_for_each_item_and_no_json() {
    let directory = directory();
    let input = file(&directory, "in.safetensors", &[("k", counting(DType::BFloat16, &[2, 3]))]);
    let (sender, receiver) = send_to_recv(&format!("{input} none"), "").await;
    let receiver = receiver.exited(0);
    assert!(receiver.stdout[0].starts_with("     0  BF16      [2, 3]  12 bytes  crc32c "), "{receiver:?}");
    assert_eq!(receiver.stdout[1..], ["     1  none", "received 2 items (1 tensor, 12 bytes) from rank 0"]);
    assert!(sender.exited(0).stdout[0].starts_with("delivered 2 items (12 bytes) to rank 1 in "));
}

#[tokio::test]
async fn a_file_that_is_named_none_is_reached_by_its_path() {
    let directory = directory();
    let input = file(&directory, "none", &[("k", bytes(3, 0))]);
    let (sender, receiver) = send_to_recv(&input, "--json").await;
    sender.exited(0);
    assert_eq!(receiver.exited(0).json()[0]["bytes"], 3);
}

#[tokio::test]
async fn the_receiver_may_serve_the_store_and_the_last_rank_sends_to_the_first() {
    let mut receiver = Process::start("recv --store 127.0.0.1:0 --rank 0 --world-size 2 --json");
    let store = receiver.store_address().await;
    let sender = Process::start(&format!("send --store {store} --rank 1 --world-size 2 none"));
    let (sender, receiver) = tokio::join!(sender.finish(), receiver.finish());
    sender.exited(0);
    assert_eq!(receiver.exited(0).json()[0], json!({"index": 0, "none": true}));
}

#[tokio::test]
async fn a_count_of_all_items_is_a_success_at_both_ends() {
    let (sender, receiver) = send_to_recv("none none", "--count 2 --json").await;
    assert_eq!(receiver.exited(0).json().len(), 3);
    sender.exited(0);
}

#[tokio::test]
async fn an_external_store_serves_rank_0_as_well() {
    let mut store = Process::start("store --listen 127.0.0.1:0");
    let address = store.line().await.split_off("listening on ".len());
    let common = format!("--store {address} --world-size 2 --external-store");
    let sender = Process::start(&format!("send {common} --rank 0 none"));
    let receiver = Process::start(&format!("recv {common} --rank 1"));
    let (sender, receiver) = tokio::join!(sender.finish(), receiver.finish());
    assert!(!sender.exited(0).stderr.contains("serves the store"));
    receiver.exited(0);
}

#[tokio::test]
async fn a_secret_of_a_file_meets_the_same_secret_of_the_environment() {
    let directory = directory();
    let path = directory.path().join("secret");
    std::fs::write(&path, "open sesame\n").unwrap();
    let common =
        format!("send --store 127.0.0.1:0 --rank 0 --world-size 2 --secret-file {} none", text(&path));
    // The file wins over the environment.
    let mut sender = Process::start_with(&common, &[("KVPIPE_SECRET", "another")]);
    let store = sender.store_address().await;
    let line = format!("recv --store {store} --rank 1 --world-size 2");
    let receiver = Process::start_with(&line, &[("KVPIPE_SECRET", "open sesame")]);
    let (sender, receiver) = tokio::join!(sender.finish(), receiver.finish());
    sender.exited(0);
    receiver.exited(0);
}

#[tokio::test]
async fn garbage_on_the_receivers_and_the_stores_port_changes_nothing() {
    let mut receiver = Process::start("recv --store 127.0.0.1:0 --rank 0 --world-size 2 --json");
    let store = receiver.store_address().await;
    let port = receiver.note("rank 0 receives at ").await;
    let mut strangers = Vec::new();
    for address in [&port, &store] {
        let mut stranger = TcpStream::connect(address).await.unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\nHost: kvpipe\r\n\r\n").await.unwrap();
        strangers.push(stranger);
        // And one that says nothing.
        strangers.push(TcpStream::connect(address).await.unwrap());
    }
    let sender = Process::start(&format!("send --store {store} --rank 1 --world-size 2 none"));
    let (sender, receiver) = tokio::join!(sender.finish(), receiver.finish());
    sender.exited(0);
    assert_eq!(receiver.exited(0).json()[0], json!({"index": 0, "none": true}));
}

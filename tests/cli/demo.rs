//! `kvpipe demo`.

use serde_json::{Value, json};

use crate::support::{Process, bytes, command_line, directory, file, run};

/// The summary of a demo that succeeded: its last line, which is its only one.
async fn summary(options: &str) -> Value {
    let finished = run(&format!("demo --json {options}")).await.exited(0);
    let [summary] = &finished.json()[..] else { panic!("one line is expected: {finished:?}") };
    assert_eq!(summary["verified"], true);
    summary.clone()
}

/// Asserts the fields that are numbers, and those that are known.
fn assert_summary(summary: &Value, expected: &Value) {
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&summary[name], value, "{name} of {summary}");
    }
    for name in ["GBps", "p50_us", "p99_us", "seconds"] {
        assert!(summary[name].as_f64().unwrap() > 0.0, "{name} of {summary}");
    }
}

/// 128 bytes a token; K and V of 2 layers and a None for each of 4 requests with 85 tokens.
const TINY_BYTES: u64 = 85 * 128;
const TINY_ITEMS: u64 = 4 * (2 * 2 + 1);

#[tokio::test]
async fn a_demo_with_checksums_passes() {
    run("demo --model tiny --tokens 300 --checksum").await.exited(0);
}

#[tokio::test]
async fn two_processes_exchange_a_cache_over_tcp() {
    let summary = summary("--model tiny").await;
    let expected = json!({
        "items": 2 * TINY_ITEMS, "bytes": 2 * TINY_BYTES, "ranks": 2,
        "model": "tiny", "tokens": 85, "transport": "tcp",
    });
    assert_summary(&summary, &expected);
}

#[tokio::test]
async fn three_ranks_make_a_ring() {
    let summary = summary("--model tiny --ranks 3").await;
    assert_summary(&summary, &json!({"items": 3 * TINY_ITEMS, "bytes": 3 * TINY_BYTES, "ranks": 3}));
    let edges = summary["edges"].as_array().unwrap().iter();
    let edges: Vec<_> = edges.map(|edge| (edge["from"].clone(), edge["to"].clone())).collect();
    assert_eq!(edges, [(json!(2), json!(0)), (json!(0), json!(1)), (json!(1), json!(2))]);
}

#[tokio::test]
async fn one_process_can_hold_all_ranks() {
    let summary = summary("--model tiny --ranks 3 --transport memory").await;
    let expected = json!({"items": 3 * TINY_ITEMS, "bytes": 3 * TINY_BYTES, "transport": "memory"});
    assert_summary(&summary, &expected);
}

#[tokio::test]
async fn the_share_of_bare_sockets_is_told_over_tcp_and_has_no_meaning_in_memory() {
    let over_tcp = summary("--model tiny --ranks 3").await;
    for row in over_tcp["edges"].as_array().unwrap().iter().chain([&over_tcp]) {
        let [speed, limit, ratio] = ["GBps", "limit_GBps", "ratio"].map(|name| row[name].as_f64().unwrap());
        assert!(limit > 0.0 && (ratio * limit / speed - 1.0).abs() < 1e-6, "{row}");
    }
    let in_memory = summary("--model tiny --transport memory").await;
    assert_eq!((&in_memory["limit_GBps"], &in_memory["ratio"]), (&Value::Null, &Value::Null));
}

#[tokio::test]
async fn tokens_set_the_length_of_a_single_request() {
    let summary = summary("--model llama-3-8b --tokens 3 --ranks 1").await;
    assert_summary(&summary, &json!({"items": 65, "bytes": 3 << 17, "tokens": 3, "model": "llama-3-8b"}));
}

#[tokio::test]
async fn buffers_smaller_than_a_tensor_are_enough() {
    assert_summary(&summary("--model tiny --buffer-size 1").await, &json!({"bytes": 2 * TINY_BYTES}));
}

#[tokio::test]
async fn a_file_is_sent_in_place_of_a_model() {
    let directory = directory();
    let input =
        file(&directory, "in.safetensors", &[("a", bytes(100, 1)), ("b", bytes(0, 2)), ("c", bytes(7, 3))]);
    for transport in ["tcp", "memory"] {
        let summary = summary(&format!("--input {input} --transport {transport}")).await;
        let expected = json!({"items": 2 * 4, "bytes": 2 * 107, "model": null, "tokens": null});
        assert_summary(&summary, &expected);
    }
}

#[tokio::test]
async fn people_get_a_table() {
    let finished = run("demo --model tiny").await.exited(0);
    let text = finished.stdout.join("\n");
    for part in [
        "3, 17, 1, 64 tokens",
        "bf16 [tokens, 2, 8]",
        "GB/S",
        "OF SOCKET",
        "P99 US",
        "0 to 1",
        "1 to 0",
        "byte was as sent",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

/// Rank 0 with its own file, and rank 1 with another: what they complain of.
async fn complaints(right: &str, wrong: &str) -> [String; 2] {
    let common = "demo-rank --world-size 2 --timeout 60 --path tcp";
    let mut first = Process::start(&format!("{common} --rank 0 --input {right} --store 127.0.0.1:0"));
    let event: Value = serde_json::from_str(&first.line().await).unwrap();
    let store = event["store"].as_str().unwrap();
    let second = Process::start(&format!("{common} --rank 1 --input {wrong} --store {store}"));
    let (first, second) = tokio::join!(first.finish(), second.finish());
    [first, second].map(|rank| rank.exited(1).stderr)
}

#[tokio::test]
async fn a_wrong_byte_is_named_with_its_tensor_rank_and_offset() {
    let directory = directory();
    let mut payload = vec![9_u8; 300];
    let tensor = |payload: &[u8]| kvpipe::Tensor::from_slice([300], payload).unwrap();
    let right = file(&directory, "right.safetensors", &[("a", bytes(4, 0)), ("k", tensor(&payload))]);
    payload[299] = 8;
    let wrong = file(&directory, "wrong.safetensors", &[("a", bytes(4, 0)), ("k", tensor(&payload))]);
    let [first, second] = complaints(&right, &wrong).await;
    let what = "request 0 from rank";
    assert!(
        first.contains(&format!("rank 0: {what} 1: tensor \"k\": byte 299 is 0x08 and should be 0x09")),
        "{first}"
    );
    assert!(
        second.contains(&format!("rank 1: {what} 0: tensor \"k\": byte 299 is 0x09 and should be 0x08")),
        "{second}"
    );
}

#[tokio::test]
async fn a_missing_tensor_is_noticed_at_both_ends() {
    let directory = directory();
    let two = file(&directory, "two.safetensors", &[("a", bytes(4, 0)), ("b", bytes(4, 1))]);
    let one = file(&directory, "one.safetensors", &[("a", bytes(4, 0))]);
    let [first, second] = complaints(&two, &one).await;
    assert!(first.contains("a None came where tensor \"b\" belongs"), "{first}");
    assert!(second.contains("came where the None belongs"), "{second}");
}

#[tokio::test]
async fn a_rank_that_fails_is_named_with_what_it_said() {
    let finished = run("demo --model tiny --max-item-size 100").await.exited(1);
    let finished =
        finished.says(&["kvpipe: error: rank ", "failed (exit status: 1)", "over the limit of 100 bytes"]);
    assert_eq!(finished.stdout.len(), 1, "no table: {finished:?}");
}

#[tokio::test]
async fn a_signal_ends_all_ranks() {
    let mut demo = Process::start("demo --model llama-3-8b --tokens 30000");
    demo.line().await;
    let children = demo.grows(2).await;
    demo.signal("TERM").await;
    demo.finish().await.exited(1).says(&["stopped by SIGTERM"]);
    for pid in children {
        assert_eq!(command_line(pid), "", "rank {pid} is alive");
    }
}

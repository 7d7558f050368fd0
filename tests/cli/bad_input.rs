//! Arguments and files that are wrong before anybody talks to anybody.

use crate::support::{Process, directory, run, text};

const SEND: &str = "send --store 127.0.0.1:0 --rank 0 --world-size 2";
const STORE: &str = "store --listen 127.0.0.1:0";
const RECV: &str = "recv --store 127.0.0.1:0 --rank 0 --world-size 2";

#[tokio::test]
async fn a_rank_beyond_the_world_size_is_a_usage_error() {
    run("send --store 127.0.0.1:1 --rank 2 --world-size 2 none")
        .await
        .exited(2)
        .says(&["kvpipe: error: rank 2 is beyond the world size 2"]);
}

#[tokio::test]
async fn arguments_that_cant_be_are_usage_errors_that_quote_them() {
    for (line, quoted) in [
        ("", "Usage"),
        ("frobnicate", "frobnicate"),
        ("send --store 127.0.0.1:1 --rank 0 --world-size 1 none", "world size of 1"),
        ("send --store 127.0.0.1:0 --rank 1 --world-size 2 none", "127.0.0.1:0"),
        ("send --store nowhere --rank 0 --world-size 2 none", "nowhere"),
        (SEND, "ITEM"),
        (&format!("{SEND} --timeout 0 none"), "--timeout"),
        (&format!("{SEND} --heartbeat never none"), "--heartbeat"),
        (&format!("{SEND} --heartbeat 0.01 none"), "--heartbeat 0.01 is below 0.1"),
        (&format!("{SEND} --reconnect 0 none"), "or \"none\""),
        (&format!("{SEND} --buffer-size 0 none"), "at least 1 byte"),
        (&format!("{SEND} --buffer-size 3furlongs none"), "furlongs"),
        (&format!("{SEND} --transport carrier-pigeon none"), "carrier-pigeon"),
        (&format!("{SEND} --secret hunter2 none"), "--secret"),
        (&format!("{SEND} --group {} none", "g".repeat(256)), "256 bytes"),
        (&format!("{RECV} --count 0"), "--count"),
        (&format!("{RECV} --host 0.0.0.0"), "0.0.0.0"),
        ("demo --ranks 0", "--ranks"),
        ("demo --tokens 0", "--tokens"),
        ("demo --model gpt-2", "gpt-2"),
        ("demo --model tiny --input x.safetensors", "--input"),
        ("store --listen 4000", "HOST:PORT"),
        (&format!("{STORE} --max-value-bytes 0"), "at least 1 byte"),
        (&format!("{STORE} --max-value-bytes 2TiB"), "--max-value-bytes 2048 GiB is over"),
        (&format!("{STORE} --max-clients 0"), "--max-clients"),
        (&format!("{STORE} --stats 0"), "--stats"),
        (&format!("{STORE} --stats often"), "--stats"),
    ] {
        run(line).await.exited(2).says(&[quoted]);
    }
}

/// Each way to write it, also as what a resolver makes of `0`.
#[tokio::test]
async fn nobody_serves_a_store_on_every_address_unasked() {
    for address in ["0.0.0.0:0", "[::]:0", "[::ffff:0.0.0.0]:0", "[0:0::0]:0", "0:0", "0x0:0"] {
        for line in [
            format!("store --listen {address}"),
            format!("send --store {address} --rank 0 --world-size 2 none"),
            format!("recv --store {address} --rank 0 --world-size 2"),
        ] {
            let finished = run(&line).await.exited(2);
            let finished = finished.says(&[address, "every address", "no authentication", "--allow-remote"]);
            assert_eq!(finished.stdout, [""; 0], "{line}");
        }
    }
}

#[tokio::test]
async fn a_receiver_at_a_store_on_every_address_must_say_its_own() {
    run("recv --store 0.0.0.0:0 --rank 0 --world-size 2 --timeout 0.1 --allow-remote")
        .await
        .exited(2)
        .says(&["0.0.0.0", "--host"]);
}

#[tokio::test]
async fn a_missing_file_is_named_before_anything_is_sent() {
    let directory = directory();
    let path = text(&directory.path().join("missing.safetensors"));
    let finished = run(&format!("{SEND} none {path}")).await.exited(1).says(&[&path, "No such file"]);
    assert!(!finished.stderr.contains("serves the store"), "{finished:?}");
}

async fn assert_refused(contents: &[u8], complaint: &str) {
    let directory = directory();
    let path = directory.path().join("bad.safetensors");
    std::fs::write(&path, contents).unwrap();
    let path = text(&path);
    let finished =
        run(&format!("{SEND} {path}")).await.exited(1).says(&["kvpipe: error: ", &path, complaint]);
    assert!(!finished.stderr.contains("serves the store"), "{finished:?}");
    run(&format!("demo --input {path}")).await.exited(1).says(&[&path, complaint]);
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

#[tokio::test]
async fn a_corrupt_file_is_named() {
    assert_refused(b"not a safetensors file", "reading").await;
}

#[tokio::test]
async fn a_truncated_file_is_named() {
    let whole = with_header(r#"{"k":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#, &[1, 2, 3]);
    assert_refused(&whole, "reading").await;
}

#[tokio::test]
async fn an_unknown_dtype_is_quoted() {
    let strange = with_header(r#"{"k":{"dtype":"BF17","shape":[1],"data_offsets":[0,1]}}"#, &[1]);
    assert_refused(&strange, "BF17").await;
}

#[tokio::test]
async fn an_output_that_cant_be_written_is_found_before_anything_is_received() {
    let directory = directory();
    let missing = text(&directory.path().join("missing/out.safetensors"));
    for path in [missing, text(directory.path())] {
        let finished =
            run(&format!("{RECV} --output {path}")).await.exited(1).says(&["kvpipe: error: writing", &path]);
        assert!(!finished.stderr.contains("serves the store"), "{finished:?}");
    }
}

#[tokio::test]
async fn an_empty_or_missing_secret_is_refused_with_its_origin() {
    let directory = directory();
    let path = directory.path().join("secret");
    run(&format!("{SEND} --secret-file {} none", text(&path)))
        .await
        .exited(1)
        .says(&[&text(&path), "No such file"]);
    std::fs::write(&path, "\n").unwrap();
    run(&format!("{SEND} --secret-file {} none", text(&path)))
        .await
        .exited(1)
        .says(&[&text(&path), "is empty"]);
    let finished = Process::start_with(&format!("{SEND} none"), &[("KVPIPE_SECRET", "")]).finish().await;
    finished.exited(1).says(&["KVPIPE_SECRET", "is empty"]);
}

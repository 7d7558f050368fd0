//! `--transport nccl` on the fakes of CUDA and NCCL: processes that load both as they would the real ones.

use kvpipe::Tensor;
use kvpipe::tensor::safetensors;
use serde_json::{Value, json};

use crate::support::{Finished, Process, bytes, directory, file, run, text};

/// A machine with fake GPUs, by its variables.
struct Machine(Vec<(&'static str, String)>);

impl Machine {
    /// With so many GPUs.
    fn with_gpus(count: usize) -> Self {
        Self(vec![
            ("LD_LIBRARY_PATH", text(&kvpipe_fake_cuda::library_folder().unwrap())),
            ("KVPIPE_NCCL_SO_PATH", text(&kvpipe_fake_nccl::library().unwrap())),
            ("KVPIPE_FAKE_CUDA", format!("devices={count}")),
        ])
    }

    /// The same with a variable more, or another value of one.
    fn and(mut self, name: &'static str, value: &str) -> Self {
        self.0.retain(|(other, _)| *other != name);
        self.0.push((name, value.into()));
        self
    }

    fn start(&self, line: &str) -> Process {
        let variables: Vec<(&str, &str)> =
            self.0.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Process::start_with(line, &variables)
    }

    async fn run(&self, line: &str) -> Finished {
        self.start(line).finish().await
    }

    /// As [`crate::support::send_to_recv`].
    async fn send_to_recv(&self, items: &str, options: &str) -> (Finished, Finished) {
        let mut sender = self.start(&format!("send --store 127.0.0.1:0 --rank 0 --world-size 2 {items}"));
        let store = sender.store_address().await;
        let receiver = self.start(&format!("recv --store {store} --rank 1 --world-size 2 {options}"));
        tokio::join!(sender.finish(), receiver.finish())
    }
}

/// Asserts that the fakes have seen nothing that a program must not do.
#[track_caller]
fn well_behaved(finished: Finished) -> Finished {
    assert!(!finished.stderr.contains(": misuse: "), "{finished:#?}");
    finished.exited(0)
}

async fn demo(machine: &Machine, options: &str) -> Value {
    let finished = well_behaved(machine.run(&format!("demo --model tiny --json {options}")).await);
    let [summary] = &finished.json()[..] else { panic!("one line is expected: {finished:?}") };
    assert_eq!(summary["verified"], true);
    summary.clone()
}

fn assert_fields(summary: &Value, expected: &Value) {
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&summary[name], value, "{name} of {summary}");
    }
}

#[tokio::test]
async fn a_demo_moves_a_cache_from_gpu_to_gpu_and_says_which() {
    let summary = demo(&Machine::with_gpus(2), "--transport nccl").await;
    let expected = json!({
        "items": 40, "bytes": 2 * 85 * 128, "transport": "nccl", "wire": "native",
        "devices": ["cuda:0", "cuda:1"], "nccl": "2.27.3", "limit_GBps": null, "ratio": null,
    });
    assert_fields(&summary, &expected);
    // Elsewhere it says that, too.
    let finished = run("demo --model tiny --json").await.exited(0);
    assert_fields(&finished.json()[0], &json!({"devices": ["cpu", "cpu"], "nccl": null}));
}

#[tokio::test]
async fn ranks_share_gpus_where_there_are_too_few() {
    let summary = demo(&Machine::with_gpus(2), "--transport nccl --ranks 3").await;
    assert_fields(&summary, &json!({"items": 60, "devices": ["cuda:0", "cuda:1", "cuda:0"]}));
}

#[tokio::test]
async fn a_device_means_nccl_also_in_vllms_configuration() {
    let machine = Machine::with_gpus(2);
    let json = r#"{"kv_parallel_size":2,"kv_port":0}"#;
    for (options, devices) in [
        ("--device cuda:1".to_owned(), ["cuda:1", "cuda:1"]),
        (format!("--kv-transfer-config {json}"), ["cuda:0", "cuda:1"]),
        (format!("--kv-transfer-config {json} --device cpu"), ["cpu", "cpu"]),
    ] {
        let summary = demo(&machine, &options).await;
        let transport = if devices[0] == "cpu" { "tcp" } else { "nccl" };
        assert_fields(&summary, &json!({"devices": devices, "transport": transport}));
    }
}

#[tokio::test]
async fn people_are_told_the_gpus_and_the_library() {
    let finished = well_behaved(Machine::with_gpus(1).run("demo --model tiny --transport nccl").await);
    let said = finished.stdout.join("\n");
    for part in ["all ranks on cuda:0 (kvpipe fake GPU)", "NCCL 2.27.3 (/", "byte was as sent"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}

fn tensors() -> [(&'static str, Tensor); 3] {
    // A few chunks of a staging buffer, a little, and nothing.
    [
        ("a", bytes(5_000_001, 1)),
        ("b", Tensor::from_slice([2, 2], &[1.0_f32, 2.0, 3.0, 4.0]).unwrap()),
        ("c", bytes(0, 2)),
    ]
}

/// What `send FILE none FILE` has sent is in the file that `recv` has written.
fn assert_received(path: &str) {
    let mut received = safetensors::read(path).unwrap();
    received.sort_by(|left, right| left.0.cmp(&right.0));
    let mut input = tensors().map(|(_, tensor)| tensor).to_vec();
    // As they stand in a file: those of larger items first.
    input.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype().item_bytes()));
    let sent = [&input[..], &input].concat();
    let names = ["000000", "000001", "000002", "000004", "000005", "000006"];
    let sent: Vec<_> = names.map(String::from).into_iter().zip(sent).collect();
    assert_eq!(received, sent);
}

#[tokio::test]
async fn files_travel_by_nccl_over_either_wire() {
    for (options, count, sent) in
        [("", "", "delivered 7 items"), ("--wire vllm", "--count 7", "sent 7 items")]
    {
        let directory = directory();
        let input = file(&directory, "in.safetensors", &tensors());
        let output = text(&directory.path().join("out.safetensors"));
        let (sender, receiver) = Machine::with_gpus(1)
            .send_to_recv(
                &format!("--transport nccl {options} {input} none {input}"),
                &format!("--transport nccl {options} {count} --output {output}"),
            )
            .await;
        let sender = well_behaved(sender).says(&["sends from cuda:0 (kvpipe fake GPU), NCCL 2.27.3 (/"]);
        assert!(sender.stdout[0].starts_with(sent), "{sender:?}");
        let receiver = well_behaved(receiver).says(&["receives on cuda:0 (kvpipe fake GPU), NCCL 2.27.3 (/"]);
        assert_eq!(receiver.stdout.last().unwrap(), "received 7 items (6 tensors, 9.54 MiB) from rank 0");
        assert_received(&output);
    }
}

#[tokio::test]
async fn vllms_configuration_alone_is_enough_for_vllms_wire_on_a_gpu() {
    let machine = Machine::with_gpus(1);
    let config = |rank, port| {
        format!(
            r#"--wire vllm --kv-transfer-config {{"kv_rank":{rank},"kv_parallel_size":2,"kv_port":{port}}}"#
        )
    };
    let directory = directory();
    let input = file(&directory, "in.safetensors", &[("a", bytes(9, 1))]);
    let mut sender = machine.start(&format!("send {} {input}", config(0, "0")));
    let store = sender.store_address().await;
    let port = store.rsplit_once(':').unwrap().1;
    let receiver = machine.start(&format!("recv {} --count 1 --json", config(1, port)));
    let (sender, receiver) = tokio::join!(sender.finish(), receiver.finish());
    well_behaved(sender);
    let receiver = well_behaved(receiver);
    assert_fields(&receiver.json()[0], &json!({"index": 0, "dtype": "U8", "bytes": 9}));
}

#[tokio::test]
async fn the_local_rank_chooses_the_gpu_unless_one_is_named() {
    let machine = Machine::with_gpus(2).and("LOCAL_RANK", "1");
    let recv = "recv --store 127.0.0.1:0 --rank 0 --world-size 2 --timeout 0.3 --transport nccl";
    for (options, device) in [("", "cuda:1"), ("--device cuda", "cuda:1"), ("--device cuda:0", "cuda:0")] {
        let finished = machine.run(&format!("{recv} {options}")).await.exited(1);
        finished.says(&[&format!("receives on {device} "), "timed out after 0.3 s waiting for rank 1"]);
    }
    let machine = machine.and("LOCAL_RANK", "first");
    machine.run(recv).await.exited(2).says(&["LOCAL_RANK is \"first\"", "--device cuda:N"]);
    // Nobody asks for it where it has no meaning.
    machine.run("demo --model tiny").await.exited(0);
}

/// Every command that may need a GPU; none of them may begin with anything before it has one.
async fn assert_refused(machine: &Machine, options: &str, says: &[&str]) {
    let rank = "--store 127.0.0.1:0 --rank 0 --world-size 2";
    for command in [
        "demo --model tiny".to_owned(),
        "bench".to_owned(),
        format!("send {rank} none"),
        format!("recv {rank}"),
    ] {
        let finished = machine.run(&format!("{command} --transport nccl {options}")).await.exited(1);
        let finished = finished.says(says).says(&["kvpipe doctor"]);
        assert!(finished.stdout.is_empty() && !finished.stderr.contains("serves the store"), "{finished:?}");
    }
}

#[tokio::test]
async fn a_library_that_is_not_there_is_named_before_anything_begins() {
    let machine = Machine::with_gpus(1).and("KVPIPE_NCCL_SO_PATH", "/nowhere/libnccl.so.2");
    let because = "/nowhere/libnccl.so.2 (from KVPIPE_NCCL_SO_PATH): cannot open shared object file";
    assert_refused(&machine, "", &["NCCL is not available: ", because]).await;
    assert_refused(&machine, "--nccl /nowhere/else.so", &["NCCL is not available: /nowhere/else.so: "]).await;
}

#[tokio::test]
async fn a_library_that_is_named_is_used() {
    let machine = Machine::with_gpus(1).and("KVPIPE_NCCL_SO_PATH", "/nowhere/libnccl.so.2");
    let library = text(&kvpipe_fake_nccl::library().unwrap());
    assert_eq!(demo(&machine, &format!("--transport nccl --nccl {library}")).await["nccl"], "2.27.3");
}

#[tokio::test]
async fn a_gpu_that_is_not_there_is_named_before_anything_begins() {
    assert_refused(&Machine::with_gpus(0), "", &["cuda:0 is not available: no device: the driver sees none"])
        .await;
    let says = "cuda:2 is not available: no device: the driver sees 2, counted from 0";
    assert_refused(&Machine::with_gpus(2), "--device cuda:2", &[says]).await;
    let machine = Machine::with_gpus(1).and("KVPIPE_FAKE_CUDA", "version=10020");
    assert_refused(&machine, "", &["driver too old"]).await;
}

#[tokio::test]
async fn vllms_default_device_says_how_to_do_without_a_gpu() {
    let machine = Machine::with_gpus(0);
    let json = r#"{"kv_rank":0,"kv_parallel_size":2,"kv_port":0}"#;
    for command in ["demo --model tiny", "recv", "send none"] {
        let finished = machine.run(&format!("{command} --kv-transfer-config {json}")).await.exited(1);
        finished.says(&["cuda:0 is not available", "\"kv_buffer_device\":\"cpu\""]);
    }
}

#[tokio::test]
async fn what_does_not_fit_together_is_a_usage_error() {
    let rank = "--store 127.0.0.1:0 --rank 0 --world-size 2";
    let (send, recv) = (format!("send {rank} none"), format!("recv {rank}"));
    let cuda = r#"--kv-transfer-config {"kv_rank":0,"kv_parallel_size":2}"#;
    for (line, says) in [
        ("demo --transport nccl --device cpu", "nccl moves what is on a GPU, and the device is cpu"),
        ("demo --transport tcp --device cuda", "tcp moves what is in host memory, and the device is cuda"),
        ("demo --transport memory --device cuda:1", "memory is the host's, and the device is cuda:1"),
        ("demo --device gpu", "\"gpu\" is not one of \"cuda\", \"cuda:N\" and \"cpu\""),
        ("demo --nccl x.so", "--nccl has no meaning without --transport nccl"),
        ("demo --transport nccl --checksum", "--checksum has no meaning by nccl"),
        ("demo --transport nccl --ranks 1", "by nccl a rank can't send to itself"),
        ("demo --transport nccl --wire vllm", "a ring on vllm's wire can't go by nccl"),
        (
            "bench --transport tcp --device cuda:0",
            "tcp moves what is in host memory, and the device is cuda:0",
        ),
        ("bench --transport memory --device cuda", "memory is the host's"),
        ("bench --nccl x.so", "--nccl has no meaning"),
        (&format!("{send} --transport store --device cuda"), "store moves what is in host memory"),
        (&format!("{send} --nccl x.so"), "--nccl has no meaning"),
        (&format!("send {cuda} --transport tcp none"), "the device is cuda"),
        (&format!("{recv} --transport nccl --reconnect 1"), "--reconnect has no meaning by nccl"),
        (
            &format!("{recv} --transport nccl --wire vllm --heartbeat 1"),
            "--heartbeat has no meaning on vllm's wire",
        ),
        (&format!("{recv} --transport nccl --wire vllm --host 127.0.0.1"), "--host has no meaning"),
        (&format!("{recv} --transport nccl --wire vllm --group g"), "no names of groups"),
        (&format!("{recv} --transport nccl --wire vllm --output x.safetensors"), "--output needs --count"),
    ] {
        let finished = run(line).await.exited(2).says(&[says]);
        assert!(finished.stdout.is_empty(), "{finished:?}");
    }
}

#[tokio::test]
async fn what_nccl_refuses_is_told_at_both_ends() {
    let directory = directory();
    let input = file(&directory, "in.safetensors", &[("a", bytes(100, 1)), ("b", bytes(100, 2))]);
    // The first is of the handshake.
    let machine = Machine::with_gpus(1).and("KVPIPE_FAKE_NCCL", "rank=0,fail=ncclSend:3:3");
    let (sender, receiver) =
        machine.send_to_recv(&format!("--transport nccl --json {input}"), "--transport nccl --json").await;
    let sender = sender.exited(1).says(&["ncclSend", "#1 \"b\" of "]);
    let [summary] = &sender.json()[..] else { panic!("one line is expected: {sender:?}") };
    // Whether the first has been acknowledged by then is a matter of luck.
    let in_doubt = summary["in_doubt"].as_array().unwrap().len() as u64;
    assert_eq!((summary["delivered"].as_u64().unwrap() + in_doubt, &summary["complete"]), (2, &json!(false)));
    let receiver = receiver.exited(1).says(&["the peer aborted", "ncclSend"]);
    assert_eq!(receiver.json().last().unwrap()["complete"], false);
}

#[tokio::test]
async fn a_receiver_that_is_killed_is_found_out() {
    let directory = directory();
    let tensors: Vec<(String, Tensor)> =
        (0..2000).map(|index| (format!("{index:04}"), bytes(16, index))).collect();
    let input = directory.path().join("in.safetensors");
    safetensors::write(&input, &tensors).unwrap();
    let machine = Machine::with_gpus(1);
    let send = "send --transport nccl --json --store 127.0.0.1:0 --rank 0 --world-size 2 --timeout 5";
    let mut sender = machine.start(&format!("{send} {}", text(&input)));
    let store = sender.store_address().await;
    let recv = format!("recv --transport nccl --buffer-size 16 --store {store} --rank 1 --world-size 2");
    let mut receiver = machine.start(&recv);
    // It can't come to the end, because nobody reads the rest of what it shows.
    receiver.line().await;
    receiver.signal("KILL").await;
    let sender = sender.finish().await.exited(1).says(&["the peer is gone", " of 2000 items"]);
    assert_eq!(sender.json().last().unwrap()["complete"], false);
}

#[tokio::test]
async fn an_end_by_nccl_and_one_by_tcp_dont_meet() {
    let machine = Machine::with_gpus(1);
    let (sender, receiver) =
        machine.send_to_recv("--transport nccl --timeout 2 none", "--transport tcp --timeout 2").await;
    sender.exited(1).says(&["timed out after 2 s waiting for rank 1", "--transport"]);
    receiver.exited(1).says(&["timed out after 2 s waiting for rank 0"]);
}

#[tokio::test]
async fn a_benchmark_measures_beside_nccl_alone() {
    let quick = "bench --transport nccl --seconds 0.005 --rounds 1 --buffer-size 256KiB --sizes 4KiB,64KiB";
    let machine = Machine::with_gpus(2);
    let finished = well_behaved(machine.run(&format!("{quick} --json")).await);
    let (sizes, details): (Vec<Value>, Vec<Value>) =
        finished.json().into_iter().partition(|line| line.get("detail").is_none());
    let told: Vec<_> = sizes.iter().map(|line| (line["transport"].clone(), line["size"].clone())).collect();
    assert_eq!(told, [(json!("nccl"), json!(4096)), (json!("nccl"), json!(65_536))]);
    for line in &sizes {
        let [speed, limit, ratio] = ["GBps", "limit_GBps", "ratio"].map(|name| line[name].as_f64().unwrap());
        assert!(limit > 0.0 && (ratio / (speed / limit) - 1.0).abs() < 0.01, "{line}");
    }
    // 8 of the larger are more than the buffers.
    let groups = |detail: &Value| -> Vec<Value> {
        detail["limits"].as_array().unwrap().iter().map(|limit| limit["group_items"].clone()).collect()
    };
    let groups: Vec<_> = details.iter().filter(|line| line["detail"] == "size").map(groups).collect();
    assert_eq!(groups, [vec![json!(1), json!(8), json!(64)], vec![json!(1)]]);
    let kinds: Vec<_> = details.iter().map(|line| line["detail"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["size", "size", "nones", "round_trip"]);

    let finished = well_behaved(machine.run(&quick.replace("--transport nccl", "--device cuda")).await);
    let said = finished.stdout.join("\n");
    for part in ["each rank on a GPU of its own, cuda:0 to cuda:1", "GROUPS OF", "bare NCCL", "64 KiB"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}

//! `send` and `recv` together with a Python that behaves as vLLM's `PyNcclPipe`, where
//! `KVPIPE_TORCH_PYTHON` names one that has torch. Elsewhere these tests say so and pass.

use kvpipe::tensor::safetensors;
use kvpipe::{DType, Tensor};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::alike::{Alike, Said};
use crate::python::python;
use crate::support::{Process, bytes, directory, file, text};

/// As Python describes it.
fn described(tensor: &Tensor) -> Value {
    let sha256 = hex::encode(Sha256::digest(tensor.bytes().unwrap()));
    json!({ "dtype": tensor.dtype().name(), "shape": tensor.shape().dims(), "sha256": sha256 })
}

fn tensors() -> Vec<(&'static str, Tensor)> {
    let matrix = Tensor::from_slice([2, 3], &[0.5_f32, 1.0, 1.5, 2.0, 2.5, 3.0]).unwrap();
    let half = Tensor::new(DType::BFloat16, [5, 1 << 19], vec![7; 5 << 20].into()).unwrap();
    vec![("a", matrix), ("b", bytes(70_000, 1)), ("c", half)]
}

/// What `send FILE none FILE` has sent is what Python has received.
fn arrived_twice(said: &Said) {
    let file: Vec<Value> = tensors().iter().map(|(_, tensor)| described(tensor)).collect();
    let sent = [&file[..], &[Value::Null], &file].concat();
    assert_eq!(said.received(), sent.iter().collect::<Vec<_>>());
}

/// Every item of Python's `send-some-items`, by its place, is in the file.
fn arrived_in(output: &str, said: &Said) {
    let mut received = safetensors::read(output).unwrap();
    received.sort_by(|left, right| left.0.cmp(&right.0));
    let received: Vec<_> = received.iter().map(|(name, tensor)| (name.clone(), described(tensor))).collect();
    let sent = said.sent().into_iter().enumerate().filter(|(_, item)| !item.is_null());
    let sent: Vec<_> = sent.map(|(index, item)| (format!("{index:06}"), item.clone())).collect();
    assert_eq!(received, sent);
    assert_eq!(received.len(), 5, "and a None");
}

fn port_of(store: &str) -> u16 {
    store.rsplit_once(':').unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn send_as_rank_0_stays_until_python_has_received_what_files_have() {
    let directory = directory();
    let input = file(&directory, "in.safetensors", &tensors());
    let line = format!("send --wire vllm --store 127.0.0.1:0 --rank 0 --world-size 2 {input} none {input}");
    let mut sender = Process::start(&line);
    let port = port_of(&sender.store_address().await);
    let Some(mut python) = Alike::start(1, 2, port, "pipe wait receive:7 close") else { return };
    assert!(sender.line().await.contains("7 items"), "all of it is in the store");
    python.goes_on().await;
    let (sender, said) = python.beside(sender.finish()).await;
    sender.exited(0);
    arrived_twice(&said);
}

#[tokio::test]
async fn send_as_rank_1_gives_python_what_files_have() {
    let Some(mut python) = Alike::start(0, 2, 0, "pipe receive:7 close") else { return };
    let directory = directory();
    let input = file(&directory, "in.safetensors", &tensors());
    let port = python.port().await;
    let line =
        format!("send --wire vllm --store 127.0.0.1:{port} --rank 1 --world-size 2 {input} none {input}");
    let (sender, said) = python.beside(Process::start(&line).finish()).await;
    sender.exited(0);
    arrived_twice(&said);
}

#[tokio::test]
async fn recv_as_rank_0_writes_what_python_sends() {
    let directory = directory();
    let output = text(&directory.path().join("out.safetensors"));
    let line =
        format!("recv --wire vllm --store 127.0.0.1:0 --rank 0 --world-size 2 --count 6 --output {output}");
    let mut receiver = Process::start(&line);
    let port = port_of(&receiver.store_address().await);
    let Some(python) = Alike::start(1, 2, port, "pipe send-some-items close") else { return };
    let (receiver, said) = python.beside(receiver.finish()).await;
    receiver.exited(0);
    arrived_in(&output, &said);
}

#[tokio::test]
async fn recv_as_rank_1_writes_what_python_sends() {
    let Some(mut python) = Alike::start(0, 2, 0, "pipe send-some-items close") else { return };
    let directory = directory();
    let output = text(&directory.path().join("out.safetensors"));
    let port = python.port().await;
    let line = format!(
        "recv --wire vllm --store 127.0.0.1:{port} --rank 1 --world-size 2 --count 6 --output {output}"
    );
    let (receiver, said) = python.beside(Process::start(&line).finish()).await;
    receiver.exited(0);
    arrived_in(&output, &said);
}

/// vLLM's names for what the script has.
const INSTEAD_OF_VLLM: &str = r#"
import sys
sys.path.insert(0, sys.argv[1])
from pynccl_pipe_alike import KVTransferConfig, PyNcclPipe, provide
provide("vllm.config", KVTransferConfig=KVTransferConfig)
provide("vllm.distributed.kv_transfer.kv_pipe.pynccl_pipe", PyNcclPipe=PyNcclPipe)
"#;

/// The code of a section of the README, in a language.
fn readme(section: &str, language: &str) -> &'static str {
    let readme = include_str!("../../README.md");
    let (_, section) = readme.split_once(&format!("\n## {section}\n")).unwrap();
    let (_, code) = section.split_once(&format!("```{language}\n")).unwrap();
    code.split_once("```").unwrap().0
}

#[tokio::test]
async fn the_readmes_line_receives_what_the_readmes_python_sends() {
    const PORT: &str = "14579";
    let Some(mut python) = python() else { return };
    let directory = directory();
    let output = text(&directory.path().join("copy.safetensors"));
    let line = readme("Python to Rust", "sh").strip_prefix("kvpipe ").unwrap();
    // Whatever port is free, and no file in the project.
    let mut receiver = Process::start(&line.replace(PORT, "0").replace("copy.safetensors", &output));
    let port = port_of(&receiver.store_address().await).to_string();
    let script = [INSTEAD_OF_VLLM, &readme("Python to Rust", "python").replace(PORT, &port)].concat();
    python.arg("-c").arg(script).arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vllm"));
    let (status, receiver) = tokio::join!(python.status(), receiver.finish());
    assert!(status.unwrap().success());
    receiver.exited(0);
    let (name, received) = &safetensors::read(&output).unwrap()[0];
    let sent = Tensor::from_slice([2, 3], &[0.0_f32, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
    assert_eq!((name.as_str(), received), ("000000", &sent));
}

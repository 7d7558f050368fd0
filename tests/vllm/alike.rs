//! Processes of `pynccl_pipe_alike.py`: ranks that behave as vLLM's.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::timeout;

use crate::python::{PYTHON_WITHIN, python};

/// A rank in Python.
pub(crate) struct Alike {
    process: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Alike {
    /// Rank `rank` of `world_size`, which carries out the steps, separated by spaces; port 0 lets rank
    /// 0 choose. None without a Python.
    pub(crate) fn start(rank: usize, world_size: usize, port: u16, steps: &str) -> Option<Self> {
        let mut command = python()?;
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vllm/pynccl_pipe_alike.py"));
        command.args([rank.to_string(), world_size.to_string(), port.to_string()]);
        command.args(steps.split_whitespace()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let stdin = process.stdin.take().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap()).lines();
        Some(Self { process, stdin, stdout })
    }

    /// Where rank 0 serves the store.
    pub(crate) async fn port(&mut self) -> u16 {
        let port = self.line().await.expect("python ended")["port"].as_u64().unwrap();
        port.try_into().unwrap()
    }

    /// Lets it go on from a `wait`.
    pub(crate) async fn goes_on(&mut self) {
        self.stdin.write_all(b"go on\n").await.unwrap();
    }

    /// Until `ours` and then Python have ended, successfully; gives what ours gave, and what Python
    /// still said. A Python that fails ends the test at once.
    pub(crate) async fn beside<T>(mut self, ours: impl Future<Output = T>) -> (T, Said) {
        let mut lines = Vec::new();
        // Such futures are large, and they are nested: on the heap, they don't fill a test's stack.
        let ours = Box::pin(async {
            let output = ours.await;
            drop(self.stdin);
            output
        });
        let python = async {
            while let Some(line) = self.stdout.next_line().await.unwrap() {
                lines.push(serde_json::from_str(&line).expect(&line));
            }
            assert!(self.process.wait().await.unwrap().success(), "python failed");
        };
        let both = async { tokio::join!(ours, python) };
        let (output, ()) = timeout(PYTHON_WITHIN, both).await.expect("one of the two hangs");
        (output, Said(lines))
    }

    async fn line(&mut self) -> Option<Value> {
        let line = timeout(PYTHON_WITHIN, self.stdout.next_line()).await.expect("python hangs");
        line.unwrap().map(|line| serde_json::from_str(&line).expect(&line))
    }
}

/// The lines of a rank in Python.
pub(crate) struct Said(Vec<Value>);

impl Said {
    /// What it has sent, described.
    pub(crate) fn sent(&self) -> Vec<&Value> {
        self.all("sent")
    }

    /// What it has received, described.
    pub(crate) fn received(&self) -> Vec<&Value> {
        self.all("received")
    }

    fn all(&self, what: &str) -> Vec<&Value> {
        self.0.iter().filter_map(|line| line.get(what)).collect()
    }
}

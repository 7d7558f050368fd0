//! Processes under test. Every wait has a deadline that only a hang can pass, and a process that is
//! dropped is killed.

use std::collections::VecDeque;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kvpipe::Tensor;
use kvpipe::tensor::safetensors;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::timeout;

/// Far beyond what anything takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// Variables that kvpipe and NCCL read, and that no test inherits.
pub(crate) const OF_THE_MACHINE: [&str; 10] = [
    "KVPIPE_TORCH_PYTHON",
    "KVPIPE_SECRET",
    "KVPIPE_NCCL_SO_PATH",
    "VLLM_NCCL_SO_PATH",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "NCCL_COMM_ID",
    "NCCL_SOCKET_FAMILY",
    "NCCL_SOCKET_IFNAME",
    "LOCAL_RANK",
];

/// A running `kvpipe`.
pub(crate) struct Process {
    child: Child,
    stdout: Output<ChildStdout>,
    stderr: Output<ChildStderr>,
}

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// None if a signal killed it.
    pub(crate) code: Option<i32>,
    /// The lines that the test had not read before.
    pub(crate) stdout: Vec<String>,
    /// Everything.
    pub(crate) stderr: String,
}

struct Output<R> {
    lines: Lines<BufReader<R>>,
    read: VecDeque<String>,
}

impl Process {
    /// Starts `kvpipe` with arguments separated by spaces.
    pub(crate) fn start(line: &str) -> Self {
        Self::start_with(line, &[])
    }

    /// The same, with environment variables.
    pub(crate) fn start_with(line: &str, environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvpipe"));
        command.args(line.split_whitespace());
        for name in OF_THE_MACHINE {
            command.env_remove(name);
        }
        command.envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let stdout = Output::new(child.stdout.take().unwrap());
        let stderr = Output::new(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    /// The next line of standard output.
    pub(crate) async fn line(&mut self) -> String {
        self.stdout.next().await.expect("standard output has ended")
    }

    /// Reads standard error up to a line with `text`; gives what stands behind it there.
    pub(crate) async fn note(&mut self, text: &str) -> String {
        while let Some(line) = self.stderr.next().await {
            if let Some((_, rest)) = line.split_once(text) {
                return rest.to_owned();
            }
        }
        panic!("no {text:?} on standard error: {:?}", self.stderr.read);
    }

    /// The address of the store that rank 0 serves.
    pub(crate) async fn store_address(&mut self) -> String {
        self.note("rank 0 serves the store at ").await
    }

    /// Sends a signal, such as `TERM`.
    pub(crate) async fn signal(&self, name: &str) {
        signal(self.child.id().expect("it has ended"), name).await;
    }

    /// The process ids of its children.
    pub(crate) fn children(&self) -> Vec<u32> {
        let pid = self.child.id().expect("it has ended");
        let mut children = Vec::new();
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let text = std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
            children.extend(text.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
        }
        children
    }

    /// Waits until it has so many children; gives their process ids.
    pub(crate) async fn grows(&self, count: usize) -> Vec<u32> {
        let growing = async {
            loop {
                let children = self.children();
                if children.len() == count {
                    return children;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, growing).await.expect("the children don't come")
    }

    /// Reads the rest of both outputs and waits for the end.
    pub(crate) async fn finish(mut self) -> Finished {
        let (stdout, stderr) = tokio::join!(self.stdout.rest(), self.stderr.rest());
        let status = timeout(DEADLINE, self.child.wait()).await.expect("it does not end").unwrap();
        let mut lines: Vec<String> = self.stderr.read.into();
        lines.extend(stderr);
        Finished { code: status.code(), stdout, stderr: lines.join("\n") }
    }
}

impl Finished {
    /// Asserts the exit code.
    #[track_caller]
    pub(crate) fn exited(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// Asserts that standard error has these texts.
    #[track_caller]
    pub(crate) fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.stderr.contains(text), "{text:?} is not in {self:#?}");
        }
        self
    }

    /// Standard output, each line as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Vec<Value> {
        self.stdout.iter().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

impl<R: AsyncRead + Unpin> Output<R> {
    fn new(output: R) -> Self {
        Self { lines: BufReader::new(output).lines(), read: VecDeque::new() }
    }

    async fn next(&mut self) -> Option<String> {
        let line = timeout(DEADLINE, self.lines.next_line()).await.expect("no line comes").unwrap()?;
        self.read.push_back(line.clone());
        Some(line)
    }

    /// The lines that were not read yet.
    async fn rest(&mut self) -> Vec<String> {
        let mut rest = Vec::new();
        while let Some(line) =
            timeout(DEADLINE, self.lines.next_line()).await.expect("it does not end").unwrap()
        {
            rest.push(line);
        }
        rest
    }
}

/// Sends a signal to any process.
pub(crate) async fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().await.unwrap();
    assert!(status.success());
}

/// The command line of a process; nothing once it has ended, also if nobody has reaped it yet.
pub(crate) fn command_line(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

/// Waits until a process has used more processor time than starting takes.
pub(crate) async fn at_work(pid: u32) {
    const TICKS: u64 = 30;
    let working = async {
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            // Behind the name, which may have spaces: fields 14 and 15 of all are user and system time.
            let (_, fields) = stat.rsplit_once(')').unwrap();
            let times = fields.split_whitespace().skip(11).take(2);
            if times.map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>() > TICKS {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, working).await.expect("it does nothing");
}

/// Waits until a process that is nobody's child here has ended.
pub(crate) async fn ended(pid: u32) {
    let ending = async {
        while !command_line(pid).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, ending).await.expect("an orphan is left");
}

/// Runs `kvpipe` to its end.
pub(crate) async fn run(line: &str) -> Finished {
    Process::start(line).finish().await
}

/// Rank 0 sends to rank 1, over a store that rank 0 serves. `items` and `options` go to one each.
pub(crate) async fn send_to_recv(items: &str, options: &str) -> (Finished, Finished) {
    let mut sender = Process::start(&format!("send --store 127.0.0.1:0 --rank 0 --world-size 2 {items}"));
    let store = sender.store_address().await;
    let receiver = Process::start(&format!("recv --store {store} --rank 1 --world-size 2 {options}"));
    tokio::join!(sender.finish(), receiver.finish())
}

/// A directory of a test's own; its path has no spaces.
pub(crate) fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Writes a safetensors file; gives its path.
pub(crate) fn file(directory: &TempDir, name: &str, tensors: &[(&str, Tensor)]) -> String {
    let path = directory.path().join(name);
    safetensors::write(&path, tensors).unwrap();
    text(&path)
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A tensor of `len` bytes that differ from those of another `seed`.
pub(crate) fn bytes(len: usize, seed: usize) -> Tensor {
    let bytes: Vec<u8> = (0..len).map(|index| (index * 31 + index / 256 + seed * 7 + 1) as u8).collect();
    Tensor::from_slice([len], &bytes).unwrap()
}

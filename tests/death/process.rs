//! The processes that are killed: this same binary, told to be a rank.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::rank::{self, Settings, Side};

/// Far beyond what anything takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// A rank. Dropping it kills it, stopped or not.
pub(crate) struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// A sender and a receiver that have met.
    pub(crate) async fn two_ranks(settings: Settings) -> (Self, Self) {
        let mut receiver = Self::start(Side::Receiver, settings, "");
        let address = receiver.after("address: ").await;
        let mut sender = Self::start(Side::Sender, settings, &address);
        sender.after("met").await;
        receiver.after("met").await;
        (sender, receiver)
    }

    fn start(side: Side, settings: Settings, address: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([rank::TEST, "--exact", "--nocapture"]);
        command.envs(settings.environment(side, address));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, input, output }
    }

    /// Reads up to a line with `text`; gives what stands behind it there.
    pub(crate) async fn after(&mut self, text: &str) -> String {
        let reading = async {
            while let Some(line) = self.output.next_line().await.unwrap() {
                if let Some((_, rest)) = line.split_once(text) {
                    return rest.to_owned();
                }
            }
            panic!("the output has ended without {text:?}");
        };
        timeout(DEADLINE, reading).await.unwrap_or_else(|_| panic!("no {text:?} comes"))
    }

    /// Tells it to take what it has left lying, or to come to an end; unless it has already.
    pub(crate) async fn go_on(&mut self) {
        let _ = self.input.write_all(b"go on\n").await;
    }

    pub(crate) fn kill(&mut self) {
        self.child.start_kill().unwrap();
    }

    /// Sends a signal, such as `STOP`.
    pub(crate) async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it has ended").to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().await.unwrap();
        assert!(status.success());
    }
}

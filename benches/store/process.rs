//! Other processes that take orders as lines on their standard input, and answer likewise.

use std::fmt::Display;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Ends with its value.
pub(crate) struct Process {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
        let orders = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, orders, answers }
    }

    /// This program again, in a role.
    pub(crate) fn role(arguments: &[&str]) -> Self {
        let program = std::env::current_exe().expect("this program has a name");
        Self::start(Command::new(program).args(arguments))
    }

    /// `kvpipe store`, and where it listens.
    pub(crate) fn store() -> (Self, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvpipe"));
        let mut process = Self::start(command.args(["store", "--listen", "127.0.0.1:0"]));
        let line = process.answer();
        let address = line.strip_prefix("listening on ").expect("it says where");
        (process, address.to_owned())
    }

    pub(crate) fn order(&mut self, line: impl Display) {
        writeln!(self.orders, "{line}").expect("it takes orders");
    }

    pub(crate) fn answer(&mut self) -> String {
        let mut line = String::new();
        let length = self.answers.read_line(&mut line).expect("it answers");
        assert!(length > 0, "it has ended");
        line.trim_end().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Python that has torch, to run `script`; else it is said once what is skipped.
pub(crate) fn python(script: &str, skipped: &str) -> Option<Command> {
    let Some(python) = std::env::var_os("KVPIPE_TORCH_PYTHON") else {
        println!("skipped: {skipped}, as KVPIPE_TORCH_PYTHON does not name a python with torch");
        return None;
    };
    let mut command = Command::new(python);
    command.args(["-c", script]);
    Some(command)
}

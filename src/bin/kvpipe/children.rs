//! Processes that this one starts, mostly from itself, and whose standard output it reads: one JSON event
//! a line. Their standard input ends when this process does, and says nothing before unless asked to.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use std::{env, io};

use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::failure::Failure;
use crate::output::Output;

/// Running children, and what they tell.
pub(crate) struct Children<E> {
    program: PathBuf,
    output: Output,
    running: JoinSet<Result<(), Ended>>,
    events: mpsc::UnboundedReceiver<E>,
    /// Kept, so that the channel stays open as long as the parent.
    tell: mpsc::UnboundedSender<E>,
    /// True once all are to be killed.
    stop: watch::Sender<bool>,
}

/// A child that did not end well.
struct Ended {
    failure: Failure,
    by_signal: bool,
}

impl<E: DeserializeOwned + Send + 'static> Children<E> {
    /// None yet. What they say on standard error goes to `output` if they succeed.
    pub(crate) fn new(output: &Output) -> Result<Self, Failure> {
        let program = env::current_exe().map_err(|error| Failure::io("finding this program", &error))?;
        let (tell, events) = mpsc::unbounded_channel();
        let (running, output) = (JoinSet::new(), output.clone());
        Ok(Self { program, output, running, events, tell, stop: watch::Sender::new(false) })
    }

    /// Starts one with these arguments, and with variables besides those of this process. `name` is what
    /// failures call it.
    pub(crate) fn start(
        &mut self,
        name: String,
        arguments: Vec<OsString>,
        environment: Vec<(&'static str, String)>,
    ) -> Result<(), Failure> {
        let mut command = Command::new(&self.program);
        command.args(arguments).envs(environment);
        let (child, stdin) = spawn(&name, command)?;
        self.follow(name, child, Some(stdin));
        Ok(())
    }

    /// The same, with the caller at its standard input, which ends with what this gives. Without a
    /// `program`, it is this one.
    pub(crate) fn start_listening(
        &mut self,
        name: String,
        program: Option<&Path>,
        arguments: Vec<OsString>,
    ) -> Result<ChildStdin, Failure> {
        let mut command = Command::new(program.unwrap_or(&self.program));
        command.args(arguments);
        let (child, stdin) = spawn(&name, command)?;
        self.follow(name, child, None);
        Ok(stdin)
    }

    fn follow(&mut self, name: String, child: Child, stdin: Option<ChildStdin>) {
        let (tell, output, stop) = (self.tell.clone(), self.output.clone(), self.stop.subscribe());
        self.running.spawn(async move {
            // Open as long as we live, however we end: see `end_with_parent`.
            let _stdin = stdin;
            follow(&name, child, &tell, &output, stop).await
        });
    }

    /// What one of them tells next; None when all have ended well.
    ///
    /// # Errors
    /// If one has failed. Others may have failed for want of it, so the one that was killed counts.
    pub(crate) async fn next(&mut self) -> Result<Option<E>, Failure> {
        loop {
            tokio::select! {
                biased;
                Some(event) = self.events.recv() => return Ok(Some(event)),
                ended = self.running.join_next() => match ended {
                    None => return Ok(None),
                    Some(Ok(Ok(()))) => {}
                    Some(Ok(Err(ended))) => return Err(self.cause(ended).await),
                    Some(Err(error)) => {
                        return Err(Failure::new(format!("bug in kvpipe: following a process: {error}")));
                    }
                },
            }
        }
    }

    async fn cause(&mut self, first: Ended) -> Failure {
        if first.by_signal {
            return first.failure;
        }
        let deadline = Instant::now() + OTHERS_FAIL_WITHIN;
        while let Ok(Some(ended)) = timeout_at(deadline, self.running.join_next()).await {
            if let Ok(Err(Ended { failure, by_signal: true })) = ended {
                return failure;
            }
        }
        first.failure
    }

    /// Kills those that still run, and returns when they are gone.
    pub(crate) async fn end_all(&mut self) {
        self.stop.send_replace(true);
        while let Some(ended) = self.running.join_next().await {
            if let Ok(Err(Ended { failure, .. })) = ended {
                tracing::debug!(%failure, "a process has ended");
            }
        }
    }
}

/// Ends this process, a child, once its parent is gone, even by a signal that nobody can catch.
///
/// # Errors
/// If there is no thread to watch it.
pub(crate) fn end_with_parent() -> Result<(), Failure> {
    let watch = || {
        // The end and an error mean the same.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(1);
    };
    let watching = std::thread::Builder::new().name("kvpipe-parent".into()).spawn(watch);
    watching.map(drop).map_err(|error| Failure::io("starting a thread that watches the parent", &error))
}

/// What the parent of this process tells it, one JSON value a line; ends this process once it is gone.
///
/// # Errors
/// If there is no thread to listen to it.
pub(crate) fn told_by_parent<T: DeserializeOwned + Send + 'static>()
-> Result<mpsc::UnboundedReceiver<Result<T, Failure>>, Failure> {
    let (pass_on, told) = mpsc::unbounded_channel();
    let listen = move || {
        for line in io::stdin().lines() {
            let value = line.and_then(|line| Ok(serde_json::from_str(&line)?));
            // Nobody listens any more when the process is about to end.
            drop(pass_on.send(value.map_err(|error| Failure::io("listening to the parent", &error))));
        }
        std::process::exit(1);
    };
    let listening = std::thread::Builder::new().name("kvpipe-parent".into()).spawn(listen);
    listening.map_err(|error| Failure::io("starting a thread that listens to the parent", &error))?;
    Ok(told)
}

/// A process that is killed is reaped no later than its peers notice.
const OTHERS_FAIL_WITHIN: Duration = Duration::from_secs(1);

fn spawn(name: &str, mut command: Command) -> Result<(Child, ChildStdin), Failure> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn();
    let mut child = child.map_err(|error| Failure::io(format!("starting {name}"), &error))?;
    let stdin = child.stdin.take();
    let stdin = stdin.ok_or_else(|| Failure::new(format!("bug in kvpipe: {name} has no standard input")))?;
    Ok((child, stdin))
}

/// Reads what a child prints until it ends, or kills it.
async fn follow<E: DeserializeOwned>(
    name: &str,
    mut child: Child,
    tell: &mpsc::UnboundedSender<E>,
    output: &Output,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Ended> {
    let broken = |failure| Ended { failure, by_signal: false };
    let lost = |error: io::Error| broken(Failure::io(format!("following {name}"), &error));
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(broken(Failure::new(format!("bug in kvpipe: {name} has no standard output"))));
    };
    let ((), complaints) = tokio::select! {
        biased;
        read = async { tokio::try_join!(read_events(stdout, tell), read_last_lines(stderr)) } => read.map_err(lost)?,
        () = told_to_stop(&mut stop) => {
            child.kill().await.map_err(lost)?;
            return Err(broken(Failure::new(format!("{name} was killed"))));
        }
    };
    let status = child.wait().await.map_err(lost)?;
    if status.success() {
        complaints.iter().for_each(|line| output.forward(format_args!("{name}: {line}")));
        return Ok(());
    }
    let said = if complaints.is_empty() { "and said nothing" } else { "it said:" };
    let failure = Failure::new(format!("{name} failed ({status}); {said}"));
    let failure = complaints.into_iter().fold(failure, Failure::detail);
    Err(Ended { failure, by_signal: status.signal().is_some() })
}

async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    // An error is a parent that is gone, which means the same.
    let _stop = stop.wait_for(|stop| *stop).await;
}

/// Passes events on.
async fn read_events<E: DeserializeOwned>(
    stdout: impl AsyncRead + Unpin,
    tell: &mpsc::UnboundedSender<E>,
) -> io::Result<()> {
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next_line().await? {
        // Nobody listens any more when the parent has given up.
        drop(tell.send(serde_json::from_str(&line)?));
    }
    Ok(())
}

/// How much of a child's standard error is kept.
const LAST_LINES: usize = 32;

async fn read_last_lines(stderr: impl AsyncRead + Unpin) -> io::Result<Vec<String>> {
    let mut lines = BufReader::new(stderr).lines();
    let mut last = VecDeque::with_capacity(LAST_LINES);
    while let Some(line) = lines.next_line().await? {
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(line);
    }
    Ok(last.into())
}

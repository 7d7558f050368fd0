//! Ranks as processes of their own: the parent that starts them, and what each of them does.
//!
//! Nobody guesses a free port. Rank 0 binds its store to port 0 and tells the parent which it got, on
//! its standard output; the parent starts the others with it. What a rank prints are [`Event`]s, one
//! JSON line each.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::{env, io};

use clap::ValueEnum;
use kvpipe::net::TokioNet;
use kvpipe::transport::Ring;
use kvpipe::transport::tcp::TcpTransport;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::exchange::{self, Workloads};
use super::report::RankReport;
use crate::args::{DemoArgs, DemoRankArgs};
use crate::endpoint;
use crate::failure::Failure;
use crate::output::Output;
use crate::rendezvous::Rendezvous;
use crate::serve::{self, StopSignals};
use crate::units::HostPort;

/// What a rank tells its parent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Event {
    /// Rank 0's store listens here.
    Store(SocketAddr),
    /// So many bytes more were received and checked.
    Checked(u64),
    /// All is done.
    Done(RankReport),
}

/// Starts all ranks and waits for them. If one fails, or a signal comes, all are killed, and are gone
/// when this returns.
pub(super) async fn run(
    args: &DemoArgs,
    output: &Output,
    stop: &mut StopSignals,
) -> Result<Vec<RankReport>, Failure> {
    let program = env::current_exe().map_err(|error| Failure::io("finding this program", &error))?;
    let mut parent = Parent::new(args, program, output);
    let outcome = tokio::select! {
        biased;
        reports = parent.run() => reports,
        signal = stop.received() => Err(Failure::new(format!("stopped by {signal}"))),
    };
    parent.end_all().await;
    outcome
}

struct Parent<'a> {
    args: &'a DemoArgs,
    program: PathBuf,
    output: &'a Output,
    ranks: JoinSet<Result<RankReport, Failure>>,
    events: mpsc::UnboundedReceiver<Event>,
    /// Kept, so that the channel stays open as long as the parent.
    tell: mpsc::UnboundedSender<Event>,
    /// True once all ranks are to be killed.
    stop: watch::Sender<bool>,
}

impl<'a> Parent<'a> {
    fn new(args: &'a DemoArgs, program: PathBuf, output: &'a Output) -> Self {
        let (tell, events) = mpsc::unbounded_channel();
        Self { args, program, output, ranks: JoinSet::new(), events, tell, stop: watch::Sender::new(false) }
    }

    async fn run(&mut self) -> Result<Vec<RankReport>, Failure> {
        self.start(0, None)?;
        let mut reports = Vec::new();
        let mut checked = 0;
        while reports.len() < usize::from(self.args.ranks) {
            tokio::select! {
                biased;
                Some(event) = self.events.recv() => match event {
                    Event::Store(address) => {
                        for rank in 1..self.args.ranks {
                            self.start(rank, Some(address))?;
                        }
                    }
                    Event::Checked(bytes) => {
                        checked += bytes;
                        self.output.progress(checked, "moved and checked");
                    }
                    Event::Done(_) => {}
                },
                Some(ended) = self.ranks.join_next() => {
                    let ended = ended.map_err(|error| Failure::new(format!("bug in kvpipe: following a rank: {error}")))?;
                    reports.push(ended?);
                }
            }
        }
        reports.sort_by_key(|report: &RankReport| report.rank);
        Ok(reports)
    }

    fn start(&mut self, rank: u16, store: Option<SocketAddr>) -> Result<(), Failure> {
        let mut command = Command::new(&self.program);
        command.args(arguments(self.args, rank, store)).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| Failure::io(format!("starting rank {rank}"), &error))?;
        let (tell, output, stop) = (self.tell.clone(), self.output.clone(), self.stop.subscribe());
        self.ranks.spawn(async move { follow(rank, child, &tell, &output, stop).await });
        Ok(())
    }

    /// Kills the ranks that still run, and returns when they are gone.
    async fn end_all(&mut self) {
        self.stop.send_replace(true);
        while let Some(ended) = self.ranks.join_next().await {
            if let Ok(Err(failure)) = ended {
                tracing::debug!(%failure, "a rank has ended");
            }
        }
    }
}

/// The command line of a rank.
fn arguments(args: &DemoArgs, rank: u16, store: Option<SocketAddr>) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec!["demo-rank".into()];
    let mut option = |name: &str, value: OsString| line.extend([name.into(), value]);
    option("--rank", rank.to_string().into());
    option("--world-size", args.ranks.to_string().into());
    option("--timeout", args.timeout.to_string().into());
    if let Some(store) = store {
        option("--store", store.to_string().into());
    }
    match &args.workload.input {
        Some(path) => option("--input", path.into()),
        None => {
            let model = args.workload.model.to_possible_value();
            option("--model", model.map_or_else(String::new, |model| model.get_name().into()).into());
        }
    }
    if let Some(tokens) = args.workload.tokens {
        option("--tokens", tokens.to_string().into());
    }
    if let Some(bytes) = args.pipe.buffer_size {
        option("--buffer-size", bytes.0.to_string().into());
    }
    if let Some(bytes) = args.pipe.max_item_size {
        option("--max-item-size", bytes.0.to_string().into());
    }
    if let Some(path) = &args.pipe.secret_file {
        option("--secret-file", path.into());
    }
    line
}

/// Reads what a rank prints until it ends, or kills it.
async fn follow(
    rank: u16,
    mut child: Child,
    tell: &mpsc::UnboundedSender<Event>,
    output: &Output,
    mut stop: watch::Receiver<bool>,
) -> Result<RankReport, Failure> {
    let lost = |error: io::Error| Failure::io(format!("following rank {rank}"), &error);
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(Failure::new("bug in kvpipe: a rank has no standard output"));
    };
    let (report, complaints) = tokio::select! {
        biased;
        read = async { tokio::try_join!(read_events(stdout, tell), read_last_lines(stderr)) } => read.map_err(lost)?,
        () = told_to_stop(&mut stop) => {
            child.kill().await.map_err(lost)?;
            return Err(Failure::new(format!("rank {rank} was killed")));
        }
    };
    let status = child.wait().await.map_err(lost)?;
    match report {
        Some(report) if status.success() => {
            complaints.iter().for_each(|line| output.forward(format_args!("rank {rank}: {line}")));
            Ok(report)
        }
        _ => {
            let failure = Failure::new(format!("rank {rank} failed ({status}); it said:"));
            Err(complaints.into_iter().fold(failure, Failure::detail))
        }
    }
}

async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    // An error is a parent that is gone, which means the same.
    let _stop = stop.wait_for(|stop| *stop).await;
}

/// Passes events on; gives the report, if there was one.
async fn read_events(
    stdout: impl AsyncRead + Unpin,
    tell: &mpsc::UnboundedSender<Event>,
) -> io::Result<Option<RankReport>> {
    let mut lines = BufReader::new(stdout).lines();
    let mut done = None;
    while let Some(line) = lines.next_line().await? {
        match serde_json::from_str(&line)? {
            Event::Done(report) => done = Some(report),
            // Nobody listens any more when the parent has given up.
            event => drop(tell.send(event)),
        }
    }
    Ok(done)
}

/// How much of a rank's standard error is kept.
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

/// A rank, as its own process.
pub(crate) async fn run_rank(args: DemoRankArgs) -> Result<ExitCode, Failure> {
    let ring = Ring::new(args.rank, args.world_size).map_err(|error| Failure::usage(error.to_string()))?;
    let output = Output::new(true);
    let rendezvous = meet(&args, ring).await?;
    if let Some(address) = rendezvous.served_at() {
        tell_parent(&output, &Event::Store(address))?;
    }
    let report = exchange_all(&args, ring, &rendezvous, &output).await?;
    tell_parent(&output, &Event::Done(report))?;
    rendezvous.leave(&output).await;
    Ok(ExitCode::SUCCESS)
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

async fn meet(args: &DemoRankArgs, ring: Ring) -> Result<Rendezvous, Failure> {
    let timeout = args.timeout.0;
    match &args.store {
        Some(store) => {
            Rendezvous::connect(&store.host, store.port, ring.rank(), ring.world_size(), timeout).await
        }
        None => {
            let any_port = HostPort { host: LOOPBACK.to_string(), port: 0 };
            Rendezvous::with_server(serve::bind(&any_port).await?, ring.world_size(), timeout).await
        }
    }
}

async fn exchange_all(
    args: &DemoRankArgs,
    ring: Ring,
    rendezvous: &Rendezvous,
    output: &Output,
) -> Result<RankReport, Failure> {
    let timeout = args.timeout.0;
    let workloads = Workloads::new(&args.workload, ring)?;
    let store = rendezvous.store();
    let config = endpoint::tcp_config(&args.pipe, "demo", timeout)?;
    let address = SocketAddr::new(LOOPBACK, 0);
    let transport = TcpTransport::bind(TokioNet, store.clone(), ring, address, config).await?;
    let (pipe, driver) = exchange::pipe(transport, endpoint::pipe_config(&args.pipe, timeout));
    tokio::spawn(driver);
    exchange::run(&pipe, &store, ring, &workloads, timeout, |bytes| {
        tell_parent(output, &Event::Checked(bytes))
    })
    .await
}

fn tell_parent(output: &Output, event: &Event) -> Result<(), Failure> {
    output.json(event)
}

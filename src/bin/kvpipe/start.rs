//! From the arguments to the command, on a runtime.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use tokio::runtime::Builder;

use crate::args::{Arguments, Command};
use crate::failure::Failure;
use crate::{bench, demo, doctor, receive, send, serve};

/// Runs the command that the arguments name.
pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log_to_stderr(arguments.verbose);
    match run(arguments.command) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

/// Pipes and the store run on threads of their own, so that this one may block on files, on standard
/// output and on checking bytes while heartbeats go on.
const WORKER_THREADS: usize = 2;

fn run(command: Command) -> Result<ExitCode, Failure> {
    let mut builder = match command {
        // Figures are for the cheapest runtime, which is what a rank that has one pipe would use.
        Command::BenchPeer(_) | Command::BenchRank(_) => Builder::new_current_thread(),
        // Its clients' requests are short and share one state: a second thread would only hand it to and
        // fro.
        Command::Store(_) => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    let runtime = builder
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .map_err(|error| Failure::io("starting the runtime", &error))?;
    runtime.block_on(async {
        match command {
            Command::Demo(demo) => demo::run(demo).await,
            Command::DemoRank(rank) => demo::run_rank(rank).await,
            Command::Bench(bench) => bench::run(bench).await,
            Command::BenchPeer(peer) => bench::run_peer(peer).await,
            Command::BenchRank(rank) => bench::collectives::run_rank(rank).await,
            Command::Doctor(doctor) => doctor::run(doctor).await,
            Command::Store(store) => serve::run(store).await,
            Command::Send(send) => send::run(send).await,
            Command::Recv(recv) => receive::run(recv).await,
        }
    })
}

/// The library's log: what it refused or noticed, without stopping for it.
fn log_to_stderr(verbose: bool) {
    let level = if verbose { tracing::Level::DEBUG } else { tracing::Level::WARN };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
}

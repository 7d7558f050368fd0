//! `kvpipe store`: a store server of its own.

use std::convert::Infallible;
use std::fmt;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use kvpipe::net::{Net, TokioNet};
use kvpipe::store::Limits;
use kvpipe::store::tcp::{ServerStats, TcpStoreServer};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use crate::args::StoreArgs;
use crate::failure::Failure;
use crate::output::Output;
use crate::units::{ByteSize, Count, HostPort, Seconds, Size};

/// Serves until a signal says to stop.
pub(crate) async fn run(args: StoreArgs) -> Result<ExitCode, Failure> {
    let limits = limits(&args)?;
    let output = Output::new(args.json);
    // Before anybody is told that we are ready, and so may send a signal.
    let mut stop = StopSignals::new()?;
    let server = bind(resolve(&args.listen, args.allow_remote).await?, limits).await?;
    let listening = server.local_addr();
    output.result(format_args!("listening on {listening}"), &Listening { listening })?;
    let stopped = tokio::select! {
        biased;
        stopped = stop.received() => stopped,
        Err(failure) = show_stats(&server, args.stats, &output) => return Err(failure),
    };
    if args.stats.is_some() {
        show(&server, &output)?;
    }
    server.shutdown().await;
    output.result(format_args!("stopped by {stopped}"), &Stopped { stopped })?;
    Ok(ExitCode::SUCCESS)
}

fn limits(args: &StoreArgs) -> Result<Limits, Failure> {
    let mut limits = Limits::default();
    limits.value_bytes = args.max_value_bytes.map_or(limits.value_bytes, |bytes| bytes.0);
    limits.clients = usize::try_from(args.max_clients).unwrap_or(usize::MAX);
    // A larger value would be declared, sent and then refused.
    let all = limits.stored_bytes.min(limits.unfinished_bytes);
    if limits.value_bytes > all {
        let (value, all) = (ByteSize(limits.value_bytes), ByteSize(all));
        return Err(Failure::usage(format!(
            "--max-value-bytes {value} is over the {all} of all requests together"
        )));
    }
    Ok(limits)
}

/// For ever, or until nobody reads it; never without an interval.
async fn show_stats(
    server: &TcpStoreServer,
    every: Option<Seconds>,
    output: &Output,
) -> Result<Infallible, Failure> {
    let Some(Seconds(every)) = every else { return pending().await };
    loop {
        sleep(every).await;
        show(server, output)?;
    }
}

fn show(server: &TcpStoreServer, output: &Output) -> Result<(), Failure> {
    let stats = Stats::from(server.stats());
    output.result(&stats, &Line { stats: &stats })
}

/// A server on exactly `address`.
pub(crate) async fn bind(address: SocketAddr, limits: Limits) -> Result<TcpStoreServer, Failure> {
    Ok(TcpStoreServer::bind(&TokioNet, address, limits).await?)
}

/// The address to serve a store on; of a name, the first one. One that means every address of this
/// machine only if that is allowed, however it is written: `0`, `[::ffff:0.0.0.0]`, a name.
pub(crate) async fn resolve(address: &HostPort, allow_remote: bool) -> Result<SocketAddr, Failure> {
    let doing = || format!("looking up {address}");
    let found =
        TokioNet.resolve(&address.host, address.port).await.map_err(|error| Failure::io(doing(), &error))?;
    let found = found.first().copied().ok_or_else(|| Failure::new(format!("{}: no address", doing())))?;
    if !allow_remote && found.ip().to_canonical().is_unspecified() {
        return Err(Failure::usage(format!(
            "{address} would serve the store on every address of this machine"
        ))
        .detail("its protocol has no authentication: whoever reaches the port can read and change every key")
        .hint("give one address, or say --allow-remote if only friends can reach this machine"));
    }
    Ok(found)
}

#[derive(Serialize)]
struct Listening {
    listening: SocketAddr,
}

#[derive(Serialize)]
struct Line<'a> {
    stats: &'a Stats,
}

/// What goes on in a store: [`ServerStats`] for people and machines.
#[derive(Serialize)]
struct Stats {
    clients: usize,
    waiting: usize,
    keys: usize,
    queued: usize,
    stored_bytes: usize,
    requests: u64,
    refused: u64,
    bytes_in: u64,
    bytes_out: u64,
}

impl From<ServerStats> for Stats {
    fn from(stats: ServerStats) -> Self {
        Self {
            clients: stats.clients,
            waiting: stats.waiting,
            keys: stats.keys,
            queued: stats.queued,
            stored_bytes: stats.stored_bytes,
            requests: stats.requests,
            refused: stats.refused,
            bytes_in: stats.bytes_in,
            bytes_out: stats.bytes_out,
        }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { waiting, queued, refused, .. } = self;
        let (clients, keys) = (Count(self.clients as u64, "client"), Count(self.keys as u64, "key"));
        let (stored, requests) = (Size(self.stored_bytes as u64), Count(self.requests, "request"));
        let (bytes_in, bytes_out) = (Size(self.bytes_in), Size(self.bytes_out));
        write!(f, "{clients}, {waiting} waiting; {keys}, {queued} queued, {stored} stored; ")?;
        write!(f, "{requests}, {refused} refused; {bytes_in} in, {bytes_out} out")
    }
}

#[derive(Serialize)]
struct Stopped {
    stopped: &'static str,
}

/// The signals by which users and supervisors end a process.
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// From now on these signals no longer kill the process.
    pub(crate) fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error: io::Error| Failure::io("listening for signals", &error));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for one, and names it.
    pub(crate) async fn received(&mut self) -> &'static str {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Arguments;

    #[test]
    fn the_help_has_the_default_limit_of_values() {
        let mut command = Arguments::command();
        let help = command.find_subcommand_mut("store").map(|store| store.render_help().to_string());
        let help = help.unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        let default = ByteSize(Limits::default().value_bytes).to_string().replace(' ', "");
        assert!(help.contains(&format!("[default: {default}]")), "{help}");
    }
}

//! `kvpipe store`: a store server of its own.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use kvpipe::net::{Net, TokioNet};
use kvpipe::store::Limits;
use kvpipe::store::tcp::TcpStoreServer;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::StoreArgs;
use crate::failure::Failure;
use crate::output::Output;
use crate::units::HostPort;

/// Serves until a signal says to stop.
pub(crate) async fn run(args: StoreArgs) -> Result<ExitCode, Failure> {
    let output = Output::new(args.json);
    // Before anybody is told that we are ready, and so may send a signal.
    let mut stop = StopSignals::new()?;
    let server = bind(&args.listen).await?;
    let listening = server.local_addr();
    output.result(format_args!("listening on {listening}"), &Listening { listening })?;
    let stopped = stop.received().await;
    server.shutdown().await;
    output.result(format_args!("stopped by {stopped}"), &Stopped { stopped })?;
    Ok(ExitCode::SUCCESS)
}

/// A server on exactly `address`; of a name, on its first address.
pub(crate) async fn bind(address: &HostPort) -> Result<TcpStoreServer, Failure> {
    let address = resolve(address).await?;
    Ok(TcpStoreServer::bind(&TokioNet, address, Limits::default()).await?)
}

async fn resolve(address: &HostPort) -> Result<SocketAddr, Failure> {
    let doing = || format!("looking up {address}");
    let found =
        TokioNet.resolve(&address.host, address.port).await.map_err(|error| Failure::io(doing(), &error))?;
    found.first().copied().ok_or_else(|| Failure::new(format!("{}: no address", doing())))
}

#[derive(Serialize)]
struct Listening {
    listening: SocketAddr,
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

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
    let server = bind(resolve(&args.listen, args.allow_remote).await?, Limits::default()).await?;
    let listening = server.local_addr();
    output.result(format_args!("listening on {listening}"), &Listening { listening })?;
    let stopped = stop.received().await;
    server.shutdown().await;
    output.result(format_args!("stopped by {stopped}"), &Stopped { stopped })?;
    Ok(ExitCode::SUCCESS)
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

//! The server: who may come, and when it ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle, JoinSet};

use super::serving::{Hub, serve_client};
use crate::error::{Error, Result};
use crate::net::{Listener, Net, SocketOptions};
use crate::store::Limits;

/// A store server that any TCPStore client may use: kvpipe's or PyTorch's.
///
/// It listens on exactly the address it was given, where PyTorch's servers listen on every address.
/// The protocol has no authentication, so give it an address that only the ranks can reach.
///
/// Each connection has its own task, and the state is locked for one request at a time and never during
/// I/O: a client that stalls, floods or sends garbage harms itself. Garbage, a request over a
/// [limit](Limits) and a request that the [state machine](super::server_state) refuses close that
/// client's connection, with a line in the log (`tracing`, level warn). So do 30 s without VALIDATE, 30 s
/// without a byte in the middle of a request, and 30 s in which no byte of waiting replies is taken.
///
/// Dropping the server stops it and closes all connections at once; [`shutdown`](Self::shutdown) lets
/// replies out first.
#[derive(Debug)]
pub struct TcpStoreServer {
    local_addr: SocketAddr,
    hub: Arc<Hub>,
    accepting: Option<JoinHandle<()>>,
}

/// A client that is silent for so long is probed by the system, so that a host that died leaves no
/// connection behind.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// After a failed accept, such as for want of file descriptors; the next one would fail as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl TcpStoreServer {
    /// Serves a new, empty store on exactly `address`; port 0 chooses a free one, see
    /// [`local_addr`](Self::local_addr). To be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Io`] naming the address, if it can't be listened on.
    ///
    /// # Cancel safety
    /// Dropped early, nothing listens.
    pub async fn bind<N: Net>(net: &N, address: SocketAddr, limits: Limits) -> Result<Self> {
        let options = SocketOptions { keepalive: Some(KEEPALIVE), ..SocketOptions::default() };
        let listener = net
            .bind(address, &options)
            .await
            .map_err(|error| Error::io(format!("binding the store server to {address}"), error))?;
        Self::serve(listener, limits)
    }

    /// Serves a new, empty store on a socket that listens already, for callers who must know their port
    /// before anybody else can take it. To be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Io`] if the listener does not know its address.
    pub fn serve(listener: impl Listener, limits: Limits) -> Result<Self> {
        let local_addr = listener
            .local_addr()
            .map_err(|error| Error::io("asking the store's listener for its address", error))?;
        let hub = Arc::new(Hub::new(limits));
        let accepting = tokio::spawn(accept_clients(listener, Arc::clone(&hub)));
        Ok(Self { local_addr, hub, accepting: Some(accepting) })
    }

    /// The address that it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// How many connections are open now. A client may have several.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.hub.clients.value()
    }

    /// How many connections have a WAIT or BARRIER pending.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.hub.state.lock().server.waiting()
    }

    /// What it holds now and has done so far.
    #[must_use]
    pub fn stats(&self) -> ServerStats {
        let state = self.hub.state.lock();
        let server = &state.server;
        ServerStats {
            clients: server.clients(),
            waiting: server.waiting(),
            keys: server.keys(),
            queued: server.queued(),
            stored_bytes: server.stored_bytes(),
            requests: state.requests,
            refused: state.refused,
            bytes_in: self.hub.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.hub.bytes_out.load(Ordering::Relaxed),
        }
    }

    /// Waits until no connection is open, as a rank must that serves the store for the others. Drop
    /// this process's own clients first. It is idle as well before anybody has come.
    ///
    /// # Errors
    /// [`Error::Timeout`] with how many connections are left.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait_until_idle(&self, timeout: Duration) -> Result<()> {
        let idle = self.hub.clients.wait_for(|count| count == 0);
        if tokio::time::timeout(timeout, idle).await.is_ok() {
            return Ok(());
        }
        let (left, address) = (self.clients(), self.local_addr);
        Err(Error::timeout(format!("{left} connections to leave the store at {address}"), timeout))
    }

    /// Stops listening, closes every connection once its replies are written, and returns when all are
    /// closed: after a few seconds at most, even where clients don't read.
    ///
    /// # Cancel safety
    /// Dropped early, the server still stops.
    pub async fn shutdown(mut self) {
        self.hub.stopping.set(true);
        if let Some(accepting) = self.accepting.take() {
            report_panic(accepting.await);
        }
    }
}

impl Drop for TcpStoreServer {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            // The connections' tasks belong to it and end with it.
            accepting.abort();
        }
    }
}

/// What a [`TcpStoreServer`] holds, and what it has done since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStats {
    /// Connections that are open.
    pub clients: usize,
    /// Connections that have a WAIT or BARRIER pending.
    pub waiting: usize,
    /// Keys that have a value.
    pub keys: usize,
    /// Values in all queues.
    pub queued: usize,
    /// Bytes of all keys and values, queued ones included, as [`Limits::stored_bytes`] counts them.
    pub stored_bytes: usize,
    /// Requests carried out so far, VALIDATE and PING included.
    pub requests: u64,
    /// Connections closed so far for what their clients did, or because there were too many.
    pub refused: u64,
    /// Bytes read from clients so far.
    pub bytes_in: u64,
    /// Bytes written to clients so far.
    pub bytes_out: u64,
}

/// Owns the listener and the connections' tasks.
async fn accept_clients<L: Listener>(listener: L, hub: Arc<Hub>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = hub.stopping.wait_for(|stop| stop) => break,
            Some(ended) = connections.join_next() => report_panic(ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match hub.connect() {
                    Some(client) => {
                        connections.spawn(serve_client(client, stream, peer));
                    }
                    None => {
                        let limit = hub.limits.clients;
                        hub.state.lock().refused += 1;
                        tracing::warn!(%peer, limit, "the store has its limit of clients, closing one more");
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "accepting a client of the store failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        report_panic(ended);
    }
}

fn report_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "bug in kvpipe: a task of the store server panicked");
    }
}

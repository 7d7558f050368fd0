//! The sockets around [`ServerState`].

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};

use super::outbox::Outbox;
use super::protocol::{ProtocolError, Request, RequestParser};
use super::server_state::{ClientId, ServerState, Violation};
use crate::error::{Error, Result};
use crate::net::{Listener, Net, SocketOptions, Stream};
use crate::store::Limits;
use crate::sync::Mutex;

/// A store server that any TCPStore client may use: kvpipe's or PyTorch's.
///
/// It listens on exactly the address it was given, where PyTorch's servers listen on every address.
/// The protocol has no authentication, so give it an address that only the ranks can reach.
///
/// Each connection has its own task, and the state is locked for one request at a time and never during
/// I/O: a client that stalls, floods or sends garbage harms itself. Garbage, a request over a
/// [limit](Limits) and a request that the [state machine](super::server_state) refuses close that
/// client's connection, with a line in the log (`tracing`, level warn). A client that does not VALIDATE
/// within 30 s is closed, too.
///
/// Dropping the server stops it and closes all connections at once; [`shutdown`](Self::shutdown) lets
/// replies out first.
#[derive(Debug)]
pub struct TcpStoreServer {
    local_addr: SocketAddr,
    hub: Arc<Hub>,
    stop: watch::Sender<bool>,
    accepting: Option<JoinHandle<()>>,
}

/// A client that is silent for so long is probed by the system, so that a host that died leaves no
/// connection behind.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Until when a new connection must have sent VALIDATE. PyTorch's clients send it at once.
const VALIDATE_WITHIN: Duration = Duration::from_secs(30);

/// How long the last replies to a client whose connection ends may take to be written.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

/// After a failed accept, such as for want of file descriptors; the next one would fail as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How much is read from a client at a time.
const READ_BUFFER_BYTES: usize = 16 << 10;

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
        let (stop, stopped) = watch::channel(false);
        let accepting = tokio::spawn(accept_clients(listener, Arc::clone(&hub), stopped));
        Ok(Self { local_addr, hub, stop, accepting: Some(accepting) })
    }

    /// The address that it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// How many connections are open now. A client may have several.
    #[must_use]
    pub fn clients(&self) -> usize {
        *self.hub.clients.borrow()
    }

    /// How many connections have a WAIT pending.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.hub.state.lock().server.waiting()
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
        let mut clients = self.hub.clients.subscribe();
        // The sender lives in the hub, so the channel is never closed.
        if tokio::time::timeout(timeout, clients.wait_for(|count| *count == 0)).await.is_ok() {
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
        self.stop.send_replace(true);
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

/// What the connections share.
#[derive(Debug)]
struct Hub {
    limits: Limits,
    state: Mutex<HubState>,
    /// How many there are.
    clients: watch::Sender<usize>,
}

#[derive(Debug)]
struct HubState {
    server: ServerState,
    outboxes: BTreeMap<ClientId, Arc<Outbox>>,
}

impl Hub {
    fn new(limits: Limits) -> Self {
        let state = HubState { server: ServerState::new(&limits), outboxes: BTreeMap::new() };
        Self { limits, state: Mutex::new(state), clients: watch::Sender::new(0) }
    }

    /// A new client, unless there are too many.
    fn connect(self: &Arc<Self>) -> Option<Client> {
        let outbox = Arc::new(Outbox::new(self.limits.outbound_bytes));
        let mut state = self.state.lock();
        let id = state.server.connect()?;
        state.outboxes.insert(id, Arc::clone(&outbox));
        self.clients.send_replace(state.server.clients());
        Some(Client { hub: Arc::clone(self), id, outbox })
    }
}

/// One connected client, until dropped.
#[derive(Debug)]
struct Client {
    hub: Arc<Hub>,
    id: ClientId,
    outbox: Arc<Outbox>,
}

impl Client {
    fn handle(&self, request: Request) -> Result<(), Violation> {
        let mut replies = Vec::new();
        let mut state = self.hub.state.lock();
        state.server.handle(self.id, request, &mut replies)?;
        // Still under the lock, so that every client gets its replies in the order of the state.
        for (client, reply) in replies {
            if let Some(outbox) = state.outboxes.get(&client) {
                outbox.push(reply);
            }
        }
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut state = self.hub.state.lock();
        state.server.disconnect(self.id);
        state.outboxes.remove(&self.id);
        self.hub.clients.send_replace(state.server.clients());
    }
}

/// Owns the listener and the connections' tasks.
async fn accept_clients<L: Listener>(listener: L, hub: Arc<Hub>, mut stopped: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop(&mut stopped) => break,
            Some(ended) = connections.join_next() => report_panic(ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match hub.connect() {
                    Some(client) => {
                        connections.spawn(serve_client(client, stream, peer, stopped.clone()));
                    }
                    None => {
                        let limit = hub.limits.clients;
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

/// Until the server is shut down or dropped.
async fn stop(stopped: &mut watch::Receiver<bool>) {
    // An error is a dropped sender, which means the same.
    let _stopped = stopped.wait_for(|stop| *stop).await;
}

fn report_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "bug in kvpipe: a task of the store server panicked");
    }
}

/// Why reading from a client ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("it sent no VALIDATE within {} s", VALIDATE_WITHIN.as_secs())]
    Silent,
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error(transparent)]
    Io(#[from] io::Error),
}

async fn serve_client<S: Stream>(
    client: Client,
    stream: S,
    peer: SocketAddr,
    mut stopped: watch::Receiver<bool>,
) {
    let (mut reader, mut writer) = stream.split();
    let writing = async {
        client.outbox.write_to(&mut writer).await?;
        writer.shutdown().await
    };
    tokio::pin!(writing);
    let ended = tokio::select! {
        biased;
        () = stop(&mut stopped) => Ok(()),
        written = &mut writing => {
            // Only a failure ends it before the outbox is closed: the client is gone.
            tracing::debug!(%peer, ?written, "writing to a client of the store failed");
            return;
        }
        ended = read_requests(&client, &mut reader) => ended,
    };
    match ended {
        Ok(()) => {}
        Err(Ended::Io(error)) => tracing::debug!(%peer, %error, "reading from a client of the store failed"),
        Err(reason) => tracing::warn!(%peer, %reason, "closing the connection of a client of the store"),
    }
    client.outbox.close();
    let drained = timeout(DRAIN_WITHIN, writing).await;
    tracing::debug!(%peer, ?drained, "a client of the store has left");
}

/// Until the client finishes its direction, or must be closed.
async fn read_requests(client: &Client, reader: &mut (impl AsyncRead + Unpin)) -> Result<(), Ended> {
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let mut parser = RequestParser::new(client.hub.limits.clone());
    let validate_until = Instant::now() + VALIDATE_WITHIN;
    let mut validated = false;
    loop {
        let read = reader.read(&mut buffer);
        let count = if validated {
            read.await?
        } else {
            timeout_at(validate_until, read).await.map_err(|_elapsed| Ended::Silent)??
        };
        if count == 0 {
            return Ok(());
        }
        let mut input = &buffer[..count];
        while let Some(request) = parser.parse(&mut input)? {
            client.outbox.room().await;
            client.handle(request)?;
            validated = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, ReadHalf, WriteHalf, duplex};

    use super::*;
    use crate::store::tcp::protocol::{MAGIC, Reply};

    /// A connection within the process, on which time can be simulated.
    struct Near(DuplexStream);

    const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    impl Stream for Near {
        type Reader = ReadHalf<DuplexStream>;
        type Writer = WriteHalf<DuplexStream>;

        fn split(self) -> (Self::Reader, Self::Writer) {
            tokio::io::split(self.0)
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(PEER)
        }

        fn peer_addr(&self) -> io::Result<SocketAddr> {
            Ok(PEER)
        }
    }

    fn hub() -> Arc<Hub> {
        Arc::new(Hub::new(Limits::default()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_validate_in_time_is_closed() {
        let client = hub().connect().unwrap();
        let (mut near, mut far) = duplex(64);
        far.write_all(&[0, 0xCE]).await.unwrap();
        let began = Instant::now();
        let ended = read_requests(&client, &mut near).await;
        assert!(matches!(ended, Err(Ended::Silent)), "{ended:?}");
        assert_eq!(began.elapsed(), VALIDATE_WITHIN);
    }

    #[tokio::test(start_paused = true)]
    async fn a_validated_client_may_be_idle_for_ever() {
        let client = hub().connect().unwrap();
        let (mut near, mut far) = duplex(64);
        let mut validate = bytes::BytesMut::new();
        Request::Validate { magic: MAGIC }.encode(&mut validate);
        far.write_all(&validate).await.unwrap();
        let day = Duration::from_secs(24 * 3600);
        timeout(day, read_requests(&client, &mut near)).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_delays_the_shutdown_by_seconds_only() {
        let hub = hub();
        let client = hub.connect().unwrap();
        client.outbox.push(Reply::Value(vec![0; 1 << 20].into()));
        let (near, _far) = duplex(64);
        let (stop, stopped) = watch::channel(false);
        stop.send_replace(true);
        let began = Instant::now();
        serve_client(client, Near(near), PEER, stopped).await;
        assert_eq!(began.elapsed(), DRAIN_WITHIN);
        assert_eq!(*hub.clients.borrow(), 0);
    }
}

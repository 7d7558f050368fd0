//! One connection of the server: what it shares with the others, and its task.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::outbox::Outbox;
use super::protocol::{ProtocolError, Request, RequestParser};
use super::server_state::{ClientId, ServerState, Violation};
use super::stock::Stock;
use super::watched::Watched;
use crate::net::Stream;
use crate::store::Limits;
use crate::sync::Mutex;

/// Until when a new connection must have sent VALIDATE. PyTorch's clients send it at once.
const VALIDATE_WITHIN: Duration = Duration::from_secs(30);

/// How long a client may pause in the middle of a request, or leave replies unread without taking a byte
/// of them. Memory is held for it meanwhile, which others may need.
pub(super) const STALL_WITHIN: Duration = Duration::from_secs(30);

/// How long the last replies to a client whose connection ends may take to be written.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

/// How much is read from a client at a time, unless it is part of a large value.
const READ_BUFFER_BYTES: usize = 16 << 10;

/// What the connections share.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) limits: Limits,
    pub(super) state: Mutex<HubState>,
    /// How many there are.
    pub(super) clients: Watched<usize>,
    pub(super) stopping: Watched<bool>,
    stock: Arc<Stock>,
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
}

#[derive(Debug)]
pub(super) struct HubState {
    pub(super) server: ServerState,
    outboxes: BTreeMap<ClientId, Arc<Outbox>>,
    pub(super) requests: u64,
    pub(super) refused: u64,
}

impl Hub {
    pub(super) fn new(limits: Limits) -> Self {
        let (server, outboxes) = (ServerState::new(&limits), BTreeMap::new());
        Self {
            limits,
            state: Mutex::new(HubState { server, outboxes, requests: 0, refused: 0 }),
            clients: Watched::new(0),
            stopping: Watched::new(false),
            stock: Arc::default(),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
        }
    }

    /// A new client, unless there are too many.
    pub(super) fn connect(self: &Arc<Self>) -> Option<Client> {
        let outbox = Arc::new(Outbox::new(self.limits.outbound_bytes));
        let mut state = self.state.lock();
        let id = state.server.connect()?;
        state.outboxes.insert(id, Arc::clone(&outbox));
        self.clients.set(state.server.clients());
        Some(Client { hub: Arc::clone(self), id, outbox })
    }
}

/// One connected client, until dropped.
#[derive(Debug)]
pub(super) struct Client {
    hub: Arc<Hub>,
    id: ClientId,
    outbox: Arc<Outbox>,
}

impl Client {
    fn handle(&self, request: Request) -> Result<(), Violation> {
        let mut replies = Vec::new();
        let mut state = self.hub.state.lock();
        state.server.handle(self.id, request, &mut replies)?;
        state.requests += 1;
        // Still under the lock, so that every client gets its replies in the order of the state.
        for (client, reply) in replies {
            if client == self.id {
                self.outbox.push_from_within(reply);
            } else if let Some(outbox) = state.outboxes.get(&client) {
                outbox.push(reply);
            }
        }
        Ok(())
    }
}

impl Client {
    /// Accounts for the request that has begun. If all clients' are too much together, those go that hold
    /// more than this one: it must not pay for somebody who stalls with a larger one.
    fn hold(&self, bytes: usize) -> Result<(), Violation> {
        let mut state = self.hub.state.lock();
        loop {
            let Err(violation) = state.server.hold(self.id, bytes) else { return Ok(()) };
            let crowded = matches!(violation, Violation::TooMuchUnfinished { .. });
            match state.server.largest_unfinished() {
                Some((largest, held)) if crowded && largest != self.id && held > bytes => {
                    state.server.disconnect(largest);
                    if let Some(outbox) = state.outboxes.remove(&largest) {
                        outbox.evict();
                    }
                }
                _ => return Err(violation),
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut state = self.hub.state.lock();
        state.server.disconnect(self.id);
        state.outboxes.remove(&self.id);
        self.hub.clients.set(state.server.clients());
    }
}

/// Why reading from a client ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("it sent no VALIDATE within {} s", VALIDATE_WITHIN.as_secs())]
    Silent,
    #[error("its request is the largest of unfinished ones, which are over their limit together")]
    Crowded,
    #[error("it paused within a request for {} s", STALL_WITHIN.as_secs())]
    Stalled,
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Until it has left, or must go.
pub(super) async fn serve_client<S: Stream>(client: Client, stream: S, peer: SocketAddr) {
    let (mut reader, mut writer) = stream.split();
    // Without a share in the task's budget, which a client that floods would leave nothing of.
    let writing = tokio::task::unconstrained(async {
        client.outbox.write_to(&mut writer, &client.hub.bytes_out).await?;
        writer.shutdown().await
    });
    tokio::pin!(writing);
    let ended = tokio::select! {
        biased;
        () = client.hub.stopping.wait_for(|stop| stop) => Ok(()),
        () = client.outbox.evicted() => Err(Ended::Crowded),
        ended = read_requests(&client, &mut reader) => ended,
        // Behind what is read, so that replies are written as soon as there is nothing more to read.
        written = &mut writing => {
            // Only a failure ends it before the outbox is closed: the client is gone.
            tracing::debug!(%peer, ?written, "writing to a client of the store failed");
            return;
        }
    };
    match ended {
        Ok(()) => {}
        Err(Ended::Io(error)) => tracing::debug!(%peer, %error, "reading from a client of the store failed"),
        Err(reason) => {
            client.hub.state.lock().refused += 1;
            tracing::warn!(%peer, %reason, "closing the connection of a client of the store");
        }
    }
    client.outbox.close();
    let drained = timeout(DRAIN_WITHIN, writing).await;
    tracing::debug!(%peer, ?drained, "a client of the store has left");
}

/// Until the client finishes its direction, or must be closed.
async fn read_requests(client: &Client, reader: &mut (impl AsyncRead + Unpin)) -> Result<(), Ended> {
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let mut parser = RequestParser::recycling(client.hub.limits.clone(), Arc::clone(&client.hub.stock));
    let validate_until = Instant::now() + VALIDATE_WITHIN;
    let mut validated = false;
    let mut held_bytes = 0;
    loop {
        let mut placed = false;
        let within_request = parser.is_within_request();
        let read = async {
            match parser.spare() {
                Some(mut spare) => {
                    placed = true;
                    reader.read_buf(&mut spare).await
                }
                None => reader.read(&mut buffer).await,
            }
        };
        let count = if !validated {
            timeout_at(validate_until, read).await.map_err(|_elapsed| Ended::Silent)??
        } else if within_request {
            timeout(STALL_WITHIN, read).await.map_err(|_elapsed| Ended::Stalled)??
        } else {
            read.await?
        };
        if count == 0 {
            return Ok(());
        }
        client.hub.bytes_in.fetch_add(count as u64, Ordering::Relaxed);
        let mut input = if placed { &[] } else { &buffer[..count] };
        while let Some(request) = parser.parse(&mut input)? {
            client.outbox.room().await;
            client.handle(request)?;
            (validated, held_bytes) = (true, 0);
        }
        if parser.held_bytes() != held_bytes {
            held_bytes = parser.held_bytes();
            client.hold(held_bytes)?;
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
    async fn a_client_that_pauses_within_a_request_is_closed_and_one_that_goes_on_is_not() {
        let hub = hub();
        let client = hub.connect().unwrap();
        let (mut near, mut far) = duplex(64);
        let mut requests = bytes::BytesMut::new();
        Request::Validate { magic: MAGIC }.encode(&mut requests);
        far.write_all(&requests.split()).await.unwrap();
        Request::Set { key: "k".into(), value: "value".into() }.encode(&mut requests);
        let slowly = async {
            for byte in requests.split_to(requests.len() - 1) {
                far.write_all(&[byte]).await.unwrap();
                tokio::time::sleep(STALL_WITHIN / 2).await;
            }
            Instant::now()
        };
        let (ended, last_byte) = tokio::join!(read_requests(&client, &mut near), slowly);
        assert!(matches!(ended, Err(Ended::Stalled)), "{ended:?}");
        assert_eq!(last_byte.elapsed(), STALL_WITHIN / 2);
        drop(client);
        assert_eq!(hub.state.lock().server.unfinished_bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_no_byte_of_its_replies_is_closed() {
        let hub = hub();
        let client = hub.connect().unwrap();
        client.outbox.push(Reply::Value(vec![0; 1 << 20].into()));
        let (near, _far) = duplex(64);
        let began = Instant::now();
        serve_client(client, Near(near), PEER).await;
        assert_eq!(began.elapsed(), STALL_WITHIN);
        assert_eq!(hub.clients.value(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_delays_the_shutdown_by_seconds_only() {
        let hub = hub();
        let client = hub.connect().unwrap();
        client.outbox.push(Reply::Value(vec![0; 1 << 20].into()));
        let (near, _far) = duplex(64);
        hub.stopping.set(true);
        let began = Instant::now();
        serve_client(client, Near(near), PEER).await;
        assert_eq!(began.elapsed(), DRAIN_WITHIN);
        assert_eq!(hub.clients.value(), 0);
    }
}

//! A link between a sender and a receiver that does what links do: stalls, trickles, breaks.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvpipe::entropy::Entropy;
use kvpipe::store::{MemoryStore, Store};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the connector, which sends items.
    Forth,
    /// From the listener, which replies.
    Back,
}

/// How bytes get through in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Pass,
    /// Not at all, on connections that stay open.
    Stall,
    /// One to seven at a time.
    Trickle,
    Slow {
        bytes_per_second: u64,
    },
}

/// How connections end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Both ends are told of a reset, and what was on its way is lost.
    Reset,
    /// Both ends read the end of the stream.
    Close,
}

/// A proxy before a listener.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    target: SocketAddr,
    flows: watch::Sender<[Flow; 2]>,
    /// How all connections of now are to end, and how often that was said.
    ends: watch::Sender<(u64, End)>,
    turns_away: AtomicBool,
    connections: AtomicU64,
    turned_away: AtomicU64,
    forwarded: [AtomicU64; 2],
    /// The bytes after which a connection breaks, if it does.
    lifetime_bytes: Mutex<Option<u64>>,
    /// The byte from the sender in which a bit is to be turned.
    flipped_byte: AtomicU64,
}

impl Proxy {
    /// A proxy before `target`, which has published its address as rank 1 of the unnamed group.
    pub(crate) async fn before(target: SocketAddr, store: &MemoryStore) -> Self {
        let proxy = Self::to(target).await;
        let address = proxy.address.to_string();
        store.set("kvpipe//1/address", address.into(), Duration::from_secs(60)).await.unwrap();
        proxy
    }

    /// A proxy before `target`.
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            target,
            flows: watch::Sender::new([Flow::Pass; 2]),
            ends: watch::Sender::new((0, End::Close)),
            turns_away: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
            forwarded: Default::default(),
            lifetime_bytes: Mutex::default(),
            flipped_byte: AtomicU64::new(u64::MAX),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, accepting }
    }

    /// Where the proxy listens.
    #[allow(dead_code, reason = "for those that share this file")]
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on, on every connection.
    pub(crate) fn flows(&self, way: Way, flow: Flow) {
        self.shared.flows.send_modify(|flows| flows[way as usize] = flow);
    }

    /// As [`flows`](Self::flows), for both directions.
    pub(crate) fn flows_both_ways(&self, flow: Flow) {
        self.shared.flows.send_replace([flow; 2]);
    }

    /// Ends all connections that there are now.
    pub(crate) fn end(&self, end: End) {
        self.shared.ends.send_modify(|(times, how)| (*times, *how) = (*times + 1, end));
    }

    /// Whether new connections are reset as soon as they come.
    pub(crate) fn turns_away(&self, turns_away: bool) {
        self.shared.turns_away.store(turns_away, Ordering::Relaxed);
    }

    /// How many connections were turned away.
    pub(crate) fn turned_away(&self) -> u64 {
        self.shared.turned_away.load(Ordering::Relaxed)
    }

    /// New connections are refused by the host from now on.
    pub(crate) async fn stop_listening(&mut self) {
        self.accepting.abort();
        let _ = (&mut self.accepting).await;
    }

    /// Each new connection is closed once `bytes` came from the sender, the one after it after half
    /// as many again, and so on.
    pub(crate) fn breaks_connections_after(&self, bytes: u64) {
        *self.shared.lifetime_bytes.lock().unwrap() = Some(bytes);
    }

    /// Turns a bit in the byte `offset` that comes from the sender.
    pub(crate) fn turns_a_bit_in(&self, offset: u64) {
        self.shared.flipped_byte.store(offset, Ordering::Relaxed);
    }

    /// How many connections were let through.
    pub(crate) fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// How many bytes passed.
    pub(crate) fn forwarded(&self, way: Way) -> u64 {
        self.shared.forwarded[way as usize].load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.end(End::Reset);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let (near, _) = listener.accept().await.unwrap();
        if shared.turns_away.load(Ordering::Relaxed) {
            lose(&near);
            shared.turned_away.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        // From here on, so that an end that is told while we connect is not missed.
        let ends = shared.ends.subscribe();
        tokio::spawn(connect(near, ends, Arc::clone(&shared)));
    }
}

async fn connect(near: TcpStream, mut ends: watch::Receiver<(u64, End)>, shared: Arc<Shared>) {
    let Ok(far) = TcpStream::connect(shared.target).await else {
        return lose(&near);
    };
    shared.connections.fetch_add(1, Ordering::Relaxed);
    let mut lifetime_bytes = u64::MAX;
    if let Some(bytes) = &mut *shared.lifetime_bytes.lock().unwrap() {
        lifetime_bytes = *bytes;
        *bytes += *bytes / 2;
    }
    let (mut near, mut far) = (near, far);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    let end = {
        let (near_reader, near_writer) = near.split();
        let (far_reader, far_writer) = far.split();
        let forth = Lane { way: Way::Forth, left_bytes: lifetime_bytes, shared: &shared };
        let back = Lane { way: Way::Back, left_bytes: u64::MAX, shared: &shared };
        let both =
            async { tokio::try_join!(forth.run(near_reader, far_writer), back.run(far_reader, near_writer)) };
        tokio::select! {
            biased;
            _ = ends.changed() => ends.borrow().1,
            ended = both => match ended {
                Ok(_) => End::Close,
                Err(end) => end,
            },
        }
    };
    if end == End::Reset {
        lose(&near);
        lose(&far);
    }
}

/// Dropping it resets the connection.
fn lose(stream: &TcpStream) {
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// One direction of a connection.
struct Lane<'a> {
    way: Way,
    left_bytes: u64,
    shared: &'a Shared,
}

impl Lane<'_> {
    /// Until the sending end closes its direction, which is passed on, or the connection is to end.
    async fn run(mut self, mut reader: ReadHalf<'_>, mut writer: WriteHalf<'_>) -> Result<(), End> {
        let mut flows = self.shared.flows.subscribe();
        let pieces = Entropy::seeded(self.shared.connections.load(Ordering::Relaxed));
        let mut buffer = vec![0; 64 << 10];
        loop {
            let flow = flows.borrow_and_update()[self.way as usize];
            let limit = match flow {
                Flow::Pass | Flow::Slow { .. } => buffer.len(),
                Flow::Trickle => 1 + pieces.next_u64().unwrap() as usize % 7,
                Flow::Stall => 0,
            };
            let limit = limit.min(usize::try_from(self.left_bytes).unwrap_or(usize::MAX));
            let read = tokio::select! {
                biased;
                _ = flows.changed() => continue,
                read = reader.read(&mut buffer[..limit]), if flow != Flow::Stall => lost(read)?,
            };
            if read == 0 {
                return lost(writer.shutdown().await);
            }
            self.pass(&mut buffer[..read], &mut writer).await?;
            if let Flow::Slow { bytes_per_second } = flow {
                tokio::time::sleep(Duration::from_secs_f64(read as f64 / bytes_per_second as f64)).await;
            }
        }
    }

    async fn pass(&mut self, bytes: &mut [u8], writer: &mut WriteHalf<'_>) -> Result<(), End> {
        let forwarded = &self.shared.forwarded[self.way as usize];
        let flipped_byte = self.shared.flipped_byte.load(Ordering::Relaxed);
        if self.way == Way::Forth
            && let Some(at) = flipped_byte.checked_sub(forwarded.load(Ordering::Relaxed))
            && let Some(byte) = usize::try_from(at).ok().and_then(|at| bytes.get_mut(at))
        {
            *byte ^= 1;
        }
        lost(writer.write_all(bytes).await)?;
        forwarded.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.left_bytes -= bytes.len() as u64;
        match self.left_bytes {
            0 => Err(End::Close),
            _ => Ok(()),
        }
    }
}

/// A connection that broke at one side of us breaks at the other.
fn lost<T>(moved: io::Result<T>) -> Result<T, End> {
    moved.map_err(|_| End::Reset)
}

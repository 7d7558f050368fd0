//! The transports that run the suite.

use std::any::Any;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kvpipe::group::{GroupConfig, StatelessProcessGroup, WireMode};
use kvpipe::net::TokioNet;
use kvpipe::store::tcp::{ConnectOptions, TcpStore, TcpStoreServer};
use kvpipe::store::{Limits, MemoryStore};
use kvpipe::tensor::BufferPool;
use kvpipe::transport::Ring;
use kvpipe::transport::memory::{self, MemoryTransport, Script};
use kvpipe::transport::store::{StoreConfig, StoreIncoming, StoreOutgoing, StoreTransport, VllmTransport};
use kvpipe::transport::tcp::{Secret, TcpConfig, TcpIncoming, TcpOutgoing, TcpTransport};
use kvpipe_sim::conformance::{Backend, HEARTBEAT, InOf, OutOf};

use crate::proxy::Proxy;
use crate::watched::Watched;

/// How long a broken connection may take to come back.
const RECONNECT: Duration = Duration::from_millis(500);

/// Two ends in one process.
pub(crate) struct Memory;

impl Backend for Memory {
    type Transport = MemoryTransport;

    async fn pair(&self) -> (MemoryTransport, MemoryTransport) {
        memory::pair()
    }

    async fn edge(&self) -> (OutOf<Self>, InOf<Self>) {
        memory::edge(Script::new())
    }

    fn impatient(self) -> Option<Self> {
        None
    }
}

/// Two ends on a loopback address, which meet through an in-process store.
pub(crate) struct Tcp {
    host: IpAddr,
    config: TcpConfig,
}

impl Tcp {
    pub(crate) fn v4() -> Self {
        Self::on(Ipv4Addr::LOCALHOST.into())
    }

    pub(crate) fn v6() -> Self {
        Self::on(Ipv6Addr::LOCALHOST.into())
    }

    pub(crate) fn with_a_secret() -> Self {
        let mut tcp = Self::v4();
        tcp.config.secret = Some(Secret::new(b"between the two of us".to_vec()).unwrap());
        tcp
    }

    pub(crate) fn with_a_checksum() -> Self {
        let mut tcp = Self::v4();
        tcp.config.checksum = true;
        tcp
    }

    fn on(host: IpAddr) -> Self {
        // Each test of a peer's death waits for it.
        let config = TcpConfig { reconnect_timeout: RECONNECT, ..TcpConfig::default() };
        Self { host, config }
    }

    async fn incoming(&self, store: &MemoryStore) -> TcpIncoming<TokioNet> {
        let (ring, address, config) = self.end(1);
        TcpIncoming::bind(TokioNet, store, ring, address, config).await.unwrap()
    }

    fn outgoing(&self, store: MemoryStore) -> TcpOutgoing<TokioNet, MemoryStore> {
        let (ring, _, config) = self.end(0);
        TcpOutgoing::new(TokioNet, store, ring, config)
    }

    fn end(&self, rank: usize) -> (Ring, SocketAddr, TcpConfig) {
        (Ring::new(rank, 2).unwrap(), SocketAddr::new(self.host, 0), self.config.clone())
    }
}

impl Backend for Tcp {
    type Transport = TcpTransport<TokioNet, MemoryStore>;

    async fn pair(&self) -> (Self::Transport, Self::Transport) {
        let store = MemoryStore::new();
        let bind = async |rank| {
            let (ring, address, config) = self.end(rank);
            TcpTransport::bind(TokioNet, store.clone(), ring, address, config).await.unwrap()
        };
        (bind(0).await, bind(1).await)
    }

    async fn edge(&self) -> (OutOf<Self>, InOf<Self>) {
        let store = MemoryStore::new();
        let incoming = self.incoming(&store).await;
        (self.outgoing(store), incoming)
    }

    async fn breaking_edge(&self) -> Option<(OutOf<Self>, InOf<Self>, Box<dyn Any>)> {
        let store = MemoryStore::new();
        let incoming = self.incoming(&store).await;
        let proxy = Proxy::before(incoming.local_addr(), &store).await;
        proxy.breaks_connections_after(400);
        Some((self.outgoing(store), incoming, Box::new(proxy)))
    }

    fn impatient(mut self) -> Option<Self> {
        self.config.heartbeat = HEARTBEAT;
        Some(self)
    }
}

/// Two ends that share nothing but a store in their process.
pub(crate) struct OverStore {
    config: StoreConfig,
}

/// Each test of a peer's death waits for it, and none is about an outage of the store.
fn store_config() -> StoreConfig {
    StoreConfig { heartbeat: HEARTBEAT, reconnect_timeout: RECONNECT, ..StoreConfig::default() }
}

impl OverStore {
    pub(crate) fn new() -> Self {
        Self { config: store_config() }
    }
}

impl Backend for OverStore {
    type Transport = StoreTransport<Watched>;

    async fn pair(&self) -> (Self::Transport, Self::Transport) {
        let store = Watched::default();
        let end = |rank| StoreTransport::new(store.clone(), Ring::new(rank, 2).unwrap(), self.config.clone());
        (end(0), end(1))
    }

    async fn edge(&self) -> (OutOf<Self>, InOf<Self>) {
        let store = Watched::default();
        edge_over(store.clone(), store, &self.config)
    }

    async fn breaking_edge(&self) -> Option<(OutOf<Self>, InOf<Self>, Box<dyn Any>)> {
        let store = Watched::default();
        // Every fifth operation, before or after it has taken effect.
        store.fails(5, 1);
        let (outgoing, incoming) = edge_over(store.clone(), store, &self.config);
        Some((outgoing, incoming, Box::new(())))
    }

    fn impatient(self) -> Option<Self> {
        Some(self)
    }
}

fn edge_over<S: kvpipe::store::Store + Clone>(
    store: S,
    receivers: S,
    config: &StoreConfig,
) -> (StoreOutgoing<S>, StoreIncoming<S>) {
    let ring = |rank| Ring::new(rank, 2).unwrap();
    (
        StoreOutgoing::new(store, ring(0), config.clone()),
        StoreIncoming::new(receivers, ring(1), config.clone()),
    )
}

/// Two ends that share a server of TCPStore's protocol, each with connections of its own. The server
/// lives as long as the backend.
pub(crate) struct OverTcpStore {
    config: StoreConfig,
    servers: std::sync::Mutex<Vec<TcpStoreServer>>,
}

impl OverTcpStore {
    pub(crate) fn new() -> Self {
        Self { config: store_config(), servers: std::sync::Mutex::default() }
    }

    async fn serve(&self) -> SocketAddr {
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        let server = TcpStoreServer::bind(&TokioNet, address, Limits::default()).await.unwrap();
        let address = server.local_addr();
        self.servers.lock().unwrap().push(server);
        address
    }
}

async fn connect(address: SocketAddr) -> TcpStore<TokioNet> {
    let (host, port) = (address.ip().to_string(), address.port());
    TcpStore::connect(TokioNet, &host, port, ConnectOptions::default()).await.unwrap()
}

impl Backend for OverTcpStore {
    type Transport = StoreTransport<TcpStore<TokioNet>>;

    async fn pair(&self) -> (Self::Transport, Self::Transport) {
        let address = self.serve().await;
        let end = async |rank| {
            let ring = Ring::new(rank, 2).unwrap();
            StoreTransport::new(connect(address).await, ring, self.config.clone())
        };
        (end(0).await, end(1).await)
    }

    async fn edge(&self) -> (OutOf<Self>, InOf<Self>) {
        let address = self.serve().await;
        edge_over(connect(address).await, connect(address).await, &self.config)
    }

    async fn breaking_edge(&self) -> Option<(OutOf<Self>, InOf<Self>, Box<dyn Any>)> {
        let proxy = Proxy::to(self.serve().await).await;
        let address = proxy.address();
        let (outgoing, incoming) = edge_over(connect(address).await, connect(address).await, &self.config);
        proxy.breaks_connections_after(400);
        Some((outgoing, incoming, Box::new(proxy)))
    }

    fn impatient(self) -> Option<Self> {
        Some(self)
    }
}

/// Two ends that talk as vLLM does, through a store in their process.
pub(crate) struct OverVllm;

impl Backend for OverVllm {
    type Transport = VllmTransport<MemoryStore>;

    async fn pair(&self) -> (Self::Transport, Self::Transport) {
        let store = MemoryStore::new();
        let end = async |rank| {
            let config = GroupConfig { wire: WireMode::Vllm, ..GroupConfig::default() };
            let group = StatelessProcessGroup::new(store.clone(), rank, 2, config).unwrap();
            VllmTransport::meet(Arc::new(group), BufferPool::new(64 << 20)).await.unwrap()
        };
        tokio::join!(end(0), end(1))
    }

    fn impatient(self) -> Option<Self> {
        None
    }
}

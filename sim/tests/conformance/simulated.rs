//! The transports that need a network, on a simulated one.

use std::any::Any;

use kvpipe::store::MemoryStore;
use kvpipe::store::tcp::TcpStore;
use kvpipe::transport::Ring;
use kvpipe::transport::store::{StoreConfig, StoreIncoming, StoreOutgoing, StoreTransport};
use kvpipe::transport::tcp::{TcpConfig, TcpIncoming, TcpOutgoing, TcpTransport};
use kvpipe_sim::conformance::{Backend, Ground, HEARTBEAT, InOf, OutOf};
use kvpipe_sim::net::SimNet;

fn ring(rank: usize) -> Ring {
    Ring::new(rank, 2).unwrap()
}

/// Two ends that meet through a store in their process.
pub(crate) struct Tcp {
    ground: Ground,
    config: TcpConfig,
    /// Connections are cut in every scenario.
    is_cut: bool,
}

impl Tcp {
    pub(crate) fn new(ground: Ground) -> Self {
        Self { ground, config: TcpConfig::default(), is_cut: false }
    }

    pub(crate) fn that_is_cut(ground: Ground) -> Self {
        Self { is_cut: true, ..Self::new(ground) }
    }

    fn config(&self, rank: usize) -> TcpConfig {
        TcpConfig { entropy: self.ground.entropy(rank), ..self.config.clone() }
    }

    async fn bind(&self, rank: usize, store: &MemoryStore) -> <Self as Backend>::Transport {
        let net = self.ground.net(rank);
        let address = (net.ip(), 0).into();
        TcpTransport::bind(net, store.clone(), ring(rank), address, self.config(rank)).await.unwrap()
    }
}

impl Backend for Tcp {
    type Transport = TcpTransport<SimNet, MemoryStore>;

    async fn pair(&self) -> (Self::Transport, Self::Transport) {
        let store = MemoryStore::new();
        if self.is_cut {
            self.ground.cuts_between_ranks();
        }
        (self.bind(0, &store).await, self.bind(1, &store).await)
    }

    async fn edge(&self) -> (OutOf<Self>, InOf<Self>) {
        let (store, net) = (MemoryStore::new(), self.ground.net(1));
        let address = (net.ip(), 0).into();
        let incoming = TcpIncoming::bind(net, &store, ring(1), address, self.config(1)).await.unwrap();
        if self.is_cut {
            self.ground.cuts_between_ranks();
        }
        (TcpOutgoing::new(self.ground.net(0), store, ring(0), self.config(0)), incoming)
    }

    async fn breaking_edge(&self) -> Option<(OutOf<Self>, InOf<Self>, Box<dyn Any>)> {
        let (outgoing, incoming) = self.edge().await;
        self.ground.cuts_between_ranks();
        Some((outgoing, incoming, Box::new(())))
    }

    fn impatient(mut self) -> Option<Self> {
        self.config.heartbeat = HEARTBEAT;
        Some(self)
    }
}

/// Two ends that share a server of TCPStore's protocol on another host.
pub(crate) struct OverStore {
    ground: Ground,
    config: StoreConfig,
    /// Connections to the store are cut in every scenario.
    is_cut: bool,
}

impl OverStore {
    pub(crate) fn new(ground: Ground) -> Self {
        Self { ground, config: StoreConfig::default(), is_cut: false }
    }

    pub(crate) fn that_is_cut(ground: Ground) -> Self {
        Self { is_cut: true, ..Self::new(ground) }
    }

    fn config(&self, rank: usize) -> StoreConfig {
        StoreConfig { entropy: self.ground.entropy(rank), ..self.config.clone() }
    }

    /// The connections of both ranks.
    async fn stores(&self) -> [TcpStore<SimNet>; 2] {
        let stores = [self.ground.store(0).await, self.ground.store(1).await];
        if self.is_cut {
            self.ground.cuts_to_the_store();
        }
        stores
    }
}

impl Backend for OverStore {
    type Transport = StoreTransport<TcpStore<SimNet>>;

    async fn pair(&self) -> (Self::Transport, Self::Transport) {
        let [left, right] = self.stores().await;
        let end = |store, rank| StoreTransport::new(store, ring(rank), self.config(rank));
        (end(left, 0), end(right, 1))
    }

    async fn edge(&self) -> (OutOf<Self>, InOf<Self>) {
        let [left, right] = self.stores().await;
        let outgoing = StoreOutgoing::new(left, ring(0), self.config(0));
        (outgoing, StoreIncoming::new(right, ring(1), self.config(1)))
    }

    async fn breaking_edge(&self) -> Option<(OutOf<Self>, InOf<Self>, Box<dyn Any>)> {
        let (outgoing, incoming) = self.edge().await;
        self.ground.cuts_to_the_store();
        Some((outgoing, incoming, Box::new(())))
    }

    fn impatient(mut self) -> Option<Self> {
        self.config.heartbeat = HEARTBEAT;
        self.config.reconnect_timeout = HEARTBEAT / 2;
        Some(self)
    }
}

//! The nccl transport, on fakes of a GPU and of NCCL: linked into this process, or loaded.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use kvpipe::device::{CudaDevice, Device};
use kvpipe::group::{GroupConfig, StatelessProcessGroup, WireMode};
use kvpipe::nccl::Library;
use kvpipe::net::TokioNet;
use kvpipe::store::MemoryStore;
use kvpipe::transport::Ring;
use kvpipe::transport::nccl::{
    HandOut, NcclConfig, NcclIncoming, NcclOutgoing, NcclTransport, VllmNcclTransport,
};
use kvpipe_sim::conformance::{Backend, HEARTBEAT, InOf, OutOf};
use kvpipe_sim::device::HostDevice;

fn linked() -> NcclConfig {
    let library = Library::from_functions("the fake", kvpipe_sim::nccl::functions()).unwrap();
    config(HostDevice::open(0).unwrap(), library)
}

fn config(device: Arc<dyn Device>, library: Arc<Library>) -> NcclConfig {
    // The suite looks into what it receives.
    NcclConfig { hand_out: HandOut::OnHost, ..NcclConfig::new(device, library) }
}

fn ring(rank: usize) -> Ring {
    Ring::new(rank, 2).unwrap()
}

const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Two ends with a control connection on loopback.
pub(crate) struct OverNccl {
    config: NcclConfig,
}

impl OverNccl {
    pub(crate) fn new() -> Self {
        Self { config: linked() }
    }

    /// Where the environment says that they are.
    pub(crate) fn loaded() -> Self {
        Self { config: config(CudaDevice::open(0).unwrap(), Library::load(None).unwrap()) }
    }
}

impl Backend for OverNccl {
    type Transport = NcclTransport<TokioNet, MemoryStore>;

    async fn pair(&self) -> (Self::Transport, Self::Transport) {
        let store = MemoryStore::new();
        let bind = async |rank| {
            let config = self.config.clone();
            NcclTransport::bind(TokioNet, store.clone(), ring(rank), ADDRESS, config).await.unwrap()
        };
        (bind(0).await, bind(1).await)
    }

    async fn edge(&self) -> (OutOf<Self>, InOf<Self>) {
        let (store, config) = (MemoryStore::new(), self.config.clone());
        let incoming = NcclIncoming::bind(TokioNet, &store, ring(1), ADDRESS, config.clone()).await.unwrap();
        (NcclOutgoing::new(TokioNet, store, ring(0), config).unwrap(), incoming)
    }

    fn impatient(mut self) -> Option<Self> {
        self.config.control.heartbeat = HEARTBEAT;
        Some(self)
    }
}

/// Two ends that talk as vLLM does on GPUs, through a store in their process.
pub(crate) struct OverVllmNccl;

impl Backend for OverVllmNccl {
    type Transport = VllmNcclTransport<MemoryStore>;

    async fn pair(&self) -> (Self::Transport, Self::Transport) {
        let store = MemoryStore::new();
        let end = async |rank| {
            let of_group = GroupConfig { wire: WireMode::Vllm, ..GroupConfig::default() };
            let group = StatelessProcessGroup::new(store.clone(), rank, 2, of_group).unwrap();
            VllmNcclTransport::meet(Arc::new(group), linked()).await.unwrap()
        };
        tokio::join!(end(0), end(1))
    }

    fn impatient(self) -> Option<Self> {
        None
    }
}

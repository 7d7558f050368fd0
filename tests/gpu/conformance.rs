//! The conformance suite on two real GPUs: one would not do, since NCCL refuses two ranks of a process on
//! the same device.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use kvpipe::device::{CudaDevice, Device};
use kvpipe::nccl::Library;
use kvpipe::net::TokioNet;
use kvpipe::store::MemoryStore;
use kvpipe::transport::Ring;
use kvpipe::transport::nccl::{HandOut, NcclConfig, NcclIncoming, NcclOutgoing, NcclTransport};
use kvpipe_sim::conformance::{Backend, HEARTBEAT, InOf, OutOf, scenarios};

const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A rank on each of two devices.
#[derive(Clone)]
struct OverTwoDevices([NcclConfig; 2]);

impl OverTwoDevices {
    /// None, and why, where there are no two.
    fn open() -> Option<Self> {
        crate::gpu()?;
        let second = match CudaDevice::open(1) {
            Ok(device) => device,
            Err(error) => {
                println!("skipped: the conformance suite needs two GPUs: {error}");
                return None;
            }
        };
        let library = Library::load(None).unwrap();
        let config = |device: Arc<dyn Device>| NcclConfig {
            // The suite looks into what it receives.
            hand_out: HandOut::OnHost,
            ..NcclConfig::new(device, Arc::clone(&library))
        };
        Some(Self([config(CudaDevice::open(0).unwrap()), config(second)]))
    }
}

fn ring(rank: usize) -> Ring {
    Ring::new(rank, 2).unwrap()
}

impl Backend for OverTwoDevices {
    type Transport = NcclTransport<TokioNet, MemoryStore>;

    async fn pair(&self) -> (Self::Transport, Self::Transport) {
        let store = MemoryStore::new();
        let bind = async |rank: usize| {
            let config = self.0[rank].clone();
            NcclTransport::bind(TokioNet, store.clone(), ring(rank), ADDRESS, config).await.unwrap()
        };
        (bind(0).await, bind(1).await)
    }

    async fn edge(&self) -> (OutOf<Self>, InOf<Self>) {
        let (store, [sending, receiving]) = (MemoryStore::new(), self.0.clone());
        let incoming = NcclIncoming::bind(TokioNet, &store, ring(1), ADDRESS, receiving).await.unwrap();
        (NcclOutgoing::new(TokioNet, store, ring(0), sending).unwrap(), incoming)
    }

    fn impatient(mut self) -> Option<Self> {
        self.0.iter_mut().for_each(|config| config.control.heartbeat = HEARTBEAT);
        Some(self)
    }
}

#[test]
fn the_conformance_suite_passes_between_two_devices() {
    let Some(devices) = OverTwoDevices::open() else { return };
    for scenario in scenarios() {
        println!("{}::{}", scenario.group(), scenario.name());
        scenario.run(devices.clone());
    }
}

#[test]
fn it_passes_between_two_devices_of_the_fake() {
    crate::nccl::run_on_fakes("conformance::", "devices=2");
}

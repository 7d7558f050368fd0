//! How a process group is set up.

use std::fmt;
use std::net::SocketAddr;
#[cfg(unix)]
use std::sync::Arc;
use std::time::Duration;

use crate::device::Location;
#[cfg(unix)]
use crate::device::{CudaDevice, Device};
use crate::entropy::Entropy;
use crate::error::Error;
#[cfg(unix)]
use crate::nccl::Library;
use crate::net::SocketOptions;
use crate::tensor::BufferPool;
use crate::transport::tcp::{Secret, TcpConfig};
use crate::wire::text::GroupName;

/// What carries a group's tensors.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Backend {
    /// Host tensors, over TCP.
    #[default]
    Host,
    /// Device tensors, over NCCL. Each rank has a device of its own.
    #[cfg(unix)]
    Nccl {
        /// Where this rank's tensors are.
        device: Arc<dyn Device>,
        /// Of the same version at every rank. A world of one needs none.
        library: Option<Arc<Library>>,
    },
}

impl Backend {
    /// The backend that torch knows by that name, for tensors at `device`. `host`, or `gloo`, works on host
    /// tensors, wherever else the caller has some; `nccl` opens the device and
    /// [looks](crate::nccl::Library::load) for NCCL.
    ///
    /// # Errors
    /// [`Error::Misuse`] for another name, and for NCCL without a GPU; [`Error::Unavailable`] for what this
    /// machine does not have.
    pub fn named(name: &str, device: Location) -> Result<Self, Error> {
        match (name, device) {
            ("host" | "gloo", _) => Ok(Self::Host),
            #[cfg(unix)]
            ("nccl", Location::Cuda(index)) => {
                Ok(Self::Nccl { device: CudaDevice::open(index)?, library: Some(Library::load(None)?) })
            }
            ("nccl", _) => {
                Err(Error::Misuse(format!("nccl moves no tensors on {device}: give it a GPU, or take host")))
            }
            _ => Err(Error::Misuse(format!("there is no backend {name:?}, only host (or gloo) and nccl"))),
        }
    }
}

/// Its name.
impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            #[cfg(unix)]
            Self::Nccl { .. } => "nccl",
        })
    }
}

/// How ranks of a process group meet and talk. Name, checksum and secret must be equal at all of them.
#[derive(Clone, Debug)]
pub struct ProcessGroupConfig {
    /// Keeps groups in one store apart. A group of the same name may be formed again by the same ranks.
    pub name: GroupName,
    /// What carries the tensors. Those of other ranks must be the same.
    pub backend: Backend,
    /// The limit of each operation, and of forming the group; 300 s, vLLM's. After that the group is broken.
    pub timeout: Duration,
    /// The silence after which a rank counts as dead; see
    /// [`TcpConfig::heartbeat`](crate::transport::tcp::TcpConfig).
    pub heartbeat: Duration,
    /// Where this rank listens: an address that the others reach, and a port or 0 for any. None means any
    /// port of the address from which the store is reached, where the group knows it
    /// ([`stateless_init`](super::ProcessGroup::stateless_init)), else of 127.0.0.1.
    pub address: Option<SocketAddr>,
    /// Whether every message carries a CRC32C.
    pub checksum: bool,
    /// What all ranks must know, if anything. It authenticates, and does not encrypt.
    pub secret: Option<Secret>,
    /// Options of every socket.
    pub socket: SocketOptions,
    /// Where session ids, nonces and back-off jitter come from.
    pub entropy: Entropy,
    /// Where results on the host are put for which the caller gives no memory, and what is in between.
    pub pool: BufferPool,
}

impl Default for ProcessGroupConfig {
    fn default() -> Self {
        Self {
            name: GroupName::default(),
            backend: Backend::Host,
            timeout: Duration::from_secs(300),
            heartbeat: Duration::from_secs(5),
            address: None,
            checksum: false,
            secret: None,
            socket: SocketOptions::default(),
            entropy: Entropy::system(),
            pool: BufferPool::new(POOL_IDLE_BYTES_MAX),
        }
    }
}

impl ProcessGroupConfig {
    /// What its connections have in common with a pipe's.
    pub(super) fn tcp(&self) -> TcpConfig {
        TcpConfig {
            group: self.name.clone(),
            connect_timeout: self.timeout,
            heartbeat: self.heartbeat,
            reconnect_timeout: Duration::ZERO,
            checksum: self.checksum,
            secret: self.secret.clone(),
            socket: self.socket.clone(),
            entropy: self.entropy.clone(),
            pool: self.pool.clone(),
        }
    }
}

/// Enough for a few results that the caller hands back while others are made.
pub(super) const POOL_IDLE_BYTES_MAX: usize = 256 << 20;

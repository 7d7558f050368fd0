//! How a process group is set up.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use crate::entropy::Entropy;
use crate::error::Error;
use crate::net::SocketOptions;
use crate::tensor::BufferPool;
use crate::transport::tcp::{Secret, TcpConfig};
use crate::wire::text::GroupName;

/// What carries a group's tensors. `host` is also called `gloo`, as in vLLM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backend {
    /// Host tensors, over TCP.
    #[default]
    Host,
    /// Device tensors, over NCCL.
    Nccl,
}

impl FromStr for Backend {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "host" | "gloo" => Ok(Self::Host),
            "nccl" => Ok(Self::Nccl),
            _ => Err(Error::Misuse(format!("there is no backend {name:?}, only host (or gloo) and nccl"))),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Nccl => "nccl",
        })
    }
}

/// How ranks of a process group meet and talk. Name, checksum and secret must be equal at all of them.
#[derive(Clone, Debug)]
pub struct ProcessGroupConfig {
    /// Keeps groups in one store apart. A group of the same name may be formed again by the same ranks.
    pub name: GroupName,
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
    /// Where results are put for which the caller gives no memory, and what is in between.
    pub pool: BufferPool,
}

impl Default for ProcessGroupConfig {
    fn default() -> Self {
        Self {
            name: GroupName::default(),
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
const POOL_IDLE_BYTES_MAX: usize = 256 << 20;

//! What the two processes have in common.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use kvpipe::config::BufferDevice;
use kvpipe::net::TokioNet;
use kvpipe::store::tcp::{ConnectOptions, TcpStore};
use kvpipe::tensor::BufferPool;
use kvpipe::transport::Ring;
use kvpipe::transport::nccl::{HandOut, NcclTransport};
use kvpipe::transport::tcp::{GroupName, TcpConfig, TcpTransport};
use kvpipe::{Pipe, PipeConfig};
use serde::{Deserialize, Serialize};

use super::control::PipeSettings;
use super::measurement::Measurement;
use super::{receiver, sender};
use crate::args::{BenchPeerArgs, BenchRole, BenchTransport};
use crate::children;
use crate::failure::Failure;
use crate::gpu::Gpu;
use crate::output::Output;

/// What a process tells its parent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Event {
    /// The receiver's store listens here.
    Store(SocketAddr),
    /// What the sender begins with.
    Measuring(String),
    /// What the sender has found out.
    Measured(Measurement),
    /// The most memory that this process ever had resident, and who it is; None where the system
    /// does not say.
    Peak { sends: bool, bytes: Option<u64> },
}

/// Where the receiver says at which address it awaits the sender.
pub(super) const CONTROL_KEY: &str = "bench/control";

/// How long the two wait for each other.
pub(super) const PEER_PATIENCE: Duration = Duration::from_secs(60);

/// One of the two processes.
pub(crate) async fn run_peer(args: BenchPeerArgs) -> Result<ExitCode, Failure> {
    children::end_with_parent()?;
    if args.transport == BenchTransport::Tcp {
        // NCCL and CUDA have threads of their own, which want processors, too.
        take_a_processor(args.role);
    }
    let output = Output::new(true);
    match args.role {
        BenchRole::Receive => receiver::run(&args, &output).await?,
        BenchRole::Send => sender::run(&args, &output).await?,
    }
    output.json(&Event::Peak { sends: args.role == BenchRole::Send, bytes: peak_resident_bytes() })?;
    Ok(ExitCode::SUCCESS)
}

/// Keeps this thread, and those that it starts, on another processor than the other process has, as
/// ranks on two machines would be. Otherwise the system sometimes puts both on one, where a round trip
/// costs a fourth, and sometimes not. Where there is only one, or the system says no, so be it.
#[cfg(target_os = "linux")]
fn take_a_processor(role: BenchRole) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    let Ok(allowed) = sched_getaffinity(None) else { return };
    let processors: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
    // Neighbours are often two threads of one core.
    let other = processors.get(2).or(processors.get(1));
    if let (Some(&first), Some(&other)) = (processors.first(), other) {
        let mut mine = CpuSet::new();
        mine.set(if role == BenchRole::Send { first } else { other });
        if let Err(error) = sched_setaffinity(None, &mine) {
            tracing::debug!(%error, "the system chooses our processor");
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn take_a_processor(_: BenchRole) {}

pub(super) async fn connect_store(address: SocketAddr) -> Result<TcpStore<TokioNet>, Failure> {
    let mut options = ConnectOptions::default();
    options.timeout = PEER_PATIENCE;
    Ok(TcpStore::connect(TokioNet, &address.ip().to_string(), address.port(), options).await?)
}

/// As much as a transport has by default.
pub(super) fn pool() -> BufferPool {
    TcpConfig::default().pool
}

/// The GPU of this process, if it is to have one.
pub(super) fn gpu(args: &BenchPeerArgs) -> Result<Option<Gpu>, Failure> {
    let open = |device: BufferDevice| Gpu::open(device.location(0), args.device.nccl.as_deref());
    args.device.device.map(open).transpose()
}

/// Our end of a pipe, in both directions.
pub(super) async fn open(
    rank: usize,
    store: &TcpStore<TokioNet>,
    settings: &PipeSettings,
    pool: BufferPool,
    gpu: Option<&Gpu>,
) -> Result<Pipe, Failure> {
    let config = TcpConfig {
        group: GroupName::new(&settings.group)?,
        checksum: settings.checksum,
        connect_timeout: PEER_PATIENCE,
        pool,
        ..TcpConfig::default()
    };
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let (store, ring) = (store.clone(), Ring::new(rank, 2)?);
    let limits = PipeConfig::default().with_buffer_bytes(settings.buffer_bytes);
    Ok(match gpu {
        None => Pipe::spawn(TcpTransport::bind(TokioNet, store, ring, address, config).await?, limits)?,
        Some(gpu) => {
            let config = gpu.config(config, HandOut::OnDevice);
            Pipe::spawn(NcclTransport::bind(TokioNet, store, ring, address, config).await?, limits)?
        }
    })
}

/// Runs what blocks beside the runtime's one thread.
pub(super) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::new(format!("bug in kvpipe: a thread ended by {error}")))
}

/// The high-water mark of our resident memory, where `/proc` tells it.
fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

//! What `bench` takes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{CollectivesArgs, DeviceArgs};
use crate::units::{ByteSize, Seconds};

/// Measure throughput and latency by item size, beside bare sockets in the same run
///
/// Two processes on this machine, connected by TCP loopback, each on a processor of its own and with
/// one thread for its pipe. Takes about a minute, and some 2 GiB of memory: the receiver keeps the last
/// 8 items of each kind. With --transport nccl each has a GPU, or they share one, and the limit is NCCL
/// without a pipe.
#[derive(Clone, Debug, Args)]
#[command(after_help = BENCH_EXAMPLES, args_conflicts_with_subcommands = true)]
#[command(subcommand_value_name = "WHAT", subcommand_help_heading = "Something else than pipes")]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) other: Option<OtherBench>,

    /// Bytes of an item, one size after the other
    #[arg(long, value_name = "BYTES,...", value_delimiter = ',', default_value = DEFAULT_SIZES)]
    pub(crate) sizes: Vec<ByteSize>,

    /// How the items travel; memory: between two threads of one process, nothing is copied
    /// [default: nccl on a GPU; otherwise tcp]
    #[arg(long, value_enum)]
    pub(crate) transport: Option<BenchTransport>,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,

    /// Bytes of tensors that each end holds at most; the bare socket has as many unacknowledged
    /// [default: 1GB]
    #[arg(long, value_name = "BYTES")]
    pub(crate) buffer_size: Option<ByteSize>,

    /// How often each figure is measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) rounds: u16,

    /// Seconds that a single measurement takes, about
    #[arg(long, value_name = "S", default_value = "0.2")]
    pub(crate) seconds: Seconds,

    /// Print JSON lines
    #[arg(long)]
    pub(crate) json: bool,

    /// Draw throughput by item size into this file; needs a build with the feature "plot"
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
}

/// What else can be measured.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum OtherBench {
    Collectives(CollectivesArgs),
}

const DEFAULT_SIZES: &str = "64KiB,1MiB,4MiB,16MiB,64MiB";

const BENCH_EXAMPLES: &str = "\
Examples:
  kvpipe bench
  kvpipe bench --sizes 65536,4194304 --json
  kvpipe bench --transport memory
  kvpipe bench --transport nccl
  kvpipe bench --plot bench.svg
  kvpipe bench collectives --help

What the numbers mean:
  SOCKET is the limit: the best of bare sockets that read an item at once, or
  at most 64 KiB, 256 KiB or 1 MiB of it at a time (SOCKET READS says which),
  into buffers that are used again, with an acknowledgement of a byte for each
  item, and with as many bytes on the way as the pipe may have. RATIO is the
  pipe's speed by that. Each clock runs from the first send until the receiver
  has said that it holds the last item. The ways take turns in every round, and
  the median of the rounds counts. P50 and P99 are of single items, one at a
  time: from the send until the receiver has said that it holds the item. CRC
  COSTS is the share of the speed that the pipe would lose with checksums.
  ITEMS is of each round. GB is 10^9 bytes, MiB 2^20. Peak memory is of two
  more processes, which fill their buffers (256 MiB at most) with each size and
  empty them again.

  --transport memory: a bounded channel of std in place of the sockets. Neither
  copies anything, so what counts is items, and P50 and P99 end when the
  receiver has the item.

  --transport nccl: ncclSend and ncclRecv in the place of the sockets, in groups
  of 1, 8 or 64 items (GROUPS OF says which was the best), up to 8 groups ahead.
  Items are on the GPUs from the beginning, and stay there.

With --json, a line for each size, and lines with a \"detail\" for all else:
  {\"transport\":\"tcp\",\"size\":4194304,\"items\":200,\"GBps\":3.1,\"limit_GBps\":3.3,\"ratio\":0.94,
   \"p50_us\":1290.0,\"p99_us\":2100.0}";

/// What the benchmark knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchTransport {
    /// Two processes, connected by TCP
    Tcp,
    /// Two processes whose items go from GPU to GPU by NCCL
    Nccl,
    /// Two threads of one process
    Memory,
}

/// One of the two processes of a benchmark, started by `bench`.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchPeerArgs {
    #[arg(long, value_enum)]
    pub(crate) role: BenchRole,

    #[arg(long, value_enum)]
    pub(crate) transport: BenchTransport,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,

    /// Where the receiver's store listens; the receiver itself chooses a port and prints it
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) store: Option<SocketAddr>,

    #[arg(long, value_delimiter = ',')]
    pub(crate) sizes: Vec<ByteSize>,

    #[arg(long)]
    pub(crate) buffer_size: ByteSize,

    #[arg(long)]
    pub(crate) rounds: u16,

    #[arg(long)]
    pub(crate) seconds: Seconds,

    /// Fill both ends, and measure nothing
    #[arg(long)]
    pub(crate) memory: bool,
}

impl BenchPeerArgs {
    /// How long one measurement may take before the other process counts as stuck.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(60).saturating_add(self.seconds.0.saturating_mul(100))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchRole {
    Send,
    Receive,
}

impl BenchRole {
    pub(crate) fn rank(self) -> usize {
        match self {
            Self::Send => 0,
            Self::Receive => 1,
        }
    }
}

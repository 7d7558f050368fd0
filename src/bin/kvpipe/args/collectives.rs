//! What `kvpipe bench collectives` takes.

use std::fmt;
use std::net::SocketAddr;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::{RANKS_MAX, name_of};
use crate::units::{ByteSize, Seconds};

/// Measure all_reduce and all_gather of f32, beside torch's gloo and bare sockets in the same run
///
/// Every rank is a process of this machine, connected by TCP loopback. Gloo is measured if
/// KVPIPE_TORCH_PYTHON names a Python that has torch. Takes some three minutes, and with 4 ranks and 64
/// MiB some 4 GiB of memory.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CollectivesArgs {
    /// Which operations, one after the other
    #[arg(
        long,
        value_enum,
        value_name = "NAME,...",
        value_delimiter = ',',
        default_value = "all_reduce,all_gather"
    )]
    pub(crate) operations: Vec<Operation>,

    /// How many ranks, one number after the other
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "2,4", value_parser = clap::value_parser!(u16).range(2..=RANKS_MAX))]
    pub(crate) ranks: Vec<u16>,

    /// Bytes that each rank puts in, one size after the other; multiples of 4
    #[arg(long, value_name = "BYTES,...", value_delimiter = ',', default_value = SIZES)]
    pub(crate) sizes: Vec<ByteSize>,

    /// How often each figure is measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) rounds: u16,

    /// Seconds that a single measurement takes, about
    #[arg(long, value_name = "S", default_value = "0.05")]
    pub(crate) seconds: Seconds,

    /// Print JSON lines
    #[arg(long)]
    pub(crate) json: bool,
}

const SIZES: &str = "1KiB,16KiB,64KiB,256KiB,1MiB,4MiB,16MiB,64MiB";

const EXAMPLES: &str = "\
Examples:
  kvpipe bench collectives
  kvpipe bench collectives --operations all_reduce --ranks 4 --sizes 4MiB --json
  KVPIPE_TORCH_PYTHON=venv/bin/python kvpipe bench collectives

What the numbers mean:
  SIZE is what each rank puts in. US is the time of one operation, in
  microseconds: all ranks begin together, behind a barrier, and repeat the
  operation without one; the slowest rank counts. Whoever is measured takes
  turns with the others in every round, and the median of the rounds counts.
  Numbers are sums of f32, in place, and all_gather's go into memory that is
  there already; the first of each are checked. GB/S is the size of the result
  by that time: SIZE for all_reduce, SIZE times RANKS for all_gather; GB is
  10^9 bytes.

  GLOO US is torch's gloo with one thread for arithmetic; for all_gather the
  faster of all_gather_into_tensor and all_gather. X GLOO is how many times
  faster kvpipe is.

  LIMIT US is what bare sockets take that only move the bytes: every rank sends
  to the next one, and receives from the previous one, what a ring has to move,
  2(N-1)/N of SIZE for all_reduce and N-1 times SIZE for all_gather. They block,
  wait for no other rank, and add nothing; the best of one thread, by turns, and
  of two. X LIMIT is the speed of kvpipe by that.

With --json, a line for each figure, and lines with a \"detail\" for all else:
  {\"operation\":\"all_reduce\",\"ranks\":4,\"size\":4194304,\"us\":5000.0,\"GBps\":0.84,
   \"gloo_us\":9000.0,\"gloo_ratio\":1.8,\"limit_us\":4500.0,\"limit_ratio\":0.9}";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum Operation {
    /// The sum of all, at every rank
    AllReduce,
    /// What all have, at every rank
    AllGather,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&name_of(self))
    }
}

/// One rank of a benchmark of collectives, started by it.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchRankArgs {
    /// Where rank 0's store listens; rank 0 itself serves it there and prints the address
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) store: SocketAddr,

    #[arg(long)]
    pub(crate) rank: usize,

    #[arg(long)]
    pub(crate) ranks: usize,

    /// How long anything may take
    #[arg(long)]
    pub(crate) patience: Seconds,
}

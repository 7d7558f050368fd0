//! What the command line takes. The doc comments of fields are the help text.

mod bench;
mod collectives;
mod rank;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kvpipe::config::BufferDevice;
use kvpipe::store::Limits;

pub(crate) use self::bench::{BenchArgs, BenchPeerArgs, BenchRole, BenchTransport, OtherBench};
pub(crate) use self::collectives::{BenchRankArgs, CollectivesArgs, Operation};
pub(crate) use self::rank::{DeviceArgs, Path, PipeArgs, RankArgs, TransferArgs, Wire, WireTransport};
use crate::failure::Failure;
use crate::units::{ByteSize, HostPort, Seconds};

#[derive(Debug, Parser)]
#[command(name = "kvpipe", version, about = ABOUT, after_help = EXIT_CODES, max_term_width = 100)]
#[command(arg_required_else_help = true, subcommand_required = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Log what the library does to standard error
    #[arg(long, short, global = true, display_order = 900)]
    pub(crate) verbose: bool,
}

const ABOUT: &str = "Moves tensors from one rank to the next, in order, each once";

const EXIT_CODES: &str = "\
Exit codes:
  0  success
  1  failure: a peer, a file, the network; standard error says which
  2  arguments that can't be, such as a rank beyond the world size";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(DemoArgs),
    #[command(hide = true)]
    DemoRank(DemoRankArgs),
    Bench(BenchArgs),
    #[command(hide = true)]
    BenchPeer(BenchPeerArgs),
    #[command(hide = true)]
    BenchRank(BenchRankArgs),
    Doctor(DoctorArgs),
    Store(StoreArgs),
    Send(SendArgs),
    Recv(RecvArgs),
}

/// Move a KV cache between processes on this machine, check every byte, and say how fast it went
///
/// Every rank sends to the next one and checks what the previous one sent: for each request K and V
/// of each layer (bf16, [tokens, kv_heads, head_dim]), and a None after the request.
#[derive(Clone, Debug, Args)]
#[command(after_help = DEMO_EXAMPLES)]
pub(crate) struct DemoArgs {
    /// How many ranks to start, in a ring; 1 sends to itself [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=RANKS_MAX))]
    pub(crate) ranks: Option<u16>,

    /// How the ranks are connected; memory: all in one process, nothing is copied
    /// [default: nccl on a GPU; otherwise tcp, and store with --wire vllm]
    #[arg(long, value_enum)]
    pub(crate) transport: Option<DemoTransport>,

    /// In whose protocol
    #[arg(long, value_enum, default_value_t = Wire::Native)]
    pub(crate) wire: Wire,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,

    #[command(flatten)]
    pub(crate) workload: WorkloadArgs,

    #[command(flatten)]
    pub(crate) pipe: PipeArgs,

    /// Seconds that anything may take: the ranks to appear, a request to arrive [default: 60]
    #[arg(long, value_name = "S")]
    pub(crate) timeout: Option<Seconds>,

    #[command(flatten)]
    pub(crate) transfer: TransferArgs,

    /// Print the result as JSON, on one line
    #[arg(long)]
    pub(crate) json: bool,
}

/// The most ranks of a demo: they all are processes of one machine.
pub(crate) const RANKS_MAX: i64 = 64;

const DEMO_EXAMPLES: &str = "\
Examples:
  kvpipe demo
  kvpipe demo --ranks 3 --model llama-3-70b --tokens 512
  kvpipe demo --input cache.safetensors --json
  kvpipe demo --wire vllm
  kvpipe demo --transport nccl
  kvpipe demo --kv-transfer-config \\
    '{\"kv_parallel_size\":2,\"kv_buffer_device\":\"cpu\"}'

What the numbers mean:
  Requests are moved one after the other. All ranks start one at the same
  moment, and check it when it has arrived; the time for checking is not
  counted. SECONDS is the time from the start of each request until its None
  has arrived, added up. P50 and P99 are of the time that each item took: from
  the one before it, or from the start of the request, until it arrived. GB is
  10^9 bytes. OF SOCKET is the share of the speed of bare sockets in the same
  run: after each request all ranks move its first 32 MiB again at the same
  time, over bare sockets, once for each of four read sizes; the fastest
  counts, as in kvpipe bench. In memory nothing is copied, and NCCL takes no
  sockets, so there it has no meaning. By NCCL tensors are on the GPUs before
  the clocks start, and stay there until the clocks have stopped.";

/// What the demo moves.
#[derive(Clone, Debug, Args)]
pub(crate) struct WorkloadArgs {
    /// Whose KV cache to imitate
    #[arg(long, value_enum, default_value_t = ModelName::Llama3_8b, conflicts_with = "input")]
    pub(crate) model: ModelName,

    /// Tokens of a single request; several requests of different lengths if not given
    #[arg(long, value_name = "T", conflicts_with = "input", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub(crate) tokens: Option<u32>,

    /// Send the tensors of this safetensors file instead, and a None behind them
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) input: Option<PathBuf>,
}

/// Models whose KV caches the demo knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModelName {
    /// 32 layers, 8 KV heads of 128: 128 KiB a token
    #[value(name = "llama-3-8b")]
    Llama3_8b,
    /// 80 layers, 8 KV heads of 128: 320 KiB a token
    #[value(name = "llama-3-70b")]
    Llama3_70b,
    /// 2 layers, 2 KV heads of 8: 128 bytes a token
    Tiny,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DemoTransport {
    /// Processes, connected by TCP
    Tcp,
    /// Processes that have nothing in common but a store, which rank 0 serves
    Store,
    /// Processes whose tensors go from GPU to GPU by NCCL
    Nccl,
    /// One process with all ends
    Memory,
}

impl DemoArgs {
    /// How processes are connected; None where all ranks are in one.
    pub(crate) fn path(&self) -> Result<Option<Path>, Failure> {
        let device = self.device_asked_for();
        let transport = match self.transport {
            None => None,
            Some(DemoTransport::Tcp) => Some(WireTransport::Tcp),
            Some(DemoTransport::Store) => Some(WireTransport::Store),
            Some(DemoTransport::Nccl) => Some(WireTransport::Nccl),
            Some(DemoTransport::Memory) if self.wire == Wire::Vllm => {
                return Err(Failure::usage("in memory there is no wire").hint("leave out --wire vllm"));
            }
            Some(DemoTransport::Memory) => return Path::in_memory(device).map(|()| None),
        };
        match Path::new(transport, self.wire, device)? {
            Path::VllmNccl => Err(Failure::usage("a ring on vllm's wire can't go by nccl")
                .detail(
                    "both directions of a rank share a communicator there, where each waits for the other",
                )
                .hint("kvpipe send and kvpipe recv take --wire vllm --transport nccl")),
            path => Ok(Some(path)),
        }
    }

    /// The option, or what the configuration says.
    pub(crate) fn device_asked_for(&self) -> Option<BufferDevice> {
        let config = self.transfer.kv_transfer_config.as_ref();
        self.device.device.or(config.map(|config| config.kv_buffer_device))
    }
}

/// As it is written on the command line.
pub(crate) fn name_of(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// One rank of a demo, started by `demo`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DemoRankArgs {
    /// Where rank 0's store listens; rank 0 itself serves it there and prints the address
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) store: SocketAddr,

    #[arg(long)]
    pub(crate) rank: usize,

    #[arg(long)]
    pub(crate) world_size: usize,

    #[arg(long, value_enum)]
    pub(crate) path: Path,

    #[command(flatten)]
    pub(crate) workload: WorkloadArgs,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,

    #[command(flatten)]
    pub(crate) pipe: PipeArgs,

    #[arg(long)]
    pub(crate) timeout: Seconds,
}

/// Say what this machine has and lacks, what that costs, and how to get it
///
/// Looks for NCCL, the CUDA driver and its devices, at the memory, the network's interfaces and the
/// system's limits, and runs the default job: two processes that exchange tensors over tcp, on the cpu.
#[derive(Clone, Debug, Args)]
#[command(after_help = DOCTOR_EXAMPLES)]
pub(crate) struct DoctorArgs {
    /// Print one line of JSON
    #[arg(long)]
    pub(crate) json: bool,
}

const DOCTOR_EXAMPLES: &str = "\
Exit codes:
  0  the default job runs, whatever else is missing
  1  it does not

What is looked for:
  NCCL: the library that KVPIPE_NCCL_SO_PATH or VLLM_NCCL_SO_PATH names; else
  libnccl.so.2, libnccl.so and librccl.so.1 where the system has its
  libraries, then the one of an active Python environment (VIRTUAL_ENV,
  CONDA_PREFIX). NCCL takes interfaces by NCCL_SOCKET_IFNAME, or by a rule of
  its own. Limits are those of a process that is started from here.

With --json, null for what is not there or not told:
  default_job  command, ok
  nccl         version, version_code, path, missing: [symbol, needs_version]
  cuda         version, devices: [device, name, compute_capability,
               total_bytes, free_bytes]
  memory       total_bytes, available_bytes
  interfaces   [name, address, running, nccl]
  limits       file_descriptors, locked_bytes: soft, hard; null for no limit
  problems     [subject, state, what, costs, remedy]
  kvpipe       its version";

/// Run a store through which ranks find each other
///
/// It speaks PyTorch's TCPStore protocol, which has no authentication: whoever reaches the port can
/// read and change every key. It ends with code 0 on SIGINT and SIGTERM.
#[derive(Clone, Debug, Args)]
#[command(after_help = STORE_EXAMPLES)]
pub(crate) struct StoreArgs {
    /// The address to listen on, and no other; port 0 chooses a free one
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: HostPort,

    /// Bytes of the largest value that is taken; PyTorch's libuv server takes 8MiB [default: 1GiB]
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_value_bytes: Option<ByteSize>,

    /// Connections at a time, of which a rank may have several; one more is closed at once
    #[arg(long, value_name = "N", default_value_t = Limits::default().clients as u64,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) max_clients: u64,

    /// Print what the store holds and has done every so many seconds, 10 if not said, and at the end
    ///
    /// "2 clients, 1 waiting": connections, and those of them with a WAIT or BARRIER pending. "refused":
    /// connections closed for what their clients did, or because there were too many.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "10")]
    pub(crate) stats: Option<Seconds>,

    /// Listen even on 0.0.0.0 or [::], where whoever reaches this machine may use the store
    #[arg(long)]
    pub(crate) allow_remote: bool,

    /// Print JSON lines
    #[arg(long)]
    pub(crate) json: bool,
}

const STORE_EXAMPLES: &str = "\
Examples:
  kvpipe store --listen 127.0.0.1:29500
  kvpipe store --listen [::1]:0 --json
  kvpipe store --listen 10.0.0.1:29500 --max-value-bytes 64MiB --stats 60";

/// Send tensors to the next rank, then close the pipe gracefully
///
/// Succeeds once the receiver has taken every item. If it fails, it says how many items were
/// delivered, which were not, and which are in doubt: handed to the network and not acknowledged.
#[derive(Clone, Debug, Args)]
#[command(after_help = SEND_EXAMPLES)]
pub(crate) struct SendArgs {
    #[command(flatten)]
    pub(crate) rank: RankArgs,

    /// A safetensors file, whose tensors are sent in the order of their data, or the word "none"
    ///
    /// A file of that name is ./none. All files are opened and checked before anything is sent. They
    /// are mapped into memory: don't change them before the command ends.
    #[arg(value_name = "ITEM", required = true)]
    pub(crate) items: Vec<PathBuf>,
}

const SEND_EXAMPLES: &str = "\
Examples:
  On one machine, rank 0 serving the store:
    kvpipe send --store 127.0.0.1:29500 --rank 0 --world-size 2 request1.safetensors none
    kvpipe recv --store 127.0.0.1:29500 --rank 1 --world-size 2 --output copy.safetensors

  The same, from what vLLM takes:
    kvpipe send --kv-transfer-config '{\"kv_rank\":0,\"kv_parallel_size\":2,
      \"kv_port\":29500,\"kv_buffer_device\":\"cpu\"}' request1.safetensors none

  To a vLLM process that receives with its PyNcclPipe:
    kvpipe send --wire vllm --store 10.0.0.1:14579 --rank 0 --world-size 2 kv.safetensors none

  A missing or corrupt file is a failure (exit code 1), found before anything is sent.
  On vLLM's wire nothing comes back: it succeeds once the store has every item. A rank 0 that
  serves the store stays until the others have left, or --timeout has passed.";

/// Receive tensors from the previous rank
///
/// Receives until the peer closes the pipe, however long it is idle, and prints a line for each item.
#[derive(Clone, Debug, Args)]
#[command(after_help = RECV_EXAMPLES)]
pub(crate) struct RecvArgs {
    #[command(flatten)]
    pub(crate) rank: RankArgs,

    /// Close the pipe after N items; the sender is told, and fails if it had more
    ///
    /// If the sender closes before that, fewer are all there are. On vLLM's wire nobody is told anything.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,

    /// Write the tensors to this file when all are here, each named by its index: 000000, ...
    ///
    /// A None leaves a gap in the names. The file is written whole or not at all, over an old one of
    /// that name; until then the tensors are kept in memory.
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) output: Option<PathBuf>,
}

const RECV_EXAMPLES: &str = "\
Examples:
  kvpipe recv --store 10.0.0.1:29500 --rank 1 --world-size 2 --output copy.safetensors
  kvpipe recv --store 10.0.0.1:29500 --rank 1 --world-size 2 --count 1 --json

  What a vLLM process sends with its PyNcclPipe. Its wire has no end, so say how many:
    kvpipe recv --wire vllm --store 10.0.0.1:14579 --rank 1 --world-size 2 --count 2

With --json, a line for each item and one at the end:
  {\"index\":0,\"dtype\":\"BF16\",\"shape\":[2,3],\"bytes\":12,\"crc32c\":\"89ab01ef\"}
  {\"index\":1,\"none\":true}
  {\"received\":2,\"tensors\":1,\"bytes\":12,\"complete\":true}";

//! What ranks and pipes have in common, whatever the command.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use kvpipe::config::{BufferDevice, KvTransferConfig};

use crate::failure::Failure;
use crate::units::{ByteSize, HostPort, Seconds};

/// Who we are, and how we find the others.
#[derive(Clone, Debug, Args)]
pub(crate) struct RankArgs {
    /// The store: rank 0 serves it on exactly this address, other ranks connect to it
    #[arg(long, value_name = "HOST:PORT", required_unless_present = CONFIG, conflicts_with = "port_offset")]
    pub(crate) store: Option<HostPort>,

    /// Our rank, from 0; it sends to the next one and receives from the previous one
    #[arg(long, value_name = "R", required_unless_present = CONFIG)]
    pub(crate) rank: Option<usize>,

    /// How many ranks there are
    #[arg(long, value_name = "N", required_unless_present = CONFIG)]
    pub(crate) world_size: Option<usize>,

    #[command(flatten)]
    pub(crate) transfer: TransferArgs,

    /// The store runs elsewhere (see `kvpipe store`), so rank 0 connects to it as well
    #[arg(long)]
    pub(crate) external_store: bool,

    /// The address to receive at and to publish [default: ours in the connection to the store]
    ///
    /// `send` only connects, and through the store nobody does, so they have no use for it.
    #[arg(long, value_name = "ADDR")]
    pub(crate) host: Option<IpAddr>,

    /// The name of the group of ranks; ranks of different groups don't meet [default: none]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(crate) group: String,

    /// How the items travel [default: nccl on a GPU; otherwise tcp, and store with --wire vllm]
    #[arg(long, value_enum)]
    pub(crate) transport: Option<WireTransport>,

    /// In whose protocol; both ends must agree
    #[arg(long, value_enum, default_value_t = Wire::Native)]
    pub(crate) wire: Wire,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,

    #[command(flatten)]
    pub(crate) pipe: PipeArgs,

    /// Seconds to wait for the peer to appear, or to take an item; an idle peer is waited for
    /// [default: 300]
    #[arg(long, value_name = "S")]
    pub(crate) timeout: Option<Seconds>,

    /// Seconds of silence after which the peer counts as dead, at least 0.1 [default: 5]
    #[arg(long, value_name = "S")]
    pub(crate) heartbeat: Option<Seconds>,

    /// Seconds in which a connection that broke may come back; "none" gives up at once [default: 3]
    #[arg(long, value_name = "S", value_parser = seconds_or_none)]
    pub(crate) reconnect: Option<Seconds>,

    /// Print JSON lines, and nothing else, on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// The argument that stands for several others.
const CONFIG: &str = "kv_transfer_config";

/// What vLLM's configuration says in place of options, and what it may not say.
#[derive(Clone, Debug, Args)]
pub(crate) struct TransferArgs {
    /// vLLM's configuration, for all options that are not given; one that is given wins
    ///
    /// kv_ip and kv_port are --store, kv_rank is --rank, kv_parallel_size is --world-size,
    /// kv_buffer_size is --buffer-size, kv_buffer_device is --device, and store_timeout in
    /// kv_connector_extra_config is --timeout, each with vLLM's default. A demo starts kv_parallel_size
    /// ranks, whatever kv_rank says. vLLM's default device is "cuda", which needs a GPU and NCCL; without
    /// them, say "kv_buffer_device":"cpu".
    #[arg(long, value_name = "JSON", value_parser = kv_transfer_config)]
    pub(crate) kv_transfer_config: Option<KvTransferConfig>,

    /// Added to kv_port, so that each pipe of an instance has a port of its own [default: 0]
    #[arg(long, value_name = "N", requires = CONFIG)]
    pub(crate) port_offset: Option<u16>,

    /// Serve the store even on 0.0.0.0 or [::], where whoever reaches this machine may use it
    #[arg(long)]
    pub(crate) allow_remote: bool,
}

fn kv_transfer_config(json: &str) -> Result<KvTransferConfig, String> {
    let config = KvTransferConfig::from_json(json).map_err(|error| error.to_string());
    // clap says for which option the error is.
    config.map_err(|error| error.trim_start_matches("kv-transfer-config: ").to_owned())
}

fn seconds_or_none(text: &str) -> Result<Seconds, String> {
    match text {
        "none" => Ok(Seconds(Duration::ZERO)),
        text => text.parse().map_err(|error| format!("{error}, or \"none\"")),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WireTransport {
    /// One TCP connection for each edge
    Tcp,
    /// As values of the store, where ranks can reach nothing else
    Store,
    /// From GPU to GPU by NCCL; the rest over a TCP connection for each edge
    Nccl,
}

/// Where tensors are, and what moves them from there.
#[derive(Clone, Debug, Args)]
pub(crate) struct DeviceArgs {
    /// Where tensors are: cpu, cuda or cuda:N [default: cuda with --transport nccl, otherwise cpu]
    ///
    /// cuda is the GPU of our local rank: for send and recv what the environment variable LOCAL_RANK says
    /// (torchrun sets it), or 0; for demo and bench the rank, of which several share a GPU if there are too
    /// few.
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<BufferDevice>,

    /// The NCCL library [default: what KVPIPE_NCCL_SO_PATH or VLLM_NCCL_SO_PATH names, or the system finds]
    #[arg(long, value_name = "FILE.so")]
    pub(crate) nccl: Option<PathBuf>,
}

/// Whose bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wire {
    /// kvpipe's own: every item is acknowledged, the end is seen, a dead peer is found out
    Native,
    /// vLLM's: what its PyNcclPipe (0.9 to 0.12) sends and understands, through the store or by NCCL
    Vllm,
}

/// The two together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Path {
    Tcp,
    Store,
    Vllm,
    Nccl,
    VllmNccl,
}

impl Path {
    /// NCCL moves what is on a GPU, and nothing else does; vLLM's wire is one of the store or of NCCL.
    pub(crate) fn new(
        transport: Option<WireTransport>,
        wire: Wire,
        device: Option<BufferDevice>,
    ) -> Result<Self, Failure> {
        let on_gpu = device.map(|device| device != BufferDevice::Cpu);
        let transport = match (transport, device) {
            (Some(WireTransport::Nccl), _) if on_gpu == Some(false) => {
                return Err(Failure::usage("nccl moves what is on a GPU, and the device is cpu")
                    .hint("leave out --transport nccl, or say --device cuda"));
            }
            (Some(given @ (WireTransport::Tcp | WireTransport::Store)), Some(device))
                if on_gpu == Some(true) =>
            {
                let given = if given == WireTransport::Tcp { "tcp" } else { "store" };
                return Err(Failure::usage(format!(
                    "{given} moves what is in host memory, and the device is {device}"
                ))
                .hint(format!("leave out --transport {given}, or say --device cpu")));
            }
            (None, _) if on_gpu == Some(true) => Some(WireTransport::Nccl),
            (transport, _) => transport,
        };
        match (transport, wire) {
            (None | Some(WireTransport::Tcp), Wire::Native) => Ok(Self::Tcp),
            (Some(WireTransport::Store), Wire::Native) => Ok(Self::Store),
            (Some(WireTransport::Nccl), Wire::Native) => Ok(Self::Nccl),
            (None | Some(WireTransport::Store), Wire::Vllm) => Ok(Self::Vllm),
            (Some(WireTransport::Nccl), Wire::Vllm) => Ok(Self::VllmNccl),
            (Some(WireTransport::Tcp), Wire::Vllm) => {
                Err(Failure::usage("vllm's wire goes through the store, or by nccl")
                    .hint("leave out --transport tcp"))
            }
        }
    }

    /// For what is no path: refuses a GPU for ranks that share their memory.
    pub(crate) fn in_memory(device: Option<BufferDevice>) -> Result<(), Failure> {
        match device.filter(|device| *device != BufferDevice::Cpu) {
            None => Ok(()),
            Some(device) => Err(Failure::usage(format!("memory is the host's, and the device is {device}"))
                .hint("leave out --transport memory, or say --device cpu")),
        }
    }

    /// Whether payloads go by NCCL.
    pub(crate) fn by_nccl(self) -> bool {
        matches!(self, Self::Nccl | Self::VllmNccl)
    }

    /// Whether the protocol is vLLM's.
    pub(crate) fn is_vllms(self) -> bool {
        matches!(self, Self::Vllm | Self::VllmNccl)
    }
}

/// How a pipe is set up.
#[derive(Clone, Debug, Args)]
pub(crate) struct PipeArgs {
    /// Bytes of tensors to hold, such as 64MiB; a larger tensor travels alone [default: 1GB]
    #[arg(long, value_name = "BYTES")]
    pub(crate) buffer_size: Option<ByteSize>,

    /// Bytes of the largest tensor that is taken; both ends must agree [default: 4GiB]
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_item_size: Option<ByteSize>,

    /// Send a CRC32C with every item, and check it; both ends must agree
    #[arg(long)]
    pub(crate) checksum: bool,

    /// A file with the secret that both ends must know; a line break at its end is dropped
    ///
    /// Without it, the environment variable KVPIPE_SECRET is used if there is one. The secret proves
    /// who connects; it encrypts nothing.
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,
}

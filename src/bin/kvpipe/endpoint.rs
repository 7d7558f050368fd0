//! From arguments to the settings of a pipe and its transport.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path as FilePath;
use std::time::Duration;

use kvpipe::config::{self, BufferDevice, KvTransferConfig, Location};
use kvpipe::group::{GroupConfig, WireMode};
use kvpipe::tensor::BufferPool;
use kvpipe::transport::Ring;
use kvpipe::transport::nccl::{HandOut, NcclConfig};
use kvpipe::transport::store::StoreConfig;
use kvpipe::transport::tcp::{GroupName, Secret, TcpConfig};
use kvpipe::{Error, PipeConfig};

use crate::args::{DemoArgs, DeviceArgs, Path, PipeArgs, RANKS_MAX, RankArgs, TransferArgs};
use crate::failure::Failure;
use crate::gpu::{self, Gpu, Placement};
use crate::serve;
use crate::units::{ByteSize, HostPort, Seconds};

/// A rank among the others: its options, and what the kv-transfer-config says where there are none.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) ring: Ring,
    pub(crate) path: Path,
    /// Where our tensors are, or are to come.
    pub(crate) location: Location,
    pub(crate) store: HostPort,
    /// Whether the store is nobody's in the ring.
    pub(crate) external_store: bool,
    /// Whether ours may be on every address.
    pub(crate) allow_remote: bool,
    pub(crate) timeout: Duration,
    pub(crate) limits: PipeConfig,
}

impl Place {
    /// Once the arguments fit together.
    pub(crate) fn new(args: &RankArgs) -> Result<Self, Failure> {
        let mut config = base_config(&args.transfer);
        if let Some(store) = &args.store {
            (config.kv_ip, config.kv_port) = (store.host.clone(), store.port);
        }
        config.kv_rank = args.rank.or(config.kv_rank);
        config.kv_parallel_size = args.world_size.unwrap_or(config.kv_parallel_size);
        config.kv_buffer_size = args.pipe.buffer_size.map_or(config.kv_buffer_size, |bytes| bytes.0);
        config.store_timeout = args.timeout.map_or(config.store_timeout, |timeout| timeout.0);
        if config.kv_rank.is_none() {
            return Err(Failure::usage("kv_rank is missing").hint("say it in the JSON, or with --rank"));
        }
        let asked_for = args.transfer.kv_transfer_config.as_ref().map(|config| config.kv_buffer_device);
        let path = Path::new(args.transport, args.wire, args.device.device.or(asked_for))?;
        check_nccl(Some(path), &args.device)?;
        let endpoint = endpoint(&config, &args.transfer)?;
        let location = location(path, args.device.device.or(asked_for))?;
        let ring = Ring::new(endpoint.rank, endpoint.world_size).map_err(|error| usage(&error))?;
        if ring.world_size() == 1 {
            return Err(Failure::usage("a world size of 1 has nobody to talk to"));
        }
        let store = HostPort { host: endpoint.store_host, port: endpoint.store_port };
        if let Some(host) = args.host
            && host.is_unspecified()
        {
            return Err(Failure::usage(format!(
                "nobody can connect to --host {host}: give an address of this machine"
            )));
        }
        let timeout = endpoint.store_timeout;
        let limits = with_options(endpoint.pipe, &args.pipe, timeout);
        let place = Self {
            ring,
            path,
            location,
            store,
            external_store: args.external_store,
            allow_remote: args.transfer.allow_remote,
            timeout,
            limits,
        };
        if place.store.port == 0 && !place.serves_store() {
            return Err(Failure::usage(format!("the store can't be at {}: port 0 is none", place.store)));
        }
        Ok(place)
    }

    /// Whether the store is ours to serve.
    pub(crate) fn serves_store(&self) -> bool {
        self.ring.rank() == 0 && !self.external_store
    }
}

/// What a demo takes from a kv-transfer-config.
#[derive(Debug)]
pub(crate) struct DemoPlan {
    pub(crate) ranks: u16,
    /// Where rank 0 serves the store, if it is a process of its own.
    pub(crate) store: SocketAddr,
    pub(crate) timeout: Seconds,
    pub(crate) pipe: PipeArgs,
    /// Which GPUs the ranks have; None if they need none.
    pub(crate) placement: Option<Placement>,
}

impl DemoPlan {
    /// A demo's own defaults are for a person who waits in front of it; with a configuration, they are
    /// vLLM's.
    pub(crate) async fn new(args: &DemoArgs) -> Result<Self, Failure> {
        let path = args.path()?;
        if let Some(path) = path {
            // Every rank will do so; here it is said once.
            check_settings(path, &tcp_config(&args.pipe, "", Duration::ZERO)?)?;
        }
        check_nccl(path, &args.device)?;
        let own = Self {
            ranks: args.ranks.unwrap_or(2),
            store: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            timeout: args.timeout.unwrap_or(Seconds(Duration::from_secs(60))),
            pipe: args.pipe.clone(),
            placement: None,
        };
        let Some(config) = &args.transfer.kv_transfer_config else { return own.along(path, args) };
        // A demo starts them all.
        let mut config = config.clone();
        config.kv_rank = Some(0);
        let endpoint = endpoint(&config, &args.transfer)?;
        let store = HostPort { host: endpoint.store_host, port: endpoint.store_port };
        let (size, budget) = (endpoint.world_size, ByteSize(endpoint.pipe.budget_bytes));
        let ranks = u16::try_from(size).ok().filter(|ranks| i64::from(*ranks) <= RANKS_MAX);
        let plan = Self {
            ranks: args.ranks.or(ranks).ok_or_else(|| {
                Failure::usage(format!(
                    "kv_parallel_size {size} is more than the {RANKS_MAX} ranks of a demo"
                ))
            })?,
            store: match path {
                None => own.store,
                Some(_) => serve::resolve(&store, args.transfer.allow_remote).await?,
            },
            timeout: args.timeout.unwrap_or(Seconds(endpoint.store_timeout)),
            pipe: PipeArgs { buffer_size: args.pipe.buffer_size.or(Some(budget)), ..own.pipe },
            placement: None,
        };
        plan.along(path, args)
    }

    /// With what its path needs.
    fn along(mut self, path: Option<Path>, args: &DemoArgs) -> Result<Self, Failure> {
        let alone = match path {
            Some(Path::Vllm) => Some("on vllm's wire"),
            // Both ends of its edge would be ranks of one communicator on one GPU, which NCCL refuses.
            Some(Path::Nccl) => Some("by nccl"),
            _ => None,
        };
        if let (Some(how), 1) = (alone, self.ranks) {
            let why = format!("{how} a rank can't send to itself");
            return Err(Failure::usage(why).hint("--ranks 2 or more"));
        }
        if path.is_some_and(Path::by_nccl) {
            let placement = Placement::of_ranks(usize::from(self.ranks), args.device_asked_for())?;
            self.placement = Some(placement);
        }
        Ok(self)
    }
}

/// The configuration that options are laid over. Without one, all defaults are vLLM's.
fn base_config(args: &TransferArgs) -> KvTransferConfig {
    args.kv_transfer_config.clone().unwrap_or_default()
}

fn endpoint(config: &KvTransferConfig, args: &TransferArgs) -> Result<config::Endpoint, Failure> {
    // Which device is meant is a matter of the transport as well: see `location`.
    config.endpoint(0, args.port_offset.unwrap_or(0)).map_err(|error| usage(&error))
}

/// Where the tensors of a rank are whose machine has other ranks that we know nothing of.
fn location(path: Path, device: Option<BufferDevice>) -> Result<Location, Failure> {
    match device {
        _ if !path.by_nccl() => Ok(Location::Cpu),
        Some(device @ (BufferDevice::CudaIndex(_) | BufferDevice::Cpu)) => Ok(device.location(0)),
        None | Some(BufferDevice::Cuda) => Ok(Location::Cuda(gpu::local_rank()?)),
    }
}

/// A library is named for NCCL only.
pub(crate) fn check_nccl(path: Option<Path>, args: &DeviceArgs) -> Result<(), Failure> {
    match args.nccl.is_some() && !path.is_some_and(Path::by_nccl) {
        true => Err(Failure::usage("--nccl has no meaning without --transport nccl").hint("leave it out")),
        false => Ok(()),
    }
}

fn usage(error: &Error) -> Failure {
    Failure::usage(error.to_string())
}

/// The limits of a pipe.
pub(crate) fn pipe_config(args: &PipeArgs, timeout: Duration) -> PipeConfig {
    let mut config = PipeConfig::default();
    if let Some(bytes) = args.buffer_size {
        config = config.with_buffer_bytes(bytes.0);
    }
    with_options(config, args, timeout)
}

fn with_options(mut config: PipeConfig, args: &PipeArgs, timeout: Duration) -> PipeConfig {
    if let Some(bytes) = args.max_item_size {
        config.max_item_bytes = bytes.0;
    }
    config.close_timeout = timeout + MARGIN;
    config
}

/// Several deadlines pass at the same time if a peer never comes. The transport says best whom it
/// awaited, so the others leave it this much time, in which its last question to the store returns.
pub(crate) const MARGIN: Duration = Duration::from_secs(2);

/// The settings of the TCP transport. Reads the secret, if there is one.
pub(crate) fn tcp_config(args: &PipeArgs, group: &str, timeout: Duration) -> Result<TcpConfig, Failure> {
    let group = GroupName::new(group).map_err(|error| Failure::usage(format!("--group: {error}")))?;
    let secret = secret(args.secret_file.as_deref())?;
    let checksum = args.checksum;
    Ok(TcpConfig { group, secret, checksum, connect_timeout: timeout, ..TcpConfig::default() })
}

/// The way of a rank that is one of many commands. Opens the GPU, if it needs one.
pub(crate) fn rank_way(rank: &RankArgs, place: &Place) -> Result<Way, Failure> {
    let path = place.path;
    if rank.host.is_some() && !matches!(path, Path::Tcp | Path::Nccl) {
        let why = "nobody connects to a rank there";
        return Err(Failure::usage("--host has no meaning through a store").detail(why).hint("leave it out"));
    }
    for (option, is_given) in
        [("--heartbeat", rank.heartbeat.is_some()), ("--reconnect", rank.reconnect.is_some())]
    {
        if is_given && path.is_vllms() {
            return Err(Failure::usage(format!("{option} has no meaning on vllm's wire"))
                .detail("a peer there gives no sign of life")
                .hint("leave it out"));
        }
    }
    if rank.reconnect.is_some() && path == Path::Nccl {
        return Err(Failure::usage("--reconnect has no meaning by nccl")
            .detail("NCCL can't go on after a failure")
            .hint("leave it out"));
    }
    let mut config = tcp_config(&rank.pipe, &rank.group, place.timeout)?;
    config.heartbeat = rank.heartbeat.map_or(config.heartbeat, |heartbeat| heartbeat.0);
    config.reconnect_timeout = rank.reconnect.map_or(config.reconnect_timeout, |reconnect| reconnect.0);
    if config.heartbeat < TcpConfig::HEARTBEAT_MIN {
        let (given, least) = (config.heartbeat.as_secs_f64(), TcpConfig::HEARTBEAT_MIN.as_secs_f64());
        return Err(Failure::usage(format!("--heartbeat {given} is below {least} seconds")));
    }
    // Files are what it is for.
    Way::new(path, config, &rank.device, place.location, HandOut::OnHost)
}

/// How items travel, with all settings of it.
pub(crate) enum Way {
    Tcp(TcpConfig),
    Store(StoreConfig),
    Nccl(NcclConfig),
    Vllm(VllmConfig),
}

/// vLLM's wire.
pub(crate) struct VllmConfig {
    pub(crate) group: GroupConfig,
    pub(crate) payloads: VllmPayloads,
}

/// What tensors travel by on vLLM's wire.
pub(crate) enum VllmPayloads {
    /// The store, like all else.
    Store(BufferPool),
    Nccl(Box<NcclConfig>),
}

impl Way {
    /// `tcp` has what the ways have in common, and more; what only TCP has is refused elsewhere.
    pub(crate) fn new(
        path: Path,
        tcp: TcpConfig,
        device: &DeviceArgs,
        location: Location,
        hand_out: HandOut,
    ) -> Result<Self, Failure> {
        check_settings(path, &tcp)?;
        let nccl = |tcp: &TcpConfig| {
            Gpu::open(location, device.nccl.as_deref()).map(|gpu| gpu.config(tcp.clone(), hand_out))
        };
        Ok(match path {
            Path::Tcp => Self::Tcp(tcp),
            Path::Nccl => Self::Nccl(nccl(&tcp)?),
            Path::Store => {
                let TcpConfig { group, connect_timeout, heartbeat, reconnect_timeout, entropy, pool, .. } =
                    tcp;
                Self::Store(StoreConfig {
                    group,
                    connect_timeout,
                    heartbeat,
                    reconnect_timeout,
                    entropy,
                    pool,
                    ..StoreConfig::default()
                })
            }
            Path::Vllm => {
                Self::Vllm(VllmConfig { group: vllm_group(&tcp), payloads: VllmPayloads::Store(tcp.pool) })
            }
            Path::VllmNccl => Self::Vllm(VllmConfig {
                group: vllm_group(&tcp),
                payloads: VllmPayloads::Nccl(Box::new(nccl(&tcp)?)),
            }),
        })
    }

    /// The GPU that was opened for it.
    pub(crate) fn gpu(&self) -> Option<Gpu> {
        let config = match self {
            Self::Nccl(config) => config,
            Self::Vllm(VllmConfig { payloads: VllmPayloads::Nccl(config), .. }) => config,
            _ => return None,
        };
        Some(Gpu { device: config.device.clone(), library: config.library.clone() })
    }
}

/// Refuses what a way has no use for.
fn check_settings(path: Path, tcp: &TcpConfig) -> Result<(), Failure> {
    let where_to = match path {
        Path::Tcp => return Ok(()),
        Path::Nccl | Path::VllmNccl => "by nccl",
        Path::Store | Path::Vllm => "through a store",
    };
    let without = |what: &str, why: &str| {
        Err(Failure::usage(format!("{what} has no meaning {where_to}")).detail(why).hint("leave it out"))
    };
    if tcp.secret.is_some() && path != Path::Nccl {
        return without(
            "a secret (--secret-file, KVPIPE_SECRET)",
            "whoever reaches the store can read and change everything",
        );
    }
    if tcp.checksum {
        let why = match path.by_nccl() {
            true => "payloads go from GPU to GPU, unseen by us",
            false => "values are checked by the connections to the store only",
        };
        return without("--checksum", why);
    }
    if path.is_vllms() && tcp.group != GroupName::default() {
        return Err(Failure::usage("vllm's wire has no names of groups").hint("leave out --group"));
    }
    Ok(())
}

fn vllm_group(tcp: &TcpConfig) -> GroupConfig {
    GroupConfig {
        wire: WireMode::Vllm,
        timeout: tcp.connect_timeout,
        deletes_received: true,
        entropy: tcp.entropy.clone(),
        ..GroupConfig::default()
    }
}

/// Where the secret comes from if no file is given. Not from an argument: everybody can see those.
const SECRET_VARIABLE: &str = "KVPIPE_SECRET";

fn secret(file: Option<&FilePath>) -> Result<Option<Secret>, Failure> {
    let (bytes, origin) = match file {
        Some(path) => {
            let origin = format!("the secret file {}", path.display());
            let bytes = fs::read(path).map_err(|error| Failure::io(format!("reading {origin}"), &error))?;
            (without_line_break(bytes), origin)
        }
        None => match env::var_os(SECRET_VARIABLE) {
            Some(value) => {
                (value.into_encoded_bytes(), format!("the environment variable {SECRET_VARIABLE}"))
            }
            None => return Ok(None),
        },
    };
    let secret = Secret::new(bytes).map_err(|error| Failure::new(format!("{origin}: {error}")))?;
    Ok(Some(secret))
}

/// Editors and `echo` end a file with a line break, which is not meant.
fn without_line_break(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Arguments, Command};

    const JSON: &str = r#"{"kv_rank":1,"kv_parallel_size":3,"kv_ip":"10.0.0.1","kv_port":4000,
        "kv_buffer_size":5e3,"kv_buffer_device":"cpu","kv_connector_extra_config":{"store_timeout":7}}"#;

    fn parse(options: &[&str]) -> Command {
        Arguments::parse_from([&["kvpipe"], options].concat()).command
    }

    fn place(options: &[&str]) -> Place {
        let Command::Recv(recv) = parse(&[&["recv"], options].concat()) else { panic!("recv") };
        Place::new(&recv.rank).unwrap()
    }

    /// Store, rank and world size, timeout in seconds, budget and window.
    fn told(place: &Place) -> (String, [usize; 2], u64, [usize; 2]) {
        let Place { ring, limits, .. } = place;
        let limits = [limits.budget_bytes, limits.window_bytes];
        (place.store.to_string(), [ring.rank(), ring.world_size()], place.timeout.as_secs(), limits)
    }

    #[test]
    fn the_configuration_stands_for_options_that_are_not_given() {
        let place = place(&["--kv-transfer-config", JSON, "--port-offset", "2"]);
        assert_eq!(told(&place), ("10.0.0.1:4002".into(), [1, 3], 7, [5000; 2]));
    }

    #[test]
    fn options_win_over_the_configuration() {
        let place = place(
            &[
                &["--kv-transfer-config", JSON, "--store", "[::1]:5", "--rank", "3", "--world-size", "4"][..],
                &["--timeout", "8", "--buffer-size", "6KB"],
            ]
            .concat(),
        );
        assert_eq!(told(&place), ("[::1]:5".into(), [3, 4], 8, [6000; 2]));
    }

    #[test]
    fn without_a_configuration_the_defaults_are_those_of_the_help() {
        let place = place(&["--store", "h:5", "--rank", "0", "--world-size", "2"]);
        assert_eq!(told(&place), ("h:5".into(), [0, 2], 300, [1_000_000_000; 2]));
    }

    async fn plan(options: &[&str]) -> DemoPlan {
        let Command::Demo(demo) = parse(&[&["demo"], options].concat()) else { panic!("demo") };
        DemoPlan::new(&demo).await.unwrap()
    }

    fn planned(plan: &DemoPlan) -> (u16, String, u64, Option<usize>) {
        let bytes = plan.pipe.buffer_size.map(|bytes| bytes.0);
        (plan.ranks, plan.store.to_string(), plan.timeout.0.as_secs(), bytes)
    }

    #[tokio::test]
    async fn a_demo_takes_from_the_configuration_what_a_rank_takes() {
        assert_eq!(planned(&plan(&[]).await), (2, "127.0.0.1:0".into(), 60, None));
        let json = ["--kv-transfer-config", JSON];
        assert_eq!(planned(&plan(&json).await), (3, "10.0.0.1:4000".into(), 7, Some(5000)));
        let options = ["--ranks", "5", "--timeout", "8", "--buffer-size", "6KB"];
        let options = [&json[..], &options].concat();
        assert_eq!(planned(&plan(&options).await), (5, "10.0.0.1:4000".into(), 8, Some(6000)));
    }

    #[test]
    fn one_line_break_at_the_end_is_no_part_of_a_secret() {
        for (file, secret) in
            [("s", "s"), ("s\n", "s"), ("s\r\n", "s"), ("s\n\n", "s\n"), ("\ns", "\ns"), ("\n", "")]
        {
            assert_eq!(without_line_break(file.into()), secret.as_bytes(), "{file:?}");
        }
    }
}

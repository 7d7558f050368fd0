//! Two processes, and NCCL between them. On a single GPU they pose as two hosts, since NCCL lets no two
//! ranks of a host share one.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kvpipe::collective::{Backend, ProcessGroup, ProcessGroupConfig, ReduceOp};
use kvpipe::device::{CudaDevice, Device, DeviceBufferMut, DevicePool, Stream};
use kvpipe::group::{GroupConfig, StatelessProcessGroup, WireMode};
use kvpipe::nccl::{Communicator, CommunicatorConfig, Library};
use kvpipe::net::TokioNet;
use kvpipe::store::Limits;
use kvpipe::store::tcp::{ConnectOptions, TcpStore, TcpStoreServer};
use kvpipe::transport::Ring;
use kvpipe::transport::nccl::{NcclConfig, NcclTransport, VllmNcclTransport};
use kvpipe::transport::tcp::TcpConfig;
use kvpipe::{Error, Pipe, PipeConfig, Tensor};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::gpu;

/// Tells a child what it is: role, rank, port of the store.
const CHILD: &str = "KVPIPE_GPU_CHILD";

/// Far beyond what any of it takes.
const PATIENCE: Duration = Duration::from_secs(240);

/// How long a killed peer may go unnoticed.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// What a rank works with.
struct Rank {
    rank: usize,
    device: Arc<dyn Device>,
    library: Arc<Library>,
    store: TcpStore<TokioNet>,
}

impl Rank {
    fn config(&self) -> NcclConfig {
        let control = TcpConfig { heartbeat: HEARTBEAT, ..TcpConfig::default() };
        NcclConfig { control, ..NcclConfig::new(Arc::clone(&self.device), Arc::clone(&self.library)) }
    }

    async fn pipe(&self) -> Pipe {
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        let ring = Ring::new(self.rank, 2).unwrap();
        let bound = NcclTransport::bind(TokioNet, self.store.clone(), ring, address, self.config()).await;
        Pipe::spawn(bound.unwrap(), PipeConfig::default()).unwrap()
    }

    fn group(&self, wire: WireMode) -> StatelessProcessGroup<TcpStore<TokioNet>> {
        let config = GroupConfig { wire, ..GroupConfig::default() };
        StatelessProcessGroup::new(self.store.clone(), self.rank, 2, config).unwrap()
    }

    async fn tensor(&self, bytes: usize, mark: usize) -> Tensor {
        host(bytes, mark).to_device(&self.device).await.unwrap()
    }
}

/// A tensor of `bytes` that differ from place to place, and from mark to mark.
fn host(bytes: usize, mark: usize) -> Tensor {
    let content: Vec<u8> = (0..bytes).map(|index| (index * 31 + index / 251 + mark * 17) as u8).collect();
    Tensor::from_vec([bytes], content).unwrap()
}

/// Both ranks of a role, in processes of their own; None, and why, where that can't be.
fn start(role: &str) -> Option<([Child; 2], TcpStoreServer, tokio::runtime::Runtime)> {
    gpu()?;
    if let Err(error @ Error::Unavailable { .. }) = Library::load(None) {
        println!("skipped: {error}");
        return None;
    }
    let gpus = (0..2).take_while(|index| CudaDevice::open(*index).is_ok()).count();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let anywhere = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    let server = runtime.block_on(TcpStoreServer::bind(&TokioNet, anywhere, Limits::default())).unwrap();
    let port = server.local_addr().port();
    let children = [0, 1].map(|rank| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["nccl::a_child", "--exact", "--nocapture"]);
        command.env(CHILD, format!("{role} {rank} {} {port}", rank.min(gpus - 1)));
        if gpus == 1 {
            command.env("NCCL_HOSTID", format!("kvpipe-{rank}"));
            command.env("NCCL_P2P_DISABLE", "1").env("NCCL_SHM_DISABLE", "1").env("NCCL_SOCKET_IFNAME", "lo");
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    Some((children, server, runtime))
}

/// Runs a role to its end, and shows what it said.
fn run(role: &str) {
    let Some((children, _server, _runtime)) = start(role) else { return };
    let outputs = children.map(|child| child.wait_with_output().unwrap());
    // The one that failed first may be the second.
    for output in outputs.iter().filter(|output| !output.status.success()) {
        println!("{}", String::from_utf8_lossy(&output.stderr));
    }
    outputs.iter().for_each(succeeded);
}

fn succeeded(output: &Output) {
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{complained}");
    said.lines().filter(|line| line.starts_with("gpu: ")).for_each(|line| println!("{line}"));
}

/// Not a test: the body of a child of the others.
#[test]
fn a_child() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let told: Vec<&str> = told.split(' ').collect();
    let [role, rank, device, port] = told[..] else { panic!("{told:?}") };
    // Its pipes are not to fall silent while a tensor is made up.
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let work = async {
            let options = ConnectOptions::default();
            let rank = Rank {
                rank: rank.parse().unwrap(),
                device: CudaDevice::open(device.parse().unwrap()).unwrap(),
                library: Library::load(None).unwrap(),
                store: TcpStore::connect(TokioNet, "127.0.0.1", port.parse().unwrap(), options)
                    .await
                    .unwrap(),
            };
            match role {
                "exchange" => exchange(&rank).await,
                "group" => process_group(&rank).await,
                "vllm" => vllm(&rank).await,
                "death" => death(&rank).await,
                "leak" => leak(&rank).await,
                "speed" => speed(&rank).await,
                other => panic!("{other}"),
            }
        };
        tokio::time::timeout(PATIENCE, work).await.expect("it hangs");
    });
}

#[test]
fn both_directions_carry_whatever_size_at_once() {
    run("exchange");
}

async fn exchange(rank: &Rank) {
    const BYTES: [usize; 7] = [1, 255, 4096, 65_537, 1 << 20, (4 << 20) + 3, 64 << 20];
    let pipe = rank.pipe().await;
    let sending = async {
        for (mark, bytes) in BYTES.into_iter().enumerate() {
            pipe.send(Some(rank.tensor(bytes, mark).await)).await.unwrap();
            // A host tensor is staged.
            pipe.send(Some(host(bytes.min(1 << 20), mark + 100))).await.unwrap();
            pipe.send(None).await.unwrap();
        }
        pipe.flush().await.unwrap();
    };
    let receiving = async {
        for (mark, bytes) in BYTES.into_iter().enumerate() {
            let device = pipe.recv().await.unwrap().unwrap();
            assert_eq!(device.to_host().await.unwrap(), host(bytes, mark), "{bytes} bytes");
            let staged = pipe.recv().await.unwrap().unwrap();
            assert_eq!(staged.to_host().await.unwrap(), host(bytes.min(1 << 20), mark + 100));
            assert_eq!(pipe.recv().await.unwrap(), None);
        }
    };
    tokio::join!(sending, receiving);
    // A close refuses what still comes, and a process that ends can't answer.
    let group = rank.group(WireMode::Native);
    group.barrier().await.unwrap();
    pipe.close().await.unwrap();
    group.barrier().await.unwrap();
}

#[test]
fn a_process_group_sums_and_gathers() {
    run("group");
}

async fn process_group(rank: &Rank) {
    let (device, library) = (Arc::clone(&rank.device), Some(Arc::clone(&rank.library)));
    let config = ProcessGroupConfig { backend: Backend::Nccl { device, library }, ..Default::default() };
    let group = ProcessGroup::from_store(TokioNet, &rank.store, rank.rank, 2, config).await.unwrap();
    // Small integers, so that every order of adding gives the same.
    let number = |index: usize, rank: usize| ((index * 7 + rank * 3) % 13) as f32;
    for elements in [1, 1000, 4 << 20] {
        let numbers = |rank| -> Vec<f32> { (0..elements).map(|index| number(index, rank)).collect() };
        let own = Tensor::from_vec([elements], numbers(rank.rank)).unwrap();
        let own = own.to_device(&rank.device).await.unwrap();
        let begin = Instant::now();
        let sum = group.all_reduce(&own, ReduceOp::Sum).await.unwrap();
        let summed = begin.elapsed();
        let joined = group.all_gather(&own).await.unwrap();
        let sums: Vec<f32> = (0..elements).map(|index| number(index, 0) + number(index, 1)).collect();
        assert!(sum.to_host().await.unwrap().to_vec::<f32>().unwrap() == sums, "{elements}");
        let both = [numbers(0), numbers(1)].concat();
        assert!(joined.to_host().await.unwrap().to_vec::<f32>().unwrap() == both, "{elements}");
        if rank.rank == 0 {
            println!("gpu: an all_reduce of {elements} float32 took {summed:?}");
        }
    }
    let begin = Instant::now();
    for _ in 0..100 {
        group.barrier().await.unwrap();
    }
    if rank.rank == 0 {
        println!("gpu: what agreement costs an operation: {:?}", begin.elapsed() / 100);
    }
    group.destroy().await.unwrap();
}

#[test]
fn vllms_wire_carries_a_request_and_its_answer() {
    run("vllm");
}

async fn vllm(rank: &Rank) {
    let group = Arc::new(rank.group(WireMode::Vllm));
    let transport = VllmNcclTransport::meet(Arc::clone(&group), rank.config()).await.unwrap();
    let pipe = Pipe::spawn(transport, PipeConfig::default()).unwrap();
    for turn in 0..4 {
        match rank.rank == turn % 2 {
            true => {
                pipe.send(Some(rank.tensor(1 << 20, turn).await)).await.unwrap();
                pipe.send(None).await.unwrap();
                pipe.flush().await.unwrap();
            }
            false => {
                let received = pipe.recv().await.unwrap().unwrap();
                assert_eq!(received.to_host().await.unwrap(), host(1 << 20, turn));
                assert_eq!(pipe.recv().await.unwrap(), None);
            }
        }
    }
    group.barrier().await.unwrap();
}

#[test]
fn a_killed_peer_is_found_and_the_communicator_aborted() {
    let Some(([victim, survivor], _server, runtime)) = start("death") else { return };
    let mut victim = victim;
    // It says when it is in the middle of a transfer.
    let mut said = String::new();
    let mut reader = std::io::BufReader::new(victim.stdout.take().unwrap());
    while !said.contains("gpu: in the middle") {
        said.clear();
        assert!(std::io::BufRead::read_line(&mut reader, &mut said).unwrap() > 0, "the victim ended early");
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
    let killed = Instant::now();
    let output = survivor.wait_with_output().unwrap();
    succeeded(&output);
    let took = killed.elapsed();
    println!("gpu: the survivor had ended {took:?} after the kill");
    // Besides the silence that it bears, a GPU's owner only has to see that the device is free.
    assert!(on_fakes() || took < HEARTBEAT + Duration::from_secs(10), "{took:?}");
    drop(runtime);
}

async fn death(rank: &Rank) {
    let pipe = rank.pipe().await;
    let item = rank.tensor(16 << 20, 0).await;
    if rank.rank == 0 {
        pipe.send(Some(item.clone())).await.unwrap();
        pipe.flush().await.unwrap();
        println!("gpu: in the middle");
        while pipe.send(Some(item.clone())).await.is_ok() {}
        return;
    }
    let started = loop {
        match pipe.recv().await {
            Ok(_) => {}
            Err(error) => {
                let gone = matches!(error, Error::PeerGone { .. } | Error::Nccl { .. });
                assert!(gone, "{error}");
                println!("gpu: the survivor was told: {error}");
                break Instant::now();
            }
        }
    };
    // The device is free again: what NCCL had on it is gone.
    let freed = rank.tensor(64 << 20, 1).await;
    assert_eq!(freed.to_host().await.unwrap(), host(64 << 20, 1));
    println!("gpu: the device was free {:?} later", started.elapsed());
}

#[test]
fn ten_thousand_items_leak_nothing() {
    run("leak");
}

async fn leak(rank: &Rank) {
    let pipe = rank.pipe().await;
    let item = rank.tensor(64 << 10, 0).await;
    let exchange = async |items: usize| {
        let sending = async {
            for _ in 0..items {
                pipe.send(Some(item.clone())).await.unwrap();
            }
            pipe.flush().await.unwrap();
        };
        let receiving = async {
            for _ in 0..items {
                pipe.recv().await.unwrap();
            }
        };
        tokio::join!(sending, receiving);
    };
    // NCCL and the pool take what they keep.
    exchange(1_000).await;
    let before = rank.device.memory().unwrap().free;
    exchange(10_000).await;
    let after = rank.device.memory().unwrap().free;
    // Another process works on the same device; a leak would be of 640 MB.
    assert!(before.saturating_sub(after) < 64 << 20, "{before} bytes were free, and then {after}");
    let group = rank.group(WireMode::Native);
    group.barrier().await.unwrap();
    pipe.close().await.unwrap();
    group.barrier().await.unwrap();
}

#[test]
fn as_fast_as_nccl() {
    run("speed");
}

async fn speed(rank: &Rank) {
    let group = rank.group(WireMode::Native);
    let (device, library) = (Arc::clone(&rank.device), Arc::clone(&rank.library));
    let config = CommunicatorConfig::default();
    let raw = Arc::new(Communicator::new(&group, device, Some(library), config).await.unwrap());
    let pipe = rank.pipe().await;
    for bytes in [4 << 20, 16 << 20] {
        let items = (1 << 30) / bytes / if on_fakes() { 8 } else { 1 };
        let item = rank.tensor(bytes, 0).await;
        let mut ratios = Vec::new();
        // In turns, and the first is not counted.
        for round in 0..4 {
            group.barrier().await.unwrap();
            let started = Instant::now();
            bare(rank, &raw, &item, items).await;
            let bare = started.elapsed().as_secs_f64();
            group.barrier().await.unwrap();
            let started = Instant::now();
            piped(rank, &pipe, &item, items).await;
            if round > 0 {
                ratios.push((bare / started.elapsed().as_secs_f64(), bare));
            }
        }
        let started = Instant::now();
        let stream = Stream::new(&rank.device).unwrap();
        let mut target = DeviceBufferMut::allocated(&rank.device, bytes).await.unwrap();
        for _ in 0..items {
            target = stream.copy(item.device_buffer().unwrap(), target).unwrap().done().await.unwrap().1;
        }
        let copy = started.elapsed().as_secs_f64();
        ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (ratio, bare) = ratios[ratios.len() / 2];
        let gigabytes = |seconds: f64| (bytes * items) as f64 / seconds / 1e9;
        if rank.rank == 1 {
            println!(
                "gpu: items of {} MiB: {:.2} of ncclSend and ncclRecv, which move {:.2} GB/s; a copy on the device {:.1} GB/s",
                bytes >> 20,
                ratio,
                gigabytes(bare),
                gigabytes(copy),
            );
            // Fakes have no speed, and a machine that runs them is busy with other tests.
            assert!(on_fakes() || ratio >= 0.95, "{ratio}");
        }
    }
    group.barrier().await.unwrap();
    pipe.close().await.unwrap();
    group.barrier().await.unwrap();
}

/// NCCL without a pipe, with as many calls at a time as a pipe has, into memory that is recycled as its is.
async fn bare(rank: &Rank, raw: &Arc<Communicator>, item: &Tensor, items: usize) {
    let stream = Stream::new(&rank.device).unwrap();
    let pool = DevicePool::new(&rank.device, 512 << 20);
    let mut calls = JoinSet::new();
    for _ in 0..items {
        let (raw, stream, item, pool) = (Arc::clone(raw), stream.clone(), item.clone(), pool.clone());
        calls.spawn(async move {
            let mut group = raw.group();
            match raw.rank() {
                0 => group.send(&item, 1).unwrap(),
                _ => {
                    let to = pool.take_beside(item.byte_len(), usize::MAX).await.unwrap();
                    group.recv_into(to, item.dtype(), *item.shape(), 0).unwrap();
                }
            }
            group.run(&stream).await.unwrap();
        });
        if calls.len() == 16 {
            calls.join_next().await.unwrap().unwrap();
        }
    }
    calls.join_all().await;
}

async fn piped(rank: &Rank, pipe: &Pipe, item: &Tensor, items: usize) {
    match rank.rank {
        0 => {
            for _ in 0..items {
                pipe.send(Some(item.clone())).await.unwrap();
            }
            pipe.flush().await.unwrap();
        }
        _ => {
            for _ in 0..items {
                pipe.recv().await.unwrap();
            }
        }
    }
}

/// Whether this is no GPU.
fn on_fakes() -> bool {
    std::env::var_os(WITHIN).is_some()
}

/// Says that the fakes are in the places of CUDA and NCCL.
const WITHIN: &str = "KVPIPE_GPU_ON_FAKES";

/// The acceptance is not to break while there is no GPU at hand.
#[test]
fn all_of_this_runs_on_the_fakes() {
    if std::env::var_os(CHILD).is_none() {
        run_on_fakes("nccl::", "waits");
    }
}

/// Runs the tests of a module once more, with the fakes in the places of CUDA and NCCL.
pub(crate) fn run_on_fakes(module: &str, cuda_switches: &str) {
    if on_fakes() {
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([module, "--nocapture", "--test-threads=2"])
        .env(WITHIN, "1")
        .env("LD_LIBRARY_PATH", kvpipe_fake_cuda::library_folder().unwrap())
        .env("KVPIPE_FAKE_CUDA", cuda_switches)
        .env("KVPIPE_NCCL_SO_PATH", kvpipe_fake_nccl::library().unwrap())
        .output()
        .unwrap();
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{complained}");
    // Not that a scenario of the suite has no meaning for this wire.
    assert!(!said.contains("is not available"), "{said}");
    said.lines().filter(|line| line.starts_with("gpu: ")).for_each(|line| println!("on the fakes: {line}"));
}

//! Throughput over TCP loopback by item size, beside what a bare socket moves in the same run.
//!
//! The limit is that of `kvpipe bench`, which has its description and its code: the best of several
//! read sizes. Both ends are threads of this process, with a runtime of one thread each. criterion
//! measures one way after the other, so a machine that is busy for a while spoils a ratio;
//! `kvpipe bench` measures them in turns. The last lines are the ratios.

#![allow(missing_docs, reason = "a benchmark")]

#[allow(dead_code, reason = "the command line measures latencies, too")]
#[path = "../src/bin/kvpipe/bench/limit.rs"]
mod limit;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use kvpipe::net::TokioNet;
use kvpipe::store::MemoryStore;
use kvpipe::transport::Ring;
use kvpipe::transport::tcp::{TcpConfig, TcpIncoming, TcpOutgoing};
use kvpipe::{Pipe, PipeConfig, Tensor};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use self::limit::{BareReceiver, BareSender, KEPT_ITEMS, READ_CAPS};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Item sizes in bytes.
const SIZES: [usize; 4] = [64 * KIB, MIB, 4 * MIB, 64 * MIB];

/// Different buffers that are sent in turn.
const SOURCES: u8 = 4;

/// The fastest that a way to move items was, in seconds per item.
struct Fastest(RefCell<f64>);

impl Fastest {
    fn new() -> Self {
        Self(RefCell::new(f64::INFINITY))
    }

    fn note(&self, elapsed: Duration, items: u64) -> Duration {
        let mut fastest = self.0.borrow_mut();
        *fastest = fastest.min(elapsed.as_secs_f64() / items as f64);
        elapsed
    }

    fn gigabytes_per_second(&self, bytes: usize) -> f64 {
        bytes as f64 / *self.0.borrow() / 1e9
    }
}

/// A bare socket whose other end is a thread that receives as it is told: how many items, and the most
/// that one read takes.
struct Bare {
    sender: BareSender,
    receive: Sender<(u64, usize)>,
}

impl Bare {
    fn new(size: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let stream = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        let (accepted, _) = listener.accept().expect("it was connected to");
        let (receive, orders) = mpsc::channel();
        let mut receiver = BareReceiver::new(accepted).expect("a socket takes options");
        let receiving = move || {
            for (items, read_cap) in orders {
                receiver.receive(&[size], items, read_cap).expect("the sender sends all");
            }
        };
        thread::Builder::new().spawn(receiving).expect("a thread");
        Self { sender: BareSender::new(stream).expect("a socket takes options"), receive }
    }

    fn time(&mut self, sources: &[Bytes], items: u64, read_cap: usize) -> Duration {
        self.receive.send((items, read_cap)).expect("the receiver waits");
        let budget = PipeConfig::default().budget_bytes;
        self.sender.send(sources, items, budget).expect("the receiver receives all")
    }
}

/// A pipe whose other end is a thread that takes as many items as it is told, and then says so.
struct Piped {
    runtime: Runtime,
    pipe: Pipe,
    receive: UnboundedSender<u64>,
    received: UnboundedReceiver<()>,
}

impl Piped {
    fn new(checksum: bool) -> Self {
        let config = TcpConfig { checksum, ..TcpConfig::default() };
        let store = MemoryStore::new();
        let (receive, orders) = unbounded_channel();
        let (answers, received) = unbounded_channel();
        let (peer_config, peer_store) = (config.clone(), store.clone());
        let receiving = move || {
            let runtime = current_thread();
            runtime.block_on(receive_as_told(peer_store, peer_config, orders, answers));
        };
        thread::Builder::new().spawn(receiving).expect("a thread");
        let runtime = current_thread();
        let outgoing = TcpOutgoing::new(TokioNet, store, ring(0), config);
        let (pipe, driver) = Pipe::send_only(outgoing, PipeConfig::default());
        runtime.spawn(driver);
        Self { runtime, pipe, receive, received }
    }

    fn time(&mut self, sources: &[Tensor], items: u64) -> Duration {
        self.receive.send(items).expect("the receiver waits");
        self.runtime.block_on(async {
            let begin = Instant::now();
            for (_, tensor) in (0..items).zip(sources.iter().cycle()) {
                self.pipe.send(Some(tensor.clone())).await.expect("the peer takes everything");
            }
            self.received.recv().await.expect("the peer takes everything");
            begin.elapsed()
        })
    }
}

async fn receive_as_told(
    store: MemoryStore,
    config: TcpConfig,
    mut orders: UnboundedReceiver<u64>,
    answers: UnboundedSender<()>,
) {
    let address = "127.0.0.1:0".parse().expect("an address");
    let incoming = TcpIncoming::bind(TokioNet, &store, ring(1), address, config);
    let incoming = incoming.await.expect("a free port");
    let (pipe, driver) = Pipe::receive_only(incoming, PipeConfig::default());
    driver.spawn().expect("there is a runtime");
    let mut kept = VecDeque::new();
    while let Some(items) = orders.recv().await {
        for _ in 0..items {
            if kept.len() == KEPT_ITEMS {
                kept.pop_front();
            }
            kept.push_back(pipe.recv().await.expect("the peer sends everything"));
        }
        answers.send(()).expect("the sender waits");
    }
}

fn ring(rank: usize) -> Ring {
    Ring::new(rank, 2).expect("two ranks")
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// What the table says of a size: bytes, the best bare socket, without and with checksum.
struct Row(usize, f64, [f64; 2]);

fn measure(group: &mut BenchmarkGroup<'_, WallTime>, bytes: usize) -> Row {
    let tensor = |byte| Tensor::from_vec([bytes], vec![byte; bytes]).expect("a tensor");
    let tensors: Vec<Tensor> = (1..=SOURCES).map(tensor).collect();
    let payloads: Vec<Bytes> =
        tensors.iter().map(|tensor| tensor.bytes().expect("in host memory").clone()).collect();
    group.throughput(Throughput::Bytes(bytes as u64));
    let mut bare = Bare::new(bytes);
    let mut limit = 0.0_f64;
    for read_cap in READ_CAPS.into_iter().filter(|&cap| cap < bytes || cap == usize::MAX) {
        let name = match read_cap {
            usize::MAX => "bare_socket".to_owned(),
            cap => format!("bare_socket_{}KiB_reads", cap / KIB),
        };
        let fastest = Fastest::new();
        group.bench_function(BenchmarkId::new(name, bytes), |bencher| {
            bencher.iter_custom(|items| fastest.note(bare.time(&payloads, items, read_cap), items));
        });
        limit = limit.max(fastest.gigabytes_per_second(bytes));
    }
    let ways = [("kvpipe", false), ("kvpipe_with_checksum", true)].map(|(name, checksum)| {
        let (mut piped, fastest) = (Piped::new(checksum), Fastest::new());
        group.bench_function(BenchmarkId::new(name, bytes), |bencher| {
            bencher.iter_custom(|items| fastest.note(piped.time(&tensors, items), items));
        });
        fastest.gigabytes_per_second(bytes)
    });
    Row(bytes, limit, ways)
}

fn main() {
    let mut criterion = Criterion::default()
        .configure_from_args()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    let mut group = criterion.benchmark_group("tcp");
    let table = SIZES.map(|bytes| measure(&mut group, bytes));
    group.finish();

    println!("fastest of each:");
    println!("{:>10} {:>14} {:>22} {:>22}", "item", "bare socket", "kvpipe", "with checksum");
    for Row(bytes, limit, [without, with]) in table {
        println!(
            "{:>6} KiB {limit:>9.2} GB/s {without:>9.2} GB/s ({:>4.0} %) {with:>9.2} GB/s ({:>4.0} %)",
            bytes / KIB,
            100.0 * without / limit,
            100.0 * with / limit
        );
    }
    criterion.final_summary();
}

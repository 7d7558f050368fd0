//! Throughput over TCP loopback by item size, beside what a bare socket moves in the same run.
//!
//! The bare socket is blocking std, one thread writing from one buffer and one reading into one
//! buffer: no framing, no order to keep, no acknowledgement but a byte at the end. The last lines
//! are the ratios.

#![allow(missing_docs, reason = "a benchmark")]
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock, and its bare socket needs a thread"
)]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use kvpipe::net::TokioNet;
use kvpipe::store::MemoryStore;
use kvpipe::transport::Ring;
use kvpipe::transport::tcp::{TcpConfig, TcpIncoming, TcpOutgoing};
use kvpipe::{Item, Pipe, PipeConfig, Tensor};
use tokio::runtime::{Builder, Runtime};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Item sizes in bytes.
const SIZES: [usize; 4] = [64 * KIB, MIB, 16 * MIB, 64 * MIB];

/// Room at each end: a few of the largest items.
const BUFFER_BYTES: usize = 256 * MIB;

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

/// Moves `items` of `bytes` over a bare socket, until the last byte has been read.
fn bare(bytes: usize, items: u64) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the writer connects");
        let mut buffer = vec![0; bytes];
        // One round to fault the pages in; a pool of buffers does the same for the pipe.
        for _ in 0..=items {
            stream.read_exact(&mut buffer).expect("the writer writes all");
            stream.write_all(&[1]).expect("the writer waits for it");
        }
    });
    let mut stream = TcpStream::connect(address).expect("the reader listens");
    stream.set_nodelay(true).expect("an option");
    let mut answers = stream.try_clone().expect("a second handle");
    let buffer = vec![7; bytes];
    stream.write_all(&buffer).expect("the reader reads all");
    answers.read_exact(&mut [0]).expect("the reader answers");

    let begin = Instant::now();
    let counting = std::thread::spawn(move || {
        let mut rest = vec![0; usize::try_from(items).expect("few")];
        answers.read_exact(&mut rest).expect("the reader answers");
    });
    for _ in 0..items {
        stream.write_all(&buffer).expect("the reader reads all");
    }
    counting.join().expect("it has no reason to panic");
    let elapsed = begin.elapsed();
    reader.join().expect("it has no reason to panic");
    elapsed
}

/// A pipe over loopback whose receiver drops what it gets.
fn pipe(runtime: &Runtime, checksum: bool) -> Pipe {
    let _runtime = runtime.enter();
    let config = TcpConfig { checksum, ..TcpConfig::default() };
    let limits = PipeConfig::default().with_buffer_bytes(BUFFER_BYTES);
    let store = MemoryStore::new();
    let ring = |rank| Ring::new(rank, 2).expect("two ranks");
    let address = "127.0.0.1:0".parse().expect("an address");
    let incoming = TcpIncoming::bind(TokioNet, &store, ring(1), address, config.clone());
    let incoming = runtime.block_on(incoming).expect("a free port");
    let (receiver, driver) = Pipe::receive_only(incoming, limits.clone());
    driver.spawn().expect("there is a runtime");
    let (sender, driver) = Pipe::send_only(TcpOutgoing::new(TokioNet, store, ring(0), config), limits);
    driver.spawn().expect("there is a runtime");
    runtime.spawn(async move { while receiver.recv().await.is_ok() {} });
    sender
}

/// Moves `items` through the pipe, until the last one is acknowledged.
async fn through(pipe: &Pipe, item: &Item, items: u64) -> Duration {
    let begin = Instant::now();
    for _ in 0..items {
        pipe.send(item.clone()).await.expect("the peer takes everything");
    }
    pipe.flush().await.expect("the peer acknowledges everything");
    begin.elapsed()
}

fn main() {
    let mut criterion = Criterion::default()
        .configure_from_args()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let mut table = Vec::new();
    let mut group = criterion.benchmark_group("tcp");
    for bytes in SIZES {
        group.throughput(Throughput::Bytes(bytes as u64));
        let limit = Fastest::new();
        group.bench_function(BenchmarkId::new("bare_socket", bytes), |bencher| {
            bencher.iter_custom(|items| limit.note(bare(bytes, items), items));
        });
        let item = Some(Tensor::from_vec([bytes], vec![7_u8; bytes]).expect("a tensor"));
        let ways = [("kvpipe", true), ("kvpipe_without_checksum", false)].map(|(name, checksum)| {
            let (pipe, fastest) = (pipe(&runtime, checksum), Fastest::new());
            group.bench_function(BenchmarkId::new(name, bytes), |bencher| {
                bencher
                    .iter_custom(|items| fastest.note(runtime.block_on(through(&pipe, &item, items)), items));
            });
            fastest
        });
        table.push((bytes, limit, ways));
    }
    group.finish();

    println!("{:>10} {:>14} {:>22} {:>22}", "item", "bare socket", "kvpipe", "without checksum");
    for (bytes, limit, ways) in table {
        let limit = limit.gigabytes_per_second(bytes);
        let [with, without] = ways.map(|way| way.gigabytes_per_second(bytes));
        println!(
            "{:>6} KiB {limit:>9.2} GB/s {with:>9.2} GB/s ({:>4.0} %) {without:>9.2} GB/s ({:>4.0} %)",
            bytes / KIB,
            100.0 * with / limit,
            100.0 * without / limit
        );
    }
    criterion.final_summary();
}

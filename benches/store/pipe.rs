//! The pipe between two processes, with the store in a third, beside other ways to move the same items.

use std::collections::VecDeque;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use kvpipe::net::TokioNet;
use kvpipe::pipe::Driver;
use kvpipe::store::tcp::{ConnectOptions, TcpStore};
use kvpipe::transport::Ring;
use kvpipe::transport::store::{StoreConfig, StoreIncoming, StoreOutgoing};
use kvpipe::transport::tcp::{TcpConfig, TcpIncoming, TcpOutgoing};
use kvpipe::{Pipe, PipeConfig, Tensor};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use self::limit::{BareReceiver, BareSender, KEPT_ITEMS, READ_CAPS};
use crate::process::{Process, python};
use crate::turns::Turns;

#[allow(dead_code, reason = "the command line measures latencies, too")]
#[path = "../../src/bin/kvpipe/bench/limit.rs"]
mod limit;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Sizes of items in bytes, and how many are moved in a turn.
const SIZES: [(usize, u64); 5] = [(64 * KIB, 512), (MIB, 128), (4 * MIB, 48), (16 * MIB, 16), (64 * MIB, 6)];

const TURNS: usize = 5;

/// Different buffers that are sent in turn.
const SOURCES: u8 = 4;

/// Nobody is served between the turns, so nobody must be missed.
const HEARTBEAT: Duration = Duration::from_secs(300);

/// A way to move items to another process.
trait Way {
    fn name(&self) -> &'static str;

    /// The time from the first item's sending until the other process has all.
    fn time(&mut self, tensors: &[Tensor], items: u64) -> Duration;
}

/// A pipe whose sending end is in this process.
struct Piped {
    name: &'static str,
    runtime: Runtime,
    pipe: Pipe,
    /// Only a turn takes it out.
    receiver: Option<Process>,
}

impl Piped {
    fn over_store(address: &str) -> Self {
        Self::new("over the store", address, "store", |store| {
            let config = StoreConfig { heartbeat: HEARTBEAT, ..StoreConfig::default() };
            Pipe::send_only(StoreOutgoing::new(store, ring(0), config), PipeConfig::default())
        })
    }

    fn over_tcp(address: &str) -> Self {
        Self::new("over tcp", address, "tcp", |store| {
            let config = TcpConfig { heartbeat: HEARTBEAT, ..TcpConfig::default() };
            Pipe::send_only(TcpOutgoing::new(TokioNet, store, ring(0), config), PipeConfig::default())
        })
    }

    fn new(
        name: &'static str,
        address: &str,
        transport: &str,
        pipe: impl FnOnce(TcpStore<TokioNet>) -> (Pipe, Driver),
    ) -> Self {
        let receiver = Process::role(&["receive", transport, address]);
        let runtime = current_thread();
        let (pipe, driver) = pipe(runtime.block_on(connect(address)));
        runtime.spawn(driver);
        Self { name, runtime, pipe, receiver: Some(receiver) }
    }
}

impl Way for Piped {
    fn name(&self) -> &'static str {
        self.name
    }

    fn time(&mut self, tensors: &[Tensor], items: u64) -> Duration {
        let mut receiver = self.receiver.take().expect("no turn is going on");
        receiver.order(items);
        let (receiver, time) = self.runtime.block_on(async {
            let begin = Instant::now();
            for (_, tensor) in (0..items).zip(tensors.iter().cycle()) {
                self.pipe.send(Some(tensor.clone())).await.expect("the peer takes everything");
            }
            // The driver goes on meanwhile.
            let answering = tokio::task::spawn_blocking(|| {
                receiver.answer();
                receiver
            });
            let receiver = answering.await.expect("the receiver answers");
            (receiver, begin.elapsed())
        });
        self.receiver = Some(receiver);
        time
    }
}

/// A bare socket that reads so much at a time.
struct Bare {
    sender: BareSender,
    receiver: Process,
    read_cap: usize,
}

impl Bare {
    fn new(read_cap: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let receiver = Process::role(&["receive", "bare", &address]);
        let (stream, _) = listener.accept().expect("the receiver connects");
        Self { sender: BareSender::new(stream).expect("a socket takes options"), receiver, read_cap }
    }
}

impl Way for Bare {
    fn name(&self) -> &'static str {
        "bare socket"
    }

    fn time(&mut self, tensors: &[Tensor], items: u64) -> Duration {
        let payload = |tensor: &Tensor| tensor.bytes().expect("in host memory").clone();
        let payloads: Vec<Bytes> = tensors.iter().map(payload).collect();
        self.receiver.order(format_args!("{items} {} {}", payloads[0].len(), self.read_cap));
        let budget = PipeConfig::default().budget_bytes;
        let time = self.sender.send(&payloads, items, budget).expect("the receiver receives all");
        self.receiver.answer();
        time
    }
}

/// Two processes that do with a CPU tensor what vLLM's pipe does: its metadata and then the tensor, both
/// pickled, under a key each of PyTorch's classic store, which the sender serves; one worker thread at
/// either end.
struct VllmAlike {
    sender: Process,
    receiver: Process,
}

impl VllmAlike {
    const SCRIPT: &str = include_str!("vllm_alike.py");

    fn new() -> Option<Self> {
        let mut sender = Process::start(python(Self::SCRIPT, "vLLM's pipe on a CPU")?.arg("send"));
        let port = sender.answer();
        let receiver = Process::start(python(Self::SCRIPT, "vLLM's pipe on a CPU")?.args(["receive", &port]));
        Some(Self { sender, receiver })
    }
}

impl Way for VllmAlike {
    fn name(&self) -> &'static str {
        "vllm-alike"
    }

    fn time(&mut self, tensors: &[Tensor], items: u64) -> Duration {
        let order = format!("{items} {}", tensors[0].bytes().expect("in host memory").len());
        // The sender has made its tensors.
        self.sender.order(&order);
        self.sender.answer();
        self.receiver.order(&order);
        let begin = Instant::now();
        self.sender.order("go");
        self.receiver.answer();
        let time = begin.elapsed();
        // What vLLM deletes an hour later.
        self.sender.order("expire");
        self.sender.answer();
        time
    }
}

pub(crate) fn measure() {
    let (_store, address) = Process::store();
    let bare = READ_CAPS.map(|read_cap| Box::new(Bare::new(read_cap)) as Box<dyn Way>);
    let mut ways: Vec<Box<dyn Way>> =
        vec![Box::new(Piped::over_store(&address)), Box::new(Piped::over_tcp(&address))];
    ways.extend(VllmAlike::new().map(|way| Box::new(way) as Box<dyn Way>));
    ways.extend(bare);
    println!(
        "\nthe pipe between two processes: GB/s (median of {TURNS} turns); ratios of the store to others"
    );
    for (size, items) in SIZES {
        let tensor = |byte| Tensor::from_vec([size], vec![byte; size]).expect("a tensor");
        let tensors: Vec<Tensor> = (1..=SOURCES).map(tensor).collect();
        let mut turns = vec![Turns::default(); ways.len()];
        for turn in 0..=TURNS {
            for (way, turns) in ways.iter_mut().zip(&mut turns) {
                let speed = (items * size as u64) as f64 / 1e9 / way.time(&tensors, items).as_secs_f64();
                // The first is for buffers and windows to grow.
                if turn > 0 {
                    turns.note(speed);
                }
            }
        }
        // Of the bare sockets the best.
        let mut named: Vec<(&str, Turns)> = Vec::new();
        for (way, turns) in ways.iter().zip(turns) {
            match named.iter_mut().find(|(name, _)| *name == way.name()) {
                Some((_, best)) if best.median() >= turns.median() => {}
                Some((_, best)) => *best = turns,
                None => named.push((way.name(), turns)),
            }
        }
        print!("{:>6} KiB", size / KIB);
        for (name, turns) in &named {
            print!(" | {name} {:>5.2}", turns.median());
            if *name != named[0].0 {
                print!(" {:>18}", named[0].1.over(turns));
            }
        }
        println!();
    }
}

/// The other process: takes so many items for each line that it reads, and says when it has them.
pub(crate) fn receive(arguments: &[String]) {
    let [transport, address] = arguments else { panic!("{arguments:?}") };
    current_thread().block_on(async {
        let mut orders = BufReader::new(tokio::io::stdin()).lines();
        let pipe = match transport.as_str() {
            "bare" => return receive_bare(address, &mut orders).await,
            "store" => {
                let config = StoreConfig { heartbeat: HEARTBEAT, ..StoreConfig::default() };
                let incoming = StoreIncoming::new(connect(address).await, ring(1), config);
                Pipe::receive_only(incoming, PipeConfig::default())
            }
            _ => {
                let config = TcpConfig { heartbeat: HEARTBEAT, ..TcpConfig::default() };
                let any = "127.0.0.1:0".parse().expect("an address");
                let store = connect(address).await;
                let incoming = TcpIncoming::bind(TokioNet, &store, ring(1), any, config).await;
                Pipe::receive_only(incoming.expect("a free port"), PipeConfig::default())
            }
        };
        let (pipe, driver) = pipe;
        tokio::spawn(driver);
        let mut kept = VecDeque::new();
        while let Some(order) = orders.next_line().await.expect("lines") {
            for _ in 0..order.parse().expect("a number of items") {
                if kept.len() == KEPT_ITEMS {
                    kept.pop_front();
                }
                kept.push_back(pipe.recv().await.expect("the peer sends everything"));
            }
            println!("done");
        }
    });
}

async fn receive_bare(address: &str, orders: &mut tokio::io::Lines<BufReader<tokio::io::Stdin>>) {
    let stream = TcpStream::connect(address).expect("the sender listens");
    let mut receiver = BareReceiver::new(stream).expect("a socket takes options");
    while let Some(order) = orders.next_line().await.expect("lines") {
        let numbers: Vec<usize> = order.split(' ').map(|word| word.parse().expect("a number")).collect();
        let [items, size, read_cap] = numbers[..] else { panic!("{order}") };
        receiver.receive(&[size], items as u64, read_cap).expect("the sender sends all");
        println!("done");
    }
}

async fn connect(address: &str) -> TcpStore<TokioNet> {
    let (host, port) = address.rsplit_once(':').expect("an address");
    let port = port.parse().expect("a port");
    TcpStore::connect(TokioNet, host, port, ConnectOptions::default()).await.expect("the store is there")
}

fn ring(rank: usize) -> Ring {
    Ring::new(rank, 2).expect("two ranks")
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

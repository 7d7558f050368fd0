//! The store server beside a bare echo of the same bytes, and beside PyTorch's libuv server where
//! `KVPIPE_TORCH_PYTHON` names a Python with torch: operations per second with 1, 8 and 64 clients, and
//! gigabytes per second of large values, each set and read back.
//!
//! All servers are driven by kvpipe's client from one thread, in turns, so that a machine that is busy
//! for a while spoils all alike; of each the best round counts. Ratios are to the echo.

#![allow(missing_docs, reason = "a benchmark")]

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kvpipe::net::TokioNet;
use kvpipe::store::tcp::protocol::Request;
use kvpipe::store::tcp::{ConnectOptions, TcpStore, TcpStoreServer};
use kvpipe::store::{Limits, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::Instant;

const ROUNDS: usize = 7;
const LONG: Duration = Duration::from_secs(60);

/// Operations in one round, of all clients together.
const OPERATIONS: usize = 6400;

/// Bytes of values in one round.
const LARGE_BYTES: usize = 256 << 20;

/// PyTorch's libuv server takes no more.
const LIBUV_VALUE_BYTES: usize = 8 << 20;

fn main() {
    // Cargo passes `--bench`; `cargo test` does not, and wants to know only that it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = runtime();
    let (echo, ours) = (start(echo), start(ours));
    let torch = Torch::start();
    for clients in [1, 8, 64] {
        for operation in [Operation::Add, Operation::SetGet] {
            let mut best = [f64::INFINITY; 3];
            for _ in 0..ROUNDS {
                note(&mut best[0], runtime.block_on(small_echo(echo, operation, clients)));
                note(&mut best[1], runtime.block_on(small(ours, operation, clients)));
                if let Some(torch) = &torch {
                    note(&mut best[2], runtime.block_on(small(torch.address, operation, clients)));
                }
            }
            report(&format!("{operation:?}, {clients} clients"), "op/s", best.map(|best| 1.0 / best));
        }
    }
    for size in [64 << 10, 1 << 20, 8 << 20, 64 << 20] {
        let mut best = [f64::INFINITY; 3];
        for _ in 0..ROUNDS {
            note(&mut best[0], runtime.block_on(large_echo(echo, size)));
            note(&mut best[1], runtime.block_on(large(ours, size)));
            if let Some(torch) = torch.as_ref().filter(|_| size <= LIBUV_VALUE_BYTES) {
                note(&mut best[2], runtime.block_on(large(torch.address, size)));
            }
        }
        report(&format!("set+get of {} KiB", size >> 10), "GB/s", best.map(|best| 1.0 / best));
    }
}

fn note(best: &mut f64, seconds: f64) {
    *best = best.min(seconds);
}

fn report(what: &str, unit: &str, [echo, ours, torch]: [f64; 3]) {
    let digits = if unit == "GB/s" { 2 } else { 0 };
    print!("{what:24} echo {echo:.digits$} {unit}, kvpipe {ours:.digits$} ({:.2})", ours / echo);
    match torch {
        0.0 => println!(),
        torch => println!(", torch libuv {torch:.digits$} ({:.2})", torch / echo),
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// A server on a thread of its own, until the process ends.
fn start<F: Future<Output = ()> + 'static>(serve: fn(std::net::TcpListener) -> F) -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.set_nonblocking(true).expect("a socket takes options");
    let address = listener.local_addr().expect("it is bound");
    #[allow(clippy::disallowed_methods, reason = "no loom here")]
    std::thread::spawn(move || runtime().block_on(serve(listener)));
    address
}

async fn ours(listener: std::net::TcpListener) {
    let listener = TcpListener::from_std(listener).expect("it listens");
    let _server = TcpStoreServer::serve(listener, Limits::default()).expect("it has an address");
    std::future::pending().await
}

/// Of every connection: a header that says how many exchanges there are and how many bytes they have
/// there and back, then these exchanges in turn.
async fn echo(listener: std::net::TcpListener) {
    let listener = TcpListener::from_std(listener).expect("it listens");
    while let Ok((mut stream, _)) = listener.accept().await {
        stream.set_nodelay(true).expect("a socket takes options");
        tokio::spawn(async move {
            let mut exchanges = Vec::new();
            for _ in 0..stream.read_u64().await? {
                let mut bytes = async || stream.read_u64().await.map(|count| vec![0; count as usize]);
                exchanges.push([bytes().await?, bytes().await?]);
            }
            loop {
                for [request, reply] in &mut exchanges {
                    stream.read_exact(request).await?;
                    stream.write_all(reply).await?;
                }
            }
            #[allow(unreachable_code, reason = "the type of the errors above")]
            std::io::Result::Ok(())
        });
    }
}

/// A connection, and the buffers of its exchanges.
async fn echo_client(address: SocketAddr, exchanges: &[[usize; 2]]) -> (TcpStream, Vec<[Vec<u8>; 2]>) {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.set_nodelay(true).expect("a socket takes options");
    stream.write_u64(exchanges.len() as u64).await.expect("it reads");
    for bytes in exchanges.as_flattened() {
        stream.write_u64(*bytes as u64).await.expect("it reads");
    }
    (stream, exchanges.iter().map(|exchange| exchange.map(|bytes| vec![1; bytes])).collect())
}

async fn exchange(stream: &mut TcpStream, request: &[u8], reply: &mut [u8]) {
    stream.write_all(request).await.expect("it reads");
    stream.read_exact(reply).await.expect("it answers");
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Add,
    SetGet,
}

const VALUE: Bytes = Bytes::from_static(&[7; 64]);

impl Operation {
    /// The exchanges that it is made of: bytes there and back.
    fn exchanges(self) -> Vec<[usize; 2]> {
        let bytes = |requests: &[Request]| {
            let mut bytes = BytesMut::new();
            requests.iter().for_each(|request| request.encode(&mut bytes));
            bytes.len()
        };
        let key = || Bytes::from_static(b"/key/12");
        match self {
            Self::Add => vec![[bytes(&[Request::Add { key: key(), delta: 1 }]), 8]],
            Self::SetGet => vec![
                [bytes(&[Request::Set { key: key(), value: VALUE }, Request::Ping { nonce: 0 }]), 4],
                [bytes(&[Request::Wait { keys: vec![key()] }]), 1],
                [bytes(&[Request::Get { key: key() }]), 8 + VALUE.len()],
            ],
        }
    }

    async fn perform(self, store: &TcpStore<TokioNet>, key: &str) {
        match self {
            Self::Add => drop(store.add(key, 1, LONG).await.expect("it counts")),
            Self::SetGet => {
                store.set(key, VALUE, LONG).await.expect("it stores");
                assert_eq!(store.get(key, LONG).await.expect("it is there"), VALUE);
            }
        }
    }
}

async fn connect(address: SocketAddr) -> TcpStore<TokioNet> {
    let host = address.ip().to_string();
    let options = ConnectOptions::default();
    TcpStore::connect(TokioNet, &host, address.port(), options).await.expect("it answers")
}

/// Seconds for an operation.
async fn small(address: SocketAddr, operation: Operation, clients: usize) -> f64 {
    let mut stores = Vec::new();
    for _ in 0..clients {
        stores.push(connect(address).await);
    }
    let (mut tasks, began) = (JoinSet::new(), Instant::now());
    for (client, store) in stores.into_iter().enumerate() {
        tasks.spawn(async move {
            let key = format!("{operation:?}/{client}");
            for _ in 0..OPERATIONS / clients {
                operation.perform(&store, &key).await;
            }
        });
    }
    tasks.join_all().await;
    began.elapsed().as_secs_f64() / OPERATIONS as f64
}

/// The same bytes, without a store.
async fn small_echo(address: SocketAddr, operation: Operation, clients: usize) -> f64 {
    let mut streams = Vec::new();
    for _ in 0..clients {
        streams.push(echo_client(address, &operation.exchanges()).await);
    }
    let (mut tasks, began) = (JoinSet::new(), Instant::now());
    for (mut stream, mut exchanges) in streams {
        tasks.spawn(async move {
            for _ in 0..OPERATIONS / clients {
                for [request, reply] in &mut exchanges {
                    exchange(&mut stream, request, reply).await;
                }
            }
        });
    }
    tasks.join_all().await;
    began.elapsed().as_secs_f64() / OPERATIONS as f64
}

/// Seconds for a gigabyte that is set and read back, which is counted once.
async fn large(address: SocketAddr, size: usize) -> f64 {
    let store = connect(address).await;
    let value = Bytes::from(vec![7; size]);
    let (count, began) = (LARGE_BYTES / size, Instant::now());
    for _ in 0..count {
        store.set("large", value.clone(), LONG).await.expect("it stores");
        assert_eq!(store.get("large", LONG).await.expect("it is there").len(), size);
    }
    began.elapsed().as_secs_f64() / (count * size) as f64 * 1e9
}

async fn large_echo(address: SocketAddr, size: usize) -> f64 {
    let (mut stream, mut exchanges) = echo_client(address, &[[size; 2]]).await;
    let (count, began) = (LARGE_BYTES / size, Instant::now());
    for _ in 0..count {
        let [request, reply] = &mut exchanges[0];
        exchange(&mut stream, request, reply).await;
    }
    began.elapsed().as_secs_f64() / (count * size) as f64 * 1e9
}

/// PyTorch's server, in a process of its own, until dropped.
struct Torch {
    address: SocketAddr,
    process: Child,
}

const SCRIPT: &str = "
import sys
from torch.distributed import TCPStore
store = TCPStore('127.0.0.1', 0, is_master=True, use_libuv=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
";

impl Torch {
    fn start() -> Option<Self> {
        let python = std::env::var_os("KVPIPE_TORCH_PYTHON")?;
        let mut command = Command::new(python);
        let piped = command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = piped.spawn().expect("it is a python");
        let mut port = String::new();
        BufReader::new(process.stdout.take()?).read_line(&mut port).expect("it prints its port");
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.trim().parse().expect("a port"));
        Some(Self { address, process })
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // It ends by itself at the end of its input; this is for one that hangs.
        let _killed = self.process.kill();
        let _status = self.process.wait();
    }
}

//! Servers of a store, driven by the same clients.

use std::cell::Cell;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kvpipe::net::TokioNet;
use kvpipe::store::Store;
use kvpipe::store::tcp::protocol::Request;
use kvpipe::store::tcp::{ConnectOptions, TcpStore};
use tokio::runtime::Builder;
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::bare::{BareClient, Exchange};
use crate::process::{Process, python};
use crate::turns::Turns;

const CLIENTS: [usize; 3] = [1, 8, 64];
const TURNS: usize = 7;
const TURN: Duration = Duration::from_millis(150);
const LONG: Duration = Duration::from_secs(60);

/// Exchanges are counted by the round: a `set` and a `get` of the same key, or an `add`.
#[derive(Clone, Copy)]
enum Operation {
    SetGet(usize),
    Add,
}

impl Operation {
    fn name(self) -> String {
        match self {
            Self::SetGet(bytes) if bytes < 1 << 10 => format!("set+get {bytes} B"),
            Self::SetGet(bytes) => format!("set+get {} KiB", bytes >> 10),
            Self::Add => "add".into(),
        }
    }

    /// As kvpipe's client does it: PING goes with SET, and GET follows WAIT's answer.
    fn exchanges(self, client: usize) -> Vec<Exchange> {
        let key = Bytes::from(format!("/{}/{client}", self.name()));
        let of = |requests: &[Request], reply_bytes| {
            let mut bytes = BytesMut::new();
            requests.iter().for_each(|request| request.encode(&mut bytes));
            Exchange { request: bytes.freeze(), reply_bytes }
        };
        match self {
            Self::Add => vec![of(&[Request::Add { key, delta: 1 }], 8)],
            Self::SetGet(bytes) => vec![
                of(
                    &[
                        Request::Set { key: key.clone(), value: vec![7; bytes].into() },
                        Request::Ping { nonce: 7 },
                    ],
                    4,
                ),
                of(&[Request::Wait { keys: vec![key.clone()] }], 1),
                of(&[Request::Get { key }], 8 + bytes),
            ],
        }
    }

    async fn by_client(self, store: &TcpStore<TokioNet>, key: &str, value: &Bytes) {
        match self {
            Self::Add => {
                store.add(key, 1, LONG).await.expect("the store adds");
            }
            Self::SetGet(bytes) => {
                store.set(key, value.clone(), LONG).await.expect("the store takes it");
                assert_eq!(store.get(key, LONG).await.expect("it is there").len(), bytes);
            }
        }
    }
}

/// A server in a process of its own.
struct Server {
    name: &'static str,
    address: String,
    is_store: bool,
    _process: Process,
}

const TORCH: &str = r#"
import sys
from datetime import timedelta
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, is_master=True, use_libuv=sys.argv[1] == "libuv",
                 timeout=timedelta(seconds=60), wait_for_workers=False)
print(f"127.0.0.1:{store.port}", flush=True)
sys.stdin.read()
"#;

fn servers() -> Vec<Server> {
    let mut echo = Process::role(&["echo"]);
    let address = echo.answer();
    let mut servers = vec![Server { name: "bare", address, is_store: false, _process: echo }];
    let (process, address) = Process::store();
    servers.push(Server { name: "kvpipe", address, is_store: true, _process: process });
    for name in ["libuv", "classic"] {
        let Some(mut command) = python(TORCH, "PyTorch's server") else { break };
        let mut process = Process::start(command.arg(name));
        let address = process.answer();
        servers.push(Server { name, address, is_store: true, _process: process });
    }
    servers
}

/// Rounds a second of so many clients, each a task of one thread, for about `for_long`.
async fn bare_rounds(server: &Server, operation: Operation, clients: usize, for_long: Duration) -> f64 {
    let mut connected = Vec::new();
    for client in 0..clients {
        let exchanges = operation.exchanges(client);
        connected.push(if server.is_store {
            BareClient::of_store(&server.address, exchanges).await
        } else {
            BareClient::of_echo(&server.address, exchanges).await
        });
    }
    rounds(connected, for_long, async |client: &mut BareClient| client.round().await).await
}

/// The same with kvpipe's client.
async fn client_rounds(server: &Server, operation: Operation, clients: usize, for_long: Duration) -> f64 {
    let (host, port) = server.address.rsplit_once(':').expect("an address");
    let bytes = if let Operation::SetGet(bytes) = operation { bytes } else { 0 };
    let value = Bytes::from(vec![7; bytes]);
    let mut connected = Vec::new();
    for client in 0..clients {
        let port = port.parse().expect("a port");
        let store = TcpStore::connect(TokioNet, host, port, ConnectOptions::default()).await;
        connected.push((
            store.expect("the server is there"),
            format!("{}/{client}", operation.name()),
            value.clone(),
        ));
    }
    rounds(connected, for_long, async move |(store, key, value): &mut (TcpStore<TokioNet>, String, Bytes)| {
        operation.by_client(store, key, value).await;
    })
    .await
}

async fn rounds<C: 'static>(
    connected: Vec<C>,
    for_long: Duration,
    round: impl AsyncFn(&mut C) + Clone + 'static,
) -> f64 {
    let local = LocalSet::new();
    let begin = Instant::now();
    let tasks: Vec<_> = connected
        .into_iter()
        .map(|mut client| {
            let round = round.clone();
            local.spawn_local(async move {
                let count = Cell::new(0_u64);
                while begin.elapsed() < for_long {
                    round(&mut client).await;
                    count.set(count.get() + 1);
                }
                count.get()
            })
        })
        .collect();
    local
        .run_until(async {
            let mut count = 0;
            for task in tasks {
                count += task.await.expect("a client does not panic");
            }
            count as f64 / begin.elapsed().as_secs_f64()
        })
        .await
}

pub(crate) fn measure() {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let servers = servers();
    println!("\nthe server: rounds a second (median of {TURNS} turns); ratios of kvpipe to others");
    for by_client in [false, true] {
        println!("\n{}", if by_client { "kvpipe's client" } else { "bare sockets" });
        let driven: Vec<&Server> = servers.iter().filter(|server| server.is_store || !by_client).collect();
        for operation in [Operation::SetGet(64), Operation::SetGet(1 << 20), Operation::Add] {
            for clients in CLIENTS {
                let mut turns = vec![Turns::default(); driven.len()];
                for _ in 0..TURNS {
                    for (server, turns) in driven.iter().zip(&mut turns) {
                        let rounds = match by_client {
                            false => runtime.block_on(bare_rounds(server, operation, clients, TURN)),
                            true => runtime.block_on(client_rounds(server, operation, clients, TURN)),
                        };
                        turns.note(rounds);
                    }
                }
                print_row(&format!("{:>16} {clients:>3}", operation.name()), &driven, &turns);
            }
        }
    }
}

fn print_row(name: &str, servers: &[&Server], turns: &[Turns]) {
    print!("{name}");
    let ours = servers.iter().zip(turns).find(|(server, _)| server.name == "kvpipe");
    for (server, theirs) in servers.iter().zip(turns) {
        print!(" | {} {:>7.0}", server.name, theirs.median());
        if let Some((ours, our_turns)) = ours
            && ours.name != server.name
        {
            print!(" {:>18}", our_turns.over(theirs));
        }
    }
    println!();
}

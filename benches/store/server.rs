//! Servers of a store, driven by the same clients.

use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kvpipe::net::TokioNet;
use kvpipe::store::Store;
use kvpipe::store::tcp::protocol::Request;
use kvpipe::store::tcp::{ConnectOptions, TcpStore};
use tokio::runtime::Builder;
use tokio::task::{JoinHandle, LocalSet};
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

/// Clients of one server, connected; between turns they stay so, because what it costs to connect is not
/// what is measured.
enum Clients {
    Bare(Vec<BareClient>),
    Kvpipe(Vec<(TcpStore<TokioNet>, String)>),
}

impl Clients {
    async fn bare(server: &Server, operation: Operation, count: usize) -> Self {
        let mut clients = Vec::new();
        for client in 0..count {
            let exchanges = operation.exchanges(client);
            clients.push(if server.is_store {
                BareClient::of_store(&server.address, exchanges).await
            } else {
                BareClient::of_echo(&server.address, exchanges).await
            });
        }
        Self::Bare(clients)
    }

    async fn kvpipe(server: &Server, operation: Operation, count: usize) -> Self {
        let (host, port) = server.address.rsplit_once(':').expect("an address");
        let mut clients = Vec::new();
        for client in 0..count {
            let port = port.parse().expect("a port");
            let store = TcpStore::connect(TokioNet, host, port, ConnectOptions::default()).await;
            clients.push((store.expect("the server is there"), format!("{}/{client}", operation.name())));
        }
        Self::Kvpipe(clients)
    }

    /// Rounds a second, for about a turn.
    async fn turn(&mut self, operation: Operation) -> f64 {
        match self {
            Self::Bare(clients) => {
                rounds(clients, async |client: &mut BareClient| client.round().await).await
            }
            Self::Kvpipe(clients) => {
                let bytes = if let Operation::SetGet(bytes) = operation { bytes } else { 0 };
                let value = Bytes::from(vec![7; bytes]);
                let round = async move |(store, key): &mut (TcpStore<TokioNet>, String)| {
                    operation.by_client(store, key, &value).await;
                };
                rounds(clients, round).await
            }
        }
    }
}

/// Each client makes one round after another, a task each, all on this thread.
async fn rounds<C: 'static>(clients: &mut Vec<C>, round: impl AsyncFn(&mut C) + 'static) -> f64 {
    let (local, round, begin) = (LocalSet::new(), Rc::new(round), Instant::now());
    let working = |mut client: C| {
        let round = Rc::clone(&round);
        local.spawn_local(async move {
            let mut count = 0;
            while begin.elapsed() < TURN {
                round(&mut client).await;
                count += 1;
            }
            (client, count)
        })
    };
    let tasks: Vec<JoinHandle<(C, u32)>> = clients.drain(..).map(working).collect();
    let mut rounds = 0;
    local
        .run_until(async {
            for task in tasks {
                let (client, count) = task.await.expect("a client does not panic");
                clients.push(client);
                rounds += count;
            }
        })
        .await;
    f64::from(rounds) / begin.elapsed().as_secs_f64()
}

pub(crate) fn measure() {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let servers = servers();
    println!("\nthe server: rounds a second (median of {TURNS} turns); ratios of kvpipe to others");
    for by_client in [false, true] {
        println!("\n{}", if by_client { "kvpipe's client" } else { "bare sockets" });
        let driven: Vec<&Server> = servers.iter().filter(|server| server.is_store || !by_client).collect();
        for operation in [Operation::SetGet(64), Operation::SetGet(1 << 20), Operation::Add] {
            for count in CLIENTS {
                let mut clients = Vec::new();
                for server in &driven {
                    clients.push(runtime.block_on(async {
                        match by_client {
                            false => Clients::bare(server, operation, count).await,
                            true => Clients::kvpipe(server, operation, count).await,
                        }
                    }));
                }
                let mut turns = vec![Turns::default(); driven.len()];
                for _ in 0..TURNS {
                    for (clients, turns) in clients.iter_mut().zip(&mut turns) {
                        turns.note(runtime.block_on(clients.turn(operation)));
                    }
                }
                print_row(&format!("{:>16} {count:>3}", operation.name()), &driven, &turns);
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

//! Everything at once: a thousand idle clients and ten hostile ones, on a server in a process of its
//! own, whose memory is measured while good clients go on.

use std::net::SocketAddr;
use std::process::Stdio;

use bytes::Bytes;
use kvpipe::store::tcp::protocol::{MAGIC, Request};
use kvpipe::store::{Limits, Store};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::support::{Raw, connect, encoded, in_time, server_with};

const MIB: usize = 1 << 20;
const IDLE: usize = 1000;

/// Of the server. All that the hostile clients send is several times as much.
fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.value_bytes = 8 * MIB;
    limits.stored_keys = 40_000;
    limits.stored_bytes = 48 * MIB;
    limits.clients = 2000;
    limits.unfinished_bytes = 32 * MIB;
    limits.outbound_bytes = 64 << 10;
    limits
}

/// What the process may have resident at most, by what [`Limits`] says, and what it is to be measured
/// against.
fn resident_bytes_max(before: usize) -> usize {
    /// An entry of an ordered map, and its allocations.
    const KEY: usize = 256;
    /// Of a connection: its task and what it reads into.
    const CONNECTION: usize = 24 << 10;
    /// Connections that the hostile have at a time, at most.
    const HOSTILE_CONNECTIONS: usize = 32;
    let limits = limits();
    // Replies that are not values of the store are copies: the list of all keys is one of them.
    let reply = limits.outbound_bytes + limits.stored_keys * 64;
    let held = limits.stored_bytes + limits.stored_keys * KEY + limits.unfinished_bytes;
    // The allocator keeps some of what was freed.
    let slack = held / 4;
    before + held + slack + (IDLE + HOSTILE_CONNECTIONS) * CONNECTION + HOSTILE_CONNECTIONS * reply
}

const ROLE: &str = "KVPIPE_TEST_ROLE";

/// Not a test, but what the processes of [`others_go_on_and_the_memory_stays_within_the_limits`] run.
#[test]
fn a_process_of_its_own() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (_server, _idle);
        if let Some(address) = role.strip_prefix("idle ") {
            let address = address.parse().unwrap();
            let mut idle = Vec::new();
            for index in 0..IDLE {
                // Some have said who they are, and some nothing.
                let connecting = async {
                    if index % 2 == 0 { Raw::connect(address).await } else { Raw::validated(address).await }
                };
                idle.push(connecting.await);
            }
            _idle = idle;
            println!("\nready: ");
        } else {
            let server = server_with(limits()).await;
            println!("\nready: {}", server.local_addr());
            _server = server;
        }
        // Until the test ends.
        let _ = tokio::io::stdin().read(&mut [0]).await;
    });
}

struct Process {
    child: Child,
    _input: ChildStdin,
    _output: Lines<BufReader<ChildStdout>>,
    /// What it said when it was ready.
    said: String,
}

impl Process {
    async fn start(role: &str) -> Self {
        let mut command = Command::new("sh");
        // More than a thousand connections are more files than many systems give at first.
        command.args(["-c", "ulimit -n 4096; exec \"$0\" \"$@\""]).arg(std::env::current_exe().unwrap());
        command.args(["hostile::onslaught::a_process_of_its_own", "--exact", "--nocapture"]);
        command.env(ROLE, role).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = in_time(async {
            loop {
                let line = output.next_line().await.unwrap().expect("it has ended");
                if let Some(said) = line.strip_prefix("ready: ") {
                    return said.to_owned();
                }
            }
        })
        .await;
        Self { child, _input: input, _output: output, said }
    }

    /// The most bytes that it had resident so far (proc(5): VmHWM).
    fn peak_bytes(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }
}

/// Sends all of it, or what the server takes before it closes, says so, and stays connected until
/// `over`.
async fn press(
    address: SocketAddr,
    bytes: Vec<Bytes>,
    pressed: oneshot::Sender<()>,
    over: oneshot::Receiver<()>,
) {
    let pressing = async {
        let mut client = TcpStream::connect(address).await?;
        client.write_all(&encoded(&[Request::Validate { magic: MAGIC }])).await?;
        for bytes in bytes {
            client.write_all(&bytes).await?;
        }
        std::io::Result::Ok(client)
    };
    // If it failed, the server has closed it.
    let stay = async {
        let _client = pressing.await;
        let _ = pressed.send(());
        std::future::pending().await
    };
    tokio::select! { biased; _ = over => {}, () = stay => {} }
}

fn one(request: Request) -> Bytes {
    encoded(&[request]).freeze()
}

fn times(request: Request, count: usize) -> Vec<Bytes> {
    vec![one(request); count]
}

fn megabyte() -> Bytes {
    vec![7; MIB].into()
}

/// What a hostile client does.
struct Hostile {
    /// The server reads it all, or closes; another it does not read from until replies are read.
    is_read: bool,
    /// What it sends, by connection.
    sends: Vec<Vec<Bytes>>,
}

fn ten_hostile() -> [Hostile; 10] {
    let read = |sends| Hostile { is_read: true, sends };
    let unread = |sends| Hostile { is_read: false, sends };
    let numbered = |name: &str, number: usize| Bytes::from(format!("/{name}/{number}"));
    let never = |wait: usize| (0..128 << 10).map(|key| numbered(&format!("never/{wait}"), key)).collect();
    let longest_wait = |wait: usize| vec![one(Request::Wait { keys: never(wait) })];
    let multi_set = |batch: usize| {
        let pairs = (0..16).map(|pair| (numbered("flood", batch * 16 + pair), vec![7; 64 << 10].into()));
        one(Request::MultiSet { pairs: pairs.collect() })
    };
    let tiny = |number| one(Request::Set { key: numbered("tiny", number), value: "v".into() });
    let set = |value_bytes| one(Request::Set { key: "/set".into(), value: vec![7; value_bytes].into() });
    let get = || times(Request::Get { key: "/large".into() }, 100);
    [
        read(vec![times(Request::QueuePush { key: "/q".into(), value: megabyte() }, 128)]),
        read(vec![(0..128).map(multi_set).collect()]),
        read(vec![(0..30_000).map(tiny).collect()]),
        read(vec![times(Request::Append { key: "/log".into(), value: megabyte() }, 64)]),
        read((0..4).map(longest_wait).collect()),
        read(vec![vec![set(8 * MIB).slice(..7 * MIB)]; 8]),
        read(vec![set(1000).chunks(1).map(Bytes::copy_from_slice).collect()]),
        unread(vec![get(), get(), get()]),
        unread(vec![times(Request::ListKeys, 1000)]),
        unread(vec![times(Request::Ping { nonce: 1 }, 300_000)]),
    ]
}

/// A fixed amount of work that needs no more room in the store.
async fn good_work(address: SocketAddr, client: usize) {
    let store = connect(address).await;
    let (value, count) = (format!("good/{client}"), format!("count/{client}"));
    for round in 0..300 {
        let text = Bytes::from(format!("{round:08}"));
        let long = std::time::Duration::from_secs(60);
        store.set(&value, text.clone(), long).await.unwrap();
        assert_eq!(store.get(&value, long).await.unwrap(), text);
        assert_eq!(store.add(&count, 1, long).await.unwrap(), 1001 + round);
        assert!(store.check(&[&value, &count], long).await.unwrap());
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_go_on_and_the_memory_stays_within_the_limits() {
    const GOOD: usize = 4;
    let server = Process::start("server").await;
    let address: SocketAddr = server.said.parse().unwrap();
    let before = server.peak_bytes();
    let store = connect(address).await;
    let long = std::time::Duration::from_secs(60);
    store.set("large", vec![7; 8 * MIB].into(), long).await.unwrap();
    for client in 0..GOOD {
        store.set(&format!("good/{client}"), vec![b'0'; 8].into(), long).await.unwrap();
        store.add(&format!("count/{client}"), 1000, long).await.unwrap();
    }
    let _idle = Process::start(&format!("idle {address}")).await;

    let mut pressing = JoinSet::new();
    let (mut overs, mut read, mut sent) = (Vec::new(), Vec::new(), 0);
    for Hostile { is_read, sends } in ten_hostile() {
        for bytes in sends {
            sent += bytes.iter().map(Bytes::len).sum::<usize>();
            let ((has_pressed, pressed), (over, is_over)) = (oneshot::channel(), oneshot::channel());
            pressing.spawn(press(address, bytes, has_pressed, is_over));
            overs.push(over);
            read.extend(is_read.then_some(pressed));
        }
    }
    let mut good = JoinSet::new();
    for client in 0..GOOD {
        good.spawn(good_work(address, client));
    }
    while let Some(done) = in_time(good.join_next()).await {
        done.unwrap();
    }
    for pressed in read {
        in_time(pressed).await.unwrap();
    }
    drop(overs);
    in_time(pressing.join_all()).await;
    let (peak, limit) = (server.peak_bytes(), resident_bytes_max(before));
    println!(
        "{} MiB sent; {} MiB resident, limit {} MiB, {} MiB at first",
        sent / MIB,
        peak / MIB,
        limit / MIB,
        before / MIB
    );
    assert!(peak <= limit, "{peak} bytes were resident, over {limit}");
    good_work_once_more(&store).await;
}

async fn good_work_once_more(store: &impl Store) {
    let long = std::time::Duration::from_secs(60);
    assert_eq!(store.get("good/0", long).await.unwrap(), "00000299");
    assert_eq!(store.get("large", long).await.unwrap().len(), 8 * MIB);
}

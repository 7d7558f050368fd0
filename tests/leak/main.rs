//! Nothing grows: not with the items that pass, and not with the connections that break. In a binary
//! of its own, because memory and descriptors are counted by process; one test at a time.

#![allow(missing_docs, reason = "a test binary")]

#[path = "../tcp/proxy.rs"]
#[allow(dead_code, reason = "the tcp tests use the rest of it")]
mod proxy;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kvpipe::net::TokioNet;
use kvpipe::store::MemoryStore;
use kvpipe::transport::Ring;
use kvpipe::transport::tcp::{TcpConfig, TcpIncoming, TcpOutgoing};
use kvpipe::{Item, Pipe, PipeConfig, Tensor};
use proxy::{End, Proxy};

/// Runs a test, and its runtime, while no other runs.
fn alone(test: impl Future<Output = ()>) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

/// What the process has of the things that leak.
#[derive(Clone, Copy, Debug)]
struct Usage {
    resident_bytes: u64,
    descriptors: usize,
    tasks: usize,
}

impl Usage {
    /// None where there is no /proc.
    fn now() -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kilobytes: u64 = resident.trim().strip_suffix(" kB")?.parse().ok()?;
        let descriptors = std::fs::read_dir("/proc/self/fd").ok()?.count();
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        Some(Self { resident_bytes: kilobytes << 10, descriptors, tasks })
    }

    /// As now, once whatever is still ending has ended.
    async fn settled_to(before: Self) -> Self {
        let settling = async {
            loop {
                let now = Self::now().unwrap();
                if now.tasks <= before.tasks && now.descriptors <= before.descriptors {
                    return now;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let settled = tokio::time::timeout(Duration::from_secs(20), settling).await;
        settled.unwrap_or_else(|_| Self::now().unwrap())
    }

    #[track_caller]
    fn is_no_more_than(&self, before: Self, growth_bytes_max: u64) {
        println!("{before:?} before, {self:?} after");
        assert!(self.tasks <= before.tasks && self.descriptors <= before.descriptors);
        let growth = self.resident_bytes.saturating_sub(before.resident_bytes);
        assert!(growth <= growth_bytes_max, "{growth} bytes more");
    }
}

fn skipped() {
    println!("skipped: there is no /proc here to count by");
}

/// Two ranks and the link between them.
struct World {
    sender: Pipe,
    proxy: Proxy,
    receiver: Pipe,
}

impl World {
    async fn new() -> Self {
        let store = MemoryStore::new();
        let config = TcpConfig { connect_timeout: Duration::from_secs(60), ..TcpConfig::default() };
        let (ring, address) = (|rank| Ring::new(rank, 2).unwrap(), "127.0.0.1:0".parse().unwrap());
        let incoming = TcpIncoming::bind(TokioNet, &store, ring(1), address, config.clone()).await.unwrap();
        let proxy = Proxy::before(incoming.local_addr(), &store).await;
        let outgoing = TcpOutgoing::new(TokioNet, store, ring(0), config);
        let limits = PipeConfig::default().with_buffer_bytes(1 << 20);
        let (receiver, receiving) = Pipe::receive_only(incoming, limits.clone());
        let (sender, sending) = Pipe::send_only(outgoing, limits);
        receiving.spawn().unwrap();
        sending.spawn().unwrap();
        Self { sender, proxy, receiver }
    }

    /// Sends so many of the items, again and again, and takes them.
    async fn pass(&self, items: &[Item], count: usize) {
        let sending = async {
            for item in items.iter().cycle().take(count) {
                self.sender.send(item.clone()).await.unwrap();
            }
            self.sender.flush().await.unwrap();
        };
        let receiving = async {
            for item in items.iter().cycle().take(count) {
                assert!(&self.receiver.recv().await.unwrap() == item);
            }
        };
        tokio::join!(sending, receiving);
    }

    /// Breaks the connection so many times, with an item on each.
    async fn reconnect(&self, items: &[Item], times: u64) {
        for _ in 0..times {
            let connections = self.proxy.connections();
            self.proxy.end(End::Reset);
            while self.proxy.connections() == connections {
                self.pass(items, 1).await;
            }
        }
    }
}

/// Of the kinds that are handled differently.
fn items() -> Vec<Item> {
    let tensor = |bytes: usize| Some(Tensor::from_vec([bytes], vec![7_u8; bytes]).unwrap());
    let mut items: Vec<_> = (0..50).map(|bytes| if bytes % 5 == 0 { None } else { tensor(bytes) }).collect();
    items.push(tensor(20_000));
    items
}

#[test]
fn a_hundred_thousand_items_leave_nothing_behind() {
    alone(async {
        let world = World::new().await;
        let items = items();
        world.pass(&items, 20_000).await;
        let Some(before) = Usage::now() else { return skipped() };
        world.pass(&items, 100_000).await;
        // Forty bytes an item.
        Usage::settled_to(before).await.is_no_more_than(before, 4 << 20);
    });
}

#[test]
fn a_thousand_reconnections_leave_nothing_behind() {
    alone(async {
        let world = World::new().await;
        let items = items();
        world.pass(&items, 100).await;
        world.reconnect(&items, 100).await;
        world.pass(&items, 100).await;
        let Some(before) = Usage::now() else { return skipped() };
        world.reconnect(&items, 1000).await;
        world.pass(&items, 100).await;
        // Two kilobytes a connection.
        Usage::settled_to(before).await.is_no_more_than(before, 2 << 20);
    });
}

#[test]
fn pipes_that_come_and_go_leave_nothing_behind() {
    alone(async {
        let items = items();
        let come_and_go = async |times| {
            for _ in 0..times {
                let world = World::new().await;
                world.pass(&items, 60).await;
                let (closed, end) = tokio::join!(world.sender.close(), world.receiver.recv());
                closed.unwrap();
                assert!(end.unwrap_err().is_closed());
            }
        };
        come_and_go(50).await;
        let Some(before) = Usage::now() else { return skipped() };
        come_and_go(300).await;
        // Seven kilobytes a pipe.
        Usage::settled_to(before).await.is_no_more_than(before, 2 << 20);
    });
}

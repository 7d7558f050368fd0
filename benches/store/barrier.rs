//! Barriers of ranks that are all in one process, with one connection each to a server there.

use std::sync::Arc;
use std::time::Duration;

use kvpipe::group::{GroupConfig, StatelessProcessGroup, WireMode};
use kvpipe::net::TokioNet;
use kvpipe::store::Limits;
use kvpipe::store::tcp::{ConnectOptions, TcpStore, TcpStoreServer};
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::turns::Turns;

const WORLD_SIZES: [usize; 8] = [2, 4, 8, 16, 32, 64, 128, 256];
const BARRIERS: usize = 9;

type Group = Arc<StatelessProcessGroup<TcpStore<TokioNet>>>;

pub(crate) fn measure() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    println!("\nbarriers of ranks in one process (median of {BARRIERS})");
    for (name, wire) in [("native", WireMode::Native), ("vllm", WireMode::Vllm)] {
        for world_size in WORLD_SIZES {
            let (requests, time) = runtime.block_on(barriers(wire, world_size));
            let ranks = world_size as f64;
            println!(
                "{name:>7} {world_size:>4} ranks | {requests:>5} requests, {:>5.2} a rank | {:>7.0} us, {:>5.1} us a rank",
                requests as f64 / ranks,
                time.as_secs_f64() * 1e6,
                time.as_secs_f64() * 1e6 / ranks,
            );
        }
    }
}

/// How many requests the server gets for one barrier, and how long one takes.
async fn barriers(wire: WireMode, world_size: usize) -> (u64, Duration) {
    let address = "127.0.0.1:0".parse().expect("an address");
    let server = TcpStoreServer::bind(&TokioNet, address, Limits::default()).await.expect("a free port");
    let port = server.local_addr().port();
    let mut groups: Vec<Group> = Vec::new();
    for rank in 0..world_size {
        let store = TcpStore::connect(TokioNet, "127.0.0.1", port, ConnectOptions::default()).await;
        let config = GroupConfig { wire, ..GroupConfig::default() };
        let group = StatelessProcessGroup::new(store.expect("it listens"), rank, world_size, config);
        groups.push(Arc::new(group.expect("a rank of the group")));
    }
    // Afterwards every rank has the connections that it needs.
    barrier(&groups).await;
    let before = server.stats().requests;
    let mut turns = Turns::default();
    for _ in 0..BARRIERS {
        let begin = Instant::now();
        barrier(&groups).await;
        turns.note(begin.elapsed().as_secs_f64());
    }
    let requests = (server.stats().requests - before) / BARRIERS as u64;
    (requests, Duration::from_secs_f64(turns.median()))
}

async fn barrier(groups: &[Group]) {
    let mut ranks = JoinSet::new();
    for group in groups {
        let group = Arc::clone(group);
        ranks.spawn(async move { group.barrier().await.expect("all ranks come") });
    }
    ranks.join_all().await;
}

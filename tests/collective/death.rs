//! A rank dies at some step of some algorithm: every other rank learns of it, and of who it was.

use std::time::Duration;

use kvpipe::collective::{ProcessGroup, ProcessGroupConfig, ReduceOp};
use kvpipe::store::MemoryStore;
use kvpipe::{DType, Error, Result, Tensor};

use crate::mortal::Mortal;
use crate::ranks::{PATIENCE, cause, each};

type Group = ProcessGroup<Mortal>;

fn ones(elements: usize) -> Tensor {
    Tensor::from_vec([elements], vec![1.0_f32; elements]).unwrap()
}

/// Small enough for the algorithms that save messages.
const SMALL: usize = 64;
/// Large enough for those that save bytes, in several chunks.
const LARGE: usize = 400_000;

/// One operation of each algorithm.
const ALGORITHMS: [&str; 14] = [
    "barrier",
    "all_reduce, small",
    "all_reduce, large",
    "all_gather, small",
    "all_gather, large",
    "reduce_scatter",
    "broadcast, small",
    "broadcast, large",
    "reduce, small",
    "reduce, large",
    "gather",
    "scatter",
    "all_to_all",
    "all_reduce of 16-bit floats, large",
];

async fn call(group: &Group, algorithm: &str) -> Result<()> {
    let at_root = |tensor| (group.rank() == 0).then_some(tensor);
    let elements = if algorithm.contains("large") { LARGE } else { SMALL * group.size() };
    let input = ones(elements);
    match algorithm.split(',').next().unwrap() {
        "barrier" => group.barrier().await,
        "all_reduce" => group.all_reduce(&input, ReduceOp::Sum).await.map(drop),
        "all_gather" => group.all_gather(&input).await.map(drop),
        "reduce_scatter" => group.reduce_scatter(&input, ReduceOp::Sum).await.map(drop),
        "broadcast" => group.broadcast(DType::Float32, [elements], at_root(&input), 0).await.map(drop),
        "reduce" => group.reduce(&input, ReduceOp::Sum, 0).await.map(drop),
        "gather" => group.gather(&input, 0).await.map(drop),
        "scatter" => {
            let part = [elements / group.size()];
            group.scatter(DType::Float32, part, at_root(&input), 0).await.map(drop)
        }
        "all_to_all" => group.all_to_all(&input).await.map(drop),
        _ => {
            let halves = Tensor::from_vec([LARGE], vec![half::bf16::ONE; LARGE])?;
            group.all_reduce(&halves, ReduceOp::Sum).await.map(drop)
        }
    }
}

/// Rank `mortal` dies at the write after `writes` of an operation. False if that had ended before.
async fn die(size: usize, mortal: usize, algorithm: &'static str, writes: usize) -> bool {
    let store = MemoryStore::new();
    let nets: Vec<_> = (0..size).map(|_| Mortal::new()).collect();
    let config = ProcessGroupConfig {
        timeout: PATIENCE,
        heartbeat: Duration::from_secs(5),
        ..ProcessGroupConfig::default()
    };
    let ranks = each((0..size).collect(), |rank| {
        let (net, store, config) = (nets[rank].clone(), store.clone(), config.clone());
        async move { Group::from_store(net, &store, rank, size, config).await.unwrap() }
    })
    .await;
    let ends = each(ranks, |group| {
        let net = nets[mortal].clone();
        async move {
            let mut has_ended = false;
            let calls = async {
                // Whoever is behind may hear of it early.
                group.barrier().await?;
                if group.rank() == mortal {
                    net.limit(writes);
                }
                call(&group, algorithm).await?;
                has_ended = true;
                // It may have ended for those who needed no more of the dead, but not for ever.
                loop {
                    group.barrier().await?;
                }
            };
            let ended: Result<()> = calls.await;
            (group, has_ended, cause(ended.unwrap_err()))
        }
    })
    .await;
    for (group, _, ended) in &ends {
        let rank = group.rank();
        if rank == mortal {
            continue;
        }
        let place = format!("{algorithm}, rank {rank} of {size} after {writes} writes of {mortal}");
        match ended {
            Error::PeerGone { link, .. } => assert_eq!(link.peer_rank, mortal, "{place}: {ended:?}"),
            other => panic!("{place}: {other:?}"),
        }
        let later = group.barrier().await;
        assert!(matches!(later, Err(Error::GroupBroken { .. })), "{place}: {later:?}");
    }
    !ends[mortal].1
}

#[tokio::test(flavor = "multi_thread")]
async fn whenever_a_rank_dies_every_other_one_learns_of_it() {
    for algorithm in ALGORITHMS {
        for (size, mortal) in [(2, 0), (2, 1), (3, 1), (4, 3), (5, 0)] {
            let mut writes = 0;
            while die(size, mortal, algorithm, writes).await {
                // Of the many writes of a long stream, some.
                writes += 1 + writes / 3;
            }
        }
    }
}

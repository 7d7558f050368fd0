//! Ranks that don't call the same: an error at every rank, which names both calls.

use std::pin::Pin;
use std::time::Duration;

use kvpipe::collective::{ProcessGroup, ProcessGroupConfig, ReduceOp};
use kvpipe::{DType, Error, Result, Tensor};

use crate::ranks::{cause, config, each, group};

type Call = fn(&ProcessGroup) -> Pin<Box<dyn Future<Output = Result<()>> + Send + '_>>;

/// A call, and how errors name it.
type Named = (Call, &'static str);

fn zeros(elements: usize) -> Tensor {
    Tensor::from_vec([elements], vec![0.0_f32; elements]).unwrap()
}

const SUM_OF_4: Named = (
    |group| Box::pin(async { group.all_reduce(&zeros(4), ReduceOp::Sum).await.map(drop) }),
    "all_reduce(sum) of float32 [4]",
);
const LARGE_SUM: Named = (
    |group| Box::pin(async { group.all_reduce(&zeros(3_000_000), ReduceOp::Sum).await.map(drop) }),
    "all_reduce(sum) of float32 [3000000]",
);
const MAX_OF_4: Named = (
    |group| Box::pin(async { group.all_reduce(&zeros(4), ReduceOp::Max).await.map(drop) }),
    "all_reduce(max) of float32 [4]",
);
const SUM_OF_5: Named = (
    |group| Box::pin(async { group.all_reduce(&zeros(5), ReduceOp::Sum).await.map(drop) }),
    "all_reduce(sum) of float32 [5]",
);
const SUM_OF_INTEGERS: Named = (
    |group| {
        Box::pin(async {
            let input = Tensor::from_slice([4], &[0_i32; 4])?;
            group.all_reduce(&input, ReduceOp::Sum).await.map(drop)
        })
    },
    "all_reduce(sum) of int32 [4]",
);
const FROM_0: Named = (
    |group| {
        Box::pin(async {
            let own = (group.rank() == 0).then(|| zeros(4));
            group.broadcast(DType::Float32, [4], own.as_ref(), 0).await.map(drop)
        })
    },
    "broadcast of float32 [4] from rank 0",
);
const FROM_1: Named = (
    |group| {
        Box::pin(async {
            let own = (group.rank() == 1).then(|| zeros(4));
            group.broadcast(DType::Float32, [4], own.as_ref(), 1).await.map(drop)
        })
    },
    "broadcast of float32 [4] from rank 1",
);
const BARRIER: Named = (|group| Box::pin(group.barrier()), "barrier");
const GATHER: Named = (
    |group| Box::pin(async { group.gather(&zeros(4), 0).await.map(drop) }),
    "gather of float32 [4] each to rank 0",
);

/// Rank `odd` calls something else than the others, as the third operation.
async fn disagree(size: usize, odd: usize, most: Named, other: Named) {
    // Short, because some are only found when a rank is long in coming.
    let config = ProcessGroupConfig { heartbeat: Duration::from_secs(3), ..config() };
    let ranks = group(size, &config).await;
    let errors = each(ranks, move |group| async move {
        // Who is behind the others may hear of it while it is still in a barrier.
        let (call, _) = if group.rank() == odd { other } else { most };
        let calls = async {
            group.barrier().await?;
            group.barrier().await?;
            call(&group).await
        };
        let error = cause(calls.await.unwrap_err());
        let later = group.barrier().await.unwrap_err();
        let is_same =
            matches!(&later, Error::GroupBroken { cause } if cause.to_string() == error.to_string());
        assert!(is_same, "first {error}, then {later}");
        assert!(matches!(group.failure(), Some(cause) if cause.to_string() == error.to_string()));
        assert!(matches!(group.destroy().await, Err(Error::GroupBroken { .. })));
        error
    })
    .await;
    for (rank, error) in errors.into_iter().enumerate() {
        let text = error.to_string();
        assert!(matches!(error, Error::PeerIncompatible { .. }), "rank {rank} of {size}, odd {odd}: {text}");
        for name in [
            format!("rank {odd} calls {} as operation 2", other.1),
            format!(" calls {} as operation 2", most.1),
        ] {
            assert!(text.contains(&name), "rank {rank} of {size}, odd {odd}: {text:?} lacks {name:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rank_learns_of_a_mismatch_and_of_both_its_sides() {
    for size in [2, 3, 4, 5, 8] {
        for odd in 0..size {
            disagree(size, odd, SUM_OF_4, SUM_OF_5).await;
            disagree(size, odd, FROM_0, FROM_1).await;
            disagree(size, odd, GATHER, BARRIER).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mismatch_is_one_of_operation_dtype_operator_size_or_root() {
    for (most, other) in [
        (SUM_OF_4, MAX_OF_4),
        (SUM_OF_4, SUM_OF_INTEGERS),
        (SUM_OF_4, BARRIER),
        (BARRIER, SUM_OF_4),
        (SUM_OF_4, FROM_0),
        (FROM_0, GATHER),
        (LARGE_SUM, BARRIER),
        (BARRIER, LARGE_SUM),
        (LARGE_SUM, SUM_OF_4),
        (LARGE_SUM, FROM_0),
    ] {
        disagree(3, 1, most, other).await;
        disagree(4, 2, most, other).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_order_is_a_mismatch() {
    let ranks = group(3, &config()).await;
    let errors = each(ranks, |group| async move {
        let order = if group.rank() == 2 { [BARRIER, SUM_OF_4] } else { [SUM_OF_4, BARRIER] };
        order[0].0(&group).await.unwrap_err()
    })
    .await;
    for error in errors {
        let text = error.to_string();
        assert!(text.contains("calls all_reduce(sum) of float32 [4] as operation 0"), "{text}");
        assert!(text.contains("rank 2 calls barrier as operation 0"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receive_must_fit_the_send() {
    let ranks = group(2, &config()).await;
    let errors = each(ranks, |group| async move {
        match group.rank() {
            0 => group.send(&zeros(4), 1).await.unwrap_err(),
            _ => group.recv(DType::Float32, [5], 0).await.unwrap_err(),
        }
    })
    .await;
    for error in errors {
        let text = error.to_string();
        assert!(text.contains("send of float32 [4] from rank 0 to rank 1"), "{text}");
        assert!(text.contains("send of float32 [5] from rank 0 to rank 1"), "{text}");
    }
}

#[tokio::test]
async fn what_can_not_be_is_refused_and_breaks_nothing() {
    let ranks = group(2, &config()).await;
    let refused = each(ranks, |group| async move {
        let misuse = |result: Result<()>| match result.unwrap_err() {
            Error::Misuse(what) => what,
            other => panic!("{other}"),
        };
        let bools = Tensor::from_slice([2], &[true, false]).unwrap();
        let texts = [
            misuse(group.broadcast(DType::Float32, [4], None, 2).await.map(drop)),
            misuse(group.send(&zeros(1), group.rank()).await),
            misuse(group.reduce_scatter(&zeros(3), ReduceOp::Sum).await.map(drop)),
            misuse(group.all_gatherv(&zeros(3), &[3]).await.map(drop)),
            misuse(group.all_gatherv(&zeros(3), &[4, 4]).await.map(drop)),
            misuse(group.all_reduce(&bools, ReduceOp::Sum).await.map(drop)),
        ];
        group.barrier().await.unwrap();
        (group.rank(), texts)
    })
    .await;
    for (rank, texts) in refused {
        let expected = [
            "there is no rank 2 of 2".to_owned(),
            format!("rank {rank} can't send to itself"),
            "[3] can't be divided among 2 ranks".to_owned(),
            "[3] are not the rows of 2 ranks".to_owned(),
            "the input of this all_gatherv is float32 [4], not float32 [3]".to_owned(),
        ];
        for (text, expected) in texts.iter().zip(&expected) {
            assert!(text.starts_with(expected.as_str()), "{text:?} {expected:?}");
        }
        assert!(texts[5].contains("bool"), "{}", texts[5]);
    }
}

/// Ranks whose algorithms wait for others than those that call something else.
#[tokio::test(flavor = "multi_thread")]
async fn a_mismatch_is_found_whomever_a_rank_waits_for() {
    const LARGE_GATHER: Named = (
        |group| Box::pin(async { group.all_gather(&zeros(1_000_000 / group.size())).await.map(drop) }),
        "all_gather of float32 [1000000] in all",
    );
    const SMALL_REDUCE: Named = (
        |group| Box::pin(async { group.reduce(&zeros(4), ReduceOp::Sum, 0).await.map(drop) }),
        "reduce(sum) of float32 [4] to rank 0",
    );
    const LARGE_BROADCAST: Named = (
        |group| {
            Box::pin(async {
                let own = (group.rank() == 0).then(|| zeros(1_000_000));
                group.broadcast(DType::Float32, [1_000_000], own.as_ref(), 0).await.map(drop)
            })
        },
        "broadcast of float32 [1000000] from rank 0",
    );
    const SCATTER: Named = (
        |group| {
            Box::pin(async {
                let own = (group.rank() == 0).then(|| zeros(4 * group.size()));
                group.scatter(DType::Float32, [4], own.as_ref(), 0).await.map(drop)
            })
        },
        "scatter of float32 [4] each from rank 0",
    );
    const LARGE_REDUCE: Named = (
        |group| Box::pin(async { group.reduce(&zeros(1_000_000), ReduceOp::Sum, 0).await.map(drop) }),
        "reduce(sum) of float32 [1000000] to rank 0",
    );
    // Rank 4 sends nothing before rank 5 does, which waits for rank 1, and that for rank 0, and that for 4.
    disagree(6, 4, SUM_OF_4, LARGE_REDUCE).await;
    for size in [2, 4, 5] {
        for most in [LARGE_GATHER, LARGE_SUM, LARGE_BROADCAST] {
            // A million can't be divided by three.
            for other in [SMALL_REDUCE, LARGE_REDUCE, SCATTER, GATHER, FROM_0] {
                for odd in [0, size / 2, size - 1] {
                    disagree(size, odd, most, other).await;
                    disagree(size, odd, other, most).await;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_in_front_of_what_all_others_call_is_a_mismatch() {
    for receiver in [1, 2] {
        let ranks = group(4, &config()).await;
        let errors = each(ranks, move |group| async move {
            match group.rank() {
                0 => group.send(&zeros(4), receiver).await.unwrap_err(),
                _ => group.all_reduce(&zeros(1_000_000), ReduceOp::Sum).await.unwrap_err(),
            }
        })
        .await;
        for (rank, error) in errors.iter().enumerate() {
            let text = error.to_string();
            let send =
                format!("rank 0 calls send of float32 [4] from rank 0 to rank {receiver} as operation 0");
            assert!(text.contains(&send), "rank {rank}: {text}");
            let other = format!("rank {receiver} calls all_reduce(sum) of float32 [1000000] as operation 0");
            assert!(text.contains(&other), "rank {rank}: {text}");
        }
    }
}

/// What two ranks do between them is in nobody's way who has not begun with what comes next.
#[tokio::test(flavor = "multi_thread")]
async fn sends_between_two_may_meet_what_all_call_next() {
    let ranks = group(4, &config()).await;
    each(ranks, |group| async move {
        for round in 0..30 {
            let (a, b) = (round % 4, (round * 7 + 1) % 4);
            if a != b && group.rank() == a {
                group.send(&zeros(round), b).await.unwrap();
            } else if a != b && group.rank() == b {
                group.recv(DType::Float32, [round], a).await.unwrap();
            }
            group.reduce(&zeros(4), ReduceOp::Sum, b).await.unwrap();
            group.all_gather(&zeros(round * 1000)).await.unwrap();
        }
    })
    .await;
}

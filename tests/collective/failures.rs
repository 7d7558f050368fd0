//! Ranks that are frozen, leave early, don't call, or drop what they called.

use std::future::poll_fn;
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use kvpipe::collective::{ProcessGroup, ProcessGroupConfig, ReduceOp};
use kvpipe::net::TokioNet;
use kvpipe::store::MemoryStore;
use kvpipe::tensor::TensorMut;
use kvpipe::{DType, Error, Tensor};

use crate::ranks::{PATIENCE, cause, config, each, group};

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_rank_is_found_out_by_its_silence_though_nobody_is_connected_with_it() {
    freeze(4, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_freezes_is_found_out_by_its_silence() {
    // Of two, each has all edges there are.
    freeze(2, 3).await;
    freeze(4, 3).await;
}

/// The last rank freezes after so many barriers.
async fn freeze(size: usize, barriers: usize) {
    let store = MemoryStore::new();
    let heartbeat = Duration::from_secs(2);
    let config = ProcessGroupConfig { heartbeat, ..config() };
    let (thaw, frozen) = mpsc::channel::<()>();
    let (its_store, its_config) = (store.clone(), config.clone());
    let frozen_rank = std::thread::Builder::new().spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let group =
                ProcessGroup::from_store(TokioNet, &its_store, size - 1, size, its_config).await.unwrap();
            for _ in 0..barriers {
                group.barrier().await.unwrap();
            }
            // The runtime stands still, with all its tasks.
            frozen.recv().unwrap();
            // What the others sent before they gave it up is there, so the first one may succeed.
            loop {
                if let Err(error) = group.barrier().await {
                    return cause(error);
                }
            }
        })
    });
    let frozen_rank = frozen_rank.unwrap();
    let ranks = each((0..size - 1).collect(), |rank| {
        let (store, config) = (store.clone(), config.clone());
        async move {
            let group = ProcessGroup::from_store(TokioNet, &store, rank, size, config).await.unwrap();
            for _ in 0..barriers {
                group.barrier().await.unwrap();
            }
            let error = cause(group.barrier().await.unwrap_err());
            assert!(matches!(group.barrier().await, Err(Error::GroupBroken { .. })));
            error
        }
    })
    .await;
    for error in ranks {
        let Error::PeerGone { link, reason } = &error else { panic!("{error}") };
        assert_eq!(link.peer_rank, size - 1, "{error}");
        assert!(reason.contains("silent for 2 s"), "{error}");
    }
    thaw.send(()).unwrap();
    // It learns that the others have given it up, or that they are gone.
    let error = frozen_rank.join().unwrap();
    assert!(matches!(error, Error::PeerGone { .. } | Error::PeerAborted { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_does_nothing_for_many_heartbeats_is_alive() {
    let config = ProcessGroupConfig { heartbeat: Duration::from_secs(2), ..config() };
    let ranks = group(3, &config).await;
    let ranks = each(ranks, |group| async move {
        group.barrier().await.unwrap();
        // Rank 2 comes late, to others who wait for it all the while, and then to others who don't.
        if group.rank() == 2 {
            tokio::time::sleep(Duration::from_secs(4)).await;
        }
        group.barrier().await.unwrap();
        tokio::time::sleep(Duration::from_secs(4)).await;
        group.barrier().await.unwrap();
        group
    })
    .await;
    for left in each(ranks, |rank| rank.destroy()).await {
        left.unwrap();
    }
}

/// It is asked by who waits for it, in vain and without harm.
#[tokio::test(flavor = "multi_thread")]
async fn a_rank_may_be_late() {
    let config = ProcessGroupConfig { heartbeat: Duration::from_secs(3), ..config() };
    let ranks = group(3, &config).await;
    each(ranks, |group| async move {
        let own = Tensor::from_vec([100_000], vec![group.rank() as i32; 100_000]).unwrap();
        for late in 0..3 {
            if group.rank() == late {
                tokio::time::sleep(Duration::from_millis(1500)).await;
            }
            // In a ring, where who waits for a rank sends nothing to it.
            let all = group.all_gather(&own).await.unwrap();
            assert_eq!(all.as_slice::<i32>().unwrap()[99_999..][..2], [0, 1]);
            group.barrier().await.unwrap();
            group.all_gather(&own).await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_does_not_call_is_named_by_the_timeout_and_the_group_is_broken() {
    let config = ProcessGroupConfig { timeout: Duration::from_millis(300), ..config() };
    let ranks = group(3, &config).await;
    let errors = each(ranks, |group| async move {
        if group.rank() == 1 {
            // It hears of it without calling anything.
            return poll_fn(|cx| {
                cx.waker().wake_by_ref();
                group.failure().map_or(Poll::Pending, Poll::Ready)
            })
            .await;
        }
        group.barrier().await.unwrap_err()
    })
    .await;
    let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
    // Whose time is up first tells the others.
    let named = "timed out after 0.3 s waiting for rank 1's part of operation 0, barrier";
    assert!(texts.iter().all(|text| text.contains("timed out after 0.3 s waiting for rank")), "{texts:?}");
    assert!(texts.iter().any(|text| text.contains(named)), "{texts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_leaves_too_early_is_gone_for_who_needs_it() {
    let ranks = group(3, &config()).await;
    let ends = each(ranks, |group| async move {
        group.barrier().await.unwrap();
        if group.rank() == 1 {
            return group.destroy().await;
        }
        group.barrier().await
    })
    .await;
    assert!(ends[1].is_ok());
    for rank in [0, 2] {
        let text = ends[rank].as_ref().unwrap_err().to_string();
        assert!(text.contains("to rank 1") && text.contains("it has left the group"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_dropped_is_left() {
    let ranks = group(2, &config()).await;
    let ends = each(ranks, |group| async move {
        group.barrier().await.unwrap();
        if group.rank() == 1 {
            drop(group);
            return Ok(());
        }
        group.barrier().await
    })
    .await;
    let text = ends[0].as_ref().unwrap_err().to_string();
    assert!(text.contains("it has left the group"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_dropped_in_the_middle_breaks_the_group_for_everybody() {
    for elements in [4, 1_000_000] {
        let ranks = group(3, &config()).await;
        let errors = each(ranks, |group| async move {
            let met = group.barrier().await;
            let input = Tensor::from_vec([elements], vec![1_i32; elements]).unwrap();
            if group.rank() == 2 {
                // Polled once, so that it has begun, and can't have ended: the others wait for us.
                let mut call = Box::pin(group.all_reduce(&input, ReduceOp::Sum));
                let once = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_pending())).await;
                assert!(once, "an all-reduce that ends at its first poll");
                drop(call);
                return group.barrier().await.unwrap_err();
            }
            // Who is behind hears of it early; and as rank 2 has begun, the others may even be through.
            let calls = async {
                met?;
                group.all_reduce(&input, ReduceOp::Sum).await?;
                group.barrier().await
            };
            cause(calls.await.unwrap_err())
        })
        .await;
        let words = format!("all_reduce(sum) of int32 [{elements}] was dropped before its end");
        assert!(matches!(&errors[2], Error::GroupBroken { .. }), "{}", errors[2]);
        assert!(errors[2].to_string().contains(&words), "{}", errors[2]);
        for error in &errors[..2] {
            let told = matches!(error, Error::PeerAborted { .. }) && error.to_string().contains(&words);
            assert!(told, "{error}");
        }
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_while_it_waits_for_its_turn_breaks_nothing() {
    let ranks = group(2, &config()).await;
    each(ranks, |group| async move {
        if group.rank() == 0 {
            let (first, mut second) = (group.barrier(), Box::pin(group.barrier()));
            let mut first = Box::pin(first);
            poll_fn(|cx| {
                assert!(first.as_mut().poll(cx).is_pending());
                assert!(second.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            drop(second);
            first.await.unwrap();
        } else {
            group.barrier().await.unwrap();
        }
        group.barrier().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_missing_rank_is_named_and_so_is_another_world_size() {
    let store = MemoryStore::new();
    let short = ProcessGroupConfig { timeout: Duration::from_millis(100), ..config() };
    let error = ProcessGroup::from_store(TokioNet, &store, 0, 2, short).await.unwrap_err();
    assert!(error.to_string().contains("rank 1 of 2 to join the group \"\""), "{error}");

    let store = MemoryStore::new();
    let join = |rank, size| ProcessGroup::from_store(TokioNet, &store, rank, size, config());
    let (zero, one) = tokio::join!(join(0, 2), join(1, 3));
    let error = zero.unwrap_err();
    assert!(error.to_string().contains("the group has 2 ranks here, and 3 there"), "{error}");
    let error = one.unwrap_err();
    assert!(error.to_string().contains("the group has 3 ranks here, and 2 there"), "{error}");
}

#[tokio::test]
async fn ranks_that_are_set_up_differently_are_told_of_it() {
    let store = MemoryStore::new();
    let errors = each(vec![0, 1], |rank| {
        let store = store.clone();
        let config = ProcessGroupConfig { checksum: rank == 1, ..config() };
        async move {
            let group = ProcessGroup::from_store(TokioNet, &store, rank, 2, config).await.unwrap();
            group.barrier().await.unwrap_err().to_string()
        }
    })
    .await;
    for error in errors {
        assert!(error.contains("checksum settings differ"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_of_overlapping_members_work_side_by_side_and_fail_alone() {
    let store = MemoryStore::new();
    // Process p is in the groups that have it; the third one will fail.
    const GROUPS: [&[usize]; 4] = [&[0, 1, 2, 3], &[1, 3], &[2, 0, 1], &[3, 0]];
    let ends = each((0..4).collect(), |process: usize| {
        let store = store.clone();
        async move {
            let mut tasks = tokio::task::JoinSet::new();
            for (number, members) in GROUPS.into_iter().enumerate() {
                let Some(rank) = members.iter().position(|member| *member == process) else { continue };
                let name = kvpipe::group::GroupName::new(format!("group {number}")).unwrap();
                let config = ProcessGroupConfig { name, ..config() };
                let store = store.clone();
                tasks.spawn(async move {
                    let group = ProcessGroup::from_store(TokioNet, &store, rank, members.len(), config)
                        .await
                        .unwrap();
                    for round in 0..20 {
                        if number == 2 && round == 10 && rank == 1 {
                            return group.destroy().await.is_ok();
                        }
                        let own = TensorMut::from_slice([3], &[process as i64; 3]).unwrap();
                        let Ok(sum) = group.all_reduce_in_place(own, ReduceOp::Sum).await else {
                            return number == 2 && round >= 10;
                        };
                        assert_eq!(sum.as_slice::<i64>().unwrap(), [members.iter().sum::<usize>() as i64; 3]);
                        let from = (rank == 0).then(|| Tensor::from_slice([], &[round]).unwrap());
                        let told = group.broadcast(DType::Int32, [], from.as_ref(), 0).await;
                        assert!(told.map_or(number == 2, |told| told.as_slice::<i32>().unwrap() == [round]));
                    }
                    number != 2
                });
            }
            tasks.join_all().await
        }
    })
    .await;
    assert!(ends.iter().flatten().all(|as_expected| *as_expected), "{ends:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn checksums_and_a_secret_change_nothing_else() {
    let secret = kvpipe::transport::tcp::Secret::new(b"of all ranks".to_vec()).unwrap();
    let config = ProcessGroupConfig { checksum: true, secret: Some(secret), ..config() };
    let ranks = group(3, &config).await;
    each(ranks, |group| async move {
        for elements in [0, 1, 5_000, 700_001] {
            let own = Tensor::from_vec([elements], vec![group.rank() as i32; elements]).unwrap();
            let sum = group.all_reduce(&own, ReduceOp::Sum).await.unwrap();
            assert!(sum.as_slice::<i32>().unwrap().iter().all(|element| *element == 3));
            let all = group.all_gather(&own).await.unwrap();
            assert_eq!(all.as_slice::<i32>().unwrap().iter().sum::<i32>(), 3 * elements as i32);
        }
        group.barrier().await.unwrap();
    })
    .await;
}

/// A patient rank speaks as often as an impatient one wants to hear it.
#[tokio::test(flavor = "multi_thread")]
async fn ranks_may_differ_in_their_patience() {
    let store = MemoryStore::new();
    let ranks = each(vec![0, 1], |rank| {
        let heartbeat = [PATIENCE, Duration::from_secs(2)][rank];
        let (store, config) = (store.clone(), ProcessGroupConfig { heartbeat, ..config() });
        async move { ProcessGroup::from_store(TokioNet, &store, rank, 2, config).await.unwrap() }
    })
    .await;
    each(ranks, |group| async move {
        group.barrier().await.unwrap();
        tokio::time::sleep(Duration::from_secs(4)).await;
        group.barrier().await.unwrap();
    })
    .await;
}

//! What vLLM's group does wrong, and ours does not: the defects of its keys, its expiry and its barrier
//! that were observed with vLLM 0.8.4 to 0.33. Each test fails on the original behaviour.
//!
//! Those of its `create` are in `create.rs`, those that vLLM's wire itself has in `vllm.rs`.

use std::time::Duration;

use bytes::Bytes;
use kvpipe::group::{GroupConfig, StatelessProcessGroup, WireMode};
use kvpipe::store::{MemoryStore, Store};
use kvpipe::wire::{Object, pickle};
use kvpipe::{Error, Result};
use tokio::time::Instant;

use crate::support::{LONG, SECOND, Watched, config, groups, on_every, pair, poll_once, text};

const NATIVE: WireMode = WireMode::Native;
const BOTH: [WireMode; 2] = [NATIVE, WireMode::Vllm];

// Its keys.

#[tokio::test(start_paused = true)]
async fn two_senders_to_one_rank_are_told_apart() {
    let groups = groups(&Watched::new(), NATIVE, 3);
    groups[0].send_obj(&text("from 0"), 2).await.unwrap();
    groups[1].send_obj(&text("from 1"), 2).await.unwrap();
    assert_eq!(groups[2].recv_obj(1).await.unwrap(), text("from 1"));
    assert_eq!(groups[2].recv_obj(0).await.unwrap(), text("from 0"));
}

#[tokio::test(start_paused = true)]
async fn what_was_read_is_gone_from_the_store() {
    let store = Watched::new();
    let groups = groups(&store, NATIVE, 3);
    for n in 0..100 {
        groups[0].send_obj(&text(n.to_string()), 1).await.unwrap();
        assert_eq!(store.keys().len(), 1, "not more than what is unread");
        groups[1].recv_obj(0).await.unwrap();
        let objects: Vec<Object> = (0..3).map(|rank| text(rank.to_string())).collect();
        on_every(&groups, |group| group.all_gather_obj(&objects[group.rank()])).await;
        assert!(store.keys().is_empty(), "{:?}", store.keys());
    }
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_stays_until_its_last_reader_has_read_it() {
    let store = Watched::new();
    let groups = groups(&store, NATIVE, 4);
    groups[3].broadcast_obj(Some(&text("x")), 3).await.unwrap();
    for reader in [1, 0] {
        assert_eq!(groups[reader].broadcast_obj(None, 3).await.unwrap(), text("x"));
        assert!(!store.keys().is_empty(), "rank 2 has not read it");
    }
    assert_eq!(groups[2].broadcast_obj(None, 3).await.unwrap(), text("x"));
    assert!(store.keys().is_empty(), "{:?}", store.keys());
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_loses_nothing_when_the_hour_is_over() {
    let [zero, one] = pair(&Watched::new(), NATIVE);
    zero.send_obj(&text("old"), 1).await.unwrap();
    tokio::time::advance(Duration::from_secs(2 * 3600)).await;
    zero.send_obj(&text("new"), 1).await.unwrap();
    assert_eq!(zero.expire_data().await.unwrap(), 0);
    assert_eq!(one.recv_obj(0).await.unwrap(), text("old"));
    assert_eq!(one.recv_obj(0).await.unwrap(), text("new"));
}

/// Time here is virtual, so the wall clock stands still: by it, nothing would ever expire.
#[tokio::test(start_paused = true)]
async fn objects_expire_by_the_runtimes_clock_and_not_by_the_wall_clock() {
    let store = Watched::new();
    let [zero, _] = pair(&store, WireMode::Vllm);
    zero.send_obj(&text("old"), 1).await.unwrap();
    tokio::time::advance(Duration::from_secs(3601)).await;
    assert_eq!(zero.expire_data().await.unwrap(), 1);
    assert!(store.keys().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_receive_that_failed_gets_the_same_object_when_it_is_called_again() {
    for wire in BOTH {
        let [zero, one] = pair(&Watched::new(), wire);
        one.recv_obj_timeout(0, SECOND).await.unwrap_err();
        zero.send_obj(&text("first"), 1).await.unwrap();
        zero.send_obj(&text("second"), 1).await.unwrap();
        assert_eq!(one.recv_obj_timeout(0, SECOND).await.unwrap(), text("first"));
        one.broadcast_obj_timeout(None, 0, SECOND).await.unwrap_err();
        zero.broadcast_obj(Some(&text("to all")), 0).await.unwrap();
        assert_eq!(one.broadcast_obj(None, 0).await.unwrap(), text("to all"));
        assert_eq!(one.recv_obj(0).await.unwrap(), text("second"));
    }
}

// Its timeouts.

/// A store that does not keep to any timeout, as one whose server is silent.
#[derive(Clone)]
struct Silent(MemoryStore);

impl Store for Silent {
    delegate!(0: append compare_set multi_get multi_set num_keys list_keys queue_push queue_pop
        try_queue_pop queue_len barrier);

    async fn set(&self, _: &str, _: Bytes, _: Duration) -> Result<()> {
        std::future::pending().await
    }

    async fn get(&self, _: &str, _: Duration) -> Result<Bytes> {
        std::future::pending().await
    }

    async fn add(&self, _: &str, _: i64, _: Duration) -> Result<i64> {
        std::future::pending().await
    }

    async fn check(&self, _: &[&str], _: Duration) -> Result<bool> {
        std::future::pending().await
    }

    async fn wait(&self, _: &[&str], _: Duration) -> Result<()> {
        std::future::pending().await
    }

    async fn delete(&self, _: &str, _: Duration) -> Result<bool> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn every_call_keeps_to_its_timeout_though_the_store_does_not() {
    for wire in BOTH {
        for rank in [0, 1] {
            let group =
                StatelessProcessGroup::new(Silent(MemoryStore::new()), rank, 3, config(wire)).unwrap();
            let peer = 1 - rank;
            for call in 0..6 {
                let began = Instant::now();
                let outcome = match call {
                    0 => group.send_obj_timeout(&Object::None, peer, SECOND).await,
                    1 => group.recv_obj_timeout(peer, SECOND).await.map(drop),
                    2 => group.broadcast_obj_timeout(Some(&Object::None), rank, SECOND).await.map(drop),
                    3 => group.broadcast_obj_timeout(None, peer, SECOND).await.map(drop),
                    4 => group.all_gather_obj_timeout(&Object::None, SECOND).await.map(drop),
                    _ => group.barrier_timeout(SECOND).await,
                };
                let error = outcome.unwrap_err();
                let in_time = matches!(&error, Error::Timeout { after, .. } if *after == SECOND);
                assert!(in_time && began.elapsed() == SECOND, "{wire:?}, call {call}: {error}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_timeout_of_a_barrier_bounds_all_its_phases_together() {
    for wire in BOTH {
        let store = Watched::new();
        let [zero, _] = pair(&store, wire);
        // Rank 1 arrives late, and never leaves.
        let late = async {
            let [arrived, _] = marks_of_rank_1(&store, wire).await;
            tokio::time::sleep(SECOND * 2 / 3).await;
            store.set(&arrived, "1".into(), LONG).await.unwrap();
        };
        let began = Instant::now();
        let (passed, ()) = tokio::join!(zero.barrier_timeout(SECOND), late);
        assert!(matches!(passed, Err(Error::Timeout { .. })), "{passed:?}");
        assert_eq!(began.elapsed(), SECOND, "{wire:?}");
    }
}

/// The keys by which rank 1 says that it has arrived at the first barrier, and that it leaves.
async fn marks_of_rank_1(store: &Watched, wire: WireMode) -> [String; 2] {
    if wire == NATIVE {
        return ["arrived", "left"].map(|mark| format!("kvpipe//barrier/0/{mark}/1"));
    }
    let announced = store.get("broadcast_from/0/0", LONG).await.unwrap();
    let Ok(Object::Text(id)) = pickle::decode(&announced, &pickle::Limits::default()) else {
        panic!("no id")
    };
    ["arrival", "departure"].map(|mark| format!("{mark}_{id}_1"))
}

// Its barrier.

#[tokio::test(start_paused = true)]
async fn a_barrier_leaves_nothing_behind_not_even_its_id() {
    for wire in BOTH {
        let store = Watched::new();
        let groups = groups(&store, wire, 4);
        for _ in 0..10 {
            for passed in on_every(&groups, |group| group.barrier()).await {
                passed.unwrap();
            }
            assert!(store.keys().is_empty(), "{wire:?}: {:?}", store.keys());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rank_0_waits_for_a_rank_that_is_slow_to_leave() {
    for wire in BOTH {
        let store = Watched::new();
        let [zero, _] = pair(&store, wire);
        let mut barrier = Box::pin(zero.barrier());
        assert!(poll_once(&mut barrier).await.is_none());
        let [arrived, left] = marks_of_rank_1(&store, wire).await;
        store.set(&arrived, "1".into(), LONG).await.unwrap();
        for _ in 0..20 {
            assert!(poll_once(&mut barrier).await.is_none(), "{wire:?}: rank 1 is still inside");
            tokio::task::yield_now().await;
        }
        store.set(&left, "1".into(), LONG).await.unwrap();
        barrier.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn barriers_that_follow_each_other_do_not_get_mixed_up() {
    for wire in BOTH {
        let store = Watched::yielding();
        let groups = groups(&store, wire, 5);
        let rounds_of = std::cell::Cell::new([0; 5]);
        on_every(&groups, async |group| {
            for round in 1..=20 {
                let mut rounds = rounds_of.get();
                rounds[group.rank()] = round;
                rounds_of.set(rounds);
                // Ranks of different speed.
                for _ in 0..(group.rank() * 7 + round) % 11 {
                    tokio::task::yield_now().await;
                }
                group.barrier().await.unwrap();
                assert!(rounds_of.get().iter().all(|entered| *entered >= round), "{:?}", rounds_of.get());
            }
        })
        .await;
        assert!(store.keys().is_empty(), "{:?}", store.keys());
    }
}

#[tokio::test(start_paused = true)]
async fn barriers_called_side_by_side_take_turns() {
    for wire in BOTH {
        let store = Watched::yielding();
        let [zero, one] = pair(&store, wire);
        let (a, b, c, d) = tokio::join!(zero.barrier(), one.barrier(), zero.barrier(), one.barrier());
        for passed in [a, b, c, d] {
            passed.unwrap();
        }
        assert!(store.keys().is_empty(), "{:?}", store.keys());
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_barrier_says_who_waited_for_what_and_how_long() {
    let groups = groups(&Watched::new(), NATIVE, 3);
    let error = groups[1].barrier_timeout(Duration::from_millis(1500)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "timed out after 1.5 s waiting for key \"kvpipe//barrier/0/go\" in barrier 0 of 3 ranks, as rank 1"
    );
}

// Many groups.

#[tokio::test(start_paused = true)]
async fn a_process_is_in_overlapping_groups_at_once() {
    let store = MemoryStore::new();
    let group = |name: &str, rank, world_size| {
        let name = kvpipe::group::GroupName::new(name).unwrap();
        let config = GroupConfig { name, ..GroupConfig::default() };
        StatelessProcessGroup::new(store.clone(), rank, world_size, config).unwrap()
    };
    // Processes a, b and c; b is in both.
    let (left_a, left_b) = (group("left", 0, 2), group("left", 1, 2));
    let (right_b, right_c) = (group("right", 0, 2), group("right", 1, 2));
    let (one, two, three, four) =
        tokio::join!(left_a.barrier(), right_c.barrier(), left_b.barrier(), right_b.barrier());
    for passed in [one, two, three, four] {
        passed.unwrap();
    }
    left_a.send_obj(&text("a to b"), 1).await.unwrap();
    right_b.send_obj(&text("b to c"), 1).await.unwrap();
    assert_eq!(right_c.recv_obj_timeout(0, LONG).await.unwrap(), text("b to c"));
    assert_eq!(left_b.recv_obj_timeout(0, LONG).await.unwrap(), text("a to b"));
}

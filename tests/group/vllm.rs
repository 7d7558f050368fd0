//! What is vLLM's own: keys, refusals, expiry, its barrier.

use std::time::Duration;

use bytes::Bytes;
use kvpipe::Error;
use kvpipe::group::{GroupConfig, GroupName, StatelessProcessGroup, WireMode};
use kvpipe::store::Store;
use kvpipe::wire::{Object, pickle};
use tokio::time::Instant;

use crate::support::{LONG, Op, SECOND, Watched, config, groups, on_every, pair, text};

const VLLM: WireMode = WireMode::Vllm;
const HOUR: Duration = Duration::from_secs(3600);

fn pickled(object: &Object) -> Bytes {
    pickle::encode(object).unwrap()
}

#[tokio::test(start_paused = true)]
async fn keys_counters_and_values_are_vllms() {
    let store = Watched::new();
    let groups = groups(&store, VLLM, 3);
    groups[0].send_obj(&text("a"), 1).await.unwrap();
    groups[0].send_obj(&text("b"), 2).await.unwrap();
    groups[0].send_obj(&text("c"), 1).await.unwrap();
    groups[0].broadcast_obj(Some(&text("d")), 0).await.unwrap();
    groups[0].broadcast_obj(Some(&text("e")), 0).await.unwrap();
    groups[2].broadcast_obj(Some(&text("f")), 2).await.unwrap();
    let sets: Vec<Op> = store.ops().into_iter().filter(|op| matches!(op, Op::Set(..))).collect();
    let set = |key: &str, word: &str| Op::Set(key.into(), pickled(&text(word)));
    assert_eq!(
        sets,
        [
            set("send_to/1/0", "a"),
            set("send_to/2/0", "b"),
            set("send_to/1/1", "c"),
            set("broadcast_from/0/0", "d"),
            set("broadcast_from/0/1", "e"),
            set("broadcast_from/2/0", "f"),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_receiver_deletes_nothing() {
    let store = Watched::new();
    let [zero, one] = pair(&store, VLLM);
    zero.send_obj(&text("a"), 1).await.unwrap();
    one.recv_obj(0).await.unwrap();
    assert_eq!(store.keys(), ["send_to/1/0"]);
    let expected = [Op::Set("send_to/1/0".into(), pickled(&text("a"))), Op::Get("send_to/1/0".into())];
    assert_eq!(store.ops(), expected, "nothing else is asked of the store between two ranks");
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_told_to_deletes_what_it_read_but_no_broadcast() {
    let store = Watched::new();
    let config = GroupConfig { deletes_received: true, ..config(VLLM) };
    let rank = |rank| StatelessProcessGroup::new(store.clone(), rank, 2, config.clone()).unwrap();
    let (zero, one) = (rank(0), rank(1));
    zero.send_obj(&text("a"), 1).await.unwrap();
    zero.broadcast_obj(Some(&text("b")), 0).await.unwrap();
    assert_eq!(one.recv_obj(0).await.unwrap(), text("a"));
    assert_eq!(one.broadcast_obj(None, 0).await.unwrap(), text("b"));
    assert_eq!(store.keys(), ["broadcast_from/0/0"]);
}

#[tokio::test(start_paused = true)]
async fn receiving_from_a_second_rank_is_refused() {
    let groups = groups(&Watched::new(), VLLM, 3);
    groups[0].send_obj(&text("a"), 2).await.unwrap();
    assert_eq!(groups[2].recv_obj(0).await.unwrap(), text("a"));
    let error = groups[2].recv_obj(1).await.unwrap_err();
    assert!(matches!(error, Error::Misuse(_)), "{error}");
    assert_eq!(
        error.to_string(),
        "rank 2 receives from rank 0, and so can't from rank 1: vllm's keys (send_to/2/..) don't say who sent"
    );
    groups[0].send_obj(&text("b"), 2).await.unwrap();
    assert_eq!(groups[2].recv_obj(0).await.unwrap(), text("b"));
}

#[tokio::test(start_paused = true)]
async fn sending_where_another_rank_has_sent_is_refused_and_harms_nothing() {
    let store = Watched::new();
    let groups = groups(&store, VLLM, 3);
    groups[0].send_obj(&text("a"), 2).await.unwrap();
    for _ in 0..2 {
        let error = groups[1].send_obj(&text("b"), 2).await.unwrap_err();
        assert!(matches!(error, Error::Misuse(_)), "{error}");
        assert_eq!(
            error.to_string(),
            "rank 1 can't send to rank 2, to which another rank has sent: key \"send_to/2/0\" is there \
             already, and vllm's keys don't say who sent"
        );
    }
    assert_eq!(groups[2].recv_obj(0).await.unwrap(), text("a"));
    // The refused object took no place.
    groups[1].send_obj(&text("c"), 0).await.unwrap();
    assert_eq!(groups[0].recv_obj(1).await.unwrap(), text("c"));
}

#[tokio::test(start_paused = true)]
async fn a_ring_works_since_every_rank_has_one_sender() {
    let groups = groups(&Watched::new(), VLLM, 4);
    for round in 0..3 {
        let received = on_every(&groups, async |group| {
            let rank = group.rank();
            group.send_obj(&text(format!("{rank} in {round}")), (rank + 1) % 4).await.unwrap();
            group.recv_obj((rank + 3) % 4).await.unwrap()
        });
        for (rank, received) in received.await.into_iter().enumerate() {
            assert_eq!(received, text(format!("{} in {round}", (rank + 3) % 4)));
        }
    }
}

#[test]
fn a_group_with_a_name_is_refused() {
    let config = GroupConfig { name: GroupName::new("red").unwrap(), ..config(VLLM) };
    let error = StatelessProcessGroup::new(Watched::new(), 0, 2, config).unwrap_err();
    assert!(matches!(error, Error::Misuse(_)), "{error}");
    assert!(error.to_string().starts_with("vllm's wire has no group names"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn objects_expire_after_the_hour_and_not_at_it() {
    let store = Watched::new();
    let [zero, _] = pair(&store, VLLM);
    zero.send_obj(&text("a"), 1).await.unwrap();
    zero.broadcast_obj(Some(&text("b")), 0).await.unwrap();
    tokio::time::advance(HOUR).await;
    assert_eq!(zero.expire_data().await.unwrap(), 0);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(zero.expire_data().await.unwrap(), 2);
    assert!(store.keys().is_empty());
}

#[tokio::test(start_paused = true)]
async fn sending_and_broadcasting_expire_what_is_old() {
    for broadcast in [false, true] {
        let store = Watched::new();
        let [zero, _] = pair(&store, VLLM);
        zero.send_obj(&text("old"), 1).await.unwrap();
        tokio::time::advance(HOUR + SECOND).await;
        match broadcast {
            false => zero.send_obj(&text("new"), 1).await.unwrap(),
            true => drop(zero.broadcast_obj(Some(&text("new")), 0).await.unwrap()),
        }
        assert_eq!(store.keys(), [if broadcast { "broadcast_from/0/0" } else { "send_to/1/1" }]);
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_this_rank_sent_expires() {
    let store = Watched::new();
    let [zero, one] = pair(&store, VLLM);
    zero.send_obj(&text("a"), 1).await.unwrap();
    tokio::time::advance(HOUR + SECOND).await;
    assert_eq!(one.expire_data().await.unwrap(), 0);
    assert_eq!(store.keys(), ["send_to/1/0"]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_object_leaves_its_hour_to_nobody() {
    let store = Watched::small(100);
    let [zero, _] = pair(&store, VLLM);
    zero.send_obj(&text("x".repeat(100)), 1).await.unwrap_err();
    tokio::time::advance(HOUR).await;
    zero.send_obj(&text("fresh"), 1).await.unwrap();
    tokio::time::advance(SECOND).await;
    assert_eq!(zero.expire_data().await.unwrap(), 0);
    assert_eq!(store.keys(), ["send_to/1/0"]);
}

#[tokio::test(start_paused = true)]
async fn rank_0_goes_through_the_barrier_as_vllms_does_and_deletes_every_key() {
    let store = Watched::new();
    let groups = groups(&store, VLLM, 2);
    let (passed, id) = tokio::join!(groups[0].barrier(), async {
        let announced = store.get("broadcast_from/0/0", LONG).await.unwrap();
        let Ok(Object::Text(id)) = pickle::decode(&announced, &pickle::Limits::default()) else {
            panic!("no id")
        };
        for phase in ["arrival", "departure"] {
            store.set(&format!("{phase}_{id}_1"), "1".into(), LONG).await.unwrap();
        }
        id
    });
    passed.unwrap();
    assert_eq!(id.len(), "barrier_bc5a0d53-3f33-4171-9cd6-d383b7c4c558".len());
    assert!(store.keys().is_empty(), "{:?}", store.keys());
    let key = |phase: &str, rank: usize| format!("{phase}_{id}_{rank}");
    let ours: Vec<Op> = store
        .ops()
        .into_iter()
        .filter(|op| !matches!(op, Op::Get(_)) && *op != Op::Set(key("arrival", 1), "1".into()))
        .filter(|op| *op != Op::Set(key("departure", 1), "1".into()))
        .collect();
    let mut expected = vec![
        Op::Set("broadcast_from/0/0".into(), pickled(&text(id.clone()))),
        Op::Set(key("arrival", 0), "1".into()),
        Op::Wait(vec![key("arrival", 0), key("arrival", 1)]),
        Op::Set(key("departure", 0), "1".into()),
        Op::Wait(vec![key("departure", 0), key("departure", 1)]),
    ];
    let deleted = (0..2).flat_map(|rank| [key("arrival", rank), key("departure", rank)]);
    expected.extend(deleted.chain(["broadcast_from/0/0".into()]).map(Op::Delete));
    assert_eq!(ours, expected);
}

#[tokio::test(start_paused = true)]
async fn an_announcement_that_is_no_id_of_a_barrier_is_rank_0s_fault() {
    let store = Watched::new();
    let [_, one] = pair(&store, VLLM);
    // What vLLM's barrier of 0.8.5 and before broadcasts.
    store.set("broadcast_from/0/0", pickled(&Object::None), LONG).await.unwrap();
    let error = one.barrier().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "rank 1 to rank 0: the peer broke the protocol: None instead of the id of a barrier"
    );
}

#[tokio::test(start_paused = true)]
async fn a_barrier_without_rank_0_says_so_in_time() {
    let [_, one] = pair(&Watched::new(), VLLM);
    let began = Instant::now();
    let error = one.barrier_timeout(SECOND).await.unwrap_err();
    assert_eq!(began.elapsed(), SECOND);
    assert_eq!(
        error.to_string(),
        "timed out after 1 s waiting for rank 0 to announce barrier 0 of 2 ranks, as rank 1"
    );
}

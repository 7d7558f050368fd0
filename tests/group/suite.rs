//! What must hold on either wire.

use kvpipe::group::{GroupConfig, GroupName, StatelessProcessGroup, WireMode};
use kvpipe::store::{PrefixStore, Store};
use kvpipe::wire::{Metadata, Object, UniqueId};
use kvpipe::{Error, Tensor};
use tokio::time::Instant;

use crate::support::{
    Group, LONG, SECOND, Watched, all_of, config, dropped_after, groups, on_every, pair, poll_once, text,
};

macro_rules! on_both_wires {
    ($($scenario:ident)*) => {
        on_both_wires!(@on native: WireMode::Native; $($scenario)*);
        on_both_wires!(@on vllm: WireMode::Vllm; $($scenario)*);
    };
    (@on $name:ident: $wire:expr; $($scenario:ident)*) => {
        mod $name {
            use super::*;

            $(#[tokio::test(start_paused = true)]
            async fn $scenario() {
                super::$scenario($wire).await;
            })*
        }
    };
}

on_both_wires! {
    objects_arrive_in_order_both_ways
    every_kind_of_object_comes_back_as_it_was
    a_broadcast_reaches_every_rank_from_any
    all_gather_gives_every_rank_all_objects_by_rank
    a_barrier_holds_everybody_until_the_last_has_come
    a_group_of_one_has_nobody_to_wait_for
    a_rank_that_is_not_another_one_of_the_group_is_refused
    the_source_of_a_broadcast_must_give_the_object
    an_idle_receive_times_out_and_can_be_called_again
    receives_from_one_rank_take_turns
    what_is_no_object_is_the_peers_fault_and_stays_in_its_place
    an_object_that_the_store_refuses_has_no_place
    two_groups_of_the_same_ranks_do_not_hear_each_other
}

async fn objects_arrive_in_order_both_ways(wire: WireMode) {
    let [zero, one] = pair(&Watched::new(), wire);
    for n in 0..3 {
        zero.send_obj(&text(format!("zero {n}")), 1).await.unwrap();
        one.send_obj(&text(format!("one {n}")), 0).await.unwrap();
    }
    for n in 0..3 {
        assert_eq!(one.recv_obj(0).await.unwrap(), text(format!("zero {n}")));
        assert_eq!(zero.recv_obj(1).await.unwrap(), text(format!("one {n}")));
    }
}

async fn every_kind_of_object_comes_back_as_it_was(wire: WireMode) {
    let [zero, one] = pair(&Watched::new(), wire);
    let tensor = Tensor::from_slice([2, 3], &[0.5_f32, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
    let mut objects = vec![
        Object::None,
        text("é"),
        Object::Metadata(Metadata::None),
        Object::Metadata(Metadata::of(&Some(tensor.clone()))),
        Object::Tensor(tensor),
        Object::UniqueId(UniqueId([7; UniqueId::BYTES])),
    ];
    let bytes = Object::Bytes("raw".into());
    match wire {
        WireMode::Native => objects.push(bytes),
        _ => assert!(matches!(zero.send_obj(&bytes, 1).await, Err(Error::Misuse(_)))),
    }
    for object in objects {
        zero.send_obj(&object, 1).await.unwrap();
        assert_eq!(one.recv_obj(0).await.unwrap(), object);
    }
}

async fn a_broadcast_reaches_every_rank_from_any(wire: WireMode) {
    let groups = groups(&Watched::new(), wire, 3);
    for round in 0..2 {
        for src in 0..3 {
            let object = text(format!("{src} in {round}"));
            let got = on_every(&groups, |group| {
                let given = (group.rank() == src).then_some(&object);
                group.broadcast_obj(given, src)
            });
            for got in got.await {
                assert_eq!(got.unwrap(), object);
            }
        }
    }
}

async fn all_gather_gives_every_rank_all_objects_by_rank(wire: WireMode) {
    let groups = groups(&Watched::new(), wire, 4);
    for round in 0..2 {
        let object = |rank| text(format!("{rank} in {round}"));
        let expected: Vec<Object> = (0..4).map(object).collect();
        let gathered =
            on_every(&groups, async |group: &Group| group.all_gather_obj(&object(group.rank())).await);
        for gathered in gathered.await {
            assert_eq!(gathered.unwrap(), expected);
        }
    }
}

async fn a_barrier_holds_everybody_until_the_last_has_come(wire: WireMode) {
    let groups = groups(&Watched::new(), wire, 5);
    for last in [0, 2, 4, 1] {
        let (late, early): (Vec<&Group>, Vec<&Group>) = groups.iter().partition(|group| group.rank() == last);
        let mut waiting: Vec<_> = early.iter().map(|group| Box::pin(group.barrier())).collect();
        for _ in 0..20 {
            for waiting in &mut waiting {
                assert!(poll_once(waiting).await.is_none(), "before rank {last} has come");
            }
            tokio::task::yield_now().await;
        }
        let (passed, others) = tokio::join!(late[0].barrier(), all_of(waiting));
        passed.unwrap();
        others.into_iter().for_each(Result::unwrap);
    }
}

async fn a_group_of_one_has_nobody_to_wait_for(wire: WireMode) {
    let group = StatelessProcessGroup::new(Watched::new(), 0, 1, config(wire)).unwrap();
    group.barrier().await.unwrap();
    assert_eq!(group.all_gather_obj(&Object::None).await.unwrap(), [Object::None]);
    assert_eq!(group.broadcast_obj(Some(&text("x")), 0).await.unwrap(), text("x"));
}

async fn a_rank_that_is_not_another_one_of_the_group_is_refused(wire: WireMode) {
    let [zero, _] = pair(&Watched::new(), wire);
    for (result, says) in [
        (zero.send_obj(&Object::None, 2).await, "rank 2 is beyond the world size 2"),
        (zero.recv_obj(2).await.map(drop), "rank 2 is beyond the world size 2"),
        (zero.broadcast_obj(None, 2).await.map(drop), "rank 2 is beyond the world size 2"),
        (zero.send_obj(&Object::None, 0).await, "rank 0 can't send to itself"),
        (zero.recv_obj(0).await.map(drop), "rank 0 can't receive from itself"),
        (
            StatelessProcessGroup::new(Watched::new(), 2, 2, config(wire)).map(drop),
            "rank 2 is beyond the world size 2",
        ),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Misuse(_)), "{error}");
        assert_eq!(error.to_string(), says);
    }
}

async fn the_source_of_a_broadcast_must_give_the_object(wire: WireMode) {
    let [zero, _] = pair(&Watched::new(), wire);
    let error = zero.broadcast_obj(None, 0).await.unwrap_err();
    assert_eq!(error.to_string(), "rank 0 broadcasts, and so must give the object");
}

async fn an_idle_receive_times_out_and_can_be_called_again(wire: WireMode) {
    let [zero, one] = pair(&Watched::new(), wire);
    let began = Instant::now();
    for _ in 0..3 {
        let error = one.recv_obj(0).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert!(error.to_string().starts_with("timed out after 300 s waiting for rank 0 to send"), "{error}");
    }
    assert_eq!(began.elapsed(), GroupConfig::default().timeout * 3);
    zero.send_obj(&text("at last"), 1).await.unwrap();
    assert_eq!(one.recv_obj(0).await.unwrap(), text("at last"));
}

async fn receives_from_one_rank_take_turns(wire: WireMode) {
    let [zero, one] = pair(&Watched::new(), wire);
    let sending = async {
        for n in ["first", "second", "third"] {
            zero.send_obj(&text(n), 1).await.unwrap();
        }
    };
    let (first, second, third, ()) =
        tokio::join!(biased; one.recv_obj(0), one.recv_obj(0), one.recv_obj(0), sending);
    assert_eq!(first.unwrap(), text("first"));
    assert_eq!(second.unwrap(), text("second"));
    assert_eq!(third.unwrap(), text("third"));

    let mut blocked = Box::pin(one.recv_obj(0));
    assert!(poll_once(&mut blocked).await.is_none());
    let error = one.recv_obj_timeout(0, SECOND).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "timed out after 1 s waiting for an earlier call to end, and then for rank 0 to send an object"
    );
}

async fn what_is_no_object_is_the_peers_fault_and_stays_in_its_place(wire: WireMode) {
    let store = Watched::new();
    let [zero, one] = pair(&store, wire);
    zero.send_obj(&text("good"), 1).await.unwrap();
    let key = store.keys().remove(0);
    let good = store.get(&key, LONG).await.unwrap();
    store.set(&key, "\u{7f}garbage".into(), LONG).await.unwrap();
    for _ in 0..2 {
        let error = one.recv_obj(0).await.unwrap_err();
        assert!(matches!(error, Error::PeerMisbehaved { .. } | Error::PeerIncompatible { .. }), "{error}");
        assert!(error.to_string().starts_with("rank 1 to rank 0: "), "{error}");
    }
    store.set(&key, good, LONG).await.unwrap();
    assert_eq!(one.recv_obj(0).await.unwrap(), text("good"));
}

async fn an_object_that_the_store_refuses_has_no_place(wire: WireMode) {
    let [zero, one] = pair(&Watched::small(100), wire);
    let large = text("x".repeat(100));
    for _ in 0..2 {
        assert!(matches!(zero.send_obj(&large, 1).await, Err(Error::Misuse(_))));
        assert!(matches!(zero.broadcast_obj(Some(&large), 0).await, Err(Error::Misuse(_))));
        assert!(matches!(zero.all_gather_obj(&large).await, Err(Error::Misuse(_))));
    }
    zero.send_obj(&text("small"), 1).await.unwrap();
    assert_eq!(one.recv_obj(0).await.unwrap(), text("small"));
    let [a, b] = [text("a"), text("b")];
    let (gathered, other) = tokio::join!(zero.all_gather_obj(&a), one.all_gather_obj(&b));
    assert_eq!(gathered.unwrap(), [text("a"), text("b")]);
    assert_eq!(other.unwrap(), [text("a"), text("b")]);
}

async fn two_groups_of_the_same_ranks_do_not_hear_each_other(wire: WireMode) {
    let store = Watched::new();
    let group = |rank, name: &str| match wire {
        WireMode::Native => {
            let config = GroupConfig { name: GroupName::new(name).unwrap(), ..config(wire) };
            // Of the same type as the other arm.
            StatelessProcessGroup::new(PrefixStore::new("", store.clone()), rank, 2, config).unwrap()
        }
        _ => {
            StatelessProcessGroup::new(PrefixStore::new(name, store.clone()), rank, 2, config(wire)).unwrap()
        }
    };
    let [red0, red1] = [group(0, "red"), group(1, "red")];
    let [blue0, blue1] = [group(0, "blue"), group(1, "blue")];
    red0.send_obj(&text("red"), 1).await.unwrap();
    assert!(dropped_after(20, blue1.recv_obj(0)).await.is_none());
    blue0.send_obj(&text("blue"), 1).await.unwrap();
    assert_eq!(red1.recv_obj(0).await.unwrap(), text("red"));
    assert_eq!(blue1.recv_obj(0).await.unwrap(), text("blue"));
    // A barrier of one is none of the other.
    assert!(dropped_after(20, async { tokio::join!(red0.barrier(), blue1.barrier()) }).await.is_none());
}

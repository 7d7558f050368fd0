//! Calls that are dropped at any point, or whose connection to the store breaks at any operation.

use kvpipe::group::WireMode;
use kvpipe::wire::Object;
use kvpipe::{Error, Result};

use crate::support::{Break, Group, Watched, all_of, dropped_after, groups, pair, text};

const WIRES: [WireMode; 2] = [WireMode::Native, WireMode::Vllm];

/// More than any call here takes.
const POLLS_MAX: usize = 40;

#[tokio::test(start_paused = true)]
async fn a_dropped_receive_has_received_nothing() {
    for wire in WIRES {
        for polls in 0..POLLS_MAX {
            let store = Watched::yielding();
            let [zero, one] = pair(&store, wire);
            zero.send_obj(&text("first"), 1).await.unwrap();
            zero.send_obj(&text("second"), 1).await.unwrap();
            let first = match dropped_after(polls, one.recv_obj(0)).await {
                Some(first) => first,
                None => one.recv_obj(0).await,
            };
            assert_eq!(first.unwrap(), text("first"), "{wire:?}, {polls} polls");
            assert_eq!(one.recv_obj(0).await.unwrap(), text("second"));
            assert!(wire == WireMode::Vllm || store.keys().is_empty(), "{:?}", store.keys());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_send_is_not_sent_or_goes_out_before_the_next() {
    for wire in WIRES {
        for polls in 0..POLLS_MAX {
            for read_between in [false, true] {
                let store = Watched::yielding();
                let [zero, one] = pair(&store, wire);
                let mut received = Vec::new();
                let sent = dropped_after(polls, zero.send_obj(&text("first"), 1)).await;
                if read_between {
                    received.extend(dropped_after(POLLS_MAX, one.recv_obj(0)).await);
                }
                zero.send_obj(&text("second"), 1).await.unwrap();
                while received.len() < 2 {
                    let Some(object) = dropped_after(POLLS_MAX, one.recv_obj(0)).await else { break };
                    received.push(object);
                }
                let received: Vec<_> = received.into_iter().map(Result::unwrap).collect();
                let not_sent = received == [text("second")];
                assert!(received == [text("first"), text("second")] || not_sent, "{received:?}");
                assert!(!(sent.is_some() && not_sent), "a finished send is sent");
                assert!(!not_sent || polls == 0, "{wire:?}: it had its place after {polls} polls");
                assert!(wire == WireMode::Vllm || store.keys().is_empty(), "{:?}", store.keys());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_broadcast_is_read_by_all_and_leaves_nothing() {
    for wire in WIRES {
        for (dropping, polls) in points_to_drop_at(1) {
            let store = Watched::yielding();
            let groups = groups(&store, wire, 3);
            let both = groups.iter().map(|group| {
                let polls = if group.rank() == dropping { polls } else { usize::MAX };
                Box::pin(two_broadcasts(group, polls))
            });
            for received in all_of(both).await {
                assert_eq!(received, [text("first"), text("second")], "{wire:?}, {dropping}, {polls} polls");
            }
            assert!(wire == WireMode::Vllm || store.keys().is_empty(), "{:?}", store.keys());
        }
    }
}

/// Of rank 0. Dropped there, the first has its place; elsewhere it is received again.
async fn two_broadcasts(group: &Group, polls: usize) -> [Object; 2] {
    let [first, second] = [text("first"), text("second")];
    let given = |object| (group.rank() == 0).then_some(object);
    let received = match dropped_after(polls, group.broadcast_obj(given(&first), 0)).await {
        Some(received) => received.unwrap(),
        None if group.rank() == 0 => first.clone(),
        None => group.broadcast_obj(None, 0).await.unwrap(),
    };
    [received, group.broadcast_obj(given(&second), 0).await.unwrap()]
}

#[tokio::test(start_paused = true)]
async fn a_dropped_barrier_goes_on_when_it_is_called_again() {
    for wire in WIRES {
        for (dropping, polls) in points_to_drop_at(0) {
            let store = Watched::yielding();
            let groups = groups(&store, wire, 3);
            let thrice = groups.iter().map(|group| {
                let polls = if group.rank() == dropping { polls } else { usize::MAX };
                Box::pin(three_barriers(group, polls))
            });
            all_of(thrice).await;
            assert!(store.keys().is_empty(), "{wire:?}, {dropping}, {polls} polls: {:?}", store.keys());
        }
    }
}

async fn three_barriers(group: &Group, polls: usize) {
    for _ in 0..3 {
        if dropped_after(polls, group.barrier()).await.is_none() {
            group.barrier().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_gathering_goes_on_when_it_is_called_again() {
    for wire in WIRES {
        for (dropping, polls) in points_to_drop_at(0) {
            let store = Watched::yielding();
            let groups = groups(&store, wire, 3);
            let twice = groups.iter().map(|group| {
                let polls = if group.rank() == dropping { polls } else { usize::MAX };
                Box::pin(two_gatherings(group, polls))
            });
            for [first, second] in all_of(twice).await {
                assert_eq!(first, ["0 first", "1 first", "2 first"].map(text), "{dropping}, {polls} polls");
                assert_eq!(second, ["0 second", "1 second", "2 second"].map(text), "{wire:?}");
            }
            assert!(wire == WireMode::Vllm || store.keys().is_empty(), "{:?}", store.keys());
        }
    }
}

async fn two_gatherings(group: &Group, polls: usize) -> [Vec<Object>; 2] {
    let [first, second] = ["first", "second"].map(|word| text(format!("{} {word}", group.rank())));
    let gathered = match dropped_after(polls, group.all_gather_obj(&first)).await {
        Some(gathered) => gathered.unwrap(),
        None => group.all_gather_obj(&first).await.unwrap(),
    };
    [gathered, group.all_gather_obj(&second).await.unwrap()]
}

#[tokio::test(start_paused = true)]
async fn whatever_operation_breaks_objects_arrive_in_order_and_once() {
    for wire in WIRES {
        for how in [Break::BeforeItTakesEffect, Break::AfterItTookEffect] {
            for more in 0.. {
                let store = Watched::new();
                store.break_after(more, how);
                let [zero, one] = pair(&store, wire);
                let words = ["first", "second", "third"].map(text);
                let mut failed = false;
                for object in &words {
                    if let Err(error) = zero.send_obj(object, 1).await {
                        assert!(matches!(error, Error::Io { .. }), "{error}");
                        failed = true;
                    }
                }
                assert_eq!(failed, more < words.len());
                // It completes the third; and the second one completes the first.
                let ends = if zero.send_obj(&Object::None, 1).await.is_ok() { 1 } else { 2 };
                if ends == 2 {
                    zero.send_obj(&Object::None, 1).await.unwrap();
                }
                for object in words.into_iter().chain(vec![Object::None; ends]) {
                    let received = until_it_works(async || one.recv_obj(0).await).await;
                    assert_eq!(received, object, "{wire:?}, operation {more}");
                }
                assert!(wire == WireMode::Vllm || store.keys().is_empty(), "{:?}", store.keys());
                if store.breaks() {
                    break;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_operation_breaks_everybody_has_the_broadcasts() {
    for wire in WIRES {
        for how in [Break::BeforeItTakesEffect, Break::AfterItTookEffect] {
            for more in 0.. {
                let store = Watched::new();
                store.break_after(more, how);
                let groups = groups(&store, wire, 3);
                let thrice = groups.iter().map(|group| Box::pin(three_gatherings_that_may_break(group)));
                for gathered in all_of(thrice).await {
                    assert_eq!(gathered, 3, "{wire:?}, operation {more}");
                }
                // A broadcast whose readers were not all counted.
                assert!(wire == WireMode::Vllm || store.keys().len() <= 2, "{:?}", store.keys());
                if store.breaks() {
                    break;
                }
            }
        }
    }
}

async fn three_gatherings_that_may_break(group: &Group) -> usize {
    let mut count = 0;
    for round in 0..3 {
        let object = |rank| text(format!("{rank} in {round}"));
        let own = object(group.rank());
        let gathered = until_it_works(async || group.all_gather_obj(&own).await).await;
        assert_eq!(gathered, [object(0), object(1), object(2)]);
        count += 1;
    }
    count
}

#[tokio::test(start_paused = true)]
async fn whatever_operation_breaks_a_barrier_is_passed_by_calling_it_again() {
    for wire in WIRES {
        for how in [Break::BeforeItTakesEffect, Break::AfterItTookEffect] {
            for more in 0.. {
                let store = Watched::new();
                store.break_after(more, how);
                let groups = groups(&store, wire, 3);
                let thrice = groups.iter().map(|group| {
                    Box::pin(async move {
                        for _ in 0..3 {
                            until_it_works(async || group.barrier().await).await;
                        }
                    })
                });
                all_of(thrice).await;
                // A mark that was set again after rank 0 had cleaned up.
                assert!(store.keys().len() <= 1, "{wire:?}, operation {more}: {:?}", store.keys());
                if store.breaks() {
                    break;
                }
            }
        }
    }
}

/// Which rank drops a call after how many polls.
fn points_to_drop_at(first: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..3).flat_map(move |rank| (first..POLLS_MAX).map(move |polls| (rank, polls)))
}

/// Calls again after a broken connection, and after nothing else.
async fn until_it_works<T>(call: impl AsyncFn() -> Result<T>) -> T {
    for _ in 0..3 {
        match call().await {
            Ok(output) => return output,
            Err(error) => assert!(matches!(error, Error::Io { .. }), "{error}"),
        }
    }
    panic!("it breaks again and again");
}

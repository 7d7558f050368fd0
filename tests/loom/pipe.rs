//! Models of a whole pipe over the memory transport. Both directions, or both ends, of the drivers
//! are joined in one thread: with a thread each, the models do not finish.

use kvpipe::transport::Transport;
use kvpipe::transport::memory::{self, Fault, Script};
use kvpipe::{Error, Pipe};
use loom::future::block_on;
use loom::thread;

use crate::support::{budget, explore, item, join, mark};

const BOUND: usize = 2;

/// One direction with a fault script, its drivers in a thread of their own.
fn edge(script: Script, bytes: usize) -> (Pipe, Pipe, thread::JoinHandle<()>) {
    let (outgoing, incoming) = memory::edge(script);
    let (sender, send_driver) = Pipe::send_only(outgoing, budget(bytes));
    let (receiver, receive_driver) = Pipe::receive_only(incoming, budget(bytes));
    let drivers = thread::spawn(move || {
        block_on(join(send_driver, receive_driver));
    });
    (sender, receiver, drivers)
}

#[test]
fn items_and_the_close_arrive_in_order() {
    explore("pipe_in_order", BOUND, || {
        let (sender, receiver, drivers) = edge(Script::new(), 1);
        sender.try_send(item(1, 1)).unwrap();
        sender.try_send(None).unwrap();
        sender.sender().unwrap().finish();
        assert_eq!(mark(&receiver.blocking_recv().unwrap()), 1);
        assert_eq!(receiver.blocking_recv().unwrap(), None);
        assert!(matches!(receiver.blocking_recv(), Err(Error::Closed)));
        sender.blocking_close().unwrap();
        drivers.join().unwrap();
    });
}

#[test]
fn a_sender_waits_for_the_receiver_to_take() {
    explore("pipe_backpressure", BOUND, || {
        let (outgoing, incoming) = memory::edge(Script::new());
        let (sender, send_driver) = Pipe::send_only(outgoing, budget(1));
        let (receiver, receive_driver) = Pipe::receive_only(incoming, budget(1));
        let receiving = thread::spawn(move || {
            let take_one = async {
                assert_eq!(mark(&receiver.recv().await.unwrap()), 1);
                assert_eq!(receiver.stats().receive.unwrap().held_bytes_max, 1);
                drop(receiver);
            };
            block_on(join(join(send_driver, receive_driver), take_one));
        });
        sender.try_send(item(1, 1)).unwrap();
        // Through a budget and a window of one byte each. The first must have arrived; the receiver
        // leaves after it.
        match sender.blocking_send(item(1, 2)) {
            Ok(sequence) => assert_eq!(sequence, 1),
            Err(error) => assert!(matches!(error, Error::ReceiverClosed { taken: 1, .. }), "{error}"),
        }
        receiving.join().unwrap();
    });
}

#[test]
fn both_ends_close_at_once() {
    // One end closes beside the drivers, in their thread, before or after they have moved the item: a
    // third thread makes ten times as many executions of it.
    for refused in [true, false] {
        explore(if refused { "close_both_refused" } else { "close_both_untaken" }, 3, move || {
            let (left, right) = memory::pair();
            let (left, right) = (left.split(), right.split());
            let (left, left_driver) = Pipe::new(left.0, left.1, budget(1));
            let (right, right_driver) = Pipe::new(right.0, right.1, budget(1));
            left.try_send(item(1, 1)).unwrap();
            let drivers = thread::spawn(move || {
                let drivers = join(left_driver, right_driver);
                block_on(async {
                    match refused {
                        true => join(right.close(), drivers).await.0,
                        false => join(drivers, right.close()).await.1,
                    }
                })
            });
            // The item is refused, or arrives and is left untaken: the sender is told.
            let closed = left.blocking_close();
            assert!(matches!(closed, Err(Error::ReceiverClosed { taken: 0, .. })), "{closed:?}");
            drivers.join().unwrap().unwrap();
        });
    }
}

#[test]
fn the_sender_is_dropped_without_a_close() {
    explore("sender_dropped", BOUND, || {
        let (sender, receiver, drivers) = edge(Script::new(), 1);
        sender.try_send(item(1, 1)).unwrap();
        let dropping = thread::spawn(move || drop(sender));
        let first = receiver.blocking_recv();
        let end = match first {
            Ok(item) => {
                assert_eq!(mark(&item), 1);
                receiver.blocking_recv()
            }
            Err(error) => Err(error),
        };
        assert!(matches!(end, Err(Error::PeerAborted { .. })), "{end:?}");
        dropping.join().unwrap();
        drivers.join().unwrap();
    });
}

#[test]
fn the_receiver_is_dropped_while_a_sender_waits() {
    explore("receiver_dropped", BOUND, || {
        let (sender, receiver, drivers) = edge(Script::new(), 1);
        let dropping = thread::spawn(move || drop(receiver));
        let outcome = (0..3).find_map(|_| sender.blocking_send(item(1, 1)).err());
        assert!(matches!(outcome, Some(Error::ReceiverClosed { taken: 0, .. })), "{outcome:?}");
        dropping.join().unwrap();
        drivers.join().unwrap();
    });
}

/// Sends two items over a wire that breaks at the second, and returns what each side knows:
/// how many were received, and the undelivered ones as (sequence, in doubt).
fn account(fault: Fault) -> (usize, Vec<(u64, bool)>) {
    let (sender, receiver, drivers) = edge(Script::new().at(1, fault), 8);
    let receiving = thread::spawn(move || {
        let received = std::iter::from_fn(|| receiver.blocking_recv().ok()).count();
        assert!(matches!(receiver.blocking_recv(), Err(Error::PeerGone { .. })));
        received
    });
    let accepted = (1..=2).take_while(|&mark| sender.blocking_send(item(1, mark)).is_ok()).count();
    assert_eq!(accepted, 2, "there is room for both, and the wire breaks at the second");
    assert!(matches!(sender.blocking_close(), Err(Error::PeerGone { .. })));
    let undelivered = sender.undelivered().iter().map(|item| (item.sequence, item.in_doubt)).collect();
    let received = receiving.join().unwrap();
    drivers.join().unwrap();
    (received, undelivered)
}

#[test]
fn the_transport_fails_at_an_item_and_every_accepted_item_is_accounted_for() {
    explore("fail_at_item", BOUND, || {
        assert_eq!(account(Fault::CutDelivery), (1, vec![(1, true)]));
    });
}

#[test]
fn an_acknowledgement_is_lost_and_the_item_is_in_doubt() {
    explore("lost_acknowledgement", BOUND, || {
        assert_eq!(account(Fault::LoseAcknowledgement), (2, vec![(1, true)]));
    });
}

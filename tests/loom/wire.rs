//! The memory wire between two drivers, each in a thread of its own. What the users do is done
//! before or beside them: whole pipes are modelled in [`pipe`](crate::pipe).

use kvpipe::pipe::Driver;
use kvpipe::transport::memory::{self, Fault, Gate, Script};
use kvpipe::{Error, Pipe, Result};
use loom::future::block_on;
use loom::thread;

use crate::support::{budget, explore, item, join, mark};

const BOUND: usize = 2;

fn edge(script: Script) -> ((Pipe, Driver), (Pipe, Driver)) {
    let (outgoing, incoming) = memory::edge(script);
    (Pipe::send_only(outgoing, budget(8)), Pipe::receive_only(incoming, budget(8)))
}

/// Receives to the end: the marks, and how it ended.
async fn receive_all(receiver: &Pipe) -> (Vec<u8>, Error) {
    let mut marks = Vec::new();
    loop {
        match receiver.recv().await {
            Ok(item) => marks.push(mark(&item)),
            Err(end) => return (marks, end),
        }
    }
}

/// Drives the sender of one item, which is closed behind it, and gives how it ended.
fn send_one(sender: Pipe, driver: Driver) -> thread::JoinHandle<Result<()>> {
    sender.try_send(item(1, 1)).unwrap();
    sender.sender().unwrap().finish();
    thread::spawn(move || block_on(join(driver, sender.close())).1)
}

#[test]
fn an_item_and_the_close_against_their_acknowledgements() {
    explore("wire_close", BOUND, || {
        let ((sender, sending), (receiver, receiving)) = edge(Script::new());
        let sending = send_one(sender, sending);
        let ((), (marks, end)) = block_on(join(receiving, receive_all(&receiver)));
        assert_eq!(marks, [1]);
        assert!(matches!(end, Error::Closed), "{end}");
        sending.join().unwrap().unwrap();
    });
}

#[test]
fn an_acknowledgement_with_nothing_behind_it() {
    explore("wire_acknowledged", BOUND, || {
        let ((sender, sending), (receiver, receiving)) = edge(Script::new());
        sender.try_send(item(1, 1)).unwrap();
        let flush = async {
            sender.flush().await.unwrap();
            drop(sender);
        };
        let receiving = thread::spawn(move || block_on(join(receiving, receive_all(&receiver))).1.0);
        block_on(join(sending, flush));
        assert_eq!(receiving.join().unwrap(), [1]);
    });
}

#[test]
fn an_abort_against_a_receiver_that_waits() {
    explore("wire_abort", BOUND, || {
        let ((sender, sending), (receiver, receiving)) = edge(Script::new());
        sender.sender().unwrap().abort("no more");
        let sending = thread::spawn(move || block_on(sending));
        let ((), (marks, end)) = block_on(join(receiving, receive_all(&receiver)));
        assert!(marks.is_empty());
        assert!(matches!(end, Error::PeerAborted { .. }), "{end}");
        sending.join().unwrap();
    });
}

#[test]
fn the_receiver_leaves_while_an_item_crosses() {
    explore("wire_left", BOUND, || {
        let ((sender, sending), (receiver, receiving)) = edge(Script::new());
        let sending = send_one(sender, sending);
        drop(receiver);
        block_on(receiving);
        let sent = sending.join().unwrap();
        assert!(matches!(sent, Err(Error::ReceiverClosed { taken: 0, .. })), "{sent:?}");
    });
}

#[test]
fn the_receiving_end_is_dropped_while_an_item_crosses() {
    explore("wire_receiver_gone", BOUND, || {
        let ((sender, sending), (_receiver, receiving)) = edge(Script::new());
        let sending = send_one(sender, sending);
        drop(receiving);
        let sent = sending.join().unwrap();
        assert!(matches!(sent, Err(Error::PeerGone { .. })), "{sent:?}");
    });
}

#[test]
fn the_sending_end_is_dropped_while_the_receiver_waits() {
    explore("wire_sender_gone", BOUND, || {
        let ((_sender, sending), (receiver, receiving)) = edge(Script::new());
        let dropping = thread::spawn(move || drop(sending));
        let ((), (marks, end)) = block_on(join(receiving, receive_all(&receiver)));
        assert!(marks.is_empty());
        assert!(matches!(end, Error::PeerGone { .. }), "{end}");
        dropping.join().unwrap();
    });
}

#[test]
fn the_wire_is_cut_while_the_close_crosses() {
    explore("wire_cut", BOUND, || {
        let ((sender, sending), (receiver, receiving)) = edge(Script::new().at(0, Fault::Fail));
        let undelivered = sender.clone();
        let sending = send_one(sender, sending);
        let ((), (marks, end)) = block_on(join(receiving, receive_all(&receiver)));
        assert!(marks.is_empty());
        assert!(matches!(end, Error::PeerGone { .. }), "{end}");
        assert!(matches!(sending.join().unwrap(), Err(Error::PeerGone { .. })));
        assert!(undelivered.undelivered()[0].in_doubt);
    });
}

#[test]
fn a_gate_is_opened_while_an_item_comes_to_it() {
    explore("gate", BOUND, || {
        let gate = Gate::new();
        let ((sender, sending), (receiver, receiving)) =
            edge(Script::new().at(0, Fault::Stall(gate.clone())));
        sender.try_send(item(1, 1)).unwrap();
        let opening = thread::spawn(move || gate.open());
        let take_one = async {
            assert_eq!(mark(&receiver.recv().await.unwrap()), 1);
            sender.flush().await.unwrap();
            drop((sender, receiver));
        };
        block_on(join(join(sending, receiving), take_one));
        opening.join().unwrap();
    });
}

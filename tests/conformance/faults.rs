//! What only the memory wire can be made to do: one scripted fault, and what each end knows of it.
//!
//! No socket is involved, so time is virtual: it jumps to the next deadline when nothing else is
//! left to do.

use std::time::Duration;

use kvpipe::transport::memory::{self, Fault, Gate, Script};
use kvpipe::{Error, Pipe, PipeConfig};
use kvpipe_sim::conformance::HANG;
use kvpipe_sim::conformance::support::{drain_numbers, eventually, is_gone, numbered, receiving, sending};
use tokio::runtime::Builder;

pub(crate) fn run<F: Future<Output = ()>>(scenario: impl FnOnce() -> F) {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async { tokio::time::timeout(HANG, scenario()).await.expect("the scenario hangs") });
}

fn edge(script: Script, config: PipeConfig) -> (Pipe, Pipe) {
    let (outgoing, incoming) = memory::edge(script);
    (sending(outgoing, config.clone()).0, receiving(incoming, config).0)
}

/// Sends three items over a wire that breaks at the second: what was received, and the undelivered
/// ones as (sequence, in doubt).
async fn break_at_the_second(fault: Fault) -> (Vec<u64>, Vec<(u64, bool)>) {
    let (sender, receiver) = edge(Script::new().at(1, fault), PipeConfig::default());
    for sequence in 0..3 {
        sender.try_send(numbered(sequence, 8)).unwrap();
    }
    let closed = sender.close().await;
    assert!(is_gone(&closed), "{closed:?}");
    let (received, end) = drain_numbers(&receiver).await;
    assert!(matches!(end, Error::PeerGone { .. }), "{end}");
    (received, sender.undelivered().iter().map(|item| (item.sequence, item.in_doubt)).collect())
}

#[test]
fn a_wire_that_breaks_before_an_item_leaves_it_in_doubt() {
    run(|| async {
        let (received, undelivered) = break_at_the_second(Fault::Fail).await;
        assert_eq!(received, [0]);
        assert_eq!(undelivered, [(1, true), (2, true)]);
    });
}

#[test]
fn a_wire_that_breaks_during_an_item_delivers_no_part_of_it() {
    run(|| async {
        let (received, undelivered) = break_at_the_second(Fault::CutDelivery).await;
        assert_eq!(received, [0]);
        assert_eq!(undelivered, [(1, true), (2, true)]);
    });
}

#[test]
fn an_item_whose_acknowledgement_is_lost_is_received_and_in_doubt() {
    run(|| async {
        let (received, undelivered) = break_at_the_second(Fault::LoseAcknowledgement).await;
        assert_eq!(received, [0, 1]);
        assert_eq!(undelivered, [(1, true), (2, true)]);
    });
}

#[test]
fn close_gives_up_on_a_peer_that_never_acknowledges() {
    run(|| async {
        let patience = Duration::from_secs(30);
        let config = PipeConfig { close_timeout: patience, ..PipeConfig::default() };
        let (sender, receiver) = edge(Script::new().at(1, Fault::NeverAcknowledge), config);
        for sequence in 0..4 {
            sender.send(numbered(sequence, 8)).await.unwrap();
        }
        let late = sender.close().await.unwrap_err();
        assert!(matches!(late, Error::Timeout { after, .. } if after == patience), "{late}");
        assert!(late.to_string().contains("last 3 items"), "{late}");
        let undelivered: Vec<_> =
            sender.undelivered().iter().map(|item| (item.sequence, item.in_doubt)).collect();
        assert_eq!(undelivered, [(1, true), (2, true), (3, true)]);
        // The receiver has them all the same; that is what "in doubt" says.
        assert_eq!(drain_numbers(&receiver).await.0, [0, 1, 2, 3]);
    });
}

#[test]
fn close_does_not_give_up_while_there_is_progress() {
    run(|| async {
        let patience = Duration::from_secs(30);
        let config = PipeConfig { close_timeout: patience, ..PipeConfig::default() }.with_buffer_bytes(8);
        let gates: Vec<Gate> = (0..4).map(|_| Gate::new()).collect();
        let script = gates
            .iter()
            .zip(0..)
            .fold(Script::new(), |script, (gate, sequence)| script.at(sequence, Fault::Stall(gate.clone())));
        let (outgoing, incoming) = memory::edge(script);
        let (sender, _) = sending(outgoing, PipeConfig { budget_bytes: 1_000, ..config.clone() });
        let (receiver, _) = receiving(incoming, config);
        for sequence in 0..4 {
            sender.send(numbered(sequence, 8)).await.unwrap();
        }
        let closing = tokio::spawn(async move { sender.close().await });
        for gate in gates {
            // In all more than the patience, but each step well within it.
            tokio::time::sleep(patience * 2 / 3).await;
            gate.open();
            receiver.recv().await.unwrap();
        }
        closing.await.unwrap().unwrap();
    });
}

#[test]
fn a_stalled_item_holds_back_what_follows_and_nothing_is_lost() {
    run(|| async {
        let gate = Gate::new();
        let script = Script::new().at(1, Fault::Stall(gate.clone()));
        let (sender, receiver) = edge(script, PipeConfig::default());
        for sequence in 0..3 {
            sender.send(numbered(sequence, 8)).await.unwrap();
        }
        sender.sender().unwrap().finish();
        eventually(|| sender.stats().send.unwrap().in_flight_items == 2).await;
        assert_eq!(receiver.stats().receive.unwrap().queued_items, 1);
        gate.open();
        assert_eq!(drain_numbers(&receiver).await.0, [0, 1, 2]);
    });
}

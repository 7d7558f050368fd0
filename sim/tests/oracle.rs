//! The oracle finds each way in which a stream can be wrong.

use kvpipe::error::Link;
use kvpipe::pipe::Undelivered;
use kvpipe::{Error, Item, PipeConfig, Tensor};
use kvpipe_sim::oracle::{
    EdgeName, EndId, Oracle, ReceiverEnd, ReceiverLook, SenderEnd, SenderLook, Totals, Violation,
};

const LIMIT: usize = 10;

fn item(mark: u8) -> Item {
    tensor(3, mark)
}

fn tensor(bytes: usize, mark: u8) -> Item {
    Some(Tensor::from_vec([bytes], vec![mark; bytes]).unwrap())
}

/// Four items, a None among them.
fn sent() -> Vec<Item> {
    vec![item(0), None, item(2), item(3)]
}

fn gone() -> Error {
    Error::PeerGone { link: Link::new(0, 1), reason: "a test".into() }
}

fn closed() -> SenderEnd {
    SenderEnd { closed: Ok(()), undelivered: Vec::new(), acknowledged: 4, in_flight: 0 }
}

/// The items from `acknowledged` on are undelivered, the first `doubts` of them in doubt.
fn failed(acknowledged: usize, doubts: usize) -> SenderEnd {
    let undelivered = sent().into_iter().zip(0..).skip(acknowledged).zip(0..);
    let undelivered = undelivered
        .map(|((item, sequence), at)| Undelivered { sequence, item, in_doubt: at < doubts })
        .collect();
    SenderEnd { closed: Err(gone()), undelivered, acknowledged: acknowledged as u64, in_flight: doubts }
}

/// One stream, and its history so far.
struct Stream {
    oracle: Oracle,
    sender: EndId,
    receiver: EndId,
}

fn config() -> PipeConfig {
    PipeConfig { max_items: 5, ..PipeConfig::default() }.with_buffer_bytes(LIMIT)
}

fn edge() -> EdgeName {
    EdgeName { pipe: "kv".into(), from: 0 }
}

/// These were accepted and these delivered.
fn stream(accepted: &[Item], delivered: &[Item]) -> Stream {
    let mut oracle = Oracle::default();
    let sender = oracle.opens_sender(edge(), &config());
    let receiver = oracle.opens_receiver(edge(), &config());
    accepted.iter().zip(0..).for_each(|(item, sequence)| oracle.accepted(&sender, sequence, item));
    delivered.iter().for_each(|item| oracle.delivered(&receiver, item));
    Stream { oracle, sender, receiver }
}

impl Stream {
    fn sees_sender(mut self, look: SenderLook) -> Self {
        self.oracle.sees_sender(&self.sender, look);
        self
    }

    fn sees_receiver(mut self, look: ReceiverLook) -> Self {
        self.oracle.sees_receiver(&self.receiver, look);
        self
    }

    fn ended(mut self, sender: SenderEnd, receiver: Error) -> Self {
        self.oracle.finishes(&self.sender);
        self.oracle.sender_ended(&self.sender, sender);
        self.oracle.receiver_ended(&self.receiver, ReceiverEnd::Saw(receiver));
        self
    }

    fn judge(self) -> Result<Totals, Vec<Violation>> {
        self.oracle.judge().map_err(|found| found.into_iter().map(|(_, violation)| violation).collect())
    }

    fn violations(self) -> Vec<Violation> {
        self.judge().expect_err("the oracle sees nothing wrong")
    }
}

/// All four items were accepted and these delivered.
fn judge(delivered: &[Item], sender: SenderEnd, receiver: Error) -> Result<Totals, Vec<Violation>> {
    stream(&sent(), delivered).ended(sender, receiver).judge()
}

fn violations(delivered: &[Item], sender: SenderEnd, receiver: Error) -> Vec<Violation> {
    judge(delivered, sender, receiver).expect_err("the oracle sees nothing wrong")
}

#[test]
fn a_whole_stream_is_right() {
    let totals = judge(&sent(), closed(), Error::Closed).unwrap();
    assert_eq!(totals, Totals { streams: 1, accepted: 4, delivered: 4, failed: 0 });
}

#[test]
fn a_failed_stream_whose_sender_knows_what_is_missing_is_right() {
    // Two acknowledged, the third received, the fourth perhaps on its way.
    let totals = judge(&sent()[..3], failed(2, 2), gone()).unwrap();
    assert_eq!(totals, Totals { streams: 1, accepted: 4, delivered: 3, failed: 1 });
    judge(&sent()[..3], failed(2, 1), gone()).unwrap();
}

#[test]
fn a_lost_item_is_found() {
    let found = violations(&[item(0), None, item(3)], failed(2, 2), gone());
    assert!(matches!(&found[..], [Violation::WrongItem { place: 2, .. }]), "{found:?}");
}

#[test]
fn a_doubled_item_is_found() {
    let found = violations(&[item(0), item(0), None, item(2)], failed(2, 2), gone());
    assert!(matches!(found[0], Violation::WrongItem { place: 1, .. }), "{found:?}");
    let last_twice = [sent(), vec![item(3)]].concat();
    let found = violations(&last_twice, closed(), Error::Closed);
    assert!(matches!(&found[..], [Violation::WrongItem { place: 4, .. }]), "{found:?}");
}

#[test]
fn a_damaged_item_is_found() {
    let found = violations(&[item(0), None, item(9), item(3)], closed(), Error::Closed);
    assert!(matches!(&found[..], [Violation::WrongItem { place: 2, .. }]), "{found:?}");
}

#[test]
fn a_none_out_of_place_is_found() {
    let found = violations(&[None, item(0), item(2), item(3)], closed(), Error::Closed);
    assert!(matches!(found[0], Violation::WrongItem { place: 0, .. }), "{found:?}");
}

#[test]
fn a_close_that_succeeds_too_early_is_found() {
    let found = violations(&sent()[..3], SenderEnd { acknowledged: 3, ..closed() }, gone());
    let expected = Violation::ClosedTooEarly { received: 3, accepted: 4, undelivered: 0 };
    assert!(found.contains(&expected), "{found:?}");
}

#[test]
fn an_end_that_comes_too_early_is_found() {
    let found = violations(&sent()[..3], failed(3, 1), Error::Closed);
    assert_eq!(found, [Violation::EndedTooEarly { delivered: 3, accepted: 4 }]);
}

#[test]
fn an_end_that_the_sender_did_not_make_is_found() {
    let mut stream = stream(&sent(), &sent());
    stream.oracle.receiver_ended(&stream.receiver, ReceiverEnd::Saw(Error::Closed));
    assert_eq!(stream.violations(), [Violation::EndInvented]);
}

#[test]
fn an_item_that_undelivered_lacks_is_found() {
    let mut end = failed(1, 0);
    end.undelivered.remove(1);
    let found = violations(&sent()[..1], end, gone());
    let expected = Violation::WrongUndelivered { numbers: vec![1, 3], acknowledged: 1, accepted: 4 };
    assert_eq!(found, [expected]);
}

#[test]
fn an_acknowledged_item_among_the_undelivered_is_found() {
    let found = violations(&sent()[..2], SenderEnd { acknowledged: 2, ..failed(1, 1) }, gone());
    let expected = Violation::WrongUndelivered { numbers: vec![1, 2, 3], acknowledged: 2, accepted: 4 };
    assert_eq!(found, [expected]);
}

#[test]
fn an_undelivered_item_that_was_changed_is_found() {
    let mut end = failed(2, 0);
    end.undelivered[1].item = item(8);
    assert_eq!(violations(&sent()[..2], end, gone()), [Violation::ChangedUndelivered { sequence: 3 }]);
}

#[test]
fn an_acknowledgement_of_what_was_not_received_is_found() {
    let found = violations(&sent()[..1], failed(2, 0), gone());
    assert_eq!(found, [Violation::FalseAcknowledgement { acknowledged: 2, received: 1 }]);
    // Also while the stream runs.
    let look = SenderLook { acknowledged: 1, held_items: 3, held_bytes: 6, permit_bytes: 0 };
    let found = stream(&sent(), &[]).sees_sender(look).violations();
    assert_eq!(found, [Violation::FalseAcknowledgement { acknowledged: 1, received: 0 }]);
}

#[test]
fn more_received_than_accepted_is_found() {
    let look = ReceiverLook { taken: 2, queued_items: 3, held_bytes: 9, arriving_bytes: 0 };
    let found = stream(&sent(), &sent()[..2]).sees_receiver(look).violations();
    assert_eq!(found, [Violation::ReceivedTooMany { received: 5, accepted: 4 }]);
}

#[test]
fn a_received_item_that_is_not_in_doubt_is_found() {
    assert_eq!(violations(&sent()[..3], failed(2, 0), gone()), [Violation::FalseCertainty { sequence: 2 }]);
}

/// Two were taken and one is in the inbox.
const ONE_LEFT: ReceiverLook = ReceiverLook { taken: 2, queued_items: 1, held_bytes: 3, arriving_bytes: 0 };

#[test]
fn a_received_item_that_nobody_took_is_in_doubt_as_well() {
    let mut stream = stream(&sent(), &sent()[..2]).sees_receiver(ONE_LEFT);
    stream.oracle.sender_ended(&stream.sender, failed(2, 0));
    stream.oracle.receiver_ended(&stream.receiver, ReceiverEnd::Left);
    assert_eq!(stream.violations(), [Violation::FalseCertainty { sequence: 2 }]);
}

#[test]
fn a_failure_that_overtakes_what_has_arrived_is_found() {
    let stream = stream(&sent(), &sent()[..2]).sees_receiver(ONE_LEFT).ended(failed(2, 1), gone());
    let expected = Violation::EndOvertook { end: gone().to_string(), delivered: 2, received: 3 };
    assert_eq!(stream.violations(), [expected]);
}

#[test]
fn doubt_after_certainty_is_found() {
    let mut end = failed(2, 1);
    end.undelivered[0].in_doubt = false;
    end.undelivered[1].in_doubt = true;
    assert_eq!(violations(&sent()[..2], end, gone()), [Violation::DoubtAfterCertainty { sequence: 3 }]);
}

#[test]
fn doubt_that_nothing_gives_cause_for_is_found() {
    let end = SenderEnd { in_flight: 1, ..failed(2, 2) };
    let found = violations(&sent()[..2], end, gone());
    assert_eq!(found, [Violation::FalseDoubt { in_doubt: 2, in_flight: 1 }]);
    let left = Error::ReceiverClosed { link: Link::new(0, 1), taken: 2 };
    let found = violations(&sent()[..2], SenderEnd { closed: Err(left), ..failed(2, 1) }, Error::Closed);
    assert!(found.contains(&Violation::FalseDoubt { in_doubt: 1, in_flight: 1 }), "{found:?}");
}

#[test]
fn what_a_receiver_saw_counts_though_it_leaves_then() {
    let mut stream = stream(&sent(), &sent()[..3]).ended(failed(3, 1), Error::Closed);
    stream.oracle.receiver_ended(&stream.receiver, ReceiverEnd::Left);
    assert_eq!(stream.violations(), [Violation::EndedTooEarly { delivered: 3, accepted: 4 }]);
}

#[test]
fn an_abort_that_comes_as_a_graceful_end_is_found() {
    let mut stream = stream(&sent(), &sent());
    stream.oracle.aborts(&stream.sender);
    assert_eq!(stream.ended(closed(), Error::Closed).violations(), [Violation::EndInvented]);
}

#[test]
fn an_end_before_any_item_is_found() {
    assert_eq!(violations(&[], failed(0, 0), Error::Closed), [Violation::EndInvented]);
    assert_eq!(violations(&[None], failed(0, 0), Error::Closed).len(), 2, "no None was sent first");
}

#[test]
fn a_wrong_number_of_items_taken_is_found() {
    let left = Error::ReceiverClosed { link: Link::new(0, 1), taken: 2 };
    let end = SenderEnd { closed: Err(left), ..failed(3, 0) };
    let found = judge(&sent()[..3], end, Error::Closed).unwrap_err();
    assert!(found.contains(&Violation::WrongTaken { told: 2, delivered: 3 }), "{found:?}");
}

#[test]
fn a_flush_that_succeeds_too_early_is_found() {
    let mut stream = stream(&sent(), &sent()[..3]);
    stream.oracle.flushed(&stream.sender, 3);
    assert!(stream.oracle.is_content());
    stream.oracle.flushed(&stream.sender, 4);
    assert_eq!(stream.violations(), [Violation::FalseFlush { received: 3, accepted: 4 }]);
}

#[test]
fn a_budget_that_is_exceeded_is_found_and_one_large_item_alone_is_right() {
    let look = SenderLook { acknowledged: 0, held_items: 2, held_bytes: LIMIT + 1, permit_bytes: 0 };
    let one = stream(&[tensor(LIMIT + 1, 1), None], &[]);
    assert!(one.sees_sender(look).judge().is_ok());
    let two = stream(&[tensor(LIMIT, 1), tensor(1, 2)], &[]);
    let over = Violation::OverBudget { held: LIMIT + 1, limit: LIMIT };
    assert_eq!(two.sees_sender(look).violations(), [over]);
    let with_a_permit = SenderLook { permit_bytes: 1, ..look };
    assert!(!stream(&[tensor(LIMIT, 1)], &[]).sees_sender(with_a_permit).violations().is_empty());
}

#[test]
fn a_window_that_is_exceeded_is_found_and_one_large_item_alone_is_right() {
    let accepted = [item(1), tensor(LIMIT, 2), tensor(LIMIT + 1, 3)];
    let arriving =
        ReceiverLook { taken: 1, queued_items: 0, held_bytes: LIMIT + 1, arriving_bytes: LIMIT + 1 };
    assert!(stream(&accepted, &accepted[..1]).sees_receiver(arriving).judge().is_ok());
    let behind_another =
        ReceiverLook { queued_items: 1, held_bytes: LIMIT + 1, arriving_bytes: 1, ..arriving };
    let over = Violation::OverBudget { held: LIMIT + 1, limit: LIMIT };
    assert_eq!(stream(&accepted, &accepted[..1]).sees_receiver(behind_another).violations(), [over]);
}

#[test]
fn too_many_items_are_found() {
    let look = SenderLook { acknowledged: 0, held_items: 6, held_bytes: 0, permit_bytes: 0 };
    let found = stream(&vec![None; 6], &[]).sees_sender(look).violations();
    assert_eq!(found, [Violation::TooManyItems { held: 6, limit: 5 }]);
}

#[test]
fn a_wrong_sequence_number_is_found() {
    let mut stream = stream(&[], &[]);
    stream.oracle.accepted(&stream.sender, 1, &None);
    assert_eq!(stream.violations(), [Violation::Misnumbered { place: 0, sequence: 1 }]);
}

#[test]
fn pipes_that_follow_each_other_are_told_apart_by_their_items() {
    let mut stream = stream(&sent(), &sent()[..2]);
    let (sender, receiver) =
        (stream.oracle.opens_sender(edge(), &config()), stream.oracle.opens_receiver(edge(), &config()));
    for (item, sequence) in [item(7), None].iter().zip(0..) {
        stream.oracle.accepted(&sender, sequence, item);
        stream.oracle.delivered(&receiver, item);
    }
    assert!(stream.oracle.is_content());
    // The first one's items don't belong here.
    stream.oracle.delivered(&receiver, &item(2));
    let found = stream.violations();
    assert!(matches!(&found[..], [Violation::WrongItem { place: 2, .. }]), "{found:?}");
}

#[test]
fn items_that_two_receivers_got_are_found() {
    let mut stream = stream(&sent(), &sent()[..2]);
    let second = stream.oracle.opens_receiver(edge(), &config());
    stream.oracle.delivered(&second, &item(0));
    let found = stream.violations();
    assert!(matches!(&found[..], [Violation::SharedSender { .. }]), "{found:?}");
}

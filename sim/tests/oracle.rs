//! The oracle finds each way in which a stream can be wrong.

use kvpipe::error::Link;
use kvpipe::pipe::Undelivered;
use kvpipe::{Error, Item, Tensor};
use kvpipe_sim::oracle::{Oracle, SenderEnd, Verdict, Violation};

fn item(mark: u8) -> Item {
    Some(Tensor::from_vec([3], vec![mark, 1, 2]).unwrap())
}

/// Four items, a None among them.
fn sent() -> Vec<Item> {
    vec![item(0), None, item(2), item(3)]
}

fn gone() -> Error {
    Error::PeerGone { link: Link::new(0, 1), reason: "a test".into() }
}

fn closed() -> SenderEnd {
    SenderEnd { closed: Ok(()), undelivered: Vec::new(), acknowledged: 4 }
}

/// The items from `acknowledged` on are undelivered, the first `doubts` of them in doubt.
fn failed(acknowledged: usize, doubts: usize) -> SenderEnd {
    let undelivered = sent().into_iter().zip(0..).skip(acknowledged).zip(0..);
    let undelivered = undelivered
        .map(|((item, sequence), at)| Undelivered { sequence, item, in_doubt: at < doubts })
        .collect();
    SenderEnd { closed: Err(gone()), undelivered, acknowledged: acknowledged as u64 }
}

/// All four items were accepted and these delivered.
fn judge(delivered: &[Item], sender: SenderEnd, receiver: Error) -> Result<Verdict, Vec<Violation>> {
    let mut oracle = Oracle::default();
    sent().iter().zip(0..).for_each(|(item, sequence)| oracle.accepted(sequence, item));
    delivered.iter().for_each(|item| oracle.delivered(item));
    oracle.sender_ended(sender);
    oracle.receiver_ended(receiver);
    oracle.judge()
}

fn violations(delivered: &[Item], sender: SenderEnd, receiver: Error) -> Vec<Violation> {
    judge(delivered, sender, receiver).expect_err("the oracle sees nothing wrong")
}

#[test]
fn a_whole_stream_is_right() {
    let verdict = judge(&sent(), closed(), Error::Closed).unwrap();
    assert_eq!((verdict.accepted, verdict.delivered), (4, 4));
    assert!(verdict.failure.is_none());
}

#[test]
fn a_failed_stream_whose_sender_knows_what_is_missing_is_right() {
    // Two acknowledged, the third received, the fourth perhaps on its way.
    let verdict = judge(&sent()[..3], failed(2, 2), gone()).unwrap();
    assert_eq!((verdict.accepted, verdict.delivered), (4, 3));
    assert!(verdict.failure.is_some());
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
    assert_eq!(violations(&last_twice, closed(), Error::Closed), [Violation::Invented { place: 4 }]);
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
    assert!(
        found.contains(&Violation::ClosedTooEarly { delivered: 3, accepted: 4, undelivered: 0 }),
        "{found:?}"
    );
}

#[test]
fn an_end_that_comes_too_early_is_found() {
    let found = violations(&sent()[..3], failed(3, 1), Error::Closed);
    assert_eq!(found, [Violation::EndedTooEarly { delivered: 3, accepted: 4 }]);
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
fn an_acknowledgement_of_what_was_not_delivered_is_found() {
    let found = violations(&sent()[..1], failed(2, 0), gone());
    assert_eq!(found, [Violation::FalseAcknowledgement { acknowledged: 2, delivered: 1 }]);
}

#[test]
fn a_received_item_that_is_not_in_doubt_is_found() {
    assert_eq!(violations(&sent()[..3], failed(2, 0), gone()), [Violation::FalseCertainty { sequence: 2 }]);
}

#[test]
fn doubt_after_certainty_is_found() {
    let mut end = failed(2, 0);
    end.undelivered[1].in_doubt = true;
    assert_eq!(violations(&sent()[..2], end, gone()), [Violation::DoubtAfterCertainty { sequence: 3 }]);
}

#[test]
fn a_wrong_sequence_number_is_found() {
    let mut oracle = Oracle::default();
    oracle.accepted(1, &None);
    let found = oracle.judge().unwrap_err();
    assert_eq!(found[0], Violation::Misnumbered { place: 0, sequence: 1 });
}

#[test]
fn ends_that_never_come_are_found() {
    let found = Oracle::default().judge().unwrap_err();
    assert_eq!(found, [Violation::NoEnd("receiver"), Violation::NoEnd("sender")]);
}

//! What the two ends of an acknowledged edge know of each other: pure state, without I/O, payloads
//! or a clock. It outlives the connections that carry it.
//!
//! Sender:
//!
//! | state | on | becomes | and |
//! |---|---|---|---|
//! | sending | item handed to the wire | sending | `sent` + 1 |
//! | sending | close handed to the wire | closing | |
//! | sending, closing | `Acknowledge` of at most `sent` | same | settle |
//! | closing | `Finished` of all that was sent | ended | settle everything |
//! | sending, closing | `Closed` of at most `sent` | ended | the receiver has left |
//! | any | `Abort` | ended | |
//! | any | anything else | ended | the peer broke the protocol |
//!
//! Receiver:
//!
//! | state | on | becomes | and |
//! |---|---|---|---|
//! | receiving | item with the sequence number `received` | receiving | deliver, then `received` + 1 |
//! | receiving | item below `received` | receiving | skip: a duplicate after a resume |
//! | receiving | `Close` of `received` items | complete | |
//! | any | `Abort` | ended | |
//! | any | anything else | ended | the peer broke the protocol |

use crate::wire::frame::{Frame, Reply};
use crate::wire::metadata::Metadata;

/// The protocol was broken; in words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Violation(pub(crate) String);

/// The sender's view of an edge.
#[derive(Debug, Default)]
pub(crate) struct SendSession {
    /// Items below it were handed to the wire.
    sent: u64,
    /// Items below it are acknowledged.
    acknowledged: u64,
    closing: bool,
}

/// What a reply means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The peer is alive.
    Alive,
    /// Everything below is in the peer's inbox.
    Acknowledged(u64),
    /// The peer's user took everything: so many items.
    Finished(u64),
    /// The peer's user left after taking so many.
    Closed(u64),
    /// The peer gave up.
    Aborted(String),
}

impl SendSession {
    /// The item `sequence` goes to the wire.
    pub(crate) fn send(&mut self, sequence: u64, metadata: Metadata) -> Frame {
        debug_assert_eq!(sequence, self.sent, "items go out in order");
        self.sent = sequence + 1;
        Frame::Item { sequence, metadata }
    }

    /// The graceful end goes to the wire.
    pub(crate) fn close(&mut self) -> Frame {
        self.closing = true;
        Frame::Close { items: self.sent }
    }

    pub(crate) fn receive(&mut self, reply: Reply) -> Result<Heard, Violation> {
        match reply {
            Reply::Alive => Ok(Heard::Alive),
            Reply::Acknowledge { upto } if (self.acknowledged..=self.sent).contains(&upto) => {
                self.acknowledged = upto;
                Ok(Heard::Acknowledged(upto))
            }
            Reply::Acknowledge { upto } => Err(Violation(format!(
                "acknowledged items below {upto}, of {} sent and {} acknowledged before",
                self.sent, self.acknowledged
            ))),
            Reply::Finished { taken } if self.closing && taken == self.sent => {
                self.acknowledged = self.sent;
                Ok(Heard::Finished(taken))
            }
            Reply::Finished { taken } => Err(Violation(format!(
                "finished after {taken} items, of {} sent{}",
                self.sent,
                if self.closing { "" } else { " and no close" }
            ))),
            Reply::Closed { taken } if taken <= self.sent => Ok(Heard::Closed(taken)),
            Reply::Closed { taken } => {
                Err(Violation(format!("closed after {taken} items, of {} sent", self.sent)))
            }
            Reply::Abort { reason } => Ok(Heard::Aborted(reason.as_str().to_owned())),
        }
    }

    /// Whether the graceful end is on its way and nothing is in doubt.
    pub(crate) fn is_complete(&self) -> bool {
        self.closing && self.acknowledged == self.sent
    }

    /// Where the sender is, for an error.
    pub(crate) fn place(&self) -> String {
        format!("{} of {} sent items were acknowledged", self.acknowledged, self.sent)
    }
}

/// The receiver's view of an edge.
#[derive(Debug, Default)]
pub(crate) struct ReceiveSession {
    /// Items below it are in the inbox.
    received: u64,
    /// Items below it were acknowledged.
    acknowledged: u64,
}

/// What a frame means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The peer is alive.
    Alive,
    /// The next item; its payload follows.
    Item(Metadata),
    /// An item that is in the inbox already; its payload follows.
    Duplicate(Metadata),
    /// There are no more items, and none is missing.
    Complete,
    /// The peer gave up.
    Aborted(String),
}

impl ReceiveSession {
    pub(crate) fn receive(&mut self, frame: Frame) -> Result<Arrival, Violation> {
        match frame {
            Frame::Alive => Ok(Arrival::Alive),
            Frame::Item { sequence, metadata } if sequence == self.received => Ok(Arrival::Item(metadata)),
            Frame::Item { sequence, metadata } if sequence < self.received => {
                Ok(Arrival::Duplicate(metadata))
            }
            Frame::Item { sequence, .. } => {
                Err(Violation(format!("sent item {sequence} where {} was due", self.received)))
            }
            Frame::Close { items } if items == self.received => Ok(Arrival::Complete),
            Frame::Close { items } => {
                Err(Violation(format!("closed after {items} items, of which {} arrived", self.received)))
            }
            Frame::Abort { reason } => Ok(Arrival::Aborted(reason.as_str().to_owned())),
        }
    }

    /// The item that was due is in the inbox.
    pub(crate) fn deliver(&mut self) {
        self.received += 1;
    }

    /// The sequence number of the item that is due.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// The acknowledgement that is due, if one is.
    pub(crate) fn acknowledge(&mut self) -> Option<Reply> {
        (self.received > self.acknowledged).then(|| {
            self.acknowledged = self.received;
            Reply::Acknowledge { upto: self.received }
        })
    }
}

/// Ticks in one heartbeat limit.
pub(crate) const TICKS: u32 = 8;

/// How long the peer has been silent, in ticks of an eighth of the heartbeat limit rather than by a
/// clock, so that a process that was itself stopped does not take its peer for dead: however long it
/// was, that is one tick, and then it reads what has come meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    heard: bool,
    ticks: u32,
}

impl Silence {
    /// A byte came.
    pub(crate) fn hear(&mut self) {
        self.heard = true;
    }

    /// An eighth of the limit has passed while we were reading. True if the peer is to be given up:
    /// its last byte came seven to eight ticks ago, so never later than the limit.
    #[must_use]
    pub(crate) fn tick(&mut self) -> bool {
        self.ticks = if std::mem::take(&mut self.heard) { 0 } else { self.ticks + 1 };
        self.ticks >= TICKS - 1
    }

    /// We have not been reading, so the peer may have been kept from speaking: counts anew.
    pub(crate) fn excuse(&mut self) {
        self.ticks = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(items: u64) -> SendSession {
        let mut session = SendSession::default();
        for sequence in 0..items {
            session.send(sequence, Metadata::None);
        }
        session
    }

    #[test]
    fn acknowledgements_advance_and_never_beyond_what_was_sent() {
        let mut session = sent(3);
        for upto in [0, 2, 2, 3] {
            assert_eq!(session.receive(Reply::Acknowledge { upto }), Ok(Heard::Acknowledged(upto)));
        }
        assert!(session.receive(Reply::Acknowledge { upto: 4 }).is_err(), "never sent");
        assert!(session.receive(Reply::Acknowledge { upto: 2 }).is_err(), "taken back");
    }

    #[test]
    fn a_session_is_complete_once_closed_and_acknowledged() {
        let mut session = sent(1);
        assert_eq!(session.receive(Reply::Acknowledge { upto: 1 }), Ok(Heard::Acknowledged(1)));
        assert!(!session.is_complete(), "more may come");
        assert_eq!(session.close(), Frame::Close { items: 1 });
        assert!(session.is_complete());
        assert_eq!(session.receive(Reply::Finished { taken: 1 }), Ok(Heard::Finished(1)));
    }

    #[test]
    fn the_receiver_takes_each_item_once_and_in_order() {
        let item = |sequence| Frame::Item { sequence, metadata: Metadata::None };
        let mut session = ReceiveSession::default();
        assert_eq!(session.receive(item(0)), Ok(Arrival::Item(Metadata::None)));
        session.deliver();
        assert_eq!(session.receive(item(0)), Ok(Arrival::Duplicate(Metadata::None)));
        assert!(session.receive(item(2)).is_err());
        assert!(session.receive(Frame::Close { items: 2 }).is_err());
        assert_eq!(session.receive(Frame::Close { items: 1 }), Ok(Arrival::Complete));
    }

    #[test]
    fn one_acknowledgement_covers_all_that_arrived() {
        let mut session = ReceiveSession::default();
        assert_eq!(session.acknowledge(), None);
        session.deliver();
        session.deliver();
        assert_eq!(session.acknowledge(), Some(Reply::Acknowledge { upto: 2 }));
        assert_eq!(session.acknowledge(), None);
    }

    #[test]
    fn a_peer_is_given_up_after_seven_whole_ticks_of_silence() {
        let mut silence = Silence::default();
        silence.hear();
        // The first tick after a byte says nothing: the byte may have come just before it.
        assert!(!silence.tick());
        for _ in 1..TICKS - 1 {
            assert!(!silence.tick());
        }
        assert!(silence.tick());
        silence.hear();
        assert!(!silence.tick(), "a byte makes good for all of it");
    }

    #[test]
    fn a_peer_that_was_kept_from_speaking_gets_the_whole_limit_again() {
        let mut silence = Silence::default();
        for _ in 0..TICKS - 2 {
            assert!(!silence.tick());
        }
        silence.excuse();
        assert!(!silence.tick());
    }
}

//! The sender's view of an edge.

use super::Violation;
use crate::wire::frame::{Frame, Reply};
use crate::wire::handshake::SessionId;
use crate::wire::metadata::Metadata;

/// The sender's view of an edge. See the [table](super).
#[derive(Debug, Default)]
pub(crate) struct SendSession {
    /// The listener's session, once it has accepted ours.
    peer: Option<SessionId>,
    /// Items below it were handed to the wire. Only a reunion lowers it.
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

/// Who has accepted a connection of ours.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reunion {
    /// Our peer, which holds what is below: go on from there.
    From(u64),
    /// Another process in its place.
    Restarted,
}

impl SendSession {
    /// A listener of this session has accepted our connection, and holds every item below `received`
    /// and no other.
    pub(crate) fn meet(&mut self, peer: SessionId, received: u64) -> Result<Reunion, Violation> {
        if self.peer.is_some_and(|known| known != peer) {
            return Ok(Reunion::Restarted);
        }
        if !(self.acknowledged..=self.sent).contains(&received) {
            return Err(Violation(format!("claimed to hold {received} items; {}", self.place())));
        }
        self.peer = Some(peer);
        self.acknowledged = received;
        self.sent = received;
        // The peer may not know yet; it goes out once more, behind the items.
        self.closing = false;
        Ok(Reunion::From(received))
    }

    /// The peer's session, once there is one.
    pub(crate) fn peer(&self) -> Option<SessionId> {
        self.peer
    }

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

    /// How many items were handed to the wire.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// How many items are acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Whether nothing of what went out is in doubt.
    pub(crate) fn is_settled(&self) -> bool {
        self.acknowledged == self.sent
    }

    /// Where the sender is, for an error.
    pub(crate) fn place(&self) -> String {
        format!("{} of {} sent items were acknowledged", self.acknowledged, self.sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: SessionId = [1; 16];

    fn sent(items: u64) -> SendSession {
        let mut session = SendSession::default();
        assert_eq!(session.meet(PEER, 0), Ok(Reunion::From(0)));
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
    fn the_peer_finishes_once_we_have_closed() {
        let mut session = sent(1);
        assert_eq!(session.receive(Reply::Acknowledge { upto: 1 }), Ok(Heard::Acknowledged(1)));
        assert!(session.receive(Reply::Finished { taken: 1 }).is_err(), "more may come");
        assert_eq!(session.close(), Frame::Close { items: 1 });
        assert_eq!(session.receive(Reply::Finished { taken: 1 }), Ok(Heard::Finished(1)));
    }

    #[test]
    fn a_reunion_goes_on_from_what_the_peer_holds() {
        let mut session = sent(3);
        assert_eq!(session.receive(Reply::Acknowledge { upto: 1 }), Ok(Heard::Acknowledged(1)));
        assert_eq!(session.meet(PEER, 2), Ok(Reunion::From(2)));
        assert!(session.is_settled(), "what it holds is acknowledged");
        assert_eq!(session.send(2, Metadata::None), Frame::Item { sequence: 2, metadata: Metadata::None });
    }

    #[test]
    fn a_peer_can_neither_lose_what_it_acknowledged_nor_hold_what_was_not_sent() {
        let mut session = sent(3);
        assert_eq!(session.receive(Reply::Acknowledge { upto: 2 }), Ok(Heard::Acknowledged(2)));
        assert!(session.meet(PEER, 1).is_err());
        assert!(session.meet(PEER, 4).is_err());
        assert!(SendSession::default().meet(PEER, 1).is_err(), "the items of another");
    }

    #[test]
    fn another_process_in_the_peers_place_is_none_to_go_on_with() {
        let mut session = sent(1);
        assert_eq!(session.meet([2; 16], 0), Ok(Reunion::Restarted));
    }

    #[test]
    fn the_close_goes_out_again_after_a_reunion() {
        let mut session = sent(1);
        session.close();
        assert_eq!(session.meet(PEER, 1), Ok(Reunion::From(1)));
        assert!(session.receive(Reply::Finished { taken: 1 }).is_err(), "it may not have heard of it");
        session.close();
        assert_eq!(session.receive(Reply::Finished { taken: 1 }), Ok(Heard::Finished(1)));
    }
}

//! The receiver's view of an edge.

use super::Violation;
use crate::wire::frame::{Frame, Reply};
use crate::wire::handshake::{RefusalReason, SessionId};
use crate::wire::metadata::Metadata;

/// The receiver's view of an edge. See the [table](super).
#[derive(Debug)]
pub(crate) struct ReceiveSession {
    own: SessionId,
    /// The connector's session, once we have accepted it.
    peer: Option<SessionId>,
    /// Items below it are in the inbox.
    received: u64,
    /// Items below it were acknowledged.
    acknowledged: u64,
    /// The sender has said that there are no more.
    complete: bool,
    /// We have said on this connection that our user has taken all.
    finished: bool,
}

/// Who a connector says it is, after it has proved that it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Its session.
    pub(crate) session: SessionId,
    /// Whose session it means to resume.
    pub(crate) peer_session: Option<SessionId>,
}

/// What to do with a connector.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Accept it: it is our peer.
    Welcome,
    /// Refuse it, and go on as before.
    Refuse(RefusalReason, &'static str),
    /// Refuse it: our peer has begun anew, and what it held is lost.
    Restarted,
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
    /// The peer has heard that all is taken.
    Goodbye,
    /// The peer gave up.
    Aborted(String),
}

impl ReceiveSession {
    pub(crate) fn new(own: SessionId) -> Self {
        Self { own, peer: None, received: 0, acknowledged: 0, complete: false, finished: false }
    }

    /// Whether a connector belongs to this edge; `connected` if a connection is alive.
    pub(crate) fn judge(&self, claim: Claim, connected: bool) -> Admission {
        use RefusalReason::{Busy, Session};
        let resumes = match claim.peer_session {
            Some(session) if session != self.own => {
                return Admission::Refuse(Session, "the session is not the listener's");
            }
            resumed => resumed.is_some(),
        };
        match self.peer {
            None if resumes => Admission::Refuse(Session, "the listener has accepted nobody yet"),
            None => Admission::Welcome,
            // It may not have heard that we accepted it; then it has sent nothing.
            Some(peer) if peer == claim.session && (resumes || self.is_untouched()) => Admission::Welcome,
            Some(peer) if peer == claim.session => {
                Admission::Refuse(Session, "the listener holds items of this session already")
            }
            Some(_) if connected => Admission::Refuse(Busy, "the listener serves another sender"),
            Some(_) => Admission::Restarted,
        }
    }

    /// The connector of this session is being accepted, and no connection before it brings anything
    /// any more. Gives how many items it is told that we hold.
    pub(crate) fn accept(&mut self, peer: SessionId) -> u64 {
        self.peer = Some(peer);
        self.acknowledged = self.received;
        self.finished = false;
        self.received
    }

    pub(crate) fn receive(&mut self, frame: Frame) -> Result<Arrival, Violation> {
        match frame {
            Frame::Alive => Ok(Arrival::Alive),
            Frame::Item { sequence, metadata } if sequence < self.received => {
                Ok(Arrival::Duplicate(metadata))
            }
            Frame::Item { sequence, .. } if self.complete => {
                Err(Violation(format!("sent item {sequence} after it had closed")))
            }
            Frame::Item { sequence, metadata } if sequence == self.received => Ok(Arrival::Item(metadata)),
            Frame::Item { sequence, .. } => {
                Err(Violation(format!("sent item {sequence} where {} was due", self.received)))
            }
            Frame::Close { items } if items == self.received => {
                self.complete = true;
                Ok(Arrival::Complete)
            }
            Frame::Close { items } => {
                Err(Violation(format!("closed after {items} items, of which {} arrived", self.received)))
            }
            Frame::Goodbye if self.finished => Ok(Arrival::Goodbye),
            Frame::Goodbye => Err(Violation("said goodbye before we had finished".into())),
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

    /// Whether the sender has said that there are no more.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// The acknowledgement that is due, if one is.
    pub(crate) fn acknowledge(&mut self) -> Option<Reply> {
        (self.received > self.acknowledged).then(|| {
            self.acknowledged = self.received;
            Reply::Acknowledge { upto: self.received }
        })
    }

    /// Our user has taken everything, so many items.
    pub(crate) fn finish(&mut self, taken: u64) -> Reply {
        debug_assert!(self.complete);
        self.finished = true;
        Reply::Finished { taken }
    }

    fn is_untouched(&self) -> bool {
        self.received == 0 && !self.complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: SessionId = [1; 16];
    const PEER: SessionId = [2; 16];
    const OTHER: SessionId = [3; 16];

    fn item(sequence: u64) -> Frame {
        Frame::Item { sequence, metadata: Metadata::None }
    }

    fn claim(session: SessionId, peer_session: Option<SessionId>) -> Claim {
        Claim { session, peer_session }
    }

    #[test]
    fn the_receiver_takes_each_item_once_and_in_order() {
        let mut session = ReceiveSession::new(OWN);
        assert_eq!(session.receive(item(0)), Ok(Arrival::Item(Metadata::None)));
        session.deliver();
        assert_eq!(session.receive(item(0)), Ok(Arrival::Duplicate(Metadata::None)));
        assert!(session.receive(item(2)).is_err());
        assert!(session.receive(Frame::Close { items: 2 }).is_err());
        assert_eq!(session.receive(Frame::Close { items: 1 }), Ok(Arrival::Complete));
        assert!(session.receive(item(1)).is_err(), "it said that there were no more");
    }

    #[test]
    fn a_goodbye_answers_that_all_is_taken_and_comes_once_on_each_connection() {
        let mut session = ReceiveSession::new(OWN);
        session.accept(PEER);
        assert_eq!(session.receive(Frame::Close { items: 0 }), Ok(Arrival::Complete));
        assert!(session.receive(Frame::Goodbye).is_err(), "our user may still leave");
        assert_eq!(session.finish(0), Reply::Finished { taken: 0 });
        assert_eq!(session.receive(Frame::Goodbye), Ok(Arrival::Goodbye));
        session.accept(PEER);
        assert!(session.receive(Frame::Goodbye).is_err());
    }

    #[test]
    fn one_acknowledgement_covers_all_that_arrived() {
        let mut session = ReceiveSession::new(OWN);
        assert_eq!(session.acknowledge(), None);
        session.deliver();
        session.deliver();
        assert_eq!(session.acknowledge(), Some(Reply::Acknowledge { upto: 2 }));
        assert_eq!(session.acknowledge(), None);
    }

    #[test]
    fn to_be_accepted_acknowledges() {
        let mut session = ReceiveSession::new(OWN);
        session.deliver();
        assert_eq!(session.accept(PEER), 1);
        assert_eq!(session.acknowledge(), None);
    }

    #[test]
    fn before_the_first_connection_anybody_who_resumes_nothing_is_welcome() {
        let session = ReceiveSession::new(OWN);
        assert_eq!(session.judge(claim(PEER, None), false), Admission::Welcome);
        for foreign in [OWN, OTHER] {
            let admission = session.judge(claim(PEER, Some(foreign)), false);
            assert!(matches!(admission, Admission::Refuse(RefusalReason::Session, _)), "{admission:?}");
        }
    }

    #[test]
    fn the_same_session_takes_the_place_of_its_own_connection() {
        let mut session = ReceiveSession::new(OWN);
        session.accept(PEER);
        assert_eq!(session.judge(claim(PEER, None), true), Admission::Welcome, "it may not know");
        session.deliver();
        for connected in [true, false] {
            assert_eq!(session.judge(claim(PEER, Some(OWN)), connected), Admission::Welcome);
            let ignorant = session.judge(claim(PEER, None), connected);
            assert!(matches!(ignorant, Admission::Refuse(RefusalReason::Session, _)), "{ignorant:?}");
        }
    }

    #[test]
    fn another_session_is_refused_and_ends_an_edge_only_without_a_connection() {
        let mut session = ReceiveSession::new(OWN);
        session.accept(PEER);
        let admission = session.judge(claim(OTHER, None), true);
        assert!(matches!(admission, Admission::Refuse(RefusalReason::Busy, _)), "{admission:?}");
        assert_eq!(session.judge(claim(OTHER, None), false), Admission::Restarted);
        let lost = session.judge(claim(OTHER, Some(OTHER)), false);
        assert!(matches!(lost, Admission::Refuse(RefusalReason::Session, _)), "{lost:?}");
    }
}

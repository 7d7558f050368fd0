//! Each session alone with a peer that may say anything: what it must hold on to all the same.
//!
//! The properties and the fuzz target `session_hostile` choose what is said.

use super::{Admission, Arrival, Claim, Heard, ReceiveSession, Reunion, SendSession};
use crate::wire::frame::{Frame, Reply};
use crate::wire::handshake::SessionId;
use crate::wire::metadata::Metadata;

/// What happens to a sender.
#[derive(Clone, Debug)]
pub(crate) enum SenderStep {
    /// It sends its next item.
    Send,
    /// It closes.
    Close,
    /// A listener of this session accepts it, and says how many items it holds.
    Meet(SessionId, u64),
    /// The peer says something.
    Hear(Reply),
}

/// What happens to a receiver.
#[derive(Clone, Debug)]
pub(crate) enum ReceiverStep {
    /// Somebody knocks; whether the connection before is still alive.
    Knock(Claim, bool),
    /// The peer says something.
    Hear(Frame),
    /// It acknowledges.
    Acknowledge,
    /// Its user has taken all.
    Finish,
}

/// The receiver's own session.
pub(crate) const OWN: SessionId = [1; 16];

/// A sender, and what it did.
#[derive(Debug, Default)]
pub(crate) struct LoneSender {
    session: SendSession,
    sent: u64,
    closing: bool,
}

impl LoneSender {
    /// # Panics
    /// If the peer brings it to believe what can't be.
    pub(crate) fn step(&mut self, step: SenderStep) {
        match step {
            // Nothing is sent to nobody.
            SenderStep::Send | SenderStep::Close if self.session.peer().is_none() => {}
            SenderStep::Send => {
                let frame = self.session.send(self.sent, Metadata::None);
                assert_eq!(frame, Frame::Item { sequence: self.sent, metadata: Metadata::None });
                self.sent += 1;
            }
            SenderStep::Close => {
                assert_eq!(self.session.close(), Frame::Close { items: self.sent });
                self.closing = true;
            }
            SenderStep::Meet(peer, received) => self.meet(peer, received),
            SenderStep::Hear(reply) => self.hear(reply),
        }
        assert!(self.session.acknowledged() <= self.sent);
        assert_eq!(self.session.is_settled(), self.session.acknowledged() == self.sent);
    }

    fn meet(&mut self, peer: SessionId, received: u64) {
        let (known, acknowledged) = (self.session.peer(), self.session.acknowledged());
        let possible = (acknowledged..=self.sent).contains(&received);
        match self.session.meet(peer, received) {
            Ok(Reunion::From(from)) => {
                assert!(from == received && possible && known.is_none_or(|known| known == peer));
                assert_eq!(self.session.acknowledged(), received);
                (self.sent, self.closing) = (received, false);
            }
            Ok(Reunion::Restarted) => assert!(known.is_some_and(|known| known != peer)),
            Err(_) => assert!(!possible),
        }
    }

    fn hear(&mut self, reply: Reply) {
        let before = self.session.acknowledged();
        match (self.session.receive(reply.clone()), reply) {
            (Ok(Heard::Alive), Reply::Alive) | (Ok(Heard::Aborted(_)), Reply::Abort { .. }) => {}
            (Ok(Heard::Acknowledged(heard)), Reply::Acknowledge { upto }) => {
                assert!(heard == upto && (before..=self.sent).contains(&upto));
                assert_eq!(self.session.acknowledged(), upto);
            }
            (Ok(Heard::Finished(heard)), Reply::Finished { taken }) => {
                assert!(heard == taken && taken == self.sent && self.closing);
                assert!(self.session.is_settled());
            }
            (Ok(Heard::Closed(heard)), Reply::Closed { taken }) => {
                assert!(heard == taken && taken <= self.sent);
            }
            (Err(_), _) => assert_eq!(self.session.acknowledged(), before),
            (heard, reply) => panic!("{reply:?} was understood as {heard:?}"),
        }
    }
}

/// A receiver, and what it has.
#[derive(Debug)]
pub(crate) struct LoneReceiver {
    session: ReceiveSession,
    peer: Option<SessionId>,
    received: u64,
    acknowledged: u64,
    complete: bool,
    finished: bool,
}

impl Default for LoneReceiver {
    fn default() -> Self {
        let session = ReceiveSession::new(OWN);
        Self { session, peer: None, received: 0, acknowledged: 0, complete: false, finished: false }
    }
}

impl LoneReceiver {
    /// # Panics
    /// If the peer brings it to take what is not due.
    pub(crate) fn step(&mut self, step: ReceiverStep) {
        match step {
            ReceiverStep::Knock(claim, connected) => self.knock(claim, connected && self.peer.is_some()),
            // Nobody is heard who was not let in.
            _ if self.peer.is_none() => {}
            ReceiverStep::Hear(frame) => self.hear(frame),
            ReceiverStep::Acknowledge => {
                let upto = self.received;
                let due = (upto > self.acknowledged).then_some(Reply::Acknowledge { upto });
                assert_eq!(self.session.acknowledge(), due);
                self.acknowledged = upto;
            }
            ReceiverStep::Finish if self.complete => {
                let taken = self.received;
                assert_eq!(self.session.finish(taken), Reply::Finished { taken });
                self.finished = true;
            }
            ReceiverStep::Finish => {}
        }
        assert_eq!((self.session.received(), self.session.is_complete()), (self.received, self.complete));
    }

    fn knock(&mut self, claim: Claim, connected: bool) {
        let is_other = self.peer.is_some_and(|peer| peer != claim.session);
        match self.session.judge(claim, connected) {
            Admission::Welcome => {
                assert!(!is_other && claim.peer_session.is_none_or(|session| session == OWN));
                assert!(claim.peer_session.is_some() || self.received == 0, "it does not know what we hold");
                assert_eq!(self.session.accept(claim.session), self.received);
                (self.peer, self.acknowledged, self.finished) = (Some(claim.session), self.received, false);
            }
            Admission::Restarted => assert!(is_other && !connected),
            Admission::Refuse(..) => {}
        }
    }

    fn hear(&mut self, frame: Frame) {
        match (self.session.receive(frame.clone()), frame) {
            (Ok(Arrival::Alive), Frame::Alive) | (Ok(Arrival::Aborted(_)), Frame::Abort { .. }) => {}
            (Ok(Arrival::Item(taken)), Frame::Item { sequence, metadata }) => {
                assert!(taken == metadata && sequence == self.received && !self.complete);
                self.session.deliver();
                self.received += 1;
            }
            (Ok(Arrival::Duplicate(taken)), Frame::Item { sequence, metadata }) => {
                assert!(taken == metadata && sequence < self.received);
            }
            (Ok(Arrival::Complete), Frame::Close { items }) => {
                assert_eq!(items, self.received);
                self.complete = true;
            }
            (Ok(Arrival::Goodbye), Frame::Goodbye) => assert!(self.finished),
            (Err(_), _) => {}
            (arrival, frame) => panic!("{frame:?} was understood as {arrival:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Mostly so small that it may be right.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![6 => 0..6_u64, 1 => Just(u64::MAX), 1 => any::<u64>()]
    }

    fn session() -> impl Strategy<Value = SessionId> {
        (0..3_u8).prop_map(|name| [name; 16])
    }

    fn sender_step() -> impl Strategy<Value = SenderStep> {
        let reply = prop_oneof![
            4 => number().prop_map(|upto| Reply::Acknowledge { upto }),
            2 => number().prop_map(|taken| Reply::Finished { taken }),
            1 => number().prop_map(|taken| Reply::Closed { taken }),
            1 => Just(Reply::Alive),
            1 => Just(Reply::Abort { reason: "r".into() }),
        ];
        prop_oneof![
            3 => (session(), number()).prop_map(|(peer, received)| SenderStep::Meet(peer, received)),
            4 => Just(SenderStep::Send),
            1 => Just(SenderStep::Close),
            4 => reply.prop_map(SenderStep::Hear),
        ]
    }

    fn receiver_step() -> impl Strategy<Value = ReceiverStep> {
        let frame = prop_oneof![
            4 => number().prop_map(|sequence| Frame::Item { sequence, metadata: Metadata::None }),
            2 => number().prop_map(|items| Frame::Close { items }),
            1 => Just(Frame::Goodbye),
            1 => Just(Frame::Alive),
            1 => Just(Frame::Abort { reason: "r".into() }),
        ];
        let claim = (session(), prop::option::of(session()))
            .prop_map(|(session, peer_session)| Claim { session, peer_session });
        prop_oneof![
            2 => (claim, any::<bool>()).prop_map(|(claim, connected)| ReceiverStep::Knock(claim, connected)),
            6 => frame.prop_map(ReceiverStep::Hear),
            1 => Just(ReceiverStep::Acknowledge),
            1 => Just(ReceiverStep::Finish),
        ]
    }

    proptest! {
        #[test]
        fn no_peer_makes_a_sender_believe_what_cant_be(steps in vec(sender_step(), 1..60)) {
            let mut sender = LoneSender::default();
            steps.into_iter().for_each(|step| sender.step(step));
        }

        #[test]
        fn no_peer_makes_a_receiver_take_what_is_not_due(steps in vec(receiver_step(), 1..60)) {
            let mut receiver = LoneReceiver::default();
            steps.into_iter().for_each(|step| receiver.step(step));
        }
    }
}

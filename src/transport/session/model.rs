//! Both sessions under arbitrary cuts, delays and duplicated connections, against a model that knows
//! only what the users do.
//!
//! Each end loses its connection on its own, so what was sent may still arrive after the sender has
//! given the connection up. Connections that the sender has given up wait at the receiver's door
//! beside newer ones, and are let in late, or never.
//!
//! The properties and the fuzz target `session` choose the steps.

use std::collections::VecDeque;

use super::{Admission, Arrival, Claim, Heard, ReceiveSession, Reunion, SendSession};
use crate::wire::frame::{Frame, Reply};
use crate::wire::handshake::SessionId;
use crate::wire::metadata::Metadata;

const SENDER: SessionId = [1; 16];
const RECEIVER: SessionId = [2; 16];
const FOREIGN: SessionId = [3; 16];

/// What happens to an edge. A number is an index into whatever there is to choose from.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// The user puts in an item.
    Accept,
    /// The user closes.
    Close,
    /// The sender hands the next item, or the close, to its connection.
    Send,
    /// The receiver reads a frame.
    ReadFrame,
    /// The receiver acknowledges, or says that its user has taken all.
    Acknowledge,
    /// The receiver's user leaves, after it has taken so many.
    Leave(usize),
    /// The sender reads a reply.
    ReadReply,
    /// The sender's end of the connection breaks.
    BreakAtSender,
    /// The receiver's end of the connection breaks.
    BreakAtReceiver,
    /// The sender connects; an attempt before is given up.
    Dial,
    /// The receiver lets one in of those that knock.
    LetIn(usize),
    /// The sender reads the verdict.
    ReadVerdict,
    /// Another sender knocks.
    Foreign,
}

/// A connection. Either end may have given it up.
#[derive(Debug)]
struct Connection {
    claim: Claim,
    verdict: Option<u64>,
    frames: VecDeque<Frame>,
    replies: VecDeque<Reply>,
}

/// What the sender has.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Line {
    Down,
    /// Waiting for the verdict.
    Dialling(usize),
    Up(usize),
}

/// How far the sender's end is done.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// It has heard that all is taken.
    Finished,
    /// It has heard that the receiver's user has left.
    Closed,
}

/// Both ends, and what their users have done.
#[derive(Debug)]
pub(crate) struct Edge {
    accepted: u64,
    closed: bool,
    sender: SendSession,
    /// The sequence number of the sender's next item; its outbox.
    next: u64,
    line: Line,
    closing: bool,
    end: Option<End>,
    receiver: ReceiveSession,
    receiving: Option<usize>,
    delivered: u64,
    /// How many items the receiver's user had taken when it left.
    left: Option<u64>,
    /// The close has come over the present connection.
    complete: bool,
    /// By number. Those that still knock are in `knocking`.
    connections: Vec<Connection>,
    knocking: Vec<usize>,
}

impl Edge {
    pub(crate) fn new() -> Self {
        Self {
            accepted: 0,
            closed: false,
            sender: SendSession::default(),
            next: 0,
            line: Line::Down,
            closing: false,
            end: None,
            receiver: ReceiveSession::new(RECEIVER),
            receiving: None,
            delivered: 0,
            left: None,
            complete: false,
            connections: Vec::new(),
            knocking: Vec::new(),
        }
    }

    /// # Panics
    /// If an end does what it must not.
    pub(crate) fn step(&mut self, step: &Step) {
        match *step {
            Step::Accept if !self.closed => self.accepted += 1,
            Step::Accept => {}
            Step::Close => self.closed = true,
            Step::Send => self.send(),
            Step::ReadFrame => self.read_frame(),
            Step::Acknowledge => self.acknowledge(),
            Step::Leave(taken) => self.leave(taken),
            Step::ReadReply => self.read_reply(),
            Step::BreakAtSender => self.line = Line::Down,
            Step::BreakAtReceiver => self.receiving = None,
            Step::Dial => self.dial(),
            Step::LetIn(_) if self.knocking.is_empty() => {}
            Step::LetIn(which) => {
                let line = self.knocking.remove(which % self.knocking.len());
                self.let_in(line);
            }
            Step::ReadVerdict => self.read_verdict(),
            Step::Foreign => self.foreign(),
        }
        self.check();
    }

    /// The network heals, and everything that was accepted arrives, unless the receiver's user has left.
    ///
    /// # Panics
    /// If it does not.
    pub(crate) fn finish(mut self) {
        self.closed = true;
        if self.left.is_some() {
            return;
        }
        if self.end.is_none() {
            self.line = Line::Down;
            self.dial();
            self.let_in(self.connections.len() - 1);
            self.read_verdict();
            for _ in 0..=self.accepted {
                self.send();
                self.read_frame();
            }
            self.acknowledge();
            self.read_reply();
            self.read_reply();
            self.check();
        }
        assert_eq!(self.end, Some(End::Finished), "{self:?}");
        assert_eq!(self.delivered, self.accepted);
    }

    fn check(&self) {
        assert!(self.delivered <= self.accepted);
        assert!(self.sender.acknowledged() <= self.delivered, "an item counts as delivered that is not");
        // Items below `next` are in doubt, those above it are not: so the peer may not hold one.
        assert!(self.delivered <= self.next, "the peer holds an item that is not in doubt");
        assert!(self.end != Some(End::Finished) || self.delivered == self.accepted);
    }

    fn send(&mut self) {
        let Line::Up(line) = self.line else { return };
        if self.next < self.accepted {
            let frame = self.sender.send(self.next, Metadata::None);
            self.next += 1;
            self.connections[line].frames.push_back(frame);
        } else if self.closed && !self.closing {
            self.closing = true;
            let close = self.sender.close();
            self.connections[line].frames.push_back(close);
        }
    }

    fn read_frame(&mut self) {
        let Some(line) = self.receiving else { return };
        let Some(frame) = self.connections[line].frames.pop_front() else { return };
        let sequence = match frame {
            Frame::Item { sequence, .. } => Some(sequence),
            _ => None,
        };
        match self.receiver.receive(frame).expect("the sender keeps to the protocol") {
            Arrival::Item(_) => {
                assert_eq!(sequence, Some(self.delivered), "in order, each once");
                self.delivered += 1;
                self.receiver.deliver();
            }
            Arrival::Duplicate(_) => assert!(sequence.expect("it is an item") < self.delivered),
            Arrival::Complete => self.complete = true,
            Arrival::Goodbye => assert_eq!(self.end, Some(End::Finished)),
            other => panic!("nobody sent {other:?}"),
        }
    }

    fn acknowledge(&mut self) {
        let Some(line) = self.receiving else { return };
        let replies = &mut self.connections[line].replies;
        replies.extend(self.receiver.acknowledge());
        if std::mem::take(&mut self.complete) {
            replies.push_back(self.receiver.finish(self.delivered));
        }
    }

    /// Over a connection that is broken, or before there is one, the sender does not hear of it.
    fn leave(&mut self, taken: usize) {
        let taken = taken as u64 % (self.delivered + 1);
        if let Some(line) = self.receiving.take() {
            let replies = &mut self.connections[line].replies;
            replies.extend(self.receiver.acknowledge());
            replies.push_back(Reply::Closed { taken });
        }
        self.left.get_or_insert(taken);
    }

    fn read_reply(&mut self) {
        let Line::Up(line) = self.line else { return };
        let Some(reply) = self.connections[line].replies.pop_front() else { return };
        match self.sender.receive(reply).expect("the receiver keeps to the protocol") {
            Heard::Acknowledged(upto) => assert!(upto <= self.delivered, "not a word too early"),
            Heard::Finished(taken) => {
                assert_eq!(taken, self.delivered);
                self.end = Some(End::Finished);
                self.connections[line].frames.push_back(Frame::Goodbye);
            }
            Heard::Closed(taken) => {
                assert_eq!(Some(taken), self.left);
                self.end = self.end.or(Some(End::Closed));
                self.line = Line::Down;
            }
            other => panic!("nobody said {other:?}"),
        }
    }

    fn dial(&mut self) {
        if matches!(self.line, Line::Up(_)) || self.end.is_some() {
            return;
        }
        let claim = Claim { session: SENDER, peer_session: self.sender.peer() };
        let (frames, replies) = Default::default();
        self.connections.push(Connection { claim, verdict: None, frames, replies });
        let line = self.connections.len() - 1;
        self.knocking.push(line);
        self.line = Line::Dialling(line);
    }

    fn let_in(&mut self, line: usize) {
        if self.left.is_some() {
            return;
        }
        let claim = self.connections[line].claim;
        match self.receiver.judge(claim, self.receiving.is_some()) {
            Admission::Welcome => {
                self.receiving = Some(line);
                self.complete = false;
                self.connections[line].verdict = Some(self.receiver.accept(claim.session));
            }
            // One that the sender had given up before it learned of our session.
            Admission::Refuse(..) => assert_ne!(self.line, Line::Dialling(line), "{claim:?}"),
            Admission::Restarted => panic!("it is the same session"),
        }
    }

    fn read_verdict(&mut self) {
        let Line::Dialling(line) = self.line else { return };
        let Some(received) = self.connections[line].verdict else { return };
        let met = self.sender.meet(RECEIVER, received).expect("the receiver keeps to the protocol");
        assert_eq!(met, Reunion::From(received));
        self.next = received;
        self.closing = false;
        self.line = Line::Up(line);
    }

    fn foreign(&mut self) {
        let claim = Claim { session: FOREIGN, peer_session: None };
        match self.receiver.judge(claim, self.receiving.is_some()) {
            Admission::Welcome => assert!(self.connections.iter().all(|line| line.verdict.is_none())),
            Admission::Refuse(..) => assert!(self.receiving.is_some()),
            Admission::Restarted => assert!(self.receiving.is_none()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            16 => Just(Step::Accept),
            4 => Just(Step::Close),
            32 => Just(Step::Send),
            32 => Just(Step::ReadFrame),
            20 => Just(Step::Acknowledge),
            1 => (0..8_usize).prop_map(Step::Leave),
            24 => Just(Step::ReadReply),
            4 => Just(Step::BreakAtSender),
            4 => Just(Step::BreakAtReceiver),
            16 => Just(Step::Dial),
            24 => (0..8_usize).prop_map(Step::LetIn),
            24 => Just(Step::ReadVerdict),
            4 => Just(Step::Foreign),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nothing_is_lost_doubled_or_wrongly_in_doubt_whatever_the_connections_do(
            steps in vec(step(), 1..120),
        ) {
            let mut edge = Edge::new();
            steps.iter().for_each(|step| edge.step(step));
            edge.finish();
        }
    }
}

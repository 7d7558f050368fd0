//! Both sessions under arbitrary cuts, delays and duplicated connections, against a model that knows
//! only what the user put in.
//!
//! Each end loses its connection on its own, so what was sent may still arrive after the sender has
//! given the connection up. Connections that the sender has given up wait at the receiver's door
//! beside newer ones, and are let in late, or never.

use std::collections::VecDeque;

use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

use super::{Admission, Arrival, Claim, Heard, ReceiveSession, Reunion, SendSession};
use crate::wire::frame::{Frame, Reply};
use crate::wire::handshake::SessionId;
use crate::wire::metadata::Metadata;

const SENDER: SessionId = [1; 16];
const RECEIVER: SessionId = [2; 16];
const FOREIGN: SessionId = [3; 16];

/// What the sending user has done.
#[derive(Clone, Debug, Default)]
struct User {
    accepted: u64,
    closed: bool,
}

#[derive(Clone, Debug)]
enum Step {
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
    /// The sender reads a reply.
    ReadReply,
    /// The sender's end of the connection breaks.
    BreakAtSender,
    /// The receiver's end of the connection breaks.
    BreakAtReceiver,
    /// The sender connects; an attempt before is given up.
    Dial,
    /// The receiver lets one in of those that knock.
    LetIn(prop::sample::Index),
    /// The sender reads the verdict.
    ReadVerdict,
    /// Another sender knocks.
    Foreign,
}

struct UserModel;

impl ReferenceStateMachine for UserModel {
    type State = User;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<User> {
        Just(User::default()).boxed()
    }

    fn transitions(_: &User) -> BoxedStrategy<Step> {
        prop_oneof![
            4 => Just(Step::Accept),
            1 => Just(Step::Close),
            8 => Just(Step::Send),
            8 => Just(Step::ReadFrame),
            5 => Just(Step::Acknowledge),
            6 => Just(Step::ReadReply),
            1 => Just(Step::BreakAtSender),
            1 => Just(Step::BreakAtReceiver),
            4 => Just(Step::Dial),
            6 => any::<prop::sample::Index>().prop_map(Step::LetIn),
            6 => Just(Step::ReadVerdict),
            1 => Just(Step::Foreign),
        ]
        .boxed()
    }

    fn apply(mut user: User, step: &Step) -> User {
        match step {
            Step::Accept if !user.closed => user.accepted += 1,
            Step::Close => user.closed = true,
            _ => {}
        }
        user
    }
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

#[derive(Debug)]
struct Edge {
    sender: SendSession,
    /// The sequence number of the sender's next item; its outbox.
    next: u64,
    line: Line,
    closing: bool,
    receiver: ReceiveSession,
    receiving: Option<usize>,
    delivered: u64,
    /// The close has come over the present connection.
    complete: bool,
    /// The sender has heard that all is taken.
    finished: bool,
    /// By number. Those that still knock are in `knocking`.
    connections: Vec<Connection>,
    knocking: Vec<usize>,
}

impl Edge {
    fn new() -> Self {
        Self {
            sender: SendSession::default(),
            next: 0,
            line: Line::Down,
            closing: false,
            receiver: ReceiveSession::new(RECEIVER),
            receiving: None,
            delivered: 0,
            complete: false,
            finished: false,
            connections: Vec::new(),
            knocking: Vec::new(),
        }
    }

    fn send(&mut self, user: &User) {
        let Line::Up(line) = self.line else { return };
        if self.next < user.accepted {
            let frame = self.sender.send(self.next, Metadata::None);
            self.next += 1;
            self.connections[line].frames.push_back(frame);
        } else if user.closed && !self.closing {
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
            Arrival::Duplicate(_) => assert!(sequence.unwrap() < self.delivered),
            Arrival::Complete => self.complete = true,
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

    fn read_reply(&mut self) {
        let Line::Up(line) = self.line else { return };
        let Some(reply) = self.connections[line].replies.pop_front() else { return };
        match self.sender.receive(reply).expect("the receiver keeps to the protocol") {
            Heard::Acknowledged(upto) => assert!(upto <= self.delivered, "not a word too early"),
            Heard::Finished(taken) => {
                assert_eq!(taken, self.delivered);
                self.finished = true;
            }
            other => panic!("nobody said {other:?}"),
        }
    }

    fn dial(&mut self) {
        if matches!(self.line, Line::Up(_)) || self.finished {
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

impl StateMachineTest for Edge {
    type SystemUnderTest = Self;
    type Reference = UserModel;

    fn init_test(_: &User) -> Self {
        Self::new()
    }

    fn apply(mut edge: Self, user: &User, step: Step) -> Self {
        match step {
            Step::Accept | Step::Close => {}
            Step::Send => edge.send(user),
            Step::ReadFrame => edge.read_frame(),
            Step::Acknowledge => edge.acknowledge(),
            Step::ReadReply => edge.read_reply(),
            Step::BreakAtSender => edge.line = Line::Down,
            Step::BreakAtReceiver => edge.receiving = None,
            Step::Dial => edge.dial(),
            Step::LetIn(which) if !edge.knocking.is_empty() => {
                let line = edge.knocking.remove(which.index(edge.knocking.len()));
                edge.let_in(line);
            }
            Step::LetIn(_) => {}
            Step::ReadVerdict => edge.read_verdict(),
            Step::Foreign => edge.foreign(),
        }
        edge
    }

    fn check_invariants(edge: &Self, user: &User) {
        assert!(edge.delivered <= user.accepted);
        assert!(edge.sender.acknowledged() <= edge.delivered, "an item counts as delivered that is not");
        // Items below `next` are in doubt, those above it are not: so the peer may not hold one.
        assert!(edge.delivered <= edge.next, "the peer holds an item that is not in doubt");
        assert!(!edge.finished || edge.delivered == user.accepted);
    }

    /// The network heals, and everything that was accepted arrives.
    fn teardown(mut edge: Self, mut user: User) {
        user.closed = true;
        if !edge.finished {
            edge.line = Line::Down;
            edge.dial();
            edge.let_in(edge.connections.len() - 1);
            edge.read_verdict();
            for _ in 0..=user.accepted {
                edge.send(&user);
                edge.read_frame();
            }
            edge.acknowledge();
            edge.read_reply();
            edge.read_reply();
            Self::check_invariants(&edge, &user);
        }
        assert!(edge.finished, "{edge:?}");
        assert_eq!(edge.delivered, user.accepted);
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_doubled_or_wrongly_in_doubt_whatever_the_connections_do(sequential 1..120 => Edge);
}

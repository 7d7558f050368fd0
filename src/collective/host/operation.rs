//! Running a program over a mesh: both directions at once, in one future, without a copy in between.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use super::edge::{InEdge, OutEdge};
use super::mesh::{Arrival, Mesh, left};
use crate::collective::lobby::Lobby;
use crate::collective::memory::Memory;
use crate::collective::program::{Program, Span, Step, Transmission};
use crate::error::{Error, Link};
use crate::net::{Net, Stream};
use crate::wire::collective::{Call, GroupFrame};

/// Whose operation it is, which says how it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::collective) enum Parties {
    /// All ranks'.
    All,
    /// Of a sender and a receiver.
    Two { from: usize, to: usize },
}

/// An operation that is under way.
pub(super) struct Operation<'a> {
    parties: Parties,
    call: &'a Call,
    place: Place,
    program: &'a Program,
    memory: Memory<'a>,
    /// How many steps are done.
    step: usize,
    /// How many bytes of the message have arrived that the current step receives, if it has begun.
    reading: Option<usize>,
    /// How many messages are sent.
    sent: usize,
    writing: Writing,
    /// The ranks that know of it from us.
    announced: BTreeSet<usize>,
    /// The ranks that we know it from.
    heard_of: BTreeSet<usize>,
}

/// Where an operation is in the order of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// How many of the whole group's were before it.
    operation: u64,
    /// How many of the same sender and receiver were, if it is theirs alone.
    pair: Option<u64>,
}

impl Place {
    /// Whether a rank that is here has begun what another one, which waits for it in an operation of the
    /// whole group, will never come to: a thing of two ranks in front of it, or another one in its place.
    fn is_before_or_at(self, other: Self) -> bool {
        other.pair.is_none() && self.operation <= other.operation
    }

    /// Whether this is an operation of the whole group that was over before another one. A rank may have
    /// been told of it that had no use for that.
    fn is_over_at(self, other: Self) -> bool {
        self.pair.is_none() && self.operation < other.operation
    }
}

/// How far the current message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writing {
    NotYet,
    /// So many bytes of it are written.
    Payload(usize),
    /// All of it is staged, perhaps not yet written.
    Staged,
}

impl<'a> Operation<'a> {
    pub(super) fn new<N: Net>(
        mesh: &Mesh<N>,
        parties: Parties,
        call: &'a Call,
        program: &'a Program,
        memory: Memory<'a>,
    ) -> Self {
        let pair = match parties {
            Parties::All => None,
            Parties::Two { from, to } if from == mesh.members.rank => Some(mesh.peers[to].sent),
            Parties::Two { from, .. } => Some(mesh.peers[from].received),
        };
        let place = Place { operation: mesh.operations, pair };
        Self {
            parties,
            call,
            place,
            program,
            memory,
            step: 0,
            reading: None,
            sent: 0,
            writing: Writing::NotYet,
            announced: BTreeSet::new(),
            heard_of: BTreeSet::new(),
        }
    }

    /// Does it.
    pub(super) async fn run<N: Net>(
        &mut self,
        mesh: &mut Mesh<N>,
        lobby: &Lobby<Arrival<N::Stream>>,
    ) -> Result<(), Error> {
        poll_fn(|cx| self.poll(cx, mesh, lobby)).await?;
        match self.parties {
            Parties::All => mesh.operations += 1,
            Parties::Two { from, to } if from == mesh.members.rank => mesh.peers[to].sent += 1,
            Parties::Two { from, .. } => mesh.peers[from].received += 1,
        }
        Ok(())
    }

    /// What it waits for, in words.
    pub(super) fn awaited(&self) -> String {
        let what = self.named();
        match (self.program.steps.get(self.step), self.program.sends.get(self.sent)) {
            (Some(Step::Receive { rank, .. }), _) => format!("rank {rank}'s part of {what}"),
            (_, Some(message)) => format!("rank {} to take our part of {what}", message.rank),
            _ => format!("the end of {what}"),
        }
    }

    fn named(&self) -> String {
        format!("operation {}, {}", self.place.operation, self.call)
    }

    fn poll<N: Net>(
        &mut self,
        cx: &mut Context<'_>,
        mesh: &mut Mesh<N>,
        lobby: &Lobby<Arrival<N::Stream>>,
    ) -> Poll<Result<(), Error>> {
        while let Poll::Ready(arrival) = lobby.poll_operation(cx) {
            mesh.adopt(arrival.map_err(|cause| (*cause).clone())?);
        }
        // First, and not when there is nothing else to do: while sockets are never dry, that is never.
        self.attend(cx, mesh)?;
        for _ in 0..ROUNDS_MAX {
            let before = self.position();
            let stepped = self.poll_step(cx, mesh)?;
            let sent = self.poll_send(cx, mesh)?;
            if stepped.is_ready() && sent.is_ready() {
                return Poll::Ready(Ok(()));
            }
            if self.position() == before {
                // There may be connections now that nobody looked at yet.
                self.attend(cx, mesh)?;
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Looks after the connections, and at what has come along those whose turn has not.
    fn attend<N: Net>(&mut self, cx: &mut Context<'_>, mesh: &mut Mesh<N>) -> Result<(), Error> {
        mesh.attend(cx, self.awaited_rank())?;
        self.ask(cx, mesh)?;
        for rank in mesh.members.others().filter(|rank| !self.heard_of.contains(rank)) {
            let Some(edge) = &mut mesh.peers[rank].incoming else { continue };
            let Some(GroupFrame::Begin { operation, pair, call }) = edge.next() else { continue };
            let place = Place { operation: *operation, pair: *pair };
            let is_same = place == self.place && call == self.call;
            if place.is_over_at(self.place) {
                edge.take_next();
                continue;
            }
            if place.is_before_or_at(self.place) && !is_same {
                return Err(self.mismatch(edge.link().clone(), place, call));
            }
        }
        Ok(())
    }

    /// Tells a rank that is long in coming what we wait for, though there is nothing to send to it: it may
    /// be in something else, with others who don't hear from us either. Somebody waits for whoever is, or
    /// is waited for.
    fn ask<N: Net>(&mut self, cx: &mut Context<'_>, mesh: &mut Mesh<N>) -> Result<(), Error> {
        let is_asked = |rank: &usize| mesh.peers[*rank].is_absent() && !mesh.peers[*rank].leaves();
        let absent = self.awaited_rank().filter(is_asked);
        let Some(rank) = absent.filter(|rank| !self.announced.contains(rank)) else { return Ok(()) };
        let Poll::Ready(edge) = mesh.poll_out(cx, rank) else { return Ok(()) };
        let edge = edge?;
        if edge.in_message {
            return Ok(());
        }
        self.announced.insert(rank);
        edge.writer.stage(&self.begin(), &[]);
        match edge.writer.poll_flush(cx).map_err(|error| edge.broken(&error)) {
            Poll::Ready(Err(error)) => Err(mesh.explain(cx, rank, error)),
            // What is left goes with the next sign of life.
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    fn begin(&self) -> GroupFrame {
        let Place { operation, pair } = self.place;
        GroupFrame::Begin { operation, pair, call: self.call.clone() }
    }

    /// Changes whenever something has been done.
    fn position(&self) -> (usize, Option<usize>, usize, Writing) {
        (self.step, self.reading, self.sent, self.writing)
    }

    fn awaited_rank(&self) -> Option<usize> {
        match self.program.steps.get(self.step) {
            Some(Step::Receive { rank, .. }) => Some(*rank),
            _ => None,
        }
    }

    /// Does as much of one step as can be done now. Ready when there are none left.
    fn poll_step<N: Net>(&mut self, cx: &mut Context<'_>, mesh: &mut Mesh<N>) -> Progress {
        let Some(step) = self.program.steps.get(self.step) else { return Ok(Poll::Ready(())) };
        match step {
            Step::Compute(compute) => {
                self.memory.compute(compute);
                self.step += 1;
            }
            Step::Receive { rank, into } => {
                let (link, peer) = (mesh.link(*rank), &mut mesh.peers[*rank]);
                let Some(edge) = &mut peer.incoming else {
                    return if peer.has_surely_left() { Err(left(link)) } else { Ok(Poll::Pending) };
                };
                if let Poll::Ready(received) = self.poll_receive(cx, edge, *rank, *into) {
                    received.map_err(|error| mesh.explain(cx, *rank, error))?;
                    mesh.peers[*rank].is_here();
                    self.step += 1;
                }
            }
        }
        Ok(Poll::Pending)
    }

    /// Receives the message that is due on an edge.
    fn poll_receive<S: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        edge: &mut InEdge<S>,
        rank: usize,
        into: Span,
    ) -> Poll<Result<(), Error>> {
        while self.reading.is_none() {
            let link = edge.link().clone();
            match ready!(edge.poll_next(cx))? {
                GroupFrame::Begin { operation, pair, call } if !self.heard_of.contains(&rank) => {
                    let place = Place { operation: *operation, pair: *pair };
                    if !place.is_over_at(self.place) {
                        if (place, call) != (self.place, self.call) {
                            return Poll::Ready(Err(self.mismatch(link, place, call)));
                        }
                        self.heard_of.insert(rank);
                    }
                }
                GroupFrame::Part { bytes }
                    if *bytes == into.bytes as u64 && self.heard_of.contains(&rank) =>
                {
                    self.reading = Some(0);
                    edge.in_message = true;
                }
                frame => {
                    let due = format!("a message of {} bytes for {}", into.bytes, self.named());
                    let violation = format!("it sent {frame:?} where {due} was due");
                    return Poll::Ready(Err(Error::PeerMisbehaved { link, violation }));
                }
            }
            edge.take_next();
        }
        while let Some(bytes) = self.reading.filter(|bytes| *bytes < into.bytes) {
            let target = &mut self.memory.write(into)[bytes..];
            let read = ready!(edge.poll_payload(cx, target))?;
            self.reading = Some(bytes + read);
        }
        if into.bytes > 0 {
            ready!(edge.poll_message_end(cx))?;
        }
        edge.in_message = false;
        self.reading = None;
        Poll::Ready(Ok(()))
    }

    /// Sends as much of one message as goes now. Ready when there are none left.
    fn poll_send<N: Net>(&mut self, cx: &mut Context<'_>, mesh: &mut Mesh<N>) -> Progress {
        let Some(message) = self.program.sends.get(self.sent) else { return Ok(Poll::Ready(())) };
        if message.after > self.step {
            return Ok(Poll::Pending);
        }
        let Poll::Ready(edge) = mesh.poll_out(cx, message.rank) else { return Ok(Poll::Pending) };
        let edge = edge?;
        match self.poll_message(cx, edge, *message).map_err(|error| edge.broken(&error)) {
            Poll::Ready(Ok(())) => {
                self.writing = Writing::NotYet;
                self.sent += 1;
            }
            Poll::Ready(Err(error)) => return Err(mesh.explain(cx, message.rank, error)),
            Poll::Pending => {}
        }
        Ok(Poll::Pending)
    }

    fn poll_message<S: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        edge: &mut OutEdge<S>,
        message: Transmission,
    ) -> Poll<std::io::Result<()>> {
        let payload = self.memory.read(message.from);
        if self.writing == Writing::NotYet {
            if self.announced.insert(message.rank) {
                edge.writer.stage(&self.begin(), &[]);
            }
            let part = GroupFrame::Part { bytes: payload.len() as u64 };
            edge.in_message = edge.writer.stage(&part, payload);
            self.writing = if edge.in_message { Writing::Payload(0) } else { Writing::Staged };
        }
        while let Writing::Payload(bytes) = self.writing {
            let written = bytes + ready!(edge.writer.poll_piece(cx, &payload[bytes..]))?;
            self.writing = Writing::Payload(written);
            if written == payload.len() {
                edge.writer.stage_end();
                edge.in_message = false;
                self.writing = Writing::Staged;
            }
        }
        edge.writer.poll_flush(cx)
    }

    fn mismatch(&self, link: Link, place: Place, call: &Call) -> Error {
        let Link { local_rank, peer_rank, .. } = link;
        let mismatch = format!(
            "rank {local_rank} calls {} as operation {}, and rank {peer_rank} calls {call} as operation {}",
            self.call, self.place.operation, place.operation,
        );
        Error::PeerIncompatible { link, mismatch }
    }
}

/// Steps and messages, or parts of them, before others get their turn.
const ROUNDS_MAX: usize = 64;

/// Whether all is done, or what went wrong.
type Progress = Result<Poll<()>, Error>;

//! A rank's connections to the others: made when they are needed, and kept.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::time::Interval;

use super::dial::Dialer;
use super::edge::{InEdge, OutEdge};
use super::{Members, Whereabouts};
use crate::collective::lobby::Lobby;
use crate::error::{Error, Link};
use crate::net::{Net, Stream};
use crate::transport::tcp::TcpConfig;
use crate::transport::tcp::handshake::{Agreed, Party};
use crate::transport::timing::{listening, speaking};
use crate::wire::handshake::SessionId;

/// A connection that has come in.
pub(in crate::collective) struct Arrival<S: Stream> {
    pub(super) rank: usize,
    pub(super) agreed: Agreed<S>,
}

/// The edges to and from every other rank, and who they are.
pub(in crate::collective) struct Mesh<N: Net> {
    pub(super) members: Members,
    net: N,
    config: TcpConfig,
    session: SessionId,
    pub(super) peers: Vec<Peer<N::Stream>>,
    /// The place of the next operation in the order of the group's.
    pub(super) operations: u64,
    listening: Interval,
    speaking: Interval,
}

/// What we have of another rank.
pub(super) struct Peer<S: Stream> {
    whereabouts: Whereabouts,
    pub(super) out: Out<S>,
    pub(super) incoming: Option<InEdge<S>>,
    /// Over which only an abort can come, where the edge before is busy with a message.
    pub(super) further: Option<InEdge<S>>,
    /// Whether it has said, along a connection of ours, that it leaves. What it sent before may still be
    /// on its way.
    leaves: bool,
    /// For how many ticks an operation has waited for it.
    absent_ticks: u32,
    /// How many messages of the operations between two ranks went to it, and came from it.
    pub(super) sent: u64,
    pub(super) received: u64,
}

type Dialing<S> = Pin<Box<dyn Future<Output = Result<Agreed<S>, Error>> + Send>>;

/// The edge to another rank.
pub(super) enum Out<S: Stream> {
    Absent,
    Dialing(Dialing<S>),
    Up(OutEdge<S>),
}

impl<N: Net> Mesh<N> {
    /// Nobody is connected to yet.
    pub(super) fn new(
        net: N,
        config: TcpConfig,
        members: Members,
        session: SessionId,
        ranks: Vec<Whereabouts>,
    ) -> Self {
        let peer = |whereabouts| Peer {
            whereabouts,
            out: Out::Absent,
            incoming: None,
            further: None,
            leaves: false,
            absent_ticks: 0,
            sent: 0,
            received: 0,
        };
        // As often as the least patient rank wants it.
        let impatience = ranks.iter().map(|rank| rank.heartbeat).min().unwrap_or(config.heartbeat);
        let (listening, speaking) = (listening(config.heartbeat), speaking(impatience));
        let peers = ranks.into_iter().map(peer).collect();
        Self { members, net, config, session, peers, operations: 0, listening, speaking }
    }

    pub(super) fn link(&self, rank: usize) -> Link {
        Link::new(self.members.rank, rank)
    }

    /// How often the connections have to be looked at: twice as often as there is something to do, so that
    /// it is never late by more than half.
    pub(super) fn period(&self) -> Duration {
        (self.speaking.period().min(self.listening.period()) / 2).min(PERIOD_MAX)
    }

    /// Which run each rank is.
    pub(super) fn sessions(&self) -> Vec<SessionId> {
        self.peers.iter().map(|peer| peer.whereabouts.session).collect()
    }

    /// The edge to `rank`, once there is one.
    pub(super) fn poll_out(
        &mut self,
        cx: &mut Context<'_>,
        rank: usize,
    ) -> Poll<Result<&mut OutEdge<N::Stream>, Error>> {
        let link = self.link(rank);
        if matches!(self.peers[rank].out, Out::Absent) {
            if self.peers[rank].leaves {
                return Poll::Ready(Err(left(link)));
            }
            self.peers[rank].out = Out::Dialing(Box::pin(self.dialer(rank).connect()));
        }
        let peer = &mut self.peers[rank];
        if let Out::Dialing(dialing) = &mut peer.out {
            let agreed = ready!(dialing.as_mut().poll(cx));
            // Whether it is there or not, nobody must poll it again.
            peer.out = Out::Absent;
            let agreed = agreed?;
            peer.out = Out::Up(OutEdge::new(agreed, link, self.config.checksum));
        }
        match &mut peer.out {
            Out::Up(edge) => Poll::Ready(Ok(edge)),
            _ => Poll::Pending,
        }
    }

    pub(super) fn dialer(&self, rank: usize) -> Dialer<N> {
        let Members { rank: own, size } = self.members;
        Dialer {
            net: self.net.clone(),
            party: Party::connector(&self.config, [own, rank], size, self.session),
            config: self.config.clone(),
            link: self.link(rank),
            peer: self.peers[rank].whereabouts.clone(),
        }
    }

    pub(super) fn checksum(&self) -> bool {
        self.config.checksum
    }

    /// Takes a connection that has come in.
    pub(super) fn adopt(&mut self, Arrival { rank, agreed }: Arrival<N::Stream>) {
        let edge = InEdge::new(agreed, self.link(rank), self.config.checksum);
        let peer = &mut self.peers[rank];
        peer.absent_ticks = 0;
        match &peer.incoming {
            None => peer.incoming = Some(edge),
            Some(_) => peer.further = Some(edge),
        }
    }

    /// Takes all that have come in.
    pub(super) fn adopt_all(&mut self, lobby: &Lobby<Arrival<N::Stream>>) {
        while let Some(arrival) = lobby.take() {
            self.adopt(arrival);
        }
    }

    /// Looks at every connection for what belongs to no operation, and keeps all alive. `awaited` is the
    /// rank whose message is due, if one is.
    pub(super) fn attend(&mut self, cx: &mut Context<'_>, awaited: Option<usize>) -> Result<(), Error> {
        for rank in self.members.others() {
            self.watch(cx, rank)?;
        }
        if self.speaking.poll_tick(cx).is_ready() {
            self.peers.iter_mut().for_each(|peer| peer.speak(cx));
            // So that it wakes us again.
            while self.speaking.poll_tick(cx).is_ready() {}
        }
        if self.listening.poll_tick(cx).is_ready() {
            self.tick(cx, awaited)?;
            while self.listening.poll_tick(cx).is_ready() {}
        }
        Ok(())
    }

    /// The same, while `work` goes on.
    pub(super) async fn attend_during<T>(
        &mut self,
        work: impl Future<Output = Result<T, Error>>,
        lobby: &Lobby<Arrival<N::Stream>>,
    ) -> Result<T, Error> {
        let mut work = pin!(work);
        let attending = poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            while let Poll::Ready(arrival) = lobby.poll_operation(cx) {
                self.adopt(arrival.map_err(|cause| (*cause).clone())?);
            }
            self.attend(cx, None)?;
            Poll::Pending
        });
        attending.await
    }

    /// The same, while there is no operation.
    pub(super) fn attend_idle(&mut self, lobby: &Lobby<Arrival<N::Stream>>) -> Result<(), Error> {
        self.adopt_all(lobby);
        self.attend(&mut Context::from_waker(Waker::noop()), None)
    }

    fn watch(&mut self, cx: &mut Context<'_>, rank: usize) -> Result<(), Error> {
        if matches!(self.peers[rank].out, Out::Dialing(_))
            && let Poll::Ready(connected) = self.poll_out(cx, rank)
        {
            connected?;
        }
        self.peers[rank].watch(cx, rank)
    }

    /// What is behind an error with a rank: if it gave the group up, it has said why along one of its
    /// connections, and then closed all of them.
    pub(super) fn explain(&mut self, cx: &mut Context<'_>, rank: usize, error: Error) -> Error {
        match self.peers[rank].watch(cx, rank) {
            Err(told) if !is_loss(&told, rank) => told,
            _ => error,
        }
    }

    fn tick(&mut self, cx: &mut Context<'_>, awaited: Option<usize>) -> Result<(), Error> {
        let heartbeat = self.config.heartbeat;
        for peer in &mut self.peers {
            if let Out::Up(edge) = &mut peer.out {
                edge.tick(heartbeat)?;
            }
            for edge in [&mut peer.incoming, &mut peer.further].into_iter().flatten() {
                edge.tick(heartbeat)?;
            }
        }
        let Some(rank) = awaited else { return Ok(()) };
        let peer = &mut self.peers[rank];
        peer.absent_ticks += 1;
        if !peer.is_absent() || peer.incoming.is_some() {
            return Ok(());
        }
        // A rank that we know nothing of may be slow, or dead: a connection tells.
        match self.poll_out(cx, rank) {
            Poll::Ready(edge) => edge.map(drop),
            Poll::Pending => Ok(()),
        }
    }
}

/// So that a rank that does nothing hears of a failure before who tells it loses patience.
const PERIOD_MAX: Duration = Duration::from_millis(250);

/// Ticks after which a rank that was to connect is looked for. Not the first, which may come at once.
const ABSENT_TICKS_MAX: u32 = 2;

impl<S: Stream> Peer<S> {
    /// Whether nothing of it can be on its way any more.
    pub(super) fn has_surely_left(&self) -> bool {
        self.leaves && self.is_absent()
    }

    /// Whether it has been waited for too long to be merely late.
    pub(super) fn is_absent(&self) -> bool {
        self.absent_ticks >= ABSENT_TICKS_MAX
    }

    /// Whether it has said that it leaves; then it wants nothing of us any more, but what it sent may still
    /// be on its way.
    pub(super) fn leaves(&self) -> bool {
        self.leaves
    }

    /// A message of it has come.
    pub(super) fn is_here(&mut self) {
        self.absent_ticks = 0;
    }

    fn speak(&mut self, cx: &mut Context<'_>) {
        if let Out::Up(edge) = &mut self.out {
            edge.speak(cx);
        }
        [&mut self.incoming, &mut self.further].into_iter().flatten().for_each(|edge| edge.speak(cx));
    }

    /// Looks at all connections with it, and gives the error that says most.
    fn watch(&mut self, cx: &mut Context<'_>, rank: usize) -> Result<(), Error> {
        let mut failure = None;
        let mut note = |found: Result<(), Error>| {
            if let Err(error) = found
                && (failure.is_none() || !is_loss(&error, rank))
            {
                failure = Some(error);
            }
        };
        if let Out::Up(edge) = &mut self.out {
            note(edge.poll_replies(cx));
            if edge.left {
                self.leaves = true;
                self.out = Out::Absent;
            }
        }
        for place in [&mut self.incoming, &mut self.further] {
            let Some(edge) = place else { continue };
            note(edge.watch(cx));
            if edge.left {
                // Behind all that it sent.
                (self.leaves, self.absent_ticks) = (true, ABSENT_TICKS_MAX);
                *place = None;
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

/// Whether it says no more than that a rank is not there.
fn is_loss(error: &Error, rank: usize) -> bool {
    matches!(error, Error::PeerGone { link, .. } if link.peer_rank == rank)
}

pub(super) fn left(link: Link) -> Error {
    Error::PeerGone { link, reason: "it has left the group".into() }
}

/// A mesh that its operations and its keeper take turns with.
pub(in crate::collective) type SharedMesh<N> = Arc<tokio::sync::Mutex<Mesh<N>>>;

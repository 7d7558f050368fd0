//! What goes on beside the operations: letting ranks in, staying alive while nothing is to do, and
//! telling everybody when the group has failed, or when we leave it.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::dial::Dialer;
use super::edge::{InEdge, OutEdge, verdict};
use super::mesh::{Arrival, Mesh, Out, SharedMesh};
use crate::collective::lobby::Lobby;
use crate::error::{Error, Result};
use crate::net::Net;
use crate::transport::tcp::connection::{FrameWriter, WireFrame};
use crate::transport::tcp::door::Door;
use crate::transport::tcp::handshake::{Candidate, Failure};
use crate::transport::timing::{GOODBYE, ticker};
use crate::wire::collective::{GroupFrame, GroupReply, Verdict};
use crate::wire::handshake::{RefusalReason, SessionId};

/// The task beside a group.
pub(super) struct Keeper<N: Net> {
    pub(super) mesh: SharedMesh<N>,
    pub(super) lobby: Arc<Lobby<Arrival<N::Stream>>>,
    pub(super) door: Door<N>,
    pub(super) session: SessionId,
    /// Which runs the ranks are.
    pub(super) sessions: Vec<SessionId>,
    pub(super) heartbeat: Duration,
    /// How often it looks at the connections.
    pub(super) period: Duration,
    /// Told when the user leaves the group.
    pub(super) leaving: Arc<Notify>,
}

impl<N: Net> Keeper<N> {
    /// Until the user leaves, and everybody has been told.
    pub(super) async fn run(mut self) {
        let failure = self.keep().await;
        let mut mesh = self.mesh.lock().await;
        mesh.adopt_all(&self.lobby);
        let verdict = failure.as_ref().map(|failure| verdict(failure, mesh.members.rank));
        let mut farewells = mesh.take_leave(verdict.as_ref(), self.heartbeat);
        drop(mesh);
        let mut left = failure.is_none();
        while !(left && farewells.is_empty()) {
            tokio::select! {
                biased;
                () = self.leaving.notified(), if !left => left = true,
                Some(told) = farewells.join_next() => {
                    if let Err(error) = told {
                        tracing::error!(%error, "bug in kvpipe: a farewell has not ended well");
                    }
                }
                // Whoever comes now is told, too: it may be what another one waits for.
                candidate = self.door.next() => match candidate {
                    Ok(candidate) => {
                        self.admit(candidate).await;
                        let mut mesh = self.mesh.lock().await;
                        mesh.adopt_all(&self.lobby);
                        mesh.part_with_arrivals(verdict.as_ref(), self.heartbeat, &mut farewells);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a group that has ended lets nobody in any more");
                        return;
                    }
                },
            }
        }
    }

    /// Until the user leaves, or the group fails: then it gives the reason.
    async fn keep(&mut self) -> Option<Arc<Error>> {
        let mut ticker = ticker(self.period);
        loop {
            tokio::select! {
                biased;
                failure = poll_fn(|cx| self.lobby.poll_failure(cx)) => return Some(failure),
                () = self.leaving.notified() => return None,
                // Before the door, at which strangers may stand in line without end.
                _ = ticker.tick() => {
                    // An operation that is under way does it itself.
                    if let Ok(mut mesh) = self.mesh.try_lock()
                        && let Err(error) = mesh.attend_idle(&self.lobby)
                    {
                        self.lobby.fail(error);
                    }
                }
                candidate = self.door.next() => match candidate {
                    Ok(candidate) => self.admit(candidate).await,
                    Err(error) => self.lobby.fail(error),
                },
            }
        }
    }

    /// Lets a rank in, if it is the run that we know.
    async fn admit(&mut self, candidate: Candidate<N::Stream>) {
        let (rank, claim) = (candidate.rank, candidate.claim);
        if self.sessions.get(rank) != Some(&claim.session) || claim.peer_session != Some(self.session) {
            let text = format!("this is not the group that rank {rank} means");
            return self.door.refuse(candidate, RefusalReason::Session, text);
        }
        if let Some((reason, text)) = candidate.difference.clone() {
            return self.door.refuse(candidate, reason, text);
        }
        match timeout(self.door.patience(), candidate.accept(0)).await {
            Ok(Ok(agreed)) => self.lobby.admit(Arrival { rank, agreed }),
            Ok(Err(Failure::Fatal(error))) => self.lobby.fail(error),
            Ok(Err(Failure::Stranger(how) | Failure::NobodyThere(how) | Failure::Taken(how))) => {
                self.door.note_refused(how);
            }
            Err(_) => self.door.note_refused("it left before it was accepted".into()),
        }
    }
}

impl<N: Net> Mesh<N> {
    /// Parts with every rank, and tells it why: with a verdict, or because our user leaves.
    fn take_leave(&mut self, verdict: Option<&Verdict>, heartbeat: Duration) -> JoinSet<()> {
        let mut farewells = JoinSet::new();
        for rank in self.members.others() {
            let dialer = self.dialer(rank);
            let peer = &mut self.peers[rank];
            let out = std::mem::replace(&mut peer.out, Out::Absent);
            let incoming = [peer.incoming.take(), peer.further.take()];
            let checksum = self.checksum();
            let farewell = Farewell::<N> { out, incoming, verdict: verdict.cloned(), checksum };
            farewells.spawn(farewell.say(Some(dialer), heartbeat));
        }
        farewells
    }

    /// Parts with those who have come since.
    fn part_with_arrivals(
        &mut self,
        verdict: Option<&Verdict>,
        heartbeat: Duration,
        farewells: &mut JoinSet<()>,
    ) {
        let checksum = self.checksum();
        for peer in &mut self.peers {
            let incoming = [peer.incoming.take(), peer.further.take()];
            if incoming.iter().any(Option::is_some) {
                let farewell =
                    Farewell::<N> { out: Out::Absent, incoming, verdict: verdict.cloned(), checksum };
                farewells.spawn(farewell.say(None, heartbeat));
            }
        }
    }
}

/// The connections with one rank, at the end.
struct Farewell<N: Net> {
    out: Out<N::Stream>,
    incoming: [Option<InEdge<N::Stream>>; 2],
    verdict: Option<Verdict>,
    checksum: bool,
}

impl<N: Net> Farewell<N> {
    /// Says it, and waits a while for the rank to close its ends: a connection that is closed with bytes
    /// unread is reset, which may destroy what we said last, or even what we sent before.
    async fn say(mut self, dialer: Option<Dialer<N>>, heartbeat: Duration) {
        self.tell(dialer, heartbeat).await;
        let Self { out, incoming, .. } = self;
        let [first, second] = incoming;
        let outgoing = async {
            if let Out::Up(mut edge) = out {
                // A rank that is gone is no concern any more. One that waits for the rest of a message is
                // not to see its end before it has seen why.
                if !edge.in_message {
                    drop(edge.writer.shutdown().await);
                }
                drop(edge.discard().await);
            }
        };
        let closed = async { tokio::join!(outgoing, see_out(first), see_out(second)) };
        if timeout(heartbeat.max(GOODBYE), closed).await.is_err() {
            tracing::debug!("a rank has not closed its connections with us");
        }
    }

    /// Along all connections, since all will end, and it may look at any of them first.
    async fn tell(&mut self, dialer: Option<Dialer<N>>, heartbeat: Duration) {
        let verdict = self.verdict.take();
        let (frame, reply) = match verdict.clone() {
            None => (GroupFrame::Goodbye, GroupReply::Goodbye),
            Some(verdict) => (GroupFrame::Abort(verdict.clone()), GroupReply::Abort(verdict)),
        };
        let mut is_told = false;
        for edge in self.incoming.iter_mut().flatten() {
            is_told |= noted(say(&mut edge.replies, &reply, heartbeat).await).is_some();
        }
        // One that is being made may already be one to it.
        if let (Out::Dialing(dialing), Some(dialer)) = (&mut self.out, &dialer) {
            let made = noted(dialing.await)
                .map(|agreed| Out::Up(OutEdge::new(agreed, dialer.link.clone(), self.checksum)));
            self.out = made.unwrap_or(Out::Absent);
        }
        // In the middle of a message nothing else can be said.
        if let Out::Up(edge) = &mut self.out
            && !edge.in_message
        {
            noted(say(&mut edge.writer, &frame, heartbeat).await);
        }
        // Behind messages whose turn has not come, it may not read it; along a new connection it does.
        let (Some(dialer), Some(_), false) = (dialer, verdict, is_told) else { return };
        let link = dialer.link.clone();
        let Some(agreed) = noted(dialer.connect().await) else { return };
        let mut edge = OutEdge::<N::Stream>::new(agreed, link, self.checksum);
        noted(say(&mut edge.writer, &frame, heartbeat).await);
        drop(timeout(GOODBYE, async { (edge.writer.shutdown().await, edge.discard().await) }).await);
    }
}

/// Whoever can't be told is gone, or learns it from others.
fn noted<T>(told: Result<T>) -> Option<T> {
    told.inspect_err(|error| tracing::debug!(%error, "a rank was not told of the end of its group")).ok()
}

async fn see_out<S: crate::net::Stream>(edge: Option<InEdge<S>>) {
    if let Some(mut edge) = edge {
        drop(edge.replies.shutdown().await);
        drop(edge.discard().await);
    }
}

async fn say<W: AsyncWrite + Unpin>(
    writer: &mut FrameWriter<W>,
    frame: &impl WireFrame,
    limit: Duration,
) -> Result<()> {
    writer.stage(frame, &[]);
    match timeout(limit, writer.flush()).await {
        Ok(flushed) => flushed.map_err(|error| Error::io("telling a rank of the end", error)),
        Err(_) => Err(Error::timeout("a rank to read of the end", limit)),
    }
}

//! Operations on host tensors, over TCP.
//!
//! A rank has one edge to another for each direction that an algorithm needs, made by whoever sends
//! along it when it first does, and kept. Handshake, framing, checksums, signs of life and the secret are
//! those of the [tcp transport](crate::transport::tcp); the store is needed once, to
//! [meet](self::meeting).
//!
//! An operation is a [program](super::program) that is [run](self::operation) in the caller's own future:
//! there is no other task between the caller and the sockets. While there is none, the group's
//! [keeper](self::keeper) looks after the connections. The two share a [lobby](super::lobby).
//!
//! # Failures
//!
//! | what | how it is found out |
//! |---|---|
//! | a rank called something else | by the first frame from it: each operation begins with what it is |
//! | a rank's process ended | its connections end, or nobody listens there |
//! | a rank is frozen, or cut off | it is silent for the heartbeat limit |
//! | a rank does not call | the deadline |
//! | another rank found one of these | it says so: to every rank, if need be over a connection made for it |

mod dial;
mod edge;
mod keeper;
mod meeting;
mod mesh;
mod operation;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use self::keeper::Keeper;
use self::meeting::Meeting;
use self::mesh::{Arrival, Mesh, SharedMesh};
use self::operation::Operation;
pub(super) use self::operation::Parties;
use super::lobby::Lobby;
use super::memory::Memory;
use super::program::Program;
use crate::error::{Error, Result};
use crate::net::{Listener, Net};
use crate::store::Store;
use crate::transport::tcp::TcpConfig;
use crate::transport::tcp::door::Door;
use crate::transport::tcp::handshake::Party;
use crate::transport::timing::{GOODBYE, after};
use crate::wire::collective::Call;
use crate::wire::handshake::SessionId;

/// A rank, and of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Members {
    pub(super) rank: usize,
    pub(super) size: usize,
}

impl Members {
    pub(super) fn others(self) -> impl Iterator<Item = usize> {
        (0..self.size).filter(move |rank| *rank != self.rank)
    }
}

/// Where a rank listens, and which run of it that is.
#[derive(Clone, Debug)]
struct Whereabouts {
    address: SocketAddr,
    session: SessionId,
    /// The silence after which it takes others for dead.
    heartbeat: Duration,
}

/// A rank among others that reach it over TCP.
pub(super) struct Host<N: Net> {
    mesh: SharedMesh<N>,
    lobby: Arc<Lobby<Arrival<N::Stream>>>,
    leaving: Arc<Notify>,
    /// None once it is waited for.
    keeper: Option<JoinHandle<()>>,
}

impl<N: Net> Host<N> {
    /// Listens on exactly `address`, and meets the others by the deadline.
    pub(super) async fn form(
        net: N,
        store: &impl Store,
        members: Members,
        address: SocketAddr,
        config: TcpConfig,
        deadline: Instant,
    ) -> Result<Self> {
        config.check()?;
        if address.ip().is_unspecified() {
            let what = format!("{} can't be published: give the address that ranks can reach", address.ip());
            return Err(Error::Misuse(what));
        }
        let listener = net
            .bind(address, &config.socket)
            .await
            .map_err(|error| Error::io(format!("listening on {address}"), error))?;
        let address = listener.local_addr().map_err(|error| Error::io("reading the address bound", error))?;
        let session: SessionId = config.entropy.bytes()?;
        let heartbeat = config.heartbeat;
        let own = Whereabouts { address, session, heartbeat };
        let meeting =
            Meeting::begin(store, &config.group, members, (config.connect_timeout, deadline)).await?;
        let ranks = meeting.meet(&own).await?;
        let party = Party::host(&config, members.rank, members.size, session);
        let door = Door::new(listener, party, heartbeat);
        let mesh = Mesh::new(net, config.clone(), members, session, ranks);
        let (sessions, period) = (mesh.sessions(), mesh.period());
        let (mesh, lobby) = (Arc::new(tokio::sync::Mutex::new(mesh)), Arc::new(Lobby::new()));
        let leaving = Arc::new(Notify::new());
        let keeper = Keeper {
            mesh: Arc::clone(&mesh),
            lobby: Arc::clone(&lobby),
            door,
            session,
            sessions,
            heartbeat,
            period,
            leaving: Arc::clone(&leaving),
        };
        // From now on: others may have met already, and connect.
        let keeper = Some(tokio::spawn(keeper.run()));
        let host = Self { mesh, lobby, leaving, keeper };
        meeting.clean_up().await?;
        Ok(host)
    }

    /// Carries out a program, after those that were called before.
    pub(super) async fn run(
        &self,
        parties: Parties,
        call: &Call,
        program: &Program,
        memory: Memory<'_>,
        limit: Duration,
    ) -> Result<()> {
        self.run_then(parties, call, program, memory, limit, async { Ok(()) }).await
    }

    /// The same, and then, in the same turn and time, what does not go over TCP. It ends early, and the
    /// group fails, if a rank does; its own failure is the group's.
    pub(super) async fn run_then<T>(
        &self,
        parties: Parties,
        call: &Call,
        program: &Program,
        memory: Memory<'_>,
        limit: Duration,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        if let Some(cause) = self.lobby.failure() {
            return Err(Error::GroupBroken { cause });
        }
        let deadline = after(limit);
        let Ok(mut mesh) = timeout_at(deadline, self.mesh.lock()).await else {
            // The other ranks may have begun it: what we call next would be taken for it.
            let late = Error::timeout(format!("earlier operations to end, before {call}"), limit);
            self.lobby.fail(late.clone());
            return Err(late);
        };
        if let Some(cause) = self.lobby.failure() {
            return Err(Error::GroupBroken { cause });
        }
        let mut unfinished = Unfinished { lobby: &self.lobby, call, is_over: false };
        let mut operation = Operation::new(&mesh, parties, call, program, memory);
        let running = async {
            operation.run(&mut mesh, &self.lobby).await?;
            mesh.attend_during(work, &self.lobby).await
        };
        let ended = timeout_at(deadline, running).await;
        let ended = ended.unwrap_or_else(|_| Err(Error::timeout(operation.awaited(), limit)));
        unfinished.is_over = true;
        ended.inspect_err(|error| self.lobby.fail(error.clone()))
    }

    /// Why it has failed, if it has.
    pub(super) fn failure(&self) -> Option<Arc<Error>> {
        self.lobby.failure()
    }

    /// Leaves the group, and waits until the others know, but not for long.
    pub(super) async fn leave(mut self) {
        self.leaving.notify_one();
        if let Some(keeper) = self.keeper.take()
            && timeout(2 * GOODBYE, keeper).await.is_err()
        {
            tracing::debug!("some ranks were not told that we leave their group");
        }
    }
}

/// The keeper tells the others, and ends.
impl<N: Net> Drop for Host<N> {
    fn drop(&mut self) {
        self.leaving.notify_one();
    }
}

/// An operation whose future may be dropped: the other ranks are in the middle of it.
struct Unfinished<'a, C> {
    lobby: &'a Lobby<C>,
    call: &'a Call,
    is_over: bool,
}

impl<C> Drop for Unfinished<'_, C> {
    fn drop(&mut self) {
        if !self.is_over {
            let what = format!("the future of {} was dropped before its end", self.call);
            self.lobby.fail(Error::Misuse(what));
        }
    }
}

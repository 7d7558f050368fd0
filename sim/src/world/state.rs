//! What the hosts of a world and its checks share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use kvpipe::store::tcp::TcpStoreServer;
use kvpipe::{Error, Result};
use tokio::runtime::Handle;

use super::causes::Causes;
use super::limits::{Closing, Watched};
use super::members::Watch;
use crate::fault::Place;
use crate::net::Network;
use crate::oracle::{Oracle, Violation};

/// What the hosts of a world and its checks share.
#[derive(Clone, Debug)]
pub(super) struct Shared(Arc<Mutex<State>>);

#[derive(Debug)]
pub(super) struct State {
    pub(super) oracle: Oracle,
    /// What may have caused an error.
    pub(super) causes: Causes,
    network: Network,
    addresses: BTreeMap<Place, IpAddr>,
    /// Pipes that are looked at after every step. They are forgotten when their ends are dropped.
    pub(super) senders: Vec<Watched<kvpipe::pipe::Sender>>,
    pub(super) receivers: Vec<Watched<kvpipe::pipe::Receiver>>,
    /// Senders' closes that have not ended, by call.
    pub(super) closing: BTreeMap<u64, Closing>,
    /// Drivers of pipes that have not ended.
    pub(super) drivers: usize,
    /// Who waits for what.
    pub(super) waiting: BTreeMap<u64, (usize, &'static str)>,
    pub(super) calls: u64,
    pub(super) lives: BTreeMap<usize, Life>,
    pub(super) jumps: BTreeMap<Place, Jumps>,
    /// Who was killed for good, and when.
    pub(super) dead: BTreeMap<usize, Duration>,
    /// Who has come to which barrier.
    pub(super) meetings: BTreeMap<&'static str, BTreeSet<usize>>,
    pub(super) store: Weak<TcpStoreServer>,
    /// Process groups by their names.
    pub(super) groups: BTreeMap<String, Watch>,
    /// Operations of process groups that failed, and that did not.
    pub(super) operations: [u64; 2],
    /// How often each thing happened that a run might as well go without.
    pub(super) happened: BTreeMap<String, u64>,
}

/// What became of the software of a rank.
#[derive(Clone, Debug, Default)]
pub(super) struct Life {
    pub(super) starts: usize,
    pub(super) running: bool,
    pub(super) result: Option<Result<()>>,
    /// What its tasks run on.
    pub(super) runtime: Option<Handle>,
}

/// Jumps of a clock that are to come.
#[derive(Debug, Default)]
pub(super) struct Jumps {
    pub(super) pending: Duration,
    pub(super) waker: Option<std::task::Waker>,
    /// All that there were.
    pub(super) total: Duration,
}

impl Shared {
    pub(super) fn new(state: State) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn starts(&self, rank: usize) -> usize {
        let mut state = self.lock();
        let life = state.lives.entry(rank).or_default();
        *life = Life { starts: life.starts + 1, running: true, ..Life::default() };
        let before = life.starts - 1;
        if before > 0 {
            state.causes.begins_anew(rank);
        }
        before
    }

    pub(super) fn runs_on(&self, rank: usize, runtime: Handle) {
        self.lock().lives.entry(rank).or_default().runtime = Some(runtime);
    }

    pub(super) fn ends(&self, rank: usize, result: Result<()>) {
        let mut state = self.lock();
        let life = state.lives.entry(rank).or_default();
        (life.running, life.result) = (false, Some(result));
    }

    /// On the host whose clock it is: whenever one is asked for, there is a jump.
    pub(super) fn keep_clock(&self, place: Place) {
        let shared = self.clone();
        tokio::task::spawn_local(async move {
            loop {
                let by = std::future::poll_fn(|context| shared.lock().poll_jump(place, context)).await;
                tokio::time::advance(by).await;
            }
        });
    }
}

impl State {
    pub(super) fn new(causes: Causes, network: &Network, addresses: BTreeMap<Place, IpAddr>) -> Self {
        Self {
            oracle: Oracle::default(),
            causes,
            network: network.clone(),
            addresses,
            senders: Vec::new(),
            receivers: Vec::new(),
            closing: BTreeMap::new(),
            drivers: 0,
            waiting: BTreeMap::new(),
            calls: 0,
            lives: BTreeMap::new(),
            jumps: BTreeMap::new(),
            dead: BTreeMap::new(),
            meetings: BTreeMap::new(),
            store: Weak::new(),
            groups: BTreeMap::new(),
            operations: [0; 2],
            happened: BTreeMap::new(),
        }
    }

    /// What may have caused an error that was seen just now.
    pub(super) fn causes(&mut self) -> &Causes {
        let resets = self.causes.resets();
        for link in resets {
            let [one, other] = link.map(|place| self.addresses[&place]);
            if self.network.was_cut(one, other) {
                self.causes.cuts(link);
            }
        }
        &self.causes
    }

    fn poll_jump(&mut self, place: Place, context: &std::task::Context<'_>) -> std::task::Poll<Duration> {
        let jumps = self.jumps.entry(place).or_default();
        jumps.waker = Some(context.waker().clone());
        match std::mem::take(&mut jumps.pending) {
            Duration::ZERO => std::task::Poll::Pending,
            by => {
                jumps.total += by;
                std::task::Poll::Ready(by)
            }
        }
    }

    /// At every pipe, for what must never be.
    pub(super) fn look(&mut self) {
        for Watched { end, half, .. } in &self.receivers {
            self.oracle.sees_receiver(end, (&half.stats()).into());
        }
        for Watched { end, half, .. } in &self.senders {
            self.oracle.sees_sender(end, (&half.stats()).into());
        }
    }

    /// Of tasks that have panicked, on whichever host.
    pub(super) fn hear(&mut self, panics: Vec<String>) {
        // Those that a rank waits for it has reported itself.
        if self.oracle.is_content() {
            panics.into_iter().for_each(|what| self.oracle.finds("a task", Violation::Panicked { what }));
        }
    }

    /// At ends whose peer has been dead for longer than that.
    pub(super) fn look_for_ignorance(&mut self, now: Duration, limit: Duration, world_size: usize) {
        for (&peer, &died) in self.dead.iter().filter(|(_, died)| now > **died + limit) {
            let after = now - died;
            let receivers = self.receivers.iter().filter(|Watched { end, half, .. }| {
                end.from() == peer && half.failure().is_none() && self.oracle.expects_more(end)
            });
            let senders = self.senders.iter().filter(|Watched { end, half, .. }| {
                let to = (end.from() + 1) % world_size;
                to == peer && half.failure().is_none() && self.oracle.has_more(end)
            });
            let ends = receivers.map(|watched| &watched.end).chain(senders.map(|watched| &watched.end));
            let ends: Vec<_> = ends.cloned().collect();
            for end in ends {
                self.oracle.finds(end, Violation::DeathUnnoticed { peer, after });
            }
        }
    }

    /// Whether no rank and no pipe has anything left to do.
    pub(super) fn is_over(&self) -> bool {
        self.drivers == 0 && self.lives.values().all(|life| !life.running)
    }

    /// Whether no keys are left, or that was complained of.
    pub(super) fn check_keys(&mut self, too_late: bool) -> bool {
        let Some(server) = self.store.upgrade() else { return true };
        let stats = server.stats();
        let clean = stats.keys == 0 && stats.queued == 0;
        if !clean && too_late {
            let violation = Violation::KeysLeft { keys: stats.keys, queued: stats.queued };
            self.oracle.finds("the store", violation);
        }
        clean || too_late
    }

    /// Whether no rank has a task or a socket left, or that was complained of.
    pub(super) fn check_remains(&mut self, too_late: bool) -> bool {
        let remains = |(rank, life): (&usize, &Life)| {
            let tasks = life.runtime.as_ref().map_or(0, |runtime| runtime.metrics().num_alive_tasks());
            let sockets = self.network.sockets(self.addresses[&Place::Rank(*rank)]);
            (tasks + sockets > 0).then_some((*rank, tasks, sockets))
        };
        let remains: Vec<_> = self.lives.iter().filter_map(remains).collect();
        if too_late {
            for &(rank, tasks, sockets) in &remains {
                self.oracle.finds(Place::Rank(rank), Violation::Remains { tasks, sockets });
            }
        }
        remains.is_empty() || too_late
    }

    pub(super) fn complain_of_waiting(&mut self, after: Duration) {
        if self.lives.values().all(|life| !life.running) {
            let drivers = self.drivers;
            self.oracle.finds("the ranks", Violation::DriversLeft { drivers, after });
        }
        for (rank, life) in &self.lives {
            if life.running {
                let calls = self.waiting.values().filter(|(who, _)| who == rank);
                let calls: Vec<_> = calls.map(|(_, call)| *call).collect();
                let what = format!("rank {rank} in {}", calls.join(", "));
                self.oracle.finds(Place::Rank(*rank), Violation::NoEnd { what, after });
            }
        }
    }
}

/// For what software itself finds wrong.
pub(super) fn told(what: String) -> Violation {
    Violation::Told(what)
}

/// An error that a call gave.
pub(super) fn name_of(error: &Error) -> &'static str {
    match error {
        Error::PeerMisbehaved { .. } => "PeerMisbehaved",
        Error::PeerIncompatible { .. } => "PeerIncompatible",
        Error::PeerGone { .. } => "PeerGone",
        Error::PeerRestarted { .. } => "PeerRestarted",
        Error::PeerAborted { .. } => "PeerAborted",
        Error::ReceiverClosed { .. } => "ReceiverClosed",
        Error::Closed => "Closed",
        Error::Timeout { .. } => "Timeout",
        Error::Full => "Full",
        Error::Empty => "Empty",
        Error::TooLarge { .. } => "TooLarge",
        Error::Misuse(_) => "Misuse",
        Error::Io { .. } => "Io",
        Error::Unavailable { .. } => "Unavailable",
        _ => "another",
    }
}

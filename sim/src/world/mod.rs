//! [`World`]: ranks and a store on a simulated network, faults that strike them, and the checks.
//!
//! A world runs the same software on every rank: yours, or a [`Workload`](crate::workload::Workload).
//! The store is the production server, on a host of its own. There are two phases. In the first the
//! [`FaultPlan`] strikes, and what must never happen is looked for after every millisecond. Then the
//! world is healed: everything must come to an end within [`World::patience`]. Who is killed for good
//! stays dead, and the others must find out.
//!
//! # Testing what is built on kvpipe
//!
//! A service can be run in a world if it is generic over [`Net`](kvpipe::net::Net), tells time by
//! `tokio::time` only, takes random bytes from [`Rank::entropy`], and starts no threads (`spawn_blocking`
//! included); and its runs repeat if it does not depend on the order of a `HashMap` or of an unbiased
//! `select!`. What a pipe of its own must not do, its own checks have to say ([`Rank::expect`], the error
//! that it returns); a pipe from [`Rank::open`] is judged by the oracle, call by call. Of the rest, every
//! world looks for ranks that panic, that wait for ever, and that fail without a cause.
//!
//! In another project, kvpipe and kvpipe-sim must come from the same place, or their types differ:
//!
//! ```toml
//! [dev-dependencies]
//! kvpipe-sim = { git = "...", rev = "..." }   # and kvpipe = { git = "...", rev = "..." } of the same
//! ```
//!
//! A service of two ranks: rank 0 asks, rank 1 answers with the double. It is wrong in nothing, in any
//! world of a hundred:
//!
//! ```
//! use std::net::SocketAddr;
//!
//! use kvpipe::transport::tcp::TcpTransport;
//! use kvpipe::{Pipe, PipeConfig, Result, Tensor};
//! use kvpipe_sim::draws::Draws;
//! use kvpipe_sim::fault::{Choice, FaultPlan, Kind, Place};
//! use kvpipe_sim::world::{Rank, World};
//! use std::time::Duration;
//!
//! /// The service. It knows nothing of the simulation but the network that it is given.
//! async fn serve(rank: Rank) -> Result<()> {
//!     let store = rank.store().await?;
//!     let address = SocketAddr::new(rank.net().ip(), 0);
//!     let net = rank.net().clone();
//!     let transport = TcpTransport::bind(net, store, rank.ring()?, address, rank.tcp_config()).await?;
//!     let pipe = Pipe::spawn(transport, PipeConfig::default())?;
//!     if rank.number() == 1 {
//!         while let Some(question) = pipe.recv().await? {
//!             let doubled: Vec<u8> = question.bytes()?.iter().map(|byte| byte * 2).collect();
//!             pipe.send(Some(Tensor::from_vec([doubled.len()], doubled)?)).await?;
//!         }
//!         return pipe.close().await;
//!     }
//!     for number in 0..20u8 {
//!         pipe.send(Some(Tensor::from_slice(&[1], &[number])?)).await?;
//!         let answer = pipe.recv().await?.map(|tensor| tensor.to_vec::<u8>()).transpose()?;
//!         rank.expect(answer == Some(vec![number * 2]), || format!("{number} gave {answer:?}"));
//!     }
//!     pipe.send(None).await?;
//!     pipe.close().await
//! }
//!
//! let links = Choice {
//!     kinds: vec![Kind::Reset, Kind::Hold, Kind::Slow],
//!     lasts: [10, 200].map(Duration::from_millis),
//!     ..Choice::between(&[Place::Rank(0), Place::Rank(1)])
//! };
//! for seed in 0..100 {
//!     let faults = FaultPlan::drawn(&Draws::new(seed, "faults"), &links);
//!     let report = World::new(seed, 2).faults(faults).run(serve);
//!     // Neither a reset nor a silence of less than the heartbeat limit may be seen by the service.
//!     assert!(report.is_good() && report.all_succeeded(), "{report}");
//! }
//! ```

mod ends;
mod inject;
mod rank;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use kvpipe::store::Limits;
use kvpipe::store::tcp::TcpStoreServer;
use kvpipe::{Error, Result};
use turmoil::Sim;

pub use self::ends::{ReceivingEnd, SendingEnd};
use self::inject::Injector;
pub use self::rank::{Rank, STORE_PORT};
pub use self::report::{Expectations, Outcome, Report};
use crate::draws::Draws;
use crate::fault::{FaultPlan, Place};
use crate::net::{Conditions, Network, SimNet};
use crate::oracle::{EndId, Oracle, Violation};

/// A simulated world, not yet running.
#[derive(Clone, Debug)]
pub struct World {
    seed: u64,
    ranks: usize,
    conditions: Conditions,
    faults: FaultPlan,
    patience: Duration,
    expectations: Expectations,
    leaves_no_keys: bool,
    deaths_known_within: Option<Duration>,
}

/// What the hosts of a world and its checks share.
#[derive(Clone, Debug)]
pub(crate) struct Shared(Arc<Mutex<State>>);

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) oracle: Oracle,
    /// Pipes that are looked at after every step. They are forgotten when their ends are dropped.
    pub(crate) senders: Vec<(EndId, kvpipe::pipe::Sender)>,
    pub(crate) receivers: Vec<(EndId, kvpipe::pipe::Receiver)>,
    /// Drivers of pipes that have not ended.
    pub(crate) drivers: usize,
    /// Who waits for what.
    pub(crate) waiting: BTreeMap<u64, (usize, &'static str)>,
    pub(crate) calls: u64,
    pub(crate) lives: BTreeMap<usize, Life>,
    pub(crate) jumps: BTreeMap<Place, Jumps>,
    /// Who was killed for good, and when.
    pub(crate) dead: BTreeMap<usize, Duration>,
    /// Who has come to which barrier.
    pub(crate) meetings: BTreeMap<&'static str, BTreeSet<usize>>,
    store: Weak<TcpStoreServer>,
    /// How often each thing happened that a run might as well go without.
    pub(crate) happened: BTreeMap<String, u64>,
}

/// What became of the software of a rank.
#[derive(Clone, Debug, Default)]
pub(crate) struct Life {
    pub(crate) starts: usize,
    pub(crate) running: bool,
    pub(crate) result: Option<Result<()>>,
}

/// Jumps of a clock that are to come.
#[derive(Debug, Default)]
pub(crate) struct Jumps {
    pub(crate) pending: Duration,
    pub(crate) waker: Option<std::task::Waker>,
    /// All that there were.
    pub(crate) total: Duration,
}

/// Simulated time in which everybody must come to an end in a healed world.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time for the last deletions to reach the store after everybody has left.
const STORE_SETTLES_WITHIN: Duration = Duration::from_secs(5);

impl World {
    /// A world of so many ranks and a store, with conditions of the network drawn from the seed, in
    /// which nothing goes wrong.
    #[must_use]
    pub fn new(seed: u64, ranks: usize) -> Self {
        Self {
            seed,
            ranks,
            conditions: Conditions::drawn(&Draws::new(seed, "conditions")),
            faults: FaultPlan::default(),
            patience: PATIENCE,
            expectations: Expectations::default(),
            leaves_no_keys: false,
            deaths_known_within: None,
        }
    }

    /// The same world with these faults.
    #[must_use]
    pub fn faults(self, faults: FaultPlan) -> Self {
        Self { faults, ..self }
    }

    /// The same world on another network.
    #[must_use]
    pub fn conditions(self, conditions: Conditions) -> Self {
        Self { conditions, ..self }
    }

    /// How long everything may take once the world is healed, in simulated time.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Which errors the ends that [`Rank::open`] gives may see, and which the software of a rank may return.
    /// See [`Expectations`] for the default.
    #[must_use]
    pub fn expects(self, expectations: Expectations) -> Self {
        Self { expectations, ..self }
    }

    /// Everybody who leaves gracefully has to leave an empty store.
    #[must_use]
    pub fn leaves_no_keys(self, required: bool) -> Self {
        Self { leaves_no_keys: required, ..self }
    }

    /// How long an end that [`Rank::open`] gave may take to notice that its peer died for good. By default
    /// as long as anything may take.
    #[must_use]
    pub fn deaths_known_within(self, limit: Duration) -> Self {
        Self { deaths_known_within: Some(limit), ..self }
    }

    /// Runs `software` on every rank, from the beginning again on each that restarts. The same seed,
    /// plan and software give the same report, to the byte.
    #[must_use]
    pub fn run<S, F>(self, software: S) -> Report
    where
        S: Fn(Rank) -> F + Clone + 'static,
        F: Future<Output = Result<()>> + 'static,
    {
        let network = Network::new(self.seed, self.conditions.clone());
        let shared = Shared(Arc::default());
        let mut sim = network.simulation(Duration::MAX);
        self.add_store(&mut sim, &network, &shared);
        for rank in 0..self.ranks {
            self.add_rank(&mut sim, &network, &shared, rank, software.clone());
        }
        let mut injector = Injector::new(&self.faults, &sim);
        let simulated = self.drive(&mut sim, &network, &shared, &mut injector);
        let struck = injector.struck(&network);
        drop(sim);
        let mut state = shared.lock();
        let State { oracle, lives, happened, .. } = std::mem::take(&mut *state);
        drop(state);
        Report::new(&self, oracle, &lives, happened, struck, &network, simulated)
    }

    fn add_store(&self, sim: &mut Sim<'static>, network: &Network, shared: &Shared) {
        let name = Place::Store.to_string();
        let ip = sim.lookup(name.as_str());
        let net = SimNet::new(network, &name, ip);
        let shared = shared.clone();
        sim.host(name, move || {
            let (net, shared) = (net.clone(), shared.clone());
            async move {
                shared.keep_clock(Place::Store);
                let address = SocketAddr::new(ip, STORE_PORT);
                let server = Arc::new(TcpStoreServer::bind(&net, address, Limits::default()).await?);
                shared.lock().store = Arc::downgrade(&server);
                std::future::pending::<()>().await;
                drop(server);
                Ok(())
            }
        });
    }

    fn add_rank<S, F>(
        &self,
        sim: &mut Sim<'static>,
        network: &Network,
        shared: &Shared,
        rank: usize,
        software: S,
    ) where
        S: Fn(Rank) -> F + Clone + 'static,
        F: Future<Output = Result<()>> + 'static,
    {
        let name = Place::Rank(rank).to_string();
        let net = SimNet::new(network, &name, sim.lookup(name.as_str()));
        let store = sim.lookup(Place::Store.to_string());
        let handle = Rank::new(self.seed, [rank, self.ranks], net, store, shared.clone(), self.expectations);
        shared.lock().lives.insert(rank, Life { running: true, ..Life::default() });
        let shared = shared.clone();
        sim.host(name, move || {
            let handle = handle.started(shared.starts(rank));
            let (software, shared) = (software.clone(), shared.clone());
            async move {
                shared.keep_clock(Place::Rank(rank));
                let running = tokio::task::spawn_local(software(handle.clone()));
                let result =
                    running.await.unwrap_or_else(|panic| Err(Error::Bug(format!("it panicked: {panic}"))));
                handle.ends(&result);
                shared.ends(rank, result);
                // A host whose software has ended still refuses connections, and is not off the network.
                std::future::pending().await
            }
        });
    }

    /// Until everything has come to its end, or something is wrong.
    fn drive(
        &self,
        sim: &mut Sim<'static>,
        network: &Network,
        shared: &Shared,
        injector: &mut Injector,
    ) -> Duration {
        let healed = self.faults.healed_at();
        let mut settled_by = None;
        loop {
            let now = sim.elapsed();
            injector.strike(now, sim, network, shared);
            if let Err(error) = network.step(sim) {
                shared.lock().oracle.finds("a host", Violation::Told(format!("panicked or failed: {error}")));
                return sim.elapsed();
            }
            let mut state = shared.lock();
            state.look();
            if let Some(limit) = self.deaths_known_within {
                state.look_for_ignorance(now, limit, self.ranks);
            }
            if !state.oracle.is_content() {
                return now;
            }
            if state.is_over() && !injector.awaits_a_rank() {
                let settled_by = *settled_by.get_or_insert(now + STORE_SETTLES_WITHIN);
                if !self.leaves_no_keys || state.check_keys(now >= settled_by) {
                    return now;
                }
            } else if now > healed + self.patience {
                state.complain_of_waiting(now - healed);
                return now;
            }
        }
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn starts(&self, rank: usize) -> usize {
        let mut state = self.lock();
        let life = state.lives.entry(rank).or_default();
        *life = Life { starts: life.starts + 1, running: true, result: None };
        life.starts - 1
    }

    fn ends(&self, rank: usize, result: Result<()>) {
        let mut state = self.lock();
        let life = state.lives.entry(rank).or_default();
        (life.running, life.result) = (false, Some(result));
    }

    /// On the host whose clock it is: whenever one is asked for, there is a jump.
    fn keep_clock(&self, place: Place) {
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
    fn look(&mut self) {
        for (end, receiver) in &self.receivers {
            self.oracle.sees_receiver(end, (&receiver.stats()).into());
        }
        for (end, sender) in &self.senders {
            self.oracle.sees_sender(end, (&sender.stats()).into());
        }
    }

    /// At ends whose peer has been dead for longer than that.
    fn look_for_ignorance(&mut self, now: Duration, limit: Duration, world_size: usize) {
        for (&peer, &died) in self.dead.iter().filter(|(_, died)| now > **died + limit) {
            let after = now - died;
            let receivers = self.receivers.iter().filter(|(end, receiver)| {
                end.from() == peer && receiver.failure().is_none() && self.oracle.expects_more(end)
            });
            let senders = self.senders.iter().filter(|(end, sender)| {
                let to = (end.from() + 1) % world_size;
                to == peer && sender.failure().is_none() && self.oracle.has_more(end)
            });
            let ends: Vec<_> =
                receivers.map(|(end, _)| end).chain(senders.map(|(end, _)| end)).cloned().collect();
            for end in ends {
                self.oracle.finds(end, Violation::DeathUnnoticed { peer, after });
            }
        }
    }

    /// Whether no rank and no pipe has anything left to do.
    fn is_over(&self) -> bool {
        self.drivers == 0 && self.lives.values().all(|life| !life.running)
    }

    /// Whether no keys are left, or that was complained of.
    fn check_keys(&mut self, too_late: bool) -> bool {
        let Some(server) = self.store.upgrade() else { return true };
        let stats = server.stats();
        let clean = stats.keys == 0 && stats.queued == 0;
        if !clean && too_late {
            let violation = Violation::KeysLeft { keys: stats.keys, queued: stats.queued };
            self.oracle.finds("the store", violation);
        }
        clean || too_late
    }

    fn complain_of_waiting(&mut self, after: Duration) {
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
pub(crate) fn told(what: String) -> Violation {
    Violation::Told(what)
}

/// An error that a call gave.
pub(crate) fn name_of(error: &Error) -> &'static str {
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

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
//! world looks for tasks that panic, on any host, and for ranks that wait for ever, or fail without a cause.
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

mod causes;
mod ends;
mod inject;
mod limits;
mod members;
mod rank;
mod report;
mod state;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kvpipe::store::tcp::TcpStoreServer;
use kvpipe::{Error, Result};
use turmoil::Sim;

pub(crate) use self::causes::{Blame, Causes};
pub use self::causes::{Expectations, Tolerance};
pub use self::ends::{ReceivingEnd, SendingEnd};
use self::inject::Injector;
use self::limits::Limits;
pub use self::members::{Deed, Member};
pub use self::rank::{MEET_WITHIN, Rank, STORE_PORT};
pub use self::report::{Outcome, Report};
use self::state::{Life, Shared, State, name_of, told};
use crate::draws::Draws;
use crate::fault::{FaultPlan, Place};
use crate::net::{Conditions, Network, SimNet};
use crate::oracle::Violation;
use crate::panics;

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
    limits: Option<Limits>,
    failures_known_within: Option<Duration>,
    leaves_nothing: bool,
}

/// Simulated time in which everybody must come to an end in a healed world.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time for farewells that a rank says after its software has ended.
const REMAINS_GO_WITHIN: Duration = Duration::from_secs(10);

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
            limits: None,
            failures_known_within: None,
            leaves_nothing: false,
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

    /// Holds the ends that [`Rank::open`] gives to their limits: the two of an edge have met or failed after
    /// `connect`, and a close ends `close_timeout` after the last item was acknowledged, give or take
    /// `slack`, which is for what the plan and the network explain. By default they have as long as anything
    /// may take.
    #[must_use]
    pub fn limits(self, connect: Duration, slack: Duration) -> Self {
        Self { limits: Some(Limits { connect, slack }), ..self }
    }

    /// How long a call of a member that [`Rank::join`] gave may go on once another member of the group has
    /// failed, or is dead. By default as long as anything may take.
    #[must_use]
    pub fn failures_known_within(self, limit: Duration) -> Self {
        Self { failures_known_within: Some(limit), ..self }
    }

    /// Soon after the software of all ranks has ended, none has a task or a socket left.
    #[must_use]
    pub fn leaves_nothing(self, required: bool) -> Self {
        Self { leaves_nothing: required, ..self }
    }

    /// Runs `software` on every rank, from the beginning again on each that restarts. The same seed,
    /// plan and software give the same report, to the byte.
    #[must_use]
    pub fn run<S, F>(self, software: S) -> Report
    where
        S: Fn(Rank) -> F + Clone + 'static,
        F: Future<Output = Result<()>> + 'static,
    {
        let panics = panics::Listener::new();
        let network = Network::new(self.seed, self.conditions.clone());
        let mut sim = network.simulation(Duration::MAX);
        let places = (0..self.ranks).map(Place::Rank).chain([Place::Store]);
        let addresses = places.map(|place| (place, sim.lookup(place.to_string()))).collect();
        let causes = Causes::new(self.expectations, self.ranks);
        let shared = Shared::new(State::new(causes, &network, addresses));
        self.add_store(&mut sim, &network, &shared);
        for rank in 0..self.ranks {
            self.add_rank(&mut sim, &network, &shared, rank, software.clone());
        }
        let mut injector = Injector::new(&self.faults, &sim);
        let simulated = self.drive(&mut sim, &network, &shared, &mut injector, &panics);
        let struck = injector.struck(&network);
        drop(sim);
        let mut state = shared.lock();
        state.hear(panics.take());
        let State { oracle, lives, happened, operations, .. } = &mut *state;
        let (oracle, lives, happened) =
            (std::mem::take(oracle), std::mem::take(lives), std::mem::take(happened));
        let operations = *operations;
        drop(state);
        let report = Report::new(&self, oracle, &lives, happened, struck, &network, simulated);
        Report { operations, ..report }
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
                let server =
                    Arc::new(TcpStoreServer::bind(&net, address, kvpipe::store::Limits::default()).await?);
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
        let handle = Rank::new(self.seed, [rank, self.ranks], net, store, shared.clone());
        shared.lock().lives.insert(rank, Life { running: true, ..Life::default() });
        let shared = shared.clone();
        sim.host(name, move || {
            let handle = handle.started(shared.starts(rank));
            let (software, shared) = (software.clone(), shared.clone());
            async move {
                shared.keep_clock(Place::Rank(rank));
                shared.runs_on(rank, tokio::runtime::Handle::current());
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
        panics: &panics::Listener,
    ) -> Duration {
        let healed = self.faults.healed_at();
        let mut over_since = None;
        loop {
            let now = sim.elapsed();
            injector.strike(now, sim, network, shared);
            if let Err(error) = network.step(sim) {
                shared.lock().oracle.finds("a host", Violation::Told(format!("panicked or failed: {error}")));
                return sim.elapsed();
            }
            let mut state = shared.lock();
            state.look();
            state.hear(panics.take());
            if let Some(limit) = self.deaths_known_within {
                state.look_for_ignorance(now, limit, self.ranks);
            }
            if let Some(limit) = self.failures_known_within {
                state.look_for_ignorant_members(now, limit);
            }
            if let Some(limits) = self.limits {
                state.look_for_stalls(now, limits);
            }
            if !state.oracle.is_content() {
                return now;
            }
            if state.is_over() && !injector.awaits_a_rank() {
                let over_for = now - *over_since.get_or_insert(now);
                let no_keys = !self.leaves_no_keys || state.check_keys(over_for >= STORE_SETTLES_WITHIN);
                let nothing = !self.leaves_nothing || state.check_remains(over_for >= REMAINS_GO_WITHIN);
                if no_keys && nothing {
                    return now;
                }
            } else if now > healed + self.patience {
                state.complain_of_waiting(now - healed);
                return now;
            }
        }
    }
}

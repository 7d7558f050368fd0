//! [`Rank`]: what the software of a rank is given.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kvpipe::collective::ProcessGroupConfig;
use kvpipe::entropy::Entropy;
use kvpipe::group::{GroupConfig, StatelessProcessGroup};
use kvpipe::pipe::Driver;
use kvpipe::store::Store;
use kvpipe::store::tcp::{ConnectOptions, TcpStore};
use kvpipe::transport::store::StoreConfig;
use kvpipe::transport::tcp::TcpConfig;
use kvpipe::transport::{Incoming, Outgoing, Ring};
use kvpipe::{Pipe, PipeConfig, Result};

use super::ends::Stopwatch;
use super::limits::Closing;
use super::{Member, ReceivingEnd, SendingEnd, Shared, name_of, told};
use crate::draws::Draws;
use crate::net::SimNet;
use crate::oracle::{EndId, Violation};

/// Where the store listens.
pub const STORE_PORT: u16 = 29_500;

/// How long ranks look for the store and for each other, and how long a call of [`Rank::group`] takes at
/// most, unless they are told otherwise.
pub const MEET_WITHIN: Duration = Duration::from_secs(20);

/// A rank of a world, for the software that runs on it.
#[derive(Clone, Debug)]
pub struct Rank {
    seed: u64,
    number: usize,
    world_size: usize,
    start: usize,
    net: SimNet,
    store: IpAddr,
    shared: Shared,
    entropy: Entropy,
    draws: Draws,
}

impl Rank {
    pub(super) fn new(
        seed: u64,
        [number, world_size]: [usize; 2],
        net: SimNet,
        store: IpAddr,
        shared: Shared,
    ) -> Self {
        let (entropy, draws) = (Entropy::seeded(seed), Draws::new(seed, "unused"));
        Self { seed, number, world_size, start: 0, net, store, shared, entropy, draws }
    }

    /// The same rank, when it starts for the so-manieth time.
    pub(super) fn started(&self, start: usize) -> Self {
        let name = format!("rank {}, start {start}", self.number);
        let entropy = Draws::new(self.seed, &format!("entropy of {name}")).entropy();
        Self { start, entropy, draws: Draws::new(self.seed, &name), ..self.clone() }
    }

    /// Which rank, from 0.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// How many ranks there are.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// How often the rank had started before, and been killed.
    #[must_use]
    pub fn start(&self) -> usize {
        self.start
    }

    /// Its place among the others.
    ///
    /// # Errors
    /// [`Error::Misuse`](kvpipe::Error::Misuse) in a world of one.
    pub fn ring(&self) -> Result<Ring> {
        Ring::new(self.number, self.world_size)
    }

    /// The network as this rank sees it.
    #[must_use]
    pub fn net(&self) -> &SimNet {
        &self.net
    }

    /// Random bytes that are the same in every run of the seed, for what production code asks for.
    #[must_use]
    pub fn entropy(&self) -> Entropy {
        self.entropy.clone()
    }

    /// Decisions that are the same in every run of the seed, for the software's own use.
    #[must_use]
    pub fn draws(&self) -> &Draws {
        &self.draws
    }

    /// A connection to the store.
    ///
    /// # Errors
    /// As [`TcpStore::connect`].
    pub async fn store(&self) -> Result<TcpStore<SimNet>> {
        let mut options = ConnectOptions::default();
        options.entropy = self.entropy();
        options.timeout = MEET_WITHIN;
        let host = self.store.to_string();
        let connecting = TcpStore::connect(self.net.clone(), &host, STORE_PORT, options);
        self.waits_within("connecting to the store", MEET_WITHIN, connecting).await
    }

    /// The group of all ranks, over a connection to the store.
    ///
    /// # Errors
    /// As [`StatelessProcessGroup::new`].
    pub fn group(&self, store: TcpStore<SimNet>) -> Result<StatelessProcessGroup<TcpStore<SimNet>>> {
        let config = GroupConfig { entropy: self.entropy(), timeout: MEET_WITHIN, ..GroupConfig::default() };
        StatelessProcessGroup::new(store, self.number, self.world_size, config)
    }

    /// A watched process group, formed for the so-manieth time, of these ranks in this order. What this
    /// rank's calls give is judged, and whether they end in time.
    ///
    /// # Errors
    /// As [`ProcessGroup::from_store`](kvpipe::collective::ProcessGroup::from_store).
    pub async fn join(
        &self,
        store: &impl Store,
        name: &str,
        members: &[usize],
        run: usize,
        config: ProcessGroupConfig,
    ) -> Result<Member> {
        Member::join(self, store, name, members, run, config).await
    }

    /// How to set up a tcp transport so that runs of the seed are the same.
    #[must_use]
    pub fn tcp_config(&self) -> TcpConfig {
        TcpConfig { entropy: self.entropy(), connect_timeout: MEET_WITHIN, ..TcpConfig::default() }
    }

    /// How to set up a transport over the store so that runs of the seed are the same.
    #[must_use]
    pub fn store_config(&self) -> StoreConfig {
        StoreConfig { entropy: self.entropy(), connect_timeout: MEET_WITHIN, ..StoreConfig::default() }
    }

    /// Any address of this rank's host, to listen on.
    #[must_use]
    pub fn any_port(&self) -> SocketAddr {
        SocketAddr::new(self.net.ip(), 0)
    }

    /// A pipe whose ends are watched: every call is judged by the oracle. Pipes of the same name belong
    /// together.
    ///
    /// # Errors
    /// None: the pipe has both ends.
    pub fn open(
        &self,
        name: &str,
        outgoing: impl Outgoing,
        incoming: impl Incoming,
        config: PipeConfig,
    ) -> Result<(SendingEnd, ReceivingEnd)> {
        let (pipe, driver) = Pipe::new(outgoing, incoming, config.clone());
        self.drive(driver);
        let (sender, receiver) = (pipe.sender()?.clone(), pipe.receiver()?.clone());
        let ends =
            (SendingEnd::new(self, name, sender, &config), ReceivingEnd::new(self, name, receiver, &config));
        Ok(ends)
    }

    /// [`open`](Self::open) for one direction.
    ///
    /// # Errors
    /// None: the pipe has that end.
    pub fn open_sender(&self, name: &str, outgoing: impl Outgoing, config: PipeConfig) -> Result<SendingEnd> {
        let (pipe, driver) = Pipe::send_only(outgoing, config.clone());
        self.drive(driver);
        Ok(SendingEnd::new(self, name, pipe.sender()?.clone(), &config))
    }

    /// [`open`](Self::open) for the other direction.
    ///
    /// # Errors
    /// None: the pipe has that end.
    pub fn open_receiver(
        &self,
        name: &str,
        incoming: impl Incoming,
        config: PipeConfig,
    ) -> Result<ReceivingEnd> {
        let (pipe, driver) = Pipe::receive_only(incoming, config.clone());
        self.drive(driver);
        Ok(ReceivingEnd::new(self, name, pipe.receiver()?.clone(), &config))
    }

    /// Drives a pipe, and sees when that ends, or panics.
    fn drive(&self, driver: Driver) {
        let running = Driving::begin(&self.shared);
        let (rank, driver) = (self.clone(), tokio::spawn(driver));
        tokio::task::spawn_local(async move {
            if let Err(panic) = driver.await {
                rank.expect(false, || format!("the driver of a pipe panicked: {panic}"));
            }
            drop(running);
        });
    }

    /// An event for the trace.
    pub fn note(&self, event: impl std::fmt::Display) {
        self.net.note(event);
    }

    /// Unless it `holds`, the run has failed.
    pub fn expect(&self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.shared.lock().oracle.finds(format_args!("rank {}", self.number), told(otherwise()));
        }
    }

    /// Something happened that a run might as well go without: for the coverage.
    pub fn happened(&self, what: &str) {
        *self.shared.lock().happened.entry(what.into()).or_default() += 1;
    }

    /// The software opens pipes in the place of earlier ones: from now on the ranks next to this one may be
    /// told that it has restarted.
    pub fn begins_anew(&self) {
        self.shared.lock().causes.begins_anew(self.number);
    }

    /// Waits, and is known to wait: if it never ends, the report says for what.
    pub async fn waits<F: Future>(&self, what: &'static str, call: F) -> F::Output {
        let waiting = {
            let mut state = self.shared.lock();
            state.calls += 1;
            let call = state.calls;
            state.waiting.insert(call, (self.number, what));
            Waiting { shared: self.shared.clone(), call }
        };
        let output = call.await;
        drop(waiting);
        output
    }

    /// [`waits`](Self::waits), and no longer than `limit` by the clock of this rank's host.
    pub async fn waits_within<F: Future>(&self, what: &'static str, limit: Duration, call: F) -> F::Output {
        let clock = Stopwatch::start(self);
        let output = self.waits(what, call).await;
        clock.check(what, limit, false);
        output
    }

    /// A sender's close has begun, and goes on until what this gives is dropped.
    pub(super) fn closes(&self, end: &EndId, close_timeout: Duration) -> impl Drop + use<> {
        let now = self.now();
        let mut state = self.shared.lock();
        state.calls += 1;
        let call = state.calls;
        state.closing.insert(call, Closing::new(end, close_timeout, now));
        CloseRuns { shared: self.shared.clone(), call }
    }

    /// A barrier of that name and limit, at which all ranks meet once: nobody may leave it before everybody
    /// is there.
    ///
    /// # Errors
    /// The barrier's own.
    pub async fn meets(
        &self,
        name: &'static str,
        limit: Duration,
        barrier: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        self.shared.lock().meetings.entry(name).or_default().insert(self.number);
        self.waits_within(name, limit, barrier).await?;
        let there = self.shared.lock().meetings.get(name).map_or(0, std::collections::BTreeSet::len);
        self.expect(there == self.world_size, || {
            format!("it left {name} when {there} of {} ranks were there", self.world_size)
        });
        Ok(())
    }

    /// The software's own error needs a cause, too.
    pub(super) fn ends(&self, result: &Result<()>) {
        match result {
            Ok(()) => self.note("is done"),
            Err(error) => {
                self.note(format_args!("gave up: {error}"));
                self.happened(name_of(error));
                let now = self.now();
                let mut state = self.shared.lock();
                if !state.causes().of_rank(self.number, now).explains(error) {
                    let who = format!("rank {}", self.number);
                    state.oracle.finds(who, Violation::no_cause("the rank's software", error));
                }
            }
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// In simulated time.
    pub(super) fn now(&self) -> Duration {
        self.net.now()
    }

    /// By how much the host's clock has jumped so far.
    pub(super) fn jumped(&self) -> Duration {
        let place = crate::fault::Place::Rank(self.number);
        self.shared.lock().jumps.get(&place).map_or(Duration::ZERO, |jumps| jumps.total)
    }
}

/// A driver that has not ended, on a host that was not killed.
struct Driving(Shared);

impl Driving {
    fn begin(shared: &Shared) -> Self {
        shared.lock().drivers += 1;
        Self(shared.clone())
    }
}

impl Drop for Driving {
    fn drop(&mut self) {
        self.0.lock().drivers -= 1;
    }
}

struct Waiting {
    shared: Shared,
    call: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.lock().waiting.remove(&self.call);
    }
}

struct CloseRuns {
    shared: Shared,
    call: u64,
}

impl Drop for CloseRuns {
    fn drop(&mut self) {
        self.shared.lock().closing.remove(&self.call);
    }
}

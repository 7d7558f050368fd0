//! The network that the hosts of one simulation share, and what goes wrong in it.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use turmoil::Sim;

use super::conditions::{Conditions, Struck};
use super::fabric::{Fabric, ordered};
use crate::trace::Trace;

/// One simulated network. Clones are the same one.
///
/// Faults may be called from within hosts, and between the [steps](Network::step) of a simulation.
/// Links are one-way; those within a host have no faults.
#[derive(Clone, Debug)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    seed: u64,
    trace: Trace,
    fabric: Mutex<Fabric>,
}

/// Hosts run for so long, one after the other.
const TICK: Duration = Duration::from_millis(1);

impl Network {
    /// A network without faults. Latencies, short reads and short writes are drawn from the seed.
    #[must_use]
    pub fn new(seed: u64, conditions: Conditions) -> Self {
        let (trace, fabric) = (Trace::default(), Mutex::new(Fabric::new(seed, conditions)));
        Self(Arc::new(Inner { seed, trace, fabric }))
    }

    /// A turmoil simulation of so many simulated seconds at most, to add hosts to.
    #[must_use]
    pub fn simulation(&self, limit: Duration) -> Sim<'static> {
        turmoil::Builder::new()
            .rng_seed(self.0.seed)
            .epoch(SystemTime::UNIX_EPOCH)
            .simulation_duration(limit)
            .tick_duration(TICK)
            .enable_random_order()
            .build()
    }

    /// One step of the simulation: [`Sim::step`], after which the network knows the time, and that
    /// tasks which are dropped are killed. True once all clients have ended.
    ///
    /// # Errors
    /// Those of the step: a host failed, or the simulation's limit was reached.
    pub fn step(&self, sim: &mut Sim<'_>) -> turmoil::Result<bool> {
        self.trace().enter_step(sim.elapsed() + TICK);
        let ended = sim.step();
        self.trace().leave_step(sim.elapsed());
        ended
    }

    /// The history.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.0.trace
    }

    /// Resets every connection that there is between the two hosts now: both ends find it reset, after
    /// what they have received. New ones are possible at once.
    pub fn cut(&self, one: IpAddr, other: IpAddr) {
        let cut = self.with(|fabric, now| fabric.cut(one, other, now));
        self.note(format_args!("cut {cut} of the connections of {one} and {other}"));
    }

    /// Cuts all connections of the two hosts once `bytes` more bytes have come from one to the other,
    /// on whichever connections. Of several such cuts this way each begins to count when the one before
    /// strikes.
    pub fn cut_after(&self, from: IpAddr, to: IpAddr, bytes: usize) {
        self.note(format_args!("cuts after {bytes} more bytes from {from} to {to}"));
        self.with(|fabric, _| fabric.cut_after([from, to], bytes));
    }

    /// Swallows what is under way from one host to the other, and whatever is sent, as a pulled cable
    /// does. It is sent again: after 200 ms, 400 ms more, and so on, a request to connect after 1 s, 2 s
    /// more, and so on. The other way is another link, but what `to` reads makes no room for the
    /// writer unless its acknowledgement comes back.
    pub fn block(&self, from: IpAddr, to: IpAddr) {
        self.note(format_args!("blocks {from} to {to}"));
        self.with(|fabric, now| fabric.block([from, to], now));
    }

    /// Ends a block: what was lost gets through when it is sent again the next time.
    pub fn unblock(&self, from: IpAddr, to: IpAddr) {
        self.note(format_args!("unblocks {from} to {to}"));
        self.with(|fabric, now| fabric.unblock([from, to], now));
    }

    /// Keeps what is under way from one host to the other, and whatever is sent, as a switch that
    /// buffers does.
    pub fn hold(&self, from: IpAddr, to: IpAddr) {
        self.note(format_args!("holds {from} to {to}"));
        self.with(|fabric, now| fabric.hold([from, to], now));
    }

    /// Ends a hold: everything arrives at once, in order.
    pub fn release(&self, from: IpAddr, to: IpAddr) {
        self.note(format_args!("releases {from} to {to}"));
        self.with(|fabric, now| fabric.release([from, to], now));
    }

    /// The least and the most time that segments take from one host to the other, from now on. None is
    /// what the [`Conditions`] say.
    pub fn set_latency(&self, from: IpAddr, to: IpAddr, latency: Option<[Duration; 2]>) {
        self.note(format_args!("latency {from} to {to}: {latency:?}"));
        self.with(|fabric, _| fabric.medium.set_latency([from, to], latency));
    }

    /// The host loses its power: from now on nothing leaves or reaches it, its destructors' farewells
    /// included. Call it just before [`Sim::crash`]; without it a crash is a killed process, whose
    /// system closes its connections.
    pub fn power_off(&self, host: IpAddr) {
        self.note(format_args!("{host} loses its power"));
        self.with(|fabric, now| fabric.power_off(host, now));
    }

    /// The host has power again. Call it just before [`Sim::bounce`]. It answers segments of the
    /// connections from before by a reset, so their other ends learn of it when they send.
    pub fn power_on(&self, host: IpAddr) {
        self.note(format_args!("{host} has power again"));
        self.with(|fabric, now| fabric.power_on(host, now));
    }

    /// Ends all blocks, holds and changes of latency, and forgets the cuts that have not struck. What
    /// is under way, or was lost, arrives within 200 ms. Hosts without power stay so.
    pub fn heal(&self) {
        self.note("heals");
        self.with(|fabric, now| fabric.heal(now));
    }

    /// How many cuts have struck a connection.
    #[must_use]
    pub fn cuts_struck(&self) -> usize {
        self.with(|fabric, _| fabric.cuts_struck)
    }

    /// Whether a connection of the two hosts was cut.
    #[must_use]
    pub fn was_cut(&self, one: IpAddr, other: IpAddr) -> bool {
        self.with(|fabric, _| fabric.cut.contains(&ordered([one, other])))
    }

    /// How often faults struck something.
    #[must_use]
    pub fn struck(&self) -> Struck {
        self.with(|fabric, _| fabric.medium.struck)
    }

    /// How many connections there were between two hosts.
    #[must_use]
    pub fn connections_made(&self, one: IpAddr, other: IpAddr) -> u64 {
        self.with(|fabric, _| fabric.made.get(&ordered([one, other])).copied().unwrap_or_default())
    }

    /// How many sockets the software of a host has: those that listen, and ends of connections.
    #[must_use]
    pub fn sockets(&self, host: IpAddr) -> usize {
        self.with(|fabric, _| fabric.sockets(host))
    }

    /// Does something to all connections at the present time.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Fabric, Duration) -> T) -> T {
        let now = self.trace().now();
        let (result, wakers) = {
            let mut fabric = self.0.fabric.lock().unwrap_or_else(PoisonError::into_inner);
            let result = act(&mut fabric, now);
            (result, std::mem::take(&mut fabric.medium.wakers))
        };
        wakers.into_iter().for_each(std::task::Waker::wake);
        result
    }

    fn note(&self, event: impl std::fmt::Display) {
        self.trace().note("network", event);
    }
}

//! The network that the hosts of one simulation share, and what goes wrong in it.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use turmoil::Sim;

use super::connection::Connection;
use crate::draws::Draws;
use crate::trace::Trace;

/// What connections are like.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// Bytes that one direction of a connection holds: written, and not yet read by the other end.
    pub window_bytes: usize,
    /// The most bytes that one read or write moves.
    pub part_bytes_max: usize,
    /// The least and the most time that a segment takes.
    pub latency: [Duration; 2],
}

impl Conditions {
    /// Conditions drawn from a seed.
    #[must_use]
    pub fn drawn(draws: &Draws) -> Self {
        let least = draws.between(0..=2);
        let latency = [least, least + draws.between(1..=20)].map(Duration::from_millis);
        let window_bytes = 1 << draws.between(12..=18);
        Self { window_bytes, part_bytes_max: draws.bytes(1024..=65_536), latency }
    }
}

/// One simulated network. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    seed: u64,
    conditions: Conditions,
    trace: Trace,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The live ones, in the order in which they were made, by their hosts and ends.
    connections: Vec<Arc<Connection>>,
    /// How many there ever were between two hosts.
    made: BTreeMap<[IpAddr; 2], u64>,
    cuts: VecDeque<Cut>,
    struck: usize,
}

/// A cut to come.
#[derive(Clone, Copy, Debug)]
struct Cut {
    flow: [IpAddr; 2],
    bytes_left: usize,
}

/// More connections than a host ever has waiting, and more writes than a window has bytes: turmoil's
/// own bound must not be what stops anybody.
const TURMOIL_CAPACITY: usize = 1 << 20;

impl Network {
    /// A network without faults. Short reads and writes are drawn from the seed.
    #[must_use]
    pub fn new(seed: u64, conditions: Conditions) -> Self {
        let (trace, state) = (Trace::default(), Mutex::default());
        Self(Arc::new(Inner { seed, conditions, trace, state }))
    }

    /// A turmoil simulation of so many simulated seconds at most, to add hosts to.
    #[must_use]
    pub fn simulation(&self, limit: Duration) -> Sim<'static> {
        let [latency_min, latency_max] = self.0.conditions.latency;
        turmoil::Builder::new()
            .rng_seed(self.0.seed)
            .epoch(SystemTime::UNIX_EPOCH)
            .simulation_duration(limit)
            .tick_duration(Duration::from_millis(1))
            .min_message_latency(latency_min)
            .max_message_latency(latency_max)
            .tcp_capacity(TURMOIL_CAPACITY)
            .enable_random_order()
            .build()
    }

    /// The history.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.0.trace
    }

    /// Resets every connection that there is between the two hosts now. New ones are possible at once.
    pub fn cut(&self, one: IpAddr, other: IpAddr) {
        let connections: Vec<_> = {
            let state = self.lock();
            let between = |connection: &Arc<Connection>| same_hosts(connection.hosts(), [one, other]);
            state.connections.iter().filter(|&connection| between(connection)).cloned().collect()
        };
        let cut = connections.iter().filter(|connection| connection.cut()).count();
        self.lock().struck += usize::from(cut > 0);
        self.trace().note("network", format_args!("cut {cut} of the connections of {one} and {other}"));
    }

    /// Cuts all connections of the two hosts once `bytes` more bytes have come from one to the other,
    /// on whichever connections. Of several such cuts each begins to count when the one before strikes.
    pub fn cut_after(&self, from: IpAddr, to: IpAddr, bytes: usize) {
        let event = format_args!("cuts after {bytes} more bytes from {from} to {to}").to_string();
        self.trace().note("network", event);
        self.lock().cuts.push_back(Cut { flow: [from, to], bytes_left: bytes.max(1) });
    }

    /// Forgets the cuts that have not struck.
    pub fn heal(&self) {
        self.lock().cuts.clear();
    }

    /// How many cuts have struck a connection.
    #[must_use]
    pub fn cuts_struck(&self) -> usize {
        self.lock().struck
    }

    /// How many connections there were between two hosts.
    #[must_use]
    pub fn connections_made(&self, one: IpAddr, other: IpAddr) -> u64 {
        self.lock().made.get(&ordered([one, other])).copied().unwrap_or_default()
    }

    /// The connection of these ends, for the second of them the same one as for the first.
    pub(super) fn connection(&self, connector: IpAddr, ends: [SocketAddr; 2]) -> Arc<Connection> {
        let mut state = self.lock();
        let known =
            |connection: &&Arc<Connection>| connection.ends() == ends && connection.hosts()[0] == connector;
        if let Some(known) = state.connections.iter().find(known) {
            return Arc::clone(known);
        }
        let draws = Draws::new(self.0.seed, &format!("connection {}", state.made.values().sum::<u64>()));
        let conditions = self.0.conditions.clone();
        let connection = Arc::new(Connection::new(self.clone(), connector, ends, conditions, draws));
        *state.made.entry(ordered(connection.hosts())).or_default() += 1;
        state.connections.push(Arc::clone(&connection));
        connection
    }

    /// One end is closed, so nobody looks for it any more.
    pub(super) fn forget(&self, connection: &Connection) {
        self.lock().connections.retain(|known| !std::ptr::eq(&**known, connection) || !known.is_closed());
    }

    /// How many of so many bytes may come on this flow before the next cut.
    pub(super) fn bytes_before_cut(&self, flow: [IpAddr; 2], bytes: usize) -> usize {
        let state = self.lock();
        let next = state.cuts.front().filter(|cut| cut.flow == flow);
        next.map_or(bytes, |cut| cut.bytes_left.min(bytes))
    }

    /// So many bytes came on this flow.
    pub(super) fn came(&self, flow: [IpAddr; 2], bytes: usize) {
        let strikes = {
            let mut state = self.lock();
            let Some(next) = state.cuts.front_mut().filter(|cut| cut.flow == flow) else { return };
            next.bytes_left = next.bytes_left.saturating_sub(bytes);
            let strikes = next.bytes_left == 0;
            if strikes {
                state.cuts.pop_front();
            }
            strikes
        };
        if strikes {
            let [from, to] = flow;
            self.cut(from, to);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn same_hosts(one: [IpAddr; 2], other: [IpAddr; 2]) -> bool {
    ordered(one) == ordered(other)
}

fn ordered([one, other]: [IpAddr; 2]) -> [IpAddr; 2] {
    [one.min(other), one.max(other)]
}

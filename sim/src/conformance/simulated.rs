//! The suite in a simulated network: the same scenarios on a [`SimNet`], for each of some seeds.
//!
//! A transport that is generic over [`Net`](kvpipe::net::Net) gets another line. Here every short read
//! and write, every delay and every cut comes from the seed, time is virtual, so that a scenario about
//! idle hours takes none, and what fails once fails again:
//!
//! ```
//! use kvpipe::store::MemoryStore;
//! use kvpipe::transport::Ring;
//! use kvpipe::transport::tcp::{TcpConfig, TcpTransport};
//! use kvpipe_sim::conformance::{Backend, Ground, HEARTBEAT};
//! use kvpipe_sim::net::SimNet;
//!
//! struct Mine {
//!     ground: Ground,
//!     heartbeat: std::time::Duration,
//! }
//!
//! impl Backend for Mine {
//!     type Transport = TcpTransport<SimNet, MemoryStore>;
//!
//!     async fn pair(&self) -> (Self::Transport, Self::Transport) {
//!         let store = MemoryStore::new();
//!         let end = async |rank| {
//!             let net = self.ground.net(rank);
//!             let address = (net.ip(), 0).into();
//!             let mut config = TcpConfig { heartbeat: self.heartbeat, ..TcpConfig::default() };
//!             config.entropy = self.ground.entropy(rank);
//!             let ring = Ring::new(rank, 2).expect("two ranks");
//!             TcpTransport::bind(net, store.clone(), ring, address, config).await.expect("a listener")
//!         };
//!         (end(0).await, end(1).await)
//!     }
//!
//!     fn impatient(self) -> Option<Self> {
//!         Some(Self { heartbeat: HEARTBEAT, ..self })
//!     }
//! }
//!
//! fn mine(ground: Ground) -> Mine {
//!     Mine { ground, heartbeat: TcpConfig::default().heartbeat }
//! }
//!
//! kvpipe_sim::simulated_conformance!(simulated, 0..3, mine);
//! # fn main() {}
//! ```
//!
//! What [`threads`](super::threads) demands is about real threads, and is left out.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use kvpipe::entropy::Entropy;
use kvpipe::store::Limits;
use kvpipe::store::tcp::{ConnectOptions, TcpStore, TcpStoreServer};

use super::HANG;
use crate::draws::Draws;
use crate::net::{Conditions, Network, SimNet};

/// The simulated network in which a scenario runs, for a backend to build on. Clones share it.
#[derive(Clone, Debug)]
pub struct Ground {
    seed: u64,
    network: Network,
    ranks: [SimNet; 2],
    entropies: [Entropy; 2],
    store: SocketAddr,
}

impl Ground {
    /// The network as that rank sees it, from a host of its own.
    ///
    /// # Panics
    /// If it is neither 0 nor 1.
    #[must_use]
    pub fn net(&self, rank: usize) -> SimNet {
        self.ranks[rank].clone()
    }

    /// Random bytes of that rank, which the seed gives.
    ///
    /// # Panics
    /// If it is neither 0 nor 1.
    #[must_use]
    pub fn entropy(&self, rank: usize) -> Entropy {
        self.entropies[rank].clone()
    }

    /// A connection of that rank to a store on another host: a TCPStore's server.
    ///
    /// # Panics
    /// If it can't be reached.
    pub async fn store(&self, rank: usize) -> TcpStore<SimNet> {
        let mut options = ConnectOptions::default();
        options.entropy = self.entropy(rank);
        let (host, port) = (self.store.ip().to_string(), self.store.port());
        TcpStore::connect(self.net(rank), &host, port, options).await.unwrap()
    }

    /// Cuts the connections between the two ranks again and again, each time after half as many bytes
    /// more from rank 0 than before; when first, the seed says.
    pub fn cuts_between_ranks(&self) {
        let [left, right] = self.ranks.each_ref().map(SimNet::ip);
        self.cuts([[left, right]; 2]);
    }

    /// Cuts the connections of one rank or the other to the store, as
    /// [`cuts_between_ranks`](Self::cuts_between_ranks).
    pub fn cuts_to_the_store(&self) {
        self.cuts(self.ranks.each_ref().map(|rank| [rank.ip(), self.store.ip()]));
    }

    fn cuts(&self, ways: [[IpAddr; 2]; 2]) {
        let mut bytes = Draws::new(self.seed, "cuts").bytes(CUT_FIRST_AFTER_BYTES);
        for [from, to] in ways.into_iter().cycle().take(CUTS) {
            self.network.cut_after(from, to, bytes);
            bytes += bytes / 2;
        }
    }
}

/// Within a handshake, or not long behind it.
const CUT_FIRST_AFTER_BYTES: RangeInclusive<usize> = 100..=1_000;

/// The last of them strikes after a hundred megabytes or more.
const CUTS: usize = 32;

/// The scenarios send 64 MiB and more: a window so small that this takes minutes would only wait.
const WINDOW_BYTES_MIN: usize = 64 << 10;

const STORE_PORT: u16 = 29_500;

/// Lines of the trace that are shown of a failure.
const LAST_EVENTS: usize = 40;

/// Runs a scenario in the simulation of a seed, and prints the last events if it does not hold.
pub(super) fn run<F: Future<Output = ()> + 'static>(
    seed: u64,
    scenario: impl FnOnce(Ground) -> F,
) -> turmoil::Result {
    let network = Network::new(seed, conditions(seed));
    simulate(seed, &network, scenario).inspect_err(|_failed| {
        let trace = network.trace().lines();
        trace[trace.len().saturating_sub(LAST_EVENTS)..].iter().for_each(|line| println!("{line}"));
    })
}

fn conditions(seed: u64) -> Conditions {
    let mut conditions = Conditions::drawn(&Draws::new(seed, "conformance"));
    conditions.window_bytes = conditions.window_bytes.max(WINDOW_BYTES_MIN);
    conditions
}

fn simulate<F: Future<Output = ()> + 'static>(
    seed: u64,
    network: &Network,
    scenario: impl FnOnce(Ground) -> F,
) -> turmoil::Result {
    // The scenario's own limit strikes first.
    let mut sim = network.simulation(HANG * 2);
    let [store, left, right] =
        ["store", "rank0", "rank1"].map(|name| SimNet::new(network, name, sim.lookup(name)));
    let (address, net) = (SocketAddr::new(store.ip(), STORE_PORT), store);
    sim.host("store", move || {
        let net = net.clone();
        async move {
            let _server = TcpStoreServer::bind(&net, address, Limits::default()).await?;
            std::future::pending().await
        }
    });
    let entropies = [1, 2].map(|rank: u64| Entropy::seeded(seed ^ rank << 32));
    let ground = Ground { seed, network: network.clone(), ranks: [left, right], entropies, store: address };
    let scenario = scenario(ground);
    // The one task of the scenario is both ranks. Sockets do not mind on which host they are polled.
    sim.client("ranks", async move {
        scenario.await;
        Ok(())
    });
    while !network.step(&mut sim)? {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use kvpipe::store::MemoryStore;
    use kvpipe::transport::Ring;
    use kvpipe::transport::tcp::{TcpConfig, TcpTransport};
    use kvpipe::{Pipe, PipeConfig};

    use super::*;
    use crate::conformance::support::{drain_numbers, numbered};

    #[test]
    fn a_seed_gives_the_same_history_again_and_another_one_does_not() {
        let history = |seed| {
            let network = Network::new(seed, conditions(seed));
            simulate(seed, &network, send_and_close_over_connections_that_break).unwrap();
            assert!(network.cuts_struck() > 3, "seed {seed}: {} cuts", network.cuts_struck());
            network.trace().lines()
        };
        assert_eq!(history(1), history(1));
        assert_ne!(history(1), history(2));
    }

    async fn send_and_close_over_connections_that_break(ground: Ground) {
        let store = MemoryStore::new();
        let end = async |rank| {
            let address = (ground.net(rank).ip(), 0).into();
            let config = TcpConfig { entropy: ground.entropy(rank), ..TcpConfig::default() };
            let ring = Ring::new(rank, 2).unwrap();
            let bound = TcpTransport::bind(ground.net(rank), store.clone(), ring, address, config).await;
            Pipe::spawn(bound.unwrap(), PipeConfig::default()).unwrap()
        };
        let (left, right) = (end(0).await, end(1).await);
        ground.cuts_between_ranks();
        for sequence in 0..100 {
            left.send(numbered(sequence, 200)).await.unwrap();
        }
        let (closed, (received, _)) = tokio::join!(left.close(), drain_numbers(&right));
        closed.unwrap();
        assert_eq!(received, (0..100).collect::<Vec<_>>());
    }
}

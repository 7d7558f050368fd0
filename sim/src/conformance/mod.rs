//! The suite that every transport must pass, for authors of transports.
//!
//! A scenario is written once, against a [`Backend`], and named after what must hold. It belongs to a
//! group that says which of the wire's [`Guarantees`](kvpipe::transport::Guarantees) it rests on; a
//! wire that does not declare one skips that group, and its tests say so. All of this is demanded of
//! what is declared:
//!
//! | group | rests on | what must hold |
//! |---|---|---|
//! | [`plain`] | nothing | whatever is accepted arrives, whole and in order; both directions at once |
//! | [`items`] | close visible | any size, dtype and shape; `None` keeps its place; limits, before memory is taken |
//! | [`concurrency`] | close visible | many tasks on one pipe; no direction waits for the other |
//! | [`endings`] | close visible | close, drop and abort at either end, told apart and told to the peer |
//! | [`threads`] | close visible | callers without a runtime |
//! | [`flow`] | acknowledged | bounded memory at both ends, fair waiting, cancelled waits that lose nothing |
//! | [`statistics`] | acknowledged | totals and gauges that add up |
//! | [`failures`] | acknowledged, detects death | a dead peer or driver wakes everybody; an account of each item |
//! | [`patience`] | detects death | slow and idle are not dead, frozen is |
//! | [`resumption`] | resumes | connections that break again and again lose and double nothing |
//!
//! # A transport of yours
//!
//! Implement [`Backend`], and add one line to a file of tests. Each scenario becomes a test, such as
//! `mine::flow::flush_means_delivered`:
//!
//! ```
//! use kvpipe::transport::memory::{self, MemoryTransport};
//! use kvpipe_sim::conformance::{Backend, scenarios};
//!
//! /// Two ranks in one process; here would be your transport.
//! struct Mine;
//!
//! impl Backend for Mine {
//!     type Transport = MemoryTransport;
//!
//!     async fn pair(&self) -> (MemoryTransport, MemoryTransport) {
//!         memory::pair()
//!     }
//!
//!     fn impatient(self) -> Option<Self> {
//!         None // Without a clock there is nothing to be impatient with.
//!     }
//! }
//!
//! kvpipe_sim::conformance!(mine, Mine);
//!
//! // Or without the test harness, and chosen:
//! fn main() {
//!     for scenario in scenarios().iter().filter(|scenario| scenario.group() == "plain") {
//!         scenario.run(Mine);
//!     }
//! }
//! ```
//!
//! The scenarios run on a tokio runtime with two threads; [`threads`] runs outside of any, and
//! [`simulated`] has them run in a simulated network. Besides its
//! contract a transport needs nothing for the suite, but tests are fast only if its timeouts can be
//! short: each test of a peer's death waits for one.

pub mod concurrency;
pub mod endings;
mod erased;
pub mod failures;
pub mod flow;
pub mod items;
pub mod patience;
pub mod plain;
pub mod resumption;
mod run;
pub mod simulated;
pub mod statistics;
pub mod support;
mod table;
pub mod threads;

use std::any::Any;
use std::time::Duration;

use kvpipe::transport::Transport;

pub use self::erased::{AnyBackend, AnyIncoming, AnyOutgoing, AnyTransport};
pub use self::run::{HANG, Scenario, scenario, scenarios};
pub use self::simulated::Ground;

/// The sending direction of a backend.
pub type OutOf<B> = <<B as Backend>::Transport as Transport>::Out;

/// The receiving direction of a backend.
pub type InOf<B> = <<B as Backend>::Transport as Transport>::In;

/// The silence after which an [`impatient`](Backend::impatient) end gives its peer up.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// A way to connect two ranks.
///
/// A scenario gets one of its own, which lives as long as the scenario, and calls it on the runtime on
/// which the two ends will run. It panics where it can't connect them.
#[allow(async_fn_in_trait, reason = "the thread that runs a scenario is the one that polls these")]
pub trait Backend: Sized + Send + 'static {
    /// What is tested.
    type Transport: Transport;

    /// Rank 0 and rank 1, each connected to the other in both directions.
    async fn pair(&self) -> (Self::Transport, Self::Transport);

    /// One direction only, from rank 0 to rank 1. The other of a pair is dropped, unless the transport
    /// has a better way.
    async fn edge(&self) -> (OutOf<Self>, InOf<Self>) {
        let (left, right) = self.pair().await;
        (left.split().0, right.split().1)
    }

    /// [`edge`](Self::edge), over connections that break again and again, each a little later; and what
    /// must live as long. A wire that declares that it resumes must have one.
    async fn breaking_edge(&self) -> Option<(OutOf<Self>, InOf<Self>, Box<dyn Any>)> {
        None
    }

    /// The same, but a silent peer is given up after [`HEARTBEAT`]. `None` on a wire without a clock,
    /// which never gives one up: that skips [`patience`].
    fn impatient(self) -> Option<Self>;
}

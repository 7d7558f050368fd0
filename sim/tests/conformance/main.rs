//! The suite as somebody else would use it, and in simulated networks: kvpipe's own transports over
//! connections whose every short read, delay and cut is drawn from a seed.

#![allow(missing_docs, reason = "a test binary")]

mod simulated;

use kvpipe::transport::memory::MemoryTransport;
use kvpipe_sim::conformance::{Backend, Ground, scenarios};

/// Two ends in one process.
struct Memory;

impl Backend for Memory {
    type Transport = MemoryTransport;

    async fn pair(&self) -> (MemoryTransport, MemoryTransport) {
        kvpipe::transport::memory::pair()
    }

    fn impatient(self) -> Option<Self> {
        None
    }
}

kvpipe_sim::conformance!(memory, Memory);
kvpipe_sim::simulated_conformance!(tcp, 0..8, simulated::Tcp::new);
kvpipe_sim::simulated_conformance!(store, 0..4, simulated::OverStore::new);

/// Scenarios of these groups, over connections that are cut again and again. Left out are groups in which
/// a cut may be seen: it swallows an abort, and an item of megabytes does not get through between two.
fn holds_although_it_is_cut<B: Backend>(groups: &[&str], backend: fn(Ground) -> B) {
    for scenario in scenarios().iter().filter(|scenario| groups.contains(&scenario.group())) {
        scenario.simulate(0..4, backend);
    }
}

#[test]
fn users_of_tcp_do_not_notice_that_their_connections_are_cut() {
    let groups = ["plain", "flow", "concurrency", "failures", "resumption", "statistics"];
    holds_although_it_is_cut(&groups, simulated::Tcp::that_is_cut);
}

#[test]
fn users_of_a_store_do_not_notice_that_its_connections_are_cut() {
    let groups = ["plain", "items", "flow", "concurrency", "endings", "failures", "resumption", "statistics"];
    holds_although_it_is_cut(&groups, simulated::OverStore::that_is_cut);
}

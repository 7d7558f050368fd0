//! kvpipe's own transports pass the suite of `kvpipe_sim::conformance`, and what only the memory wire
//! can be made to do. A new transport implements `Backend`, and adds one line at the end of this file.
#![cfg(not(loom))]
#![allow(missing_docs, reason = "a test binary")]
#![allow(unsafe_code, reason = "the fakes are C libraries")]

#[macro_use]
#[path = "../communicator/child.rs"]
mod child;
#[macro_use]
#[path = "../delegate/mod.rs"]
mod delegate;

mod backend;
mod faults;
mod nccl_loaded;
mod over_nccl;
#[path = "../tcp/proxy.rs"]
#[allow(dead_code, reason = "shared with the tests of tcp")]
mod proxy;
mod scripted;
#[path = "../store_transport/watched.rs"]
#[allow(dead_code, reason = "shared with the tests of the transport over a store")]
mod watched;

kvpipe_sim::conformance!(memory, crate::backend::Memory);
kvpipe_sim::conformance!(tcp_v4, crate::backend::Tcp::v4());
kvpipe_sim::conformance!(tcp_v6, crate::backend::Tcp::v6());
kvpipe_sim::conformance!(tcp_with_a_secret, crate::backend::Tcp::with_a_secret());
kvpipe_sim::conformance!(tcp_with_a_checksum, crate::backend::Tcp::with_a_checksum());
kvpipe_sim::conformance!(store_in_memory, crate::backend::OverStore::new());
kvpipe_sim::conformance!(store_over_tcp, crate::backend::OverTcpStore::new());
kvpipe_sim::conformance!(store_as_vllm, crate::backend::OverVllm);
kvpipe_sim::conformance!(nccl, crate::over_nccl::OverNccl::new());

/// One communicator serves both directions on vLLM's wire for GPUs, so that two ends which send at once
/// wait for each other, as vLLM's do: until the deadline. What its users do is ask and answer.
#[test]
fn nccl_as_vllm_passes_what_needs_no_two_directions_at_once() {
    const BOTH_AT_ONCE: [&str; 2] = [
        "both_directions_carry_a_known_number_of_items_at_once",
        "two_ends_that_both_receive_first_still_get_what_is_sent_then",
    ];
    let plain = kvpipe_sim::conformance::scenarios().iter().filter(|scenario| scenario.group() == "plain");
    let mut ran = 0;
    for scenario in plain.filter(|scenario| !BOTH_AT_ONCE.contains(&scenario.name())) {
        scenario.run(over_nccl::OverVllmNccl);
        ran += 1;
    }
    assert!(ran > 0);
}

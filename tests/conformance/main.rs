//! kvpipe's own transports pass the suite of `kvpipe_sim::conformance`, and what only the memory wire
//! can be made to do. A new transport implements `Backend`, and adds one line at the end of this file.
#![cfg(not(loom))]
#![allow(missing_docs, reason = "a test binary")]

#[macro_use]
#[path = "../delegate/mod.rs"]
mod delegate;

mod backend;
mod faults;
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

//! The tcp transport where it differs from the others: refusals, garbage, odd reads and writes.
//! What all transports promise is in the conformance suite.

#![allow(missing_docs, reason = "a test binary")]

#[macro_use]
#[path = "../delegate/mod.rs"]
mod delegate;

mod cuts;
mod cutting;
mod handshake;
mod hostile;
mod liveness;
mod proxy;
mod resume;
mod sessions;
mod support;
mod trickle;

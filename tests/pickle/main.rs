//! Python's pickles of vLLM's values, from outside: recorded bytes, round trips, hostile bytes, and
//! Python itself where it is at hand.
#![cfg(not(loom))]

mod golden;
mod lies;
mod operations;
mod properties;
#[path = "../python/mod.rs"]
mod python;
mod support;
mod torch;

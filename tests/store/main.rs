//! The store through its public API: what must hold for every store, TCPStore's bytes, hostile clients
//! and servers, and PyTorch itself where it is at hand.
#![cfg(not(loom))]

mod client;
mod crowding;
mod golden;
mod hostile;
mod model;
mod protocol;
#[path = "../python/mod.rs"]
mod python;
mod server;
mod state;
mod suite;
mod support;
mod torch;

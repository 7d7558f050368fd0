//! Groups through their public API: both wires, the defects of vLLM's group, calls that are dropped, the
//! store's operations counted, vLLM's own traffic, groups over TCP. Together with a Python that follows
//! vLLM's class they are in `tests/vllm`.
#![cfg(not(loom))]

#[macro_use]
#[path = "../delegate/mod.rs"]
mod delegate;

mod cancel;
mod counts;
mod create;
mod defects;
mod golden;
mod model;
mod suite;
mod support;
mod vllm;

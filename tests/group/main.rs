//! Groups through their public API: both wires, the defects of vLLM's group, calls that are dropped, the
//! store's operations counted, vLLM's own traffic, and groups over TCP.
#![cfg(not(loom))]

mod cancel;
mod counts;
mod create;
mod defects;
mod golden;
mod suite;
mod support;
mod unused;
mod vllm;

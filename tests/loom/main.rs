//! Loom models: every thread interleaving up to a preemption bound, each model named after its
//! hazard.
//!
//! `RUSTFLAGS="--cfg loom -C debug_assertions" cargo test --release --test loom`

#![cfg(loom)]
#![allow(missing_docs, reason = "a test binary")]

mod inbox;
mod outbox;
mod pairs;
mod pipe;
mod support;
mod wire;

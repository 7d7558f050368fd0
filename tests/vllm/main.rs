//! Together with vLLM: a process that behaves as its `PyNcclPipe` and `StatelessProcessGroup`, where
//! `KVPIPE_TORCH_PYTHON` names a Python that has torch 2.5 or later; elsewhere these tests say so and
//! pass. And what vLLM's pipe does wrong, and ours does not, for which no Python is needed.
#![cfg(not(loom))]

#[macro_use]
#[path = "../delegate/mod.rs"]
mod delegate;

mod alike;
mod defects;
mod group;
mod pipe;
#[path = "../python/mod.rs"]
mod python;
mod support;

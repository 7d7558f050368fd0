//! The nccl transport on the fakes of CUDA and NCCL: what the conformance suite does not ask of every
//! wire. A rank is a pipe in this process.
#![cfg(not(loom))]
#![allow(missing_docs, reason = "a test binary")]
#![allow(unsafe_code, reason = "the fakes are C libraries")]

#[macro_use]
#[path = "../communicator/child.rs"]
mod child;

mod failures;
mod hostile;
mod ranks;
mod transfers;
mod vllm;

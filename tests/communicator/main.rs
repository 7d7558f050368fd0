//! `kvpipe::nccl::Communicator` on the fakes of CUDA and NCCL, in one process: a rank is a task.
//!
//! What needs a switch of the fakes runs in a process of its own, which has it in its environment.
#![cfg(not(loom))]
#![allow(missing_docs, reason = "a test binary")]
#![allow(unsafe_code, reason = "the fakes are C libraries")]

#[macro_use]
mod child;
mod failures;
mod lifetimes;
mod meeting;
mod misuse;
mod operations;
mod reference;
mod world;

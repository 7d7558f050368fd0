//! Process groups: operations of several ranks, and what becomes of them when one fails.
//!
//! What is on a device is on the fakes of CUDA and NCCL, in a process of its own for each test.
#![cfg(not(loom))]
#![allow(missing_docs, reason = "a test binary")]
#![allow(unsafe_code, reason = "the fakes are C libraries")]

#[macro_use]
#[path = "../communicator/child.rs"]
mod child;

mod agreement;
mod barrier;
mod death;
mod device_failures;
mod device_operations;
mod device_ranks;
mod failures;
mod meeting;
mod mortal;
mod operations;
mod ranks;
#[path = "../communicator/reference.rs"]
#[allow(dead_code, reason = "others use all of it")]
mod reference;

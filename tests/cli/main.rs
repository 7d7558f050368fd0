//! The command line as its users have it: processes, their output and their exit codes.

#[path = "../vllm/alike.rs"]
mod alike;
mod bad_input;
mod bench;
#[path = "../nccl/built.rs"]
mod built;
mod collectives;
mod demo;
mod doctor;
mod failures;
mod nccl;
mod over_store;
#[path = "../python/mod.rs"]
mod python;
mod store;
mod support;
mod transfer;
mod transfer_config;
mod vllm;

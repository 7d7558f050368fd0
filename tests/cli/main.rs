//! The command line as its users have it: processes, their output and their exit codes.

mod bad_input;
mod bench;
mod demo;
mod failures;
mod over_store;
mod store;
mod support;
mod transfer;
mod transfer_config;

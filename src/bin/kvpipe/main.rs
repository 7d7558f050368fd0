//! The kvpipe command line: `demo`, `bench`, `doctor`, `store`, `send` and `recv`.
//!
//! Standard output has the results only (with `--json`, nothing but JSON lines); notes, progress and
//! errors go to standard error. The exit code is 0 for success, 1 for a failure and 2 for arguments
//! that can't be.
//!
//! Under loom the library has no network, and this program nothing but an empty `main`, so that cargo
//! can build it beside the loom tests.

#[cfg(not(loom))]
mod args;
#[cfg(not(loom))]
mod bench;
#[cfg(not(loom))]
mod children;
#[cfg(not(loom))]
mod demo;
#[cfg(not(loom))]
mod doctor;
#[cfg(not(loom))]
mod edges;
#[cfg(not(loom))]
mod endpoint;
#[cfg(not(loom))]
mod failure;
#[cfg(not(loom))]
mod gpu;
#[cfg(not(loom))]
mod output;
#[cfg(not(loom))]
mod receive;
#[cfg(not(loom))]
mod rendezvous;
#[cfg(not(loom))]
mod send;
#[cfg(not(loom))]
mod serve;
#[cfg(not(loom))]
mod start;
#[cfg(not(loom))]
mod units;
#[cfg(not(loom))]
mod vllm;

#[cfg(not(loom))]
fn main() -> std::process::ExitCode {
    start::main()
}

#[cfg(loom)]
fn main() {}

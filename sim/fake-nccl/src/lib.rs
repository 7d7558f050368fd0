//! NCCL's C interface on host memory and loopback connections, for tests of whoever calls it, in one
//! process or several. Exact results, no speed.
//!
//! The package is a dynamic library, to be loaded in NCCL's place ([`library`] says where it is), and a
//! Rust library with the same functions. The two share nothing within a process, but meet each other as
//! ranks of one communicator.
//!
//! # What it does as NCCL does
//!
//! - Operations are work on a stream of kvpipe-fake-cuda; with a null stream, on a thread of the
//!   communicator. All of one communicator run in the order in which they were issued. The memory of a
//!   stream's operation is looked up, and held until it ends.
//! - The first send to a peer makes the connection, and does not return, or stays in progress, before the
//!   peer receives. After that a send of little waits for nobody.
//! - With `blocking = 0` a call may return "in progress"; its work comes onto the stream when it has
//!   ended, so an event that is recorded before that is too early. A call that follows too early is
//!   `ncclInvalidArgument` (`ncclCommEnsureReady` in NCCL's init.cc, 2.30), and stays the communicator's
//!   error.
//! - What is between the start and the end of a group progresses together, also over several
//!   communicators. A send to oneself needs its receive in the same group. Initialisations may be grouped.
//! - A peer that is gone, or has aborted, is not noticed, unless a switch says so: whoever waits for it
//!   waits until the abort. After the abort every piece of work on a stream returns.
//! - The last error's text is the process's.
//!
//! What does not fit together, as a receive that is shorter than its send, would hang or overwrite; here
//! it is `ncclInvalidUsage` as the asynchronous error. It and everything else that a correct program does
//! not do is a misuse: counted in [`Live`], told on stderr.
//!
//! # Switches
//!
//! `KVPIPE_FAKE_NCCL` has them, comma-separated; [`configure`] replaces them.
//!
//! | switch | |
//! |---|---|
//! | `version=21903` | what `ncclGetVersion` gives; 22703. Symbols stay: see [`without_symbols`] |
//! | `fail=SYMBOL:K:CODE` | the Kth call of a function gives a code; `K+`: all from the Kth on |
//! | `in_progress=N` | each call with `blocking = 0` is in progress for N polls |
//! | `async_error=K:CODE` | after K operations of a communicator the next never ends, and this is its error |
//! | `async_errors=on` | a peer whose connection breaks is `ncclRemoteError` |
//! | `silent` | does not answer its peers: no communicator is formed with it |
//! | `abort_hangs` | `ncclCommAbort` does not return, and wakes nobody |
//! | `init_blocks` | initialisation with `blocking = 0` blocks all the same, as RCCL's did |
//! | `rank=R` | all of these but `version` only for the communicators of this rank |

// The contract of each exported function is NCCL's. Threads are real, nothing here is simulated.
#![allow(clippy::missing_safety_doc, clippy::disallowed_methods)]

use std::io;
use std::path::PathBuf;

pub mod api;
mod bootstrap;
pub mod codes;
mod comm;
mod elf;
mod group;
mod link;
mod reduce;
mod switches;
mod transfer;

pub use bootstrap::UniqueId;
pub use elf::without_symbols;
pub use switches::configure;

/// What is alive, and what went wrong so far.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Live {
    /// Communicators that are neither destroyed nor aborted.
    pub communicators: u64,
    /// Buffers and windows that are registered with them.
    pub registered: u64,
    /// Allocations of `ncclMemAlloc`.
    pub allocations: u64,
    /// Calls that a correct program does not make.
    pub misuses: u64,
}

/// What is alive in this copy of the library.
pub fn live() -> Live {
    let (communicators, registered) = comm::count();
    Live { communicators, registered, allocations: api::allocations(), misuses: codes::misuses() }
}

/// [`live`] for who has loaded the library.
///
/// # Safety
///
/// `into` points to a [`Live`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvpipe_fake_nccl_live(into: *mut Live) {
    // SAFETY: see above.
    unsafe { into.write(live()) }
}

/// The dynamic library, beside the running test executable.
///
/// # Errors
///
/// If it is not there.
pub fn library() -> io::Result<PathBuf> {
    kvpipe_fake_common::library("libkvpipe_fake_nccl.so")
}

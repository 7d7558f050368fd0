//! The CUDA driver's C interface, on host memory: what kvpipe calls, and what cudarc calls, by which the
//! tests compare it. Not a simulator: no kernels, no graphs, no peers.
//!
//! The package is a dynamic library, to be loaded in the driver's place ([`library_folder`] on the
//! LD_LIBRARY_PATH of a child: a driver has no path), and a Rust library with the same functions. The two
//! share nothing: what one has allocated the other does not know.
//!
//! # What it is strict about
//!
//! - Streams are threads that work through a queue, so whatever is asynchronous on a GPU is so here: a
//!   tensor that is read before its event is wrong. Fresh memory holds [`POISON`], no zeros.
//! - Every address is looked up. Freeing what is unknown, copying beyond an allocation or from freed
//!   memory is `CUDA_ERROR_INVALID_VALUE`; so is freeing what a stream still uses, where the real driver
//!   would wait. A stream, an event or a context that is not alive is `CUDA_ERROR_INVALID_HANDLE`, a
//!   thread without a context `CUDA_ERROR_INVALID_CONTEXT`. Each of these is a misuse: counted in
//!   [`Live`], told on stderr.
//! - Copies to and from pageable memory behave as documented: to the device, the source is free when the
//!   call returns; to the host, the call returns after the copy. Pinned memory is really asynchronous.
//! - Stream 0 is one more stream: it does not wait for the others.
//!
//! # Switches
//!
//! `KVPIPE_FAKE_CUDA` has them, comma-separated; [`configure`] replaces them.
//!
//! | switch | |
//! |---|---|
//! | `devices=N` | so many devices, 0 too; 1 if it is not said |
//! | `version=12040` | the driver's version; 13000 |
//! | `init=100` | `cuInit` fails with this code |
//! | `oom=BYTES` | the memory of each device; 1 GiB |
//! | `slow=MICROSECONDS` | each piece of a stream's work waits so long first |
//! | `waits` | allocating and freeing waits for what was put on the device's streams before, as the driver may |
//! | `poison=off` | fresh memory is not overwritten, for benchmarks |
//! | `fail=SYMBOL:K:CODE` | the Kth call of a function gives a code; `K+`: all from the Kth on |
//!
//! # Streams in the eyes of the fake of NCCL
//!
//! A stream's handle points to a [`StreamHandle`], whose first fields are functions. Through them
//! kvpipe-fake-nccl puts its transfers on a stream, whichever copy of this library made it.

// The contract of each exported function is CUDA's.
// Streams are threads, and a slow one sleeps: nothing here is simulated.
#![allow(clippy::missing_safety_doc, clippy::disallowed_methods)]

use std::io;
use std::path::PathBuf;

pub mod codes;
pub mod driver;
pub mod memory;
pub mod stream;
mod switches;

pub use memory::POISON;
pub use stream::StreamHandle;
pub use switches::configure;

/// What is alive, and what went wrong so far.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Live {
    /// Allocations on devices.
    pub allocations: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Allocations of pinned host memory.
    pub pinned: u64,
    /// Streams that are not destroyed.
    pub streams: u64,
    /// Events that are not destroyed.
    pub events: u64,
    /// Primary contexts that are retained, each as often as it is.
    pub contexts: u64,
    /// Calls that a correct program does not make.
    pub misuses: u64,
}

/// What is alive in this copy of the library.
pub fn live() -> Live {
    let (streams, events) = stream::count();
    let memory = memory::count();
    Live { streams, events, contexts: driver::contexts(), misuses: switches::misuses(), ..memory }
}

/// [`live`] for who has loaded the library.
///
/// # Safety
///
/// `into` points to a [`Live`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvpipe_fake_cuda_live(into: *mut Live) {
    // SAFETY: see above.
    unsafe { into.write(live()) }
}

/// The dynamic library, beside the running test executable.
///
/// # Errors
///
/// If it is not there.
pub fn library() -> io::Result<PathBuf> {
    kvpipe_fake_common::library("libkvpipe_fake_cuda.so")
}

/// A folder with the dynamic library as `libcuda.so.1`, for a child's LD_LIBRARY_PATH. Also as
/// `libcuda.so`, which is tried first, and which a machine with a GPU may have elsewhere.
///
/// # Errors
///
/// If the library is not there, or the links can't be made.
pub fn library_folder() -> io::Result<PathBuf> {
    let library = library()?;
    kvpipe_fake_common::folder_with_link(&library, "libcuda.so")?;
    kvpipe_fake_common::folder_with_link(&library, "libcuda.so.1")
}

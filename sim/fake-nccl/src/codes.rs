//! NCCL's result codes, and the text of the last error.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use kvpipe_fake_common::lock;

/// An `ncclResult_t`.
pub type Code = c_int;

/// What the functions of this library are made of: a code other than success is an error.
pub type Result<T = ()> = std::result::Result<T, Code>;

/// All is well.
pub const SUCCESS: Code = 0;
/// CUDA failed.
pub const UNHANDLED_CUDA_ERROR: Code = 1;
/// The system failed.
pub const SYSTEM_ERROR: Code = 2;
/// NCCL failed.
pub const INTERNAL_ERROR: Code = 3;
/// An argument makes no sense, or the communicator is not ready.
pub const INVALID_ARGUMENT: Code = 4;
/// Calls that make no sense together.
pub const INVALID_USAGE: Code = 5;
/// The other process is gone.
pub const REMOTE_ERROR: Code = 6;
/// Not done yet; not an error.
pub const IN_PROGRESS: Code = 7;
/// It took too long.
pub const TIMEOUT: Code = 8;

static MISUSES: AtomicU64 = AtomicU64::new(0);

/// Texts are kept for ever: whoever asked for one may still read it.
static LAST_ERROR: Mutex<&'static CStr> = Mutex::new(c"");

/// Notes why a call fails.
pub(crate) fn failed(code: Code, why: impl fmt::Display) -> Code {
    let text = CString::new(format!("fake NCCL: {why}")).unwrap_or_default();
    *lock(&LAST_ERROR) = Box::leak(text.into_boxed_c_str());
    code
}

/// Notes what a correct program does not do.
pub(crate) fn misuse(code: Code, what: impl fmt::Display) -> Code {
    MISUSES.fetch_add(1, Ordering::Relaxed);
    eprintln!("fake NCCL: misuse: {what}");
    failed(code, what)
}

pub(crate) fn misuses() -> u64 {
    MISUSES.load(Ordering::Relaxed)
}

pub(crate) fn last_error() -> *const c_char {
    lock(&LAST_ERROR).as_ptr()
}

pub(crate) fn text(code: Code) -> &'static CStr {
    match code {
        SUCCESS => c"no error",
        UNHANDLED_CUDA_ERROR => c"unhandled cuda error (fake)",
        SYSTEM_ERROR => c"unhandled system error (fake)",
        INTERNAL_ERROR => c"internal error (fake)",
        INVALID_ARGUMENT => c"invalid argument (fake)",
        INVALID_USAGE => c"invalid usage (fake)",
        REMOTE_ERROR => c"remote process exited or there was a network error (fake)",
        IN_PROGRESS => c"NCCL operation in progress (fake)",
        TIMEOUT => c"timeout (fake)",
        _ => c"unknown result code (fake)",
    }
}

//! The table of NCCL's functions, with the types of its C interface.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::fmt;
use std::ptr;

use libloading::os::unix::Library as Opened;

use super::codes::ResultCode;
use crate::error::{Error, Result};
use crate::wire::UniqueId;

/// NCCL's `ncclComm_t`: a communicator, or none. Only a number here; what is done with it is `unsafe`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct RawComm(pub *mut c_void);

impl RawComm {
    /// No communicator.
    pub const NULL: Self = Self(ptr::null_mut());

    /// Whether it is none.
    #[must_use]
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }
}

// SAFETY: nothing is reached through it but by NCCL's functions, whose callers promise what they need.
unsafe impl Send for RawComm {}
// SAFETY: as above.
unsafe impl Sync for RawComm {}

/// NCCL's `ncclConfig_t` as 2.14 had it, which is the part that is the same in all later versions. They
/// read as much as `size` says, and take their defaults for what came after `version`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Config {
    /// Of this structure, in bytes.
    pub size: usize,
    /// 0xcafebeef, by which NCCL tells it from garbage.
    pub magic: c_uint,
    /// Whose fields it has, as [`Version`](super::Version).
    pub version: c_uint,
    /// 0 if calls are to return before they are done.
    pub blocking: c_int,
    /// What 2.14 has as padding, and 2.17 as its next field: with its value for "not set".
    unset: c_int,
}

impl Config {
    /// Calls on the communicator return at once, and may be [in progress](ResultCode::IN_PROGRESS).
    pub const NONBLOCKING: Self =
        Self { size: size_of::<Self>(), magic: 0xcafe_beef, version: 21_400, blocking: 0, unset: c_int::MIN };
}

/// A function that newer NCCL libraries have and this one lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its name, such as `ncclMemAlloc`.
    pub symbol: &'static str,
    /// The first version that has it, such as `2.19`.
    pub needs_version: &'static str,
}

/// Declares [`Functions`], how they are found in a library, and which of them may be absent.
macro_rules! functions {
    (
        required { $($field:ident = $symbol:literal: fn($($arg:ty),*) -> $answer:ty;)* }
        optional { $($newer:ident = $newer_symbol:literal $version:literal: fn($($newer_arg:ty),*) -> $newer_answer:ty;)* }
    ) => {
        /// NCCL's functions, with the arguments that nccl.h gives them: where a library has them, or where
        /// a test has its own.
        ///
        /// Data types and operations are the numbers of [`DataType`](super::DataType) and
        /// [`ReduceOp`](super::ReduceOp), a stream is a `CUstream`, buffers lie in device memory.
        #[derive(Clone, Copy)]
        pub struct Functions {
            $(#[doc = concat!("`", $symbol, "`.")] pub $field: unsafe extern "C" fn($($arg),*) -> $answer,)*
            $(
                #[doc = concat!("`", $newer_symbol, "`, which NCCL has from ", $version, " on.")]
                pub $newer: Option<unsafe extern "C" fn($($newer_arg),*) -> $newer_answer>,
            )*
        }

        impl Functions {
            /// The library's functions; if required ones are missing, their names.
            ///
            /// # Safety
            /// What the library has under these names must be what nccl.h says.
            pub(super) unsafe fn of(library: &Opened) -> Result<Self, Vec<&'static str>> {
                let mut missing = Vec::new();
                $(
                    // SAFETY: the caller's promise.
                    let $field = unsafe {
                        find::<unsafe extern "C" fn($($arg),*) -> $answer>(library, $symbol)
                    };
                    if $field.is_none() {
                        missing.push($symbol);
                    }
                )*
                match ($($field,)*) {
                    ($(Some($field),)*) => Ok(Self {
                        $($field,)*
                        // SAFETY: the caller's promise.
                        $($newer: unsafe { find(library, $newer_symbol) },)*
                    }),
                    _ => Err(missing),
                }
            }

            $(
                /// The function, or [`Error::Unsupported`] where the library lacks it.
                pub(super) fn $newer(&self) -> Result<unsafe extern "C" fn($($newer_arg),*) -> $newer_answer> {
                    self.$newer.ok_or(Error::Unsupported { symbol: $newer_symbol, needs_version: $version })
                }
            )*

            /// Those that are absent.
            pub(super) fn missing(&self) -> Vec<Missing> {
                let optional = [$((self.$newer.is_none(), $newer_symbol, $version),)*];
                optional
                    .into_iter()
                    .filter(|(absent, ..)| *absent)
                    .map(|(_, symbol, needs_version)| Missing { symbol, needs_version })
                    .collect()
            }
        }
    };
}

// From nccl.h 2.27.3; nothing of it has changed since 2.19, and what 2.14 had is as it was there.
functions! {
    required {
        get_version = "ncclGetVersion": fn(*mut c_int) -> ResultCode;
        get_error_string = "ncclGetErrorString": fn(ResultCode) -> *const c_char;
        get_last_error = "ncclGetLastError": fn(RawComm) -> *const c_char;
        get_unique_id = "ncclGetUniqueId": fn(*mut UniqueId) -> ResultCode;
        comm_init_rank = "ncclCommInitRank": fn(*mut RawComm, c_int, UniqueId, c_int) -> ResultCode;
        comm_init_rank_config = "ncclCommInitRankConfig": fn(*mut RawComm, c_int, UniqueId, c_int, *mut Config) -> ResultCode;
        comm_finalize = "ncclCommFinalize": fn(RawComm) -> ResultCode;
        comm_destroy = "ncclCommDestroy": fn(RawComm) -> ResultCode;
        comm_abort = "ncclCommAbort": fn(RawComm) -> ResultCode;
        comm_get_async_error = "ncclCommGetAsyncError": fn(RawComm, *mut ResultCode) -> ResultCode;
        comm_count = "ncclCommCount": fn(RawComm, *mut c_int) -> ResultCode;
        comm_user_rank = "ncclCommUserRank": fn(RawComm, *mut c_int) -> ResultCode;
        all_reduce = "ncclAllReduce": fn(*const c_void, *mut c_void, usize, c_int, c_int, RawComm, *mut c_void) -> ResultCode;
        reduce = "ncclReduce": fn(*const c_void, *mut c_void, usize, c_int, c_int, c_int, RawComm, *mut c_void) -> ResultCode;
        all_gather = "ncclAllGather": fn(*const c_void, *mut c_void, usize, c_int, RawComm, *mut c_void) -> ResultCode;
        reduce_scatter = "ncclReduceScatter": fn(*const c_void, *mut c_void, usize, c_int, c_int, RawComm, *mut c_void) -> ResultCode;
        broadcast = "ncclBroadcast": fn(*const c_void, *mut c_void, usize, c_int, c_int, RawComm, *mut c_void) -> ResultCode;
        send = "ncclSend": fn(*const c_void, usize, c_int, c_int, RawComm, *mut c_void) -> ResultCode;
        recv = "ncclRecv": fn(*mut c_void, usize, c_int, c_int, RawComm, *mut c_void) -> ResultCode;
        group_start = "ncclGroupStart": fn() -> ResultCode;
        group_end = "ncclGroupEnd": fn() -> ResultCode;
    }
    optional {
        mem_alloc = "ncclMemAlloc" "2.19": fn(*mut *mut c_void, usize) -> ResultCode;
        mem_free = "ncclMemFree" "2.19": fn(*mut c_void) -> ResultCode;
        comm_register = "ncclCommRegister" "2.19": fn(RawComm, *mut c_void, usize, *mut *mut c_void) -> ResultCode;
        comm_deregister = "ncclCommDeregister" "2.19": fn(RawComm, *mut c_void) -> ResultCode;
        comm_window_register = "ncclCommWindowRegister" "2.27": fn(RawComm, *mut c_void, usize, *mut *mut c_void, c_int) -> ResultCode;
        comm_window_deregister = "ncclCommWindowDeregister" "2.27": fn(RawComm, *mut c_void) -> ResultCode;
    }
}

/// The first version with everything that is required.
pub(super) const REQUIRED_VERSION: &str = "2.14";

/// The function of this name, if the library has it.
///
/// # Safety
/// `F` must be the type of a pointer to that function.
pub(super) unsafe fn find<F: Copy>(library: &Opened, symbol: &str) -> Option<F> {
    // SAFETY: the caller's promise. A symbol that is there and null, as a weak one can be, is a None too.
    let found = unsafe { library.get::<Option<F>>(symbol) };
    found.ok().and_then(|found| *found)
}

/// Nothing of it: addresses tell nobody anything.
impl fmt::Debug for Functions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Functions").field("missing", &self.missing()).finish_non_exhaustive()
    }
}

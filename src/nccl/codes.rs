//! The numbers of nccl.h: result codes, versions, data types.

use std::ffi::c_int;
use std::fmt;

use crate::error::{Error, Result};
use crate::tensor::DType;

/// What an NCCL function answers. A number and no enum, because newer libraries have codes that no list
/// of ours can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct ResultCode(pub c_int);

impl ResultCode {
    /// It is done; on a nonblocking communicator: done, or handed to a stream.
    pub const SUCCESS: Self = Self(0);
    /// A call to CUDA failed.
    pub const UNHANDLED_CUDA_ERROR: Self = Self(1);
    /// A call to the operating system failed.
    pub const SYSTEM_ERROR: Self = Self(2);
    /// A bug in NCCL, or corrupt memory.
    pub const INTERNAL_ERROR: Self = Self(3);
    /// An argument can't be.
    pub const INVALID_ARGUMENT: Self = Self(4);
    /// The call is not allowed now, or the environment does not fit.
    pub const INVALID_USAGE: Self = Self(5);
    /// A peer failed, or the network to it.
    pub const REMOTE_ERROR: Self = Self(6);
    /// A nonblocking communicator still works on it; `ncclCommGetAsyncError` tells when it ends.
    pub const IN_PROGRESS: Self = Self(7);
    /// NCCL's own deadline passed (2.30 and newer).
    pub const TIMEOUT: Self = Self(8);
}

/// The name in nccl.h, or the number where this list has none.
impl fmt::Display for ResultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::SUCCESS => "ncclSuccess",
            Self::UNHANDLED_CUDA_ERROR => "ncclUnhandledCudaError",
            Self::SYSTEM_ERROR => "ncclSystemError",
            Self::INTERNAL_ERROR => "ncclInternalError",
            Self::INVALID_ARGUMENT => "ncclInvalidArgument",
            Self::INVALID_USAGE => "ncclInvalidUsage",
            Self::REMOTE_ERROR => "ncclRemoteError",
            Self::IN_PROGRESS => "ncclInProgress",
            Self::TIMEOUT => "ncclTimeout",
            Self(number) => return write!(f, "{number}"),
        })
    }
}

/// How far a call that did not fail has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "nothing may follow on a communicator before its last call is done"]
pub enum Progress {
    /// [`ResultCode::SUCCESS`].
    Done,
    /// [`ResultCode::IN_PROGRESS`]: ask `ncclCommGetAsyncError` until it is done, and call nothing else
    /// on this communicator before, but an abort.
    InProgress,
}

/// A library's version as `ncclGetVersion` gives it, such as 22703.
///
/// ```
/// use kvpipe::nccl::Version;
/// assert_eq!(Version(22703).to_string(), "2.27.3");
/// assert_eq!(Version(23000).to_string(), "2.30.0");
/// assert_eq!(Version(2708).to_string(), "2.7.8");
/// assert!(Version(2708) < Version(20905));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub i32);

/// Major, minor and patch. NCCL before 2.9 has one digit for the minor version (nccl.h, `NCCL_VERSION`).
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (code, minor_digits) = (self.0, if self.0 < 10_000 { 10 } else { 100 });
        write!(f, "{}.{}.{}", code / (100 * minor_digits), code / 100 % minor_digits, code % 100)
    }
}

/// What NCCL takes an element for. nccl.h has 8-bit floats as well, from 2.24 on; here they are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum DataType {
    /// Signed byte.
    Int8 = 0,
    /// Unsigned byte.
    Uint8 = 1,
    /// Signed 32-bit integer.
    Int32 = 2,
    /// Unsigned 32-bit integer.
    Uint32 = 3,
    /// Signed 64-bit integer.
    Int64 = 4,
    /// Unsigned 64-bit integer.
    Uint64 = 5,
    /// IEEE half precision.
    Float16 = 6,
    /// IEEE single precision.
    Float32 = 7,
    /// IEEE double precision.
    Float64 = 8,
    /// The upper half of a `float32`.
    Bfloat16 = 9,
}

impl DataType {
    /// The type to compute with.
    ///
    /// # Errors
    /// [`Error::Misuse`] for a dtype that NCCL can't compute with, and for 8-bit floats, which it can on
    /// some devices only.
    pub fn for_reduction(dtype: DType) -> Result<Self> {
        Self::of(dtype).ok_or_else(|| Error::Misuse(format!("NCCL has no reductions of {dtype}")))
    }

    /// The type to send elements as, and the bytes of what it counts: a payload of `n` bytes has
    /// `n / bytes` of them. Whatever NCCL has no type for travels as bytes, which is all the same to
    /// `ncclSend` and `ncclRecv`.
    ///
    /// ```
    /// use kvpipe::{DType, nccl::DataType};
    /// assert_eq!(DataType::for_transfer(DType::BFloat16), (DataType::Bfloat16, 2));
    /// assert_eq!(DataType::for_transfer(DType::Complex64), (DataType::Uint8, 1));
    /// ```
    #[must_use]
    pub fn for_transfer(dtype: DType) -> (Self, usize) {
        match Self::of(dtype) {
            Some(same) => (same, dtype.item_bytes()),
            None => (Self::Uint8, 1),
        }
    }

    fn of(dtype: DType) -> Option<Self> {
        Some(match dtype {
            DType::Int8 => Self::Int8,
            DType::UInt8 => Self::Uint8,
            DType::Int32 => Self::Int32,
            DType::UInt32 => Self::Uint32,
            DType::Int64 => Self::Int64,
            DType::UInt64 => Self::Uint64,
            DType::Float16 => Self::Float16,
            DType::Float32 => Self::Float32,
            DType::Float64 => Self::Float64,
            DType::BFloat16 => Self::Bfloat16,
            _ => return None,
        })
    }

    pub(super) fn code(self) -> c_int {
        self as c_int
    }
}

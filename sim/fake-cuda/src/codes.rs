//! The driver's result codes.

use std::ffi::{CStr, c_char, c_uint};

/// A `CUresult`.
pub type Code = c_uint;

/// What the functions of this library are made of: a code other than success is an error.
pub type Result<T = ()> = std::result::Result<T, Code>;

macro_rules! codes {
    ($($(#[$doc:meta])* $constant:ident = $code:literal, $name:literal, $text:literal;)*) => {
        $($(#[$doc])* pub const $constant: Code = $code;)*

        fn name_and_text(code: Code) -> Option<(&'static CStr, &'static CStr)> {
            match code {
                $($code => Some(($name, $text)),)*
                _ => None,
            }
        }
    };
}

codes! {
    /// All is well.
    SUCCESS = 0, c"CUDA_SUCCESS", c"no error";
    /// An argument makes no sense: an address, a size, an attribute.
    INVALID_VALUE = 1, c"CUDA_ERROR_INVALID_VALUE", c"invalid argument";
    /// The device's memory is used up.
    OUT_OF_MEMORY = 2, c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory";
    /// `cuInit` was not called, or failed.
    NOT_INITIALIZED = 3, c"CUDA_ERROR_NOT_INITIALIZED", c"initialization error";
    /// There is no device.
    NO_DEVICE = 100, c"CUDA_ERROR_NO_DEVICE", c"no CUDA-capable device is detected";
    /// There is no device of this number.
    INVALID_DEVICE = 101, c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal";
    /// No context is bound to the calling thread.
    INVALID_CONTEXT = 201, c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context";
    /// The device's memory has failed.
    ECC_UNCORRECTABLE = 214, c"CUDA_ERROR_ECC_UNCORRECTABLE", c"uncorrectable ECC error encountered";
    /// A stream or an event that is not alive.
    INVALID_HANDLE = 400, c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle";
    /// Not done yet; not an error.
    NOT_READY = 600, c"CUDA_ERROR_NOT_READY", c"device not ready";
    /// A kernel touched what is not its own. The context is lost.
    ILLEGAL_ADDRESS = 700, c"CUDA_ERROR_ILLEGAL_ADDRESS", c"an illegal memory access was encountered";
    /// A kernel failed. The context is lost.
    LAUNCH_FAILED = 719, c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure";
    /// Not for this device, or not in this fake.
    NOT_SUPPORTED = 801, c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported";
    /// Driver and kernel module are of different versions.
    SYSTEM_DRIVER_MISMATCH = 803, c"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", c"system has unsupported display driver / cuda driver combination";
    /// Nobody knows.
    UNKNOWN = 999, c"CUDA_ERROR_UNKNOWN", c"unknown error";
}

/// The code's name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: Code, into: *mut *const c_char) -> Code {
    // SAFETY: the caller's pointer.
    unsafe { give(into, name_and_text(code).map(|(name, _)| name)) }
}

/// The code's meaning.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(code: Code, into: *mut *const c_char) -> Code {
    // SAFETY: the caller's pointer.
    unsafe { give(into, name_and_text(code).map(|(_, text)| text)) }
}

unsafe fn give(into: *mut *const c_char, text: Option<&'static CStr>) -> Code {
    // SAFETY: `into` is the caller's place for a pointer, or null.
    let Some(into) = (unsafe { into.as_mut() }) else { return INVALID_VALUE };
    *into = text.map_or(std::ptr::null(), CStr::as_ptr);
    if text.is_some() { SUCCESS } else { INVALID_VALUE }
}

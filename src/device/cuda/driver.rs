//! The functions of the CUDA driver, looked up in the library that comes with the machine.
//!
//! They are declared here and not by cudarc, in which a result is a Rust enum: a code that is newer than
//! the enum would be undefined behaviour, and a function that is missing a panic. Here a code is an
//! integer, of which an unknown one is as good as any, and what is missing is found when the driver is.

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_void};
use std::ptr;
use std::sync::OnceLock;

use super::CudaVersion;
use crate::error::{Error, Result};

/// What the driver library is called, the name for programs that are being built first.
#[cfg(not(windows))]
const LIBRARY_NAMES: [&str; 2] = ["libcuda.so", "libcuda.so.1"];
#[cfg(windows)]
const LIBRARY_NAMES: [&str; 2] = ["cuda.dll", "nvcuda.dll"];

/// The oldest CUDA that a driver may be made for: what this was written and tested against goes no further
/// back.
const VERSION_MIN: CudaVersion = CudaVersion(11_040);

/// `CUresult`.
pub(super) type Code = c_int;

pub(super) const SUCCESS: Code = 0;
const NOT_INITIALIZED: Code = 3;
const NO_DEVICE: Code = 100;
pub(super) const NOT_READY: Code = 600;

/// `CUdevice`.
pub(super) type RawDevice = c_int;

/// `CUcontext`, `CUstream` and `CUevent`.
pub(super) type Handle = *mut c_void;

macro_rules! functions {
    ($($name:ident: $symbol:literal ($($argument:ty),*);)*) => {
        /// As cuda.h declares them.
        pub(super) struct Driver {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> Code,)*
        }

        impl Driver {
            /// Or the name of one that the library lacks.
            fn look_up(library: &libloading::Library) -> Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: the types are those of cuda.h.
                    $($name: *unsafe { library.get($symbol) }.map_err(|_| $symbol)?,)*
                })
            }
        }
    };
}

functions! {
    ctx_get_current: "cuCtxGetCurrent"(*mut Handle);
    ctx_set_current: "cuCtxSetCurrent"(Handle);
    device_get: "cuDeviceGet"(*mut RawDevice, c_int);
    device_get_attribute: "cuDeviceGetAttribute"(*mut c_int, c_int, RawDevice);
    device_get_count: "cuDeviceGetCount"(*mut c_int);
    device_get_name: "cuDeviceGetName"(*mut c_char, c_int, RawDevice);
    device_primary_ctx_release: "cuDevicePrimaryCtxRelease_v2"(RawDevice);
    device_primary_ctx_retain: "cuDevicePrimaryCtxRetain"(*mut Handle, RawDevice);
    device_total_mem: "cuDeviceTotalMem_v2"(*mut usize, RawDevice);
    driver_get_version: "cuDriverGetVersion"(*mut c_int);
    event_create: "cuEventCreate"(*mut Handle, c_uint);
    event_destroy: "cuEventDestroy_v2"(Handle);
    event_query: "cuEventQuery"(Handle);
    event_record: "cuEventRecord"(Handle, Handle);
    get_error_name: "cuGetErrorName"(Code, *mut *const c_char);
    get_error_string: "cuGetErrorString"(Code, *mut *const c_char);
    init: "cuInit"(c_uint);
    mem_alloc: "cuMemAlloc_v2"(*mut u64, usize);
    mem_free_host: "cuMemFreeHost"(*mut c_void);
    mem_free: "cuMemFree_v2"(u64);
    mem_get_info: "cuMemGetInfo_v2"(*mut usize, *mut usize);
    mem_host_alloc: "cuMemHostAlloc"(*mut *mut c_void, usize, c_uint);
    memcpy_within: "cuMemcpyDtoDAsync_v2"(u64, u64, usize, Handle);
    memcpy_to_host: "cuMemcpyDtoHAsync_v2"(*mut c_void, u64, usize, Handle);
    memcpy_to_device: "cuMemcpyHtoDAsync_v2"(u64, *const c_void, usize, Handle);
    memset: "cuMemsetD8Async"(u64, c_uchar, usize, Handle);
    stream_create: "cuStreamCreate"(*mut Handle, c_uint);
    stream_destroy: "cuStreamDestroy_v2"(Handle);
    stream_wait_event: "cuStreamWaitEvent"(Handle, Handle, c_uint);
}

impl Driver {
    /// Loads and initialises the driver, once it is there; the library stays. `what` is what an error says
    /// is not available.
    pub(super) fn load(what: &str) -> Result<(&'static Self, CudaVersion)> {
        static DRIVER: OnceLock<Driver> = OnceLock::new();
        let driver = match DRIVER.get() {
            Some(driver) => driver,
            None => {
                let found = find(what)?;
                DRIVER.get_or_init(|| found)
            }
        };
        let mut version = 0;
        // SAFETY: the driver writes one number, and needs no initialisation for that.
        driver.check("cuDriverGetVersion", unsafe { (driver.driver_get_version)(&raw mut version) })?;
        let version = CudaVersion(version);
        if version < VERSION_MIN {
            return Err(too_old(
                what,
                &format!("it is made for CUDA {version}, and {VERSION_MIN} is needed"),
            ));
        }
        // SAFETY: it may be called at any time, and again.
        match unsafe { (driver.init)(0) } {
            // Which `device_count` says again; the version is of use all the same.
            NO_DEVICE => {}
            code => driver.check("cuInit", code)?,
        }
        Ok((driver, version))
    }

    /// How many devices there are.
    pub(super) fn device_count(&self) -> Result<usize> {
        let mut count: c_int = 0;
        // SAFETY: the driver writes one number.
        match unsafe { (self.device_get_count)(&raw mut count) } {
            // Without a device there is no initialisation, either.
            NO_DEVICE | NOT_INITIALIZED => Ok(0),
            code => {
                self.check("cuDeviceGetCount", code)?;
                Ok(usize::try_from(count).unwrap_or(0))
            }
        }
    }

    pub(super) fn device(&self, index: usize) -> Result<RawDevice> {
        let mut device = 0;
        let ordinal = c_int::try_from(index).unwrap_or(c_int::MAX);
        // SAFETY: the driver writes one handle.
        self.check("cuDeviceGet", unsafe { (self.device_get)(&raw mut device, ordinal) })?;
        Ok(device)
    }

    pub(super) fn device_name(&self, device: RawDevice) -> Result<String> {
        let mut name = [0_u8; 256];
        let length = name.len() as c_int;
        // SAFETY: the driver writes at most `length` bytes.
        let code = unsafe { (self.device_get_name)(name.as_mut_ptr().cast(), length, device) };
        self.check("cuDeviceGetName", code)?;
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
        Ok(name.to_string_lossy().into_owned())
    }

    pub(super) fn device_attribute(&self, device: RawDevice, attribute: c_int) -> Result<c_int> {
        let mut value = 0;
        // SAFETY: the driver writes one number.
        let code = unsafe { (self.device_get_attribute)(&raw mut value, attribute, device) };
        self.check("cuDeviceGetAttribute", code)?;
        Ok(value)
    }

    pub(super) fn check(&self, call: &'static str, code: Code) -> Result<()> {
        match code {
            SUCCESS => Ok(()),
            code => Err(Error::Cuda { call, code, text: self.text_of(code) }),
        }
    }

    /// The driver's name and words for a code.
    fn text_of(&self, code: Code) -> String {
        type Ask = unsafe extern "C" fn(Code, *mut *const c_char) -> Code;
        let ask = |ask: Ask| {
            let mut text = ptr::null();
            // SAFETY: the driver writes one address: that of a text that stays, or null.
            let known = unsafe { ask(code, &raw mut text) } == SUCCESS && !text.is_null();
            // SAFETY: see above.
            known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        match (ask(self.get_error_name), ask(self.get_error_string)) {
            (Some(name), Some(words)) => format!("{name}, {words}"),
            (Some(text), None) | (None, Some(text)) => text,
            (None, None) => "unknown error".into(),
        }
    }
}

fn find(what: &str) -> Result<Driver> {
    let library = open().map_err(|tried| Error::Unavailable {
        what: what.into(),
        reason: format!("no driver: {tried}; it comes with the GPU's driver, not with the CUDA toolkit"),
    })?;
    let driver = Driver::look_up(&library).map_err(|symbol| too_old(what, &format!("it has no {symbol}")))?;
    // The functions stay where they are.
    std::mem::forget(library);
    Ok(driver)
}

fn too_old(what: &str, has: &str) -> Error {
    let reason = format!("driver too old: {has}; update the GPU's driver");
    Error::Unavailable { what: what.into(), reason }
}

/// The driver library, or why there is none under any of its names.
fn open() -> Result<libloading::Library, String> {
    let mut tried = Vec::new();
    for name in LIBRARY_NAMES {
        // SAFETY: what the driver does when it is loaded is to be trusted, as everything else it does.
        match unsafe { libloading::Library::new(name) } {
            Ok(library) => return Ok(library),
            // The library's own words are in the source.
            Err(error) => tried.push(match std::error::Error::source(&error) {
                Some(source) => source.to_string(),
                None => format!("{name}: {error}"),
            }),
        }
    }
    Err(tried.join("; "))
}

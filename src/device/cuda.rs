//! GPUs, through the CUDA driver.
//!
//! The driver is a library that comes with the machine (`libcuda.so.1`) and is loaded when a device is
//! asked for. cudarc finds it and declares its functions; only these are used, because cudarc's safe
//! layer gives write-combined pinned memory, which the host reads very slowly, and keeps a failed drop
//! for an unrelated call to report. cudarc panics where the library or a function of it is missing, so
//! [`driver`] makes sure of both beforehand. What can't be made sure of is a result: cudarc has it as a
//! Rust enum, in which a code that is newer than cudarc would be undefined behaviour. Only a declaration
//! of our own would take it as the integer that it is.
//!
//! A device has its primary context, the one that torch and NCCL use, too.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use cudarc::driver::sys;
use sys::CUresult;

use super::{Device, Location, MemoryInfo};
use crate::error::{Error, Result};

/// What the driver library is called, in the order in which cudarc tries it.
#[cfg(not(windows))]
const LIBRARY_NAMES: [&str; 2] = ["libcuda.so", "libcuda.so.1"];
#[cfg(windows)]
const LIBRARY_NAMES: [&str; 2] = ["cuda.dll", "nvcuda.dll"];

/// Every function that is called here.
const SYMBOLS: [&str; 29] = [
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamWaitEvent",
];

/// The oldest CUDA that a driver may be made for: the oldest whose functions cudarc declares.
const VERSION_MIN: CudaVersion = CudaVersion(11_040);

/// A version of CUDA, as the driver counts: 12040 is 12.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion(pub i32);

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

/// What [`CudaDevice::probe`] finds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriverReport {
    /// The newest CUDA that the driver is made for.
    pub version: CudaVersion,
    /// The devices that this process may see. There may be none.
    pub devices: Vec<DeviceReport>,
}

/// One device of a [`DriverReport`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceReport {
    /// Where its tensors would be.
    pub location: Location,
    /// Its name, such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// All of its memory, in bytes.
    pub total_bytes: usize,
    /// What its processors can do, as major and minor version.
    pub compute_capability: (i32, i32),
}

/// A GPU. See [`open`](Self::open).
pub struct CudaDevice {
    index: usize,
    raw: sys::CUdevice,
    context: Context,
    name: String,
}

/// The handle of a context.
#[derive(Clone, Copy)]
struct Context(sys::CUcontext);

// SAFETY: the driver takes it on every thread; it is never dereferenced here.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// The devices that are open: a context costs hundreds of mebibytes to make anew.
static OPEN: Mutex<BTreeMap<usize, Weak<CudaDevice>>> = Mutex::new(BTreeMap::new());

impl CudaDevice {
    /// The GPU of this index, among those that the process may see (`CUDA_VISIBLE_DEVICES`). While it is
    /// open, every call gives the same one. The first takes the driver a part of a second.
    ///
    /// # Errors
    /// [`Error::Unavailable`], whose reason begins with `no driver`, `driver too old` or `no device`;
    /// [`Error::Cuda`] where the driver fails.
    pub fn open(index: usize) -> Result<Arc<dyn Device>> {
        Self::look_for(index)?;
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = open.get(&index).and_then(Weak::upgrade) {
            return Ok(device);
        }
        let raw = device_handle(index)?;
        let name = device_name(raw)?;
        let mut context = ptr::null_mut();
        // SAFETY: the driver is initialised, and writes one handle to `context`.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, raw) })?;
        let device = Arc::new(Self { index, raw, context: Context(context), name });
        open.insert(index, Arc::downgrade(&device));
        Ok(device)
    }

    /// Refuses an index that [`open`](Self::open) refuses, and opens nothing.
    pub(super) fn look_for(index: usize) -> Result<()> {
        let what = Location::Cuda(index).to_string();
        driver(&what)?;
        let reason = match device_count()? {
            0 => "no device: the driver sees none".into(),
            count if index >= count => format!("no device: the driver sees {count}, counted from 0"),
            _ => return Ok(()),
        };
        Err(Error::Unavailable { what, reason })
    }

    /// Looks for the driver and its devices, and opens none.
    ///
    /// # Errors
    /// [`Error::Unavailable`], whose reason begins with `no driver` or `driver too old`;
    /// [`Error::Cuda`] where the driver fails.
    pub fn probe() -> Result<DriverReport> {
        let version = driver("cuda")?;
        let devices = (0..device_count()?).map(report).collect::<Result<_>>()?;
        Ok(DriverReport { version, devices })
    }

    /// Makes the device the calling thread's for as long as what it gives lives, and then the one that
    /// was there before, which is somebody else's business.
    fn enter(&self) -> Result<Entered> {
        let mut before = ptr::null_mut();
        // SAFETY: the driver is initialised, and writes one handle to `before`.
        check("cuCtxGetCurrent", unsafe { sys::cuCtxGetCurrent(&raw mut before) })?;
        if before == self.context.0 {
            return Ok(Entered { before: None });
        }
        self.make_current()?;
        Ok(Entered { before: Some(before) })
    }

    /// Makes a driver's call with this device current.
    fn call(&self, name: &'static str, function: impl FnOnce() -> CUresult) -> Result<()> {
        let _entered = self.enter()?;
        self.check(name, function())
    }

    fn check(&self, name: &'static str, result: CUresult) -> Result<()> {
        check(name, result).map_err(|error| match error {
            Error::Cuda { call, code, text } => {
                Error::Cuda { call, code, text: format!("{text} on {}", self.location()) }
            }
            error => error,
        })
    }
}

/// See [`CudaDevice::enter`].
struct Entered {
    /// None if there is nothing to do. Null for a thread that had no device, which is not to keep ours: it
    /// may be closed by then.
    before: Option<sys::CUcontext>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // SAFETY: it was current a moment ago. Whoever destroys it meanwhile gets an error here.
            let restored = check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(before) });
            if let Err(error) = restored {
                tracing::warn!(%error, "a thread has lost its current device");
            }
        }
    }
}

impl Device for CudaDevice {
    fn location(&self) -> Location {
        Location::Cuda(self.index)
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn memory(&self) -> Result<MemoryInfo> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the driver writes one number to each.
        self.call("cuMemGetInfo_v2", || unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok(MemoryInfo { free, total })
    }

    fn make_current(&self) -> Result<()> {
        // SAFETY: the context is retained while the device lives.
        self.check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context.0) })
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut address = 0;
        // SAFETY: the driver writes one address.
        self.call("cuMemAlloc_v2", || unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes) })?;
        Ok(address)
    }

    unsafe fn free(&self, address: u64, _: usize) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuMemFree_v2", || unsafe { sys::cuMemFree_v2(address) })
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<NonNull<u8>> {
        let mut pointer = ptr::null_mut();
        // Cached, unlike write-combined memory, and pinned for every device.
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: the driver writes one address.
        self.call("cuMemHostAlloc", || unsafe { sys::cuMemHostAlloc(&raw mut pointer, bytes, flags) })?;
        let null = || Error::Cuda { call: "cuMemHostAlloc", code: 0, text: "gave a null pointer".into() };
        NonNull::new(pointer.cast()).ok_or_else(null)
    }

    unsafe fn free_pinned(&self, pointer: NonNull<u8>, _: usize) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuMemFreeHost", || unsafe { sys::cuMemFreeHost(pointer.as_ptr().cast()) })
    }

    fn create_stream(&self) -> Result<u64> {
        let mut stream = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the driver writes one handle.
        self.call("cuStreamCreate", || unsafe { sys::cuStreamCreate(&raw mut stream, flags) })?;
        Ok(stream.expose_provenance() as u64)
    }

    unsafe fn destroy_stream(&self, stream: u64) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuStreamDestroy_v2", || unsafe { sys::cuStreamDestroy_v2(handle(stream)) })
    }

    fn create_event(&self) -> Result<u64> {
        let mut event = ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the driver writes one handle.
        self.call("cuEventCreate", || unsafe { sys::cuEventCreate(&raw mut event, flags) })?;
        Ok(event.expose_provenance() as u64)
    }

    unsafe fn destroy_event(&self, event: u64) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuEventDestroy_v2", || unsafe { sys::cuEventDestroy_v2(handle(event)) })
    }

    unsafe fn record_event(&self, event: u64, stream: u64) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuEventRecord", || unsafe { sys::cuEventRecord(handle(event), handle(stream)) })
    }

    unsafe fn stream_wait_event(&self, stream: u64, event: u64) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuStreamWaitEvent", || unsafe { sys::cuStreamWaitEvent(handle(stream), handle(event), 0) })
    }

    unsafe fn event_is_complete(&self, event: u64) -> Result<bool> {
        let mut is_complete = true;
        self.call("cuEventQuery", || {
            // SAFETY: the caller's contract.
            match unsafe { sys::cuEventQuery(handle(event)) } {
                CUresult::CUDA_ERROR_NOT_READY => {
                    is_complete = false;
                    CUresult::CUDA_SUCCESS
                }
                result => result,
            }
        })?;
        Ok(is_complete)
    }

    unsafe fn copy_to_device(&self, to: u64, from: *const u8, bytes: usize, stream: u64) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuMemcpyHtoDAsync_v2", || unsafe {
            sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, handle(stream))
        })
    }

    unsafe fn copy_to_host(&self, to: *mut u8, from: u64, bytes: usize, stream: u64) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuMemcpyDtoHAsync_v2", || unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, handle(stream))
        })
    }

    unsafe fn copy_within(&self, to: u64, from: u64, bytes: usize, stream: u64) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuMemcpyDtoDAsync_v2", || unsafe {
            sys::cuMemcpyDtoDAsync_v2(to, from, bytes, handle(stream))
        })
    }

    unsafe fn fill_zero(&self, to: u64, bytes: usize, stream: u64) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuMemsetD8Async", || unsafe { sys::cuMemsetD8Async(to, 0, bytes, handle(stream)) })
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // SAFETY: `open` has retained it, once.
        let released = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.raw) };
        if let Err(error) = self.check("cuDevicePrimaryCtxRelease_v2", released) {
            tracing::warn!(%error, "a device was not released");
        }
    }
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaDevice({}, {:?})", self.location(), self.name)
    }
}

/// Loads and initialises the driver, once it is there; the library stays. `what` is what an error says
/// is not available.
fn driver(what: &str) -> Result<CudaVersion> {
    static DRIVER: OnceLock<CudaVersion> = OnceLock::new();
    if let Some(version) = DRIVER.get() {
        return Ok(*version);
    }
    let unavailable = |reason: String| Error::Unavailable { what: what.into(), reason };
    let library = load().map_err(|tried| {
        unavailable(format!("no driver: {tried}; it comes with the GPU's driver, not with the CUDA toolkit"))
    })?;
    let too_old = |has: String| unavailable(format!("driver too old: {has}; update the GPU's driver"));
    for symbol in SYMBOLS {
        // SAFETY: nothing is done with the pointer, whatever it points to.
        if unsafe { library.get::<*const ()>(symbol) }.is_err() {
            return Err(too_old(format!("it has no {symbol}")));
        }
    }
    // The functions stay where they are.
    std::mem::forget(library);
    let mut version = 0;
    // SAFETY: the driver writes one number, and needs no initialisation for that.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut version) })?;
    let version = CudaVersion(version);
    if version < VERSION_MIN {
        return Err(too_old(format!("it is made for CUDA {version}, and {VERSION_MIN} is needed")));
    }
    // SAFETY: it may be called at any time, and again.
    match unsafe { sys::cuInit(0) } {
        // Which `device_count` says again; the version is of use all the same.
        CUresult::CUDA_ERROR_NO_DEVICE => return Ok(version),
        result => check("cuInit", result)?,
    }
    Ok(*DRIVER.get_or_init(|| version))
}

/// The driver library, or why there is none under any of its names.
fn load() -> Result<libloading::Library, String> {
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

/// How many devices there are. The driver is there.
fn device_count() -> Result<usize> {
    let mut count: c_int = 0;
    // SAFETY: the driver writes one number.
    match unsafe { sys::cuDeviceGetCount(&raw mut count) } {
        // Without a device there is no initialisation, either.
        CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_NOT_INITIALIZED => Ok(0),
        result => {
            check("cuDeviceGetCount", result)?;
            Ok(usize::try_from(count).unwrap_or(0))
        }
    }
}

fn device_handle(index: usize) -> Result<sys::CUdevice> {
    let mut device = 0;
    let ordinal = c_int::try_from(index).unwrap_or(c_int::MAX);
    // SAFETY: the driver writes one handle.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut device, ordinal) })?;
    Ok(device)
}

fn device_name(device: sys::CUdevice) -> Result<String> {
    let mut name = [0_u8; 256];
    let length = name.len() as c_int;
    // SAFETY: the driver writes at most `length` bytes.
    check("cuDeviceGetName", unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), length, device) })?;
    let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
    Ok(name.to_string_lossy().into_owned())
}

fn report(index: usize) -> Result<DeviceReport> {
    let device = device_handle(index)?;
    let mut total_bytes = 0;
    // SAFETY: the driver writes one number.
    check("cuDeviceTotalMem_v2", unsafe { sys::cuDeviceTotalMem_v2(&raw mut total_bytes, device) })?;
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: the driver writes one number.
        let result = unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) };
        check("cuDeviceGetAttribute", result).map(|()| value)
    };
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    Ok(DeviceReport {
        location: Location::Cuda(index),
        name: device_name(device)?,
        total_bytes,
        compute_capability: (attribute(MAJOR)?, attribute(MINOR)?),
    })
}

/// A stream or an event, as the driver calls it.
fn handle<T>(raw: u64) -> *mut T {
    ptr::with_exposed_provenance_mut(raw as usize)
}

fn check(call: &'static str, result: CUresult) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        result => Err(Error::Cuda { call, code: result as i32, text: text_of(result) }),
    }
}

/// The driver's name and words for a result.
fn text_of(result: CUresult) -> String {
    type Ask = unsafe fn(CUresult, *mut *const c_char) -> CUresult;
    let ask = |ask: Ask| {
        let mut text = ptr::null();
        // SAFETY: the driver writes one address: that of a text that stays, or null.
        let known = unsafe { ask(result, &raw mut text) } == CUresult::CUDA_SUCCESS && !text.is_null();
        // SAFETY: see above.
        known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    match (ask(sys::cuGetErrorName), ask(sys::cuGetErrorString)) {
        (Some(name), Some(words)) => format!("{name}, {words}"),
        (Some(text), None) | (None, Some(text)) => text,
        (None, None) => "unknown error".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_function_that_is_called_is_looked_for_beforehand() {
        let source = include_str!("cuda.rs").split("mod tests").next().unwrap();
        let called = source.split("sys::cu").skip(1).map(|call| {
            let end = call.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
            format!("cu{}", &call[..end.unwrap_or(call.len())])
        });
        assert_eq!(called.collect::<BTreeSet<_>>(), SYMBOLS.map(String::from).into());
    }

    #[test]
    fn a_version_is_major_and_minor() {
        assert_eq!(CudaVersion(13_040).to_string(), "13.4");
        assert_eq!(CudaVersion(11_080).to_string(), "11.8");
    }
}

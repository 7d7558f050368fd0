//! GPUs, through the CUDA driver.
//!
//! The driver is a library that comes with the machine (`libcuda.so.1`) and is loaded when a device is
//! asked for. A device has its primary context, the one that torch and NCCL use, too.

mod driver;

use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint};
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use self::driver::{Code, Driver, Handle, NOT_READY, RawDevice, SUCCESS};
use super::{Device, Location, MemoryInfo};
use crate::error::{Error, Result};

/// `CU_MEMHOSTALLOC_PORTABLE`: pinned for every device. Cached, unlike write-combined memory, which the
/// host reads very slowly.
const PORTABLE: c_uint = 1;

/// `CU_STREAM_NON_BLOCKING`: it does not wait for the legacy default stream.
const NON_BLOCKING: c_uint = 1;

/// `CU_EVENT_DISABLE_TIMING`.
const WITHOUT_TIME: c_uint = 2;

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
const COMPUTE_CAPABILITY: [c_int; 2] = [75, 76];

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
    driver: &'static Driver,
    index: usize,
    raw: RawDevice,
    context: Context,
    name: String,
}

/// The handle of a context.
#[derive(Clone, Copy)]
struct Context(Handle);

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
        let driver = Self::driver_of(index)?;
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = open.get(&index).and_then(Weak::upgrade) {
            return Ok(device);
        }
        let raw = driver.device(index)?;
        let name = driver.device_name(raw)?;
        let mut context = ptr::null_mut();
        // SAFETY: the driver is initialised, and writes one handle to `context`.
        let code = unsafe { (driver.device_primary_ctx_retain)(&raw mut context, raw) };
        driver.check("cuDevicePrimaryCtxRetain", code)?;
        let device = Arc::new(Self { driver, index, raw, context: Context(context), name });
        open.insert(index, Arc::downgrade(&device));
        Ok(device)
    }

    /// Refuses an index that [`open`](Self::open) refuses, and opens nothing.
    pub(super) fn look_for(index: usize) -> Result<()> {
        Self::driver_of(index).map(drop)
    }

    /// The driver, if it has a device of this index.
    fn driver_of(index: usize) -> Result<&'static Driver> {
        let what = Location::Cuda(index).to_string();
        let (driver, _) = Driver::load(&what)?;
        let reason = match driver.device_count()? {
            0 => "no device: the driver sees none".into(),
            count if index >= count => format!("no device: the driver sees {count}, counted from 0"),
            _ => return Ok(driver),
        };
        Err(Error::Unavailable { what, reason })
    }

    /// Looks for the driver and its devices, and opens none.
    ///
    /// # Errors
    /// [`Error::Unavailable`], whose reason begins with `no driver` or `driver too old`;
    /// [`Error::Cuda`] where the driver fails.
    pub fn probe() -> Result<DriverReport> {
        let (driver, version) = Driver::load("cuda")?;
        let devices = (0..driver.device_count()?).map(|index| report(driver, index));
        Ok(DriverReport { version, devices: devices.collect::<Result<_>>()? })
    }

    /// Makes the device the calling thread's for as long as what it gives lives, and then the one that
    /// was there before, which is somebody else's business.
    fn enter(&self) -> Result<Entered> {
        let mut before = ptr::null_mut();
        // SAFETY: the driver is initialised, and writes one handle to `before`.
        self.check("cuCtxGetCurrent", unsafe { (self.driver.ctx_get_current)(&raw mut before) })?;
        if before == self.context.0 {
            return Ok(Entered { driver: self.driver, before: None });
        }
        self.make_current()?;
        Ok(Entered { driver: self.driver, before: Some(before) })
    }

    /// Makes a driver's call with this device current.
    fn call(&self, name: &'static str, function: impl FnOnce() -> Code) -> Result<()> {
        let _entered = self.enter()?;
        self.check(name, function())
    }

    fn check(&self, name: &'static str, code: Code) -> Result<()> {
        self.driver.check(name, code).map_err(|error| match error {
            Error::Cuda { call, code, text } => {
                Error::Cuda { call, code, text: format!("{text} on {}", self.location()) }
            }
            error => error,
        })
    }
}

/// See [`CudaDevice::enter`].
struct Entered {
    driver: &'static Driver,
    /// None if there is nothing to do. Null for a thread that had no device, which is not to keep ours: it
    /// may be closed by then.
    before: Option<Handle>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // SAFETY: it was current a moment ago. Whoever destroys it meanwhile gets an error here.
            let code = unsafe { (self.driver.ctx_set_current)(before) };
            if let Err(error) = self.driver.check("cuCtxSetCurrent", code) {
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
        self.call("cuMemGetInfo_v2", || unsafe {
            (self.driver.mem_get_info)(&raw mut free, &raw mut total)
        })?;
        Ok(MemoryInfo { free, total })
    }

    fn make_current(&self) -> Result<()> {
        // SAFETY: the context is retained while the device lives.
        self.check("cuCtxSetCurrent", unsafe { (self.driver.ctx_set_current)(self.context.0) })
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut address = 0;
        // SAFETY: the driver writes one address.
        self.call("cuMemAlloc_v2", || unsafe { (self.driver.mem_alloc)(&raw mut address, bytes) })?;
        Ok(address)
    }

    unsafe fn free(&self, address: u64, _: usize) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuMemFree_v2", || unsafe { (self.driver.mem_free)(address) })
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<NonNull<u8>> {
        let mut pointer = ptr::null_mut();
        // SAFETY: the driver writes one address.
        self.call("cuMemHostAlloc", || unsafe {
            (self.driver.mem_host_alloc)(&raw mut pointer, bytes, PORTABLE)
        })?;
        let null = || Error::Cuda { call: "cuMemHostAlloc", code: 0, text: "gave a null pointer".into() };
        NonNull::new(pointer.cast()).ok_or_else(null)
    }

    unsafe fn free_pinned(&self, pointer: NonNull<u8>, _: usize) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuMemFreeHost", || unsafe { (self.driver.mem_free_host)(pointer.as_ptr().cast()) })
    }

    fn create_stream(&self) -> Result<u64> {
        let mut stream = ptr::null_mut();
        // SAFETY: the driver writes one handle.
        self.call("cuStreamCreate", || unsafe {
            (self.driver.stream_create)(&raw mut stream, NON_BLOCKING)
        })?;
        Ok(stream.expose_provenance() as u64)
    }

    unsafe fn destroy_stream(&self, stream: u64) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuStreamDestroy_v2", || unsafe { (self.driver.stream_destroy)(handle(stream)) })
    }

    fn create_event(&self) -> Result<u64> {
        let mut event = ptr::null_mut();
        // SAFETY: the driver writes one handle.
        self.call("cuEventCreate", || unsafe { (self.driver.event_create)(&raw mut event, WITHOUT_TIME) })?;
        Ok(event.expose_provenance() as u64)
    }

    unsafe fn destroy_event(&self, event: u64) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuEventDestroy_v2", || unsafe { (self.driver.event_destroy)(handle(event)) })
    }

    unsafe fn record_event(&self, event: u64, stream: u64) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuEventRecord", || unsafe { (self.driver.event_record)(handle(event), handle(stream)) })
    }

    unsafe fn stream_wait_event(&self, stream: u64, event: u64) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuStreamWaitEvent", || unsafe {
            (self.driver.stream_wait_event)(handle(stream), handle(event), 0)
        })
    }

    unsafe fn event_is_complete(&self, event: u64) -> Result<bool> {
        let mut is_complete = true;
        self.call("cuEventQuery", || {
            // SAFETY: the caller's contract.
            match unsafe { (self.driver.event_query)(handle(event)) } {
                NOT_READY => {
                    is_complete = false;
                    SUCCESS
                }
                code => code,
            }
        })?;
        Ok(is_complete)
    }

    unsafe fn copy_to_device(&self, to: u64, from: *const u8, bytes: usize, stream: u64) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuMemcpyHtoDAsync_v2", || unsafe {
            (self.driver.memcpy_to_device)(to, from.cast(), bytes, handle(stream))
        })
    }

    unsafe fn copy_to_host(&self, to: *mut u8, from: u64, bytes: usize, stream: u64) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuMemcpyDtoHAsync_v2", || unsafe {
            (self.driver.memcpy_to_host)(to.cast(), from, bytes, handle(stream))
        })
    }

    unsafe fn copy_within(&self, to: u64, from: u64, bytes: usize, stream: u64) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuMemcpyDtoDAsync_v2", || unsafe {
            (self.driver.memcpy_within)(to, from, bytes, handle(stream))
        })
    }

    unsafe fn fill_zero(&self, to: u64, bytes: usize, stream: u64) -> Result<()> {
        // SAFETY: the caller's contract.
        self.call("cuMemsetD8Async", || unsafe { (self.driver.memset)(to, 0, bytes, handle(stream)) })
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // SAFETY: `open` has retained it, once.
        let released = unsafe { (self.driver.device_primary_ctx_release)(self.raw) };
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

fn report(driver: &Driver, index: usize) -> Result<DeviceReport> {
    let device = driver.device(index)?;
    let mut total_bytes = 0;
    // SAFETY: the driver writes one number.
    let code = unsafe { (driver.device_total_mem)(&raw mut total_bytes, device) };
    driver.check("cuDeviceTotalMem_v2", code)?;
    let [major, minor] = COMPUTE_CAPABILITY.map(|attribute| driver.device_attribute(device, attribute));
    Ok(DeviceReport {
        location: Location::Cuda(index),
        name: driver.device_name(device)?,
        total_bytes,
        compute_capability: (major?, minor?),
    })
}

/// A stream or an event, as the driver calls it.
fn handle(raw: u64) -> Handle {
    ptr::with_exposed_provenance_mut(raw as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_major_and_minor() {
        assert_eq!(CudaVersion(13_040).to_string(), "13.4");
        assert_eq!(CudaVersion(11_080).to_string(), "11.8");
    }
}

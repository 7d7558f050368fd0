//! A device on the host, for tests of what is written against [`kvpipe::device`].

use std::ffi::c_int;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use kvpipe::device::{Device, Location, MemoryInfo};
use kvpipe::{Error, Result};
use kvpipe_fake_cuda::codes::{Code, NOT_READY, SUCCESS};
use kvpipe_fake_cuda::driver::{
    cuCtxSetCurrent, cuDeviceGet, cuDevicePrimaryCtxRelease_v2, cuDevicePrimaryCtxRetain, cuInit,
};
use kvpipe_fake_cuda::memory::{
    cuMemAlloc_v2, cuMemFree_v2, cuMemFreeHost, cuMemGetInfo_v2, cuMemHostAlloc, cuMemcpyDtoDAsync_v2,
    cuMemcpyDtoHAsync_v2, cuMemcpyHtoDAsync_v2, cuMemsetD8Async,
};
use kvpipe_fake_cuda::stream::{
    cuEventCreate, cuEventDestroy_v2, cuEventQuery, cuEventRecord, cuStreamCreate, cuStreamDestroy_v2,
    cuStreamWaitEvent,
};

/// A device of [`kvpipe_fake_cuda`], with its functions linked into the process, so that no library is
/// loaded and no child is needed. What they are strict about and what can be switched, its docs say;
/// [`kvpipe_fake_cuda::live`] tells what is left.
///
/// kvpipe's own way to a device, which goes through cudarc, is not taken.
#[derive(Debug)]
pub struct HostDevice {
    index: c_int,
    /// The context's handle, a number.
    context: usize,
}

impl HostDevice {
    /// The device of this index; there is one, index 0, unless the switches say otherwise.
    ///
    /// # Errors
    /// [`Error::Cuda`] if there is none.
    pub fn open(index: usize) -> Result<Arc<dyn Device>> {
        let index = c_int::try_from(index).unwrap_or(c_int::MAX);
        // SAFETY: no pointer is involved.
        check("cuInit", unsafe { cuInit(0) })?;
        let mut device = 0;
        // SAFETY: a place for a number.
        check("cuDeviceGet", unsafe { cuDeviceGet(&raw mut device, index) })?;
        let mut context = ptr::null_mut();
        // SAFETY: a place for a handle.
        check("cuDevicePrimaryCtxRetain", unsafe { cuDevicePrimaryCtxRetain(&raw mut context, device) })?;
        Ok(Arc::new(Self { index, context: context.addr() }))
    }

    fn call(&self, name: &'static str, function: impl FnOnce() -> Code) -> Result<()> {
        self.make_current()?;
        check(name, function())
    }
}

impl Drop for HostDevice {
    fn drop(&mut self) {
        // SAFETY: no pointer is involved. The fake tells on stderr what it minds.
        let _ = unsafe { cuDevicePrimaryCtxRelease_v2(self.index) };
    }
}

fn check(call: &'static str, code: Code) -> Result<()> {
    if code == SUCCESS {
        return Ok(());
    }
    Err(Error::Cuda { call, code: code.cast_signed(), text: "a device on the host".into() })
}

fn handle<T>(raw: u64) -> *mut T {
    ptr::with_exposed_provenance_mut(raw as usize)
}

impl Device for HostDevice {
    fn location(&self) -> Location {
        Location::Cuda(self.index.cast_unsigned() as usize)
    }

    fn name(&self) -> String {
        "kvpipe host device".into()
    }

    fn memory(&self) -> Result<MemoryInfo> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: places for two numbers.
        self.call("cuMemGetInfo_v2", || unsafe { cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok(MemoryInfo { free, total })
    }

    fn make_current(&self) -> Result<()> {
        // SAFETY: a handle is never dereferenced.
        check("cuCtxSetCurrent", unsafe { cuCtxSetCurrent(ptr::without_provenance_mut(self.context)) })
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut address = 0;
        // SAFETY: a place for an address.
        self.call("cuMemAlloc_v2", || unsafe { cuMemAlloc_v2(&raw mut address, bytes) })?;
        Ok(address)
    }

    unsafe fn free(&self, address: u64, _: usize) -> Result<()> {
        // SAFETY: the fake looks the address up.
        self.call("cuMemFree_v2", || unsafe { cuMemFree_v2(address) })
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<NonNull<u8>> {
        let mut pointer = ptr::null_mut();
        // SAFETY: a place for a pointer.
        self.call("cuMemHostAlloc", || unsafe { cuMemHostAlloc(&raw mut pointer, bytes, 0) })?;
        NonNull::new(pointer.cast()).ok_or_else(|| Error::Bug("cuMemHostAlloc gave a null pointer".into()))
    }

    unsafe fn free_pinned(&self, pointer: NonNull<u8>, _: usize) -> Result<()> {
        // SAFETY: the fake looks the pointer up.
        self.call("cuMemFreeHost", || unsafe { cuMemFreeHost(pointer.as_ptr().cast()) })
    }

    fn create_stream(&self) -> Result<u64> {
        let mut stream = ptr::null_mut();
        // SAFETY: a place for a handle.
        self.call("cuStreamCreate", || unsafe { cuStreamCreate(&raw mut stream, 1) })?;
        Ok(stream.expose_provenance() as u64)
    }

    unsafe fn destroy_stream(&self, stream: u64) -> Result<()> {
        // SAFETY: the fake looks the handle up.
        self.call("cuStreamDestroy_v2", || unsafe { cuStreamDestroy_v2(handle(stream)) })
    }

    fn create_event(&self) -> Result<u64> {
        let mut event = ptr::null_mut();
        // SAFETY: a place for a handle.
        self.call("cuEventCreate", || unsafe { cuEventCreate(&raw mut event, 2) })?;
        Ok(event.expose_provenance() as u64)
    }

    unsafe fn destroy_event(&self, event: u64) -> Result<()> {
        // SAFETY: the fake looks the handle up.
        self.call("cuEventDestroy_v2", || unsafe { cuEventDestroy_v2(handle(event)) })
    }

    unsafe fn record_event(&self, event: u64, stream: u64) -> Result<()> {
        // SAFETY: the fake looks the handles up.
        self.call("cuEventRecord", || unsafe { cuEventRecord(handle(event), handle(stream)) })
    }

    unsafe fn stream_wait_event(&self, stream: u64, event: u64) -> Result<()> {
        // SAFETY: the fake looks the handles up.
        self.call("cuStreamWaitEvent", || unsafe { cuStreamWaitEvent(handle(stream), handle(event), 0) })
    }

    unsafe fn event_is_complete(&self, event: u64) -> Result<bool> {
        self.make_current()?;
        // SAFETY: the fake looks the handle up.
        match unsafe { cuEventQuery(handle(event)) } {
            NOT_READY => Ok(false),
            code => check("cuEventQuery", code).map(|()| true),
        }
    }

    unsafe fn copy_to_device(&self, to: u64, from: *const u8, bytes: usize, stream: u64) -> Result<()> {
        // SAFETY: the caller's contract, as far as the fake does not look it up.
        self.call("cuMemcpyHtoDAsync_v2", || unsafe {
            cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, handle(stream))
        })
    }

    unsafe fn copy_to_host(&self, to: *mut u8, from: u64, bytes: usize, stream: u64) -> Result<()> {
        // SAFETY: the caller's contract, as far as the fake does not look it up.
        self.call("cuMemcpyDtoHAsync_v2", || unsafe {
            cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, handle(stream))
        })
    }

    unsafe fn copy_within(&self, to: u64, from: u64, bytes: usize, stream: u64) -> Result<()> {
        // SAFETY: the fake looks all of it up.
        self.call("cuMemcpyDtoDAsync_v2", || unsafe { cuMemcpyDtoDAsync_v2(to, from, bytes, handle(stream)) })
    }

    unsafe fn fill_zero(&self, to: u64, bytes: usize, stream: u64) -> Result<()> {
        // SAFETY: the fake looks all of it up.
        self.call("cuMemsetD8Async", || unsafe { cuMemsetD8Async(to, 0, bytes, handle(stream)) })
    }
}

//! Initialisation, devices and their primary contexts.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use kvpipe_fake_common::lock;

use crate::codes::{
    Code, INVALID_CONTEXT, INVALID_DEVICE, INVALID_HANDLE, INVALID_VALUE, NO_DEVICE, NOT_INITIALIZED, Result,
    SUCCESS,
};
use crate::switches::{call, misuse, switches};

static INITIALIZED: AtomicBool = AtomicBool::new(false);

/// How often each device's primary context is retained.
static RETAINED: Mutex<Vec<u64>> = Mutex::new(Vec::new());

thread_local! {
    /// The context that is bound to this thread, as its handle's number; 0 for none.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// A context's handle is a number that nobody dereferences.
const FIRST_CONTEXT: usize = 0x7c00_0000_0000;

pub(crate) fn contexts() -> u64 {
    lock(&RETAINED).iter().sum()
}

/// The device whose context is bound to the calling thread.
pub(crate) fn current_device(doing: &str) -> Result<usize> {
    initialized()?;
    let context = CURRENT.get();
    if context == 0 {
        return Err(misuse(INVALID_CONTEXT, format_args!("{doing} on a thread without a context")));
    }
    context_device(context)
}

pub(crate) fn initialized() -> Result {
    if INITIALIZED.load(Ordering::Acquire) { Ok(()) } else { Err(NOT_INITIALIZED) }
}

fn context_device(context: usize) -> Result<usize> {
    let device = context.wrapping_sub(FIRST_CONTEXT);
    match lock(&RETAINED).get(device) {
        Some(1..) => Ok(device),
        _ => Err(misuse(INVALID_CONTEXT, format_args!("{context:#x} is no context that is retained"))),
    }
}

fn check_device(device: c_int) -> Result<usize> {
    initialized()?;
    let valid = usize::try_from(device).ok().filter(|device| *device < switches().devices);
    valid.ok_or(INVALID_DEVICE)
}

pub(crate) unsafe fn write<T>(into: *mut T, value: T) -> Result {
    if into.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller of the exported function gives a place for a `T`.
    unsafe { into.write(value) };
    Ok(())
}

/// Initialises the driver, as often as you like.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuInit(flags: c_uint) -> Code {
    call("cuInit", || {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        let switches = switches();
        match switches.init {
            SUCCESS if switches.devices == 0 => Err(NO_DEVICE),
            SUCCESS => {
                INITIALIZED.store(true, Ordering::Release);
                Ok(())
            }
            code => Err(code),
        }
    })
}

/// The version of CUDA that the driver supports, 1000 × major + 10 × minor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(into: *mut c_int) -> Code {
    // SAFETY: the caller's pointer.
    call("cuDriverGetVersion", || unsafe { write(into, switches().version) })
}

/// How many devices there are.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(into: *mut c_int) -> Code {
    call("cuDeviceGetCount", || {
        initialized()?;
        let devices = c_int::try_from(switches().devices).map_err(|_| INVALID_VALUE)?;
        // SAFETY: the caller's pointer.
        unsafe { write(into, devices) }
    })
}

/// The device of a number, which is its handle too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(into: *mut c_int, ordinal: c_int) -> Code {
    call("cuDeviceGet", || {
        check_device(ordinal)?;
        // SAFETY: the caller's pointer.
        unsafe { write(into, ordinal) }
    })
}

/// The device's name, cut to `length` bytes with the final zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(into: *mut c_char, length: c_int, device: c_int) -> Code {
    call("cuDeviceGetName", || {
        check_device(device)?;
        // SAFETY: the caller's buffer.
        unsafe { write_text(into, length, "kvpipe fake GPU") }
    })
}

/// The device's place on the bus, as text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetPCIBusId(into: *mut c_char, length: c_int, device: c_int) -> Code {
    call("cuDeviceGetPCIBusId", || {
        let bus = check_device(device)? + 1;
        // SAFETY: the caller's buffer.
        unsafe { write_text(into, length, &format!("0000:{bus:02x}:00.0")) }
    })
}

unsafe fn write_text(into: *mut c_char, length: c_int, text: &str) -> Result {
    let length = usize::try_from(length).map_err(|_| INVALID_VALUE)?;
    if into.is_null() || length == 0 {
        return Err(INVALID_VALUE);
    }
    let kept = text.len().min(length - 1);
    // SAFETY: the caller's buffer has `length` bytes, of which `kept` + 1 are written.
    unsafe {
        into.copy_from_nonoverlapping(text.as_ptr().cast(), kept);
        into.add(kept).write(0);
    }
    Ok(())
}

/// 16 bytes that tell devices apart.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid(into: *mut [u8; 16], device: c_int) -> Code {
    call("cuDeviceGetUuid", || {
        let mut uuid = *b"kvpipe-fake-gpu ";
        uuid[15] = u8::try_from(check_device(device)?).map_err(|_| INVALID_DEVICE)?;
        // SAFETY: the caller's pointer.
        unsafe { write(into, uuid) }
    })
}

/// [`cuDeviceGetUuid`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(into: *mut [u8; 16], device: c_int) -> Code {
    // SAFETY: the same contract.
    unsafe { cuDeviceGetUuid(into, device) }
}

/// What is asked about real devices before memory is copied; 0 for all else, which says that the device
/// does not have it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(into: *mut c_int, attribute: c_int, device: c_int) -> Code {
    call("cuDeviceGetAttribute", || {
        let device = check_device(device)?;
        let value = match attribute {
            ..=0 => return Err(INVALID_VALUE),
            1 => 1024,                                                   // threads in a block
            10 => 32,                                                    // threads in a warp
            16 => 4,                                                     // multiprocessors
            31 | 41 => 1, // concurrent kernels, unified addressing
            33 => c_int::try_from(device).unwrap_or(c_int::MAX - 1) + 1, // the bus
            40 => 2,      // copy engines
            75 => 9,      // compute capability, major
            _ => 0,
        };
        // SAFETY: the caller's pointer.
        unsafe { write(into, value) }
    })
}

/// The device's memory in bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(into: *mut usize, device: c_int) -> Code {
    call("cuDeviceTotalMem_v2", || {
        check_device(device)?;
        // SAFETY: the caller's pointer.
        unsafe { write(into, switches().memory) }
    })
}

/// Retains the device's primary context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(into: *mut *mut c_void, device: c_int) -> Code {
    call("cuDevicePrimaryCtxRetain", || {
        let device = check_device(device)?;
        // SAFETY: the caller's pointer.
        unsafe { write(into, std::ptr::without_provenance_mut(FIRST_CONTEXT + device)) }?;
        let mut retained = lock(&RETAINED);
        let count = retained.len().max(device + 1);
        retained.resize(count, 0);
        retained[device] += 1;
        Ok(())
    })
}

/// Releases it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Code {
    call("cuDevicePrimaryCtxRelease_v2", || {
        let device = check_device(device)?;
        match lock(&RETAINED).get_mut(device) {
            Some(count @ 1..) => {
                *count -= 1;
                Ok(())
            }
            _ => Err(misuse(INVALID_CONTEXT, "a context is released that is not retained")),
        }
    })
}

/// Binds a context to the calling thread; null: none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> Code {
    call("cuCtxSetCurrent", || {
        initialized()?;
        if !context.is_null() {
            context_device(context.addr())?;
        }
        CURRENT.set(context.addr());
        Ok(())
    })
}

/// The context that is bound to the calling thread, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(into: *mut *mut c_void) -> Code {
    call("cuCtxGetCurrent", || {
        initialized()?;
        // SAFETY: the caller's pointer.
        unsafe { write(into, std::ptr::without_provenance_mut(CURRENT.get())) }
    })
}

/// The device of the context that is bound to the calling thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetDevice(into: *mut c_int) -> Code {
    call("cuCtxGetDevice", || {
        let device = c_int::try_from(current_device("cuCtxGetDevice")?).map_err(|_| INVALID_HANDLE)?;
        // SAFETY: the caller's pointer.
        unsafe { write(into, device) }
    })
}

/// Waits for all streams of the current device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSynchronize() -> Code {
    call("cuCtxSynchronize", || {
        crate::stream::synchronize_device(current_device("cuCtxSynchronize")?);
        Ok(())
    })
}

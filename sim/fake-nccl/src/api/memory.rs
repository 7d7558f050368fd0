//! NCCL's own memory, and what is registered.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::ptr::without_provenance_mut;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvpipe_fake_common::lock;

use super::{RawComm, call, call_on, write};
use crate::codes::{Code, INVALID_ARGUMENT, SUCCESS, SYSTEM_ERROR, failed, misuse};

static MEMORY: Mutex<BTreeMap<usize, Layout>> = Mutex::new(BTreeMap::new());

static NEXT_REGISTRATION: AtomicUsize = AtomicUsize::new(0x7b00_0000_0000);

/// Allocations of [`ncclMemAlloc`] that are alive.
pub(crate) fn allocations() -> u64 {
    lock(&MEMORY).len() as u64
}

/// Whether all of the range is of one of them.
pub(super) fn has(address: usize, bytes: usize) -> bool {
    let of_ours = lock(&MEMORY).range(..=address).next_back().map(|(start, layout)| start + layout.size());
    of_ours.is_some_and(|end| address < end && bytes <= end - address)
}

/// Allocates memory that only this library knows: kvpipe-fake-cuda does not copy from it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclMemAlloc(into: *mut *mut c_void, bytes: usize) -> Code {
    call("ncclMemAlloc", || {
        let layout = Layout::from_size_align(bytes, 4096).ok().filter(|layout| layout.size() > 0);
        let layout =
            layout.ok_or_else(|| failed(INVALID_ARGUMENT, format_args!("ncclMemAlloc of {bytes} bytes")))?;
        // SAFETY: the size is not 0.
        let pointer = unsafe { alloc_zeroed(layout) };
        if pointer.is_null() {
            return Err(failed(SYSTEM_ERROR, "out of memory"));
        }
        lock(&MEMORY).insert(pointer.expose_provenance(), layout);
        // SAFETY: the caller's pointer.
        unsafe { write(into, pointer.cast()) }.map(|()| SUCCESS)
    })
}

/// Frees it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclMemFree(pointer: *mut c_void) -> Code {
    call("ncclMemFree", || {
        let layout = lock(&MEMORY).remove(&pointer.addr());
        let layout = layout
            .ok_or_else(|| misuse(INVALID_ARGUMENT, "ncclMemFree of what ncclMemAlloc did not give"))?;
        // SAFETY: allocated with this layout, and no longer in the table.
        unsafe { dealloc(pointer.cast(), layout) };
        Ok(SUCCESS)
    })
}

fn register(
    symbol: &'static str,
    comm: RawComm,
    buffer: *mut c_void,
    bytes: usize,
    into: *mut *mut c_void,
) -> Code {
    call_on(symbol, comm, |comm| {
        comm.ensure_ready()?;
        if buffer.is_null() || bytes == 0 {
            return Err(failed(INVALID_ARGUMENT, format_args!("{symbol} of {bytes} bytes at {buffer:?}")));
        }
        let registration = NEXT_REGISTRATION.fetch_add(16, Ordering::Relaxed);
        // SAFETY: the caller's pointer.
        unsafe { write(into, without_provenance_mut(registration)) }?;
        comm.state().registered.insert(registration, bytes);
        Ok(SUCCESS)
    })
}

fn deregister(symbol: &'static str, comm: RawComm, registration: *mut c_void) -> Code {
    call_on(symbol, comm, |comm| {
        comm.ensure_ready()?;
        let found = comm.state().registered.remove(&registration.addr());
        let what = format_args!("{symbol} of what is not registered");
        found.map(|_| SUCCESS).ok_or_else(|| misuse(INVALID_ARGUMENT, what))
    })
}

/// Registers a buffer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommRegister(
    comm: RawComm,
    buffer: *mut c_void,
    bytes: usize,
    into: *mut *mut c_void,
) -> Code {
    register("ncclCommRegister", comm, buffer, bytes, into)
}

/// Forgets it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDeregister(comm: RawComm, registration: *mut c_void) -> Code {
    deregister("ncclCommDeregister", comm, registration)
}

/// Registers a window. All ranks do it, but here none waits for the others.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommWindowRegister(
    comm: RawComm,
    buffer: *mut c_void,
    bytes: usize,
    into: *mut *mut c_void,
    flags: c_int,
) -> Code {
    if !(0..=3).contains(&flags) {
        return misuse(INVALID_ARGUMENT, format_args!("ncclCommWindowRegister: flags {flags}"));
    }
    register("ncclCommWindowRegister", comm, buffer, bytes, into)
}

/// Forgets it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommWindowDeregister(comm: RawComm, window: *mut c_void) -> Code {
    deregister("ncclCommWindowDeregister", comm, window)
}

//! Memory of devices and pinned memory, every allocation of which is known, and copies.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ffi::{c_uchar, c_uint, c_void};
use std::ptr::with_exposed_provenance_mut;
use std::sync::{Arc, Mutex};

use kvpipe_fake_common::lock;

use crate::Live;
use crate::codes::{Code, INVALID_VALUE, OUT_OF_MEMORY, Result};
use crate::driver::{current_device, write};
use crate::stream::{Stream, synchronize_device};
use crate::switches::{call, misuse, switches};

/// What fresh memory is filled with.
pub const POISON: u8 = 0xCD;

/// As CUDA aligns; pinned memory, to pages.
const DEVICE_ALIGNMENT: usize = 256;
const PINNED_ALIGNMENT: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Device(usize),
    Pinned,
}

struct Allocation {
    kind: Kind,
    layout: Layout,
    /// How many pieces of work that streams have not finished touch it.
    in_use: usize,
}

static ALLOCATIONS: Mutex<BTreeMap<usize, Allocation>> = Mutex::new(BTreeMap::new());

pub(crate) fn count() -> Live {
    let mut live = Live::default();
    for allocation in lock(&ALLOCATIONS).values() {
        match allocation.kind {
            Kind::Device(_) => {
                live.allocations += 1;
                live.bytes += allocation.layout.size() as u64;
            }
            Kind::Pinned => live.pinned += 1,
        }
    }
    live
}

fn used(device: usize) -> usize {
    let allocations = lock(&ALLOCATIONS);
    let of_device = allocations.values().filter(|allocation| allocation.kind == Kind::Device(device));
    of_device.map(|allocation| allocation.layout.size()).sum()
}

fn allocate(kind: Kind, bytes: usize) -> Result<usize> {
    let alignment = if kind == Kind::Pinned { PINNED_ALIGNMENT } else { DEVICE_ALIGNMENT };
    let layout = Layout::from_size_align(bytes, alignment).map_err(|_| OUT_OF_MEMORY)?;
    if bytes == 0 {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the size is not 0.
    let pointer = unsafe { alloc(layout) };
    if pointer.is_null() {
        return Err(OUT_OF_MEMORY);
    }
    if switches().poison {
        // SAFETY: so many bytes were just allocated.
        unsafe { pointer.write_bytes(POISON, bytes) };
    }
    let address = pointer.expose_provenance();
    lock(&ALLOCATIONS).insert(address, Allocation { kind, layout, in_use: 0 });
    Ok(address)
}

/// The layout of what may be freed.
fn freeable(what: &str, address: usize, is_right: impl Fn(Kind) -> bool) -> Result<Layout> {
    match lock(&ALLOCATIONS).get(&address) {
        Some(allocation) if is_right(allocation.kind) && allocation.in_use == 0 => Ok(allocation.layout),
        Some(allocation) if is_right(allocation.kind) => {
            Err(misuse(INVALID_VALUE, format_args!("{what} {address:#x} is freed while a stream uses it")))
        }
        _ => Err(misuse(INVALID_VALUE, format_args!("{address:#x} is freed, which is no {what}"))),
    }
}

fn free(what: &str, address: usize, is_right: impl Fn(Kind) -> bool) -> Result {
    let layout = freeable(what, address, is_right)?;
    wait(what)?;
    if lock(&ALLOCATIONS).remove(&address).is_none() {
        return Err(misuse(INVALID_VALUE, format_args!("{what} {address:#x} is freed twice at once")));
    }
    // SAFETY: allocated with this layout; no longer in the table, and no stream uses it.
    unsafe { dealloc(with_exposed_provenance_mut(address), layout) };
    Ok(())
}

/// For what is on the current device's streams now, where that is switched on.
fn wait(doing: &str) -> Result {
    if switches().waits {
        synchronize_device(current_device(doing)?);
    }
    Ok(())
}

/// Memory that is not freed before this is dropped.
#[derive(Debug)]
struct InUse(usize);

impl InUse {
    /// The allocation that holds all of the range, and what kind it is.
    fn begin(address: usize, bytes: usize) -> Option<(Self, Kind)> {
        let mut allocations = lock(&ALLOCATIONS);
        let (start, allocation) = allocations.range_mut(..=address).next_back()?;
        let end = start + allocation.layout.size();
        if address >= end || bytes > end - address {
            return None;
        }
        allocation.in_use += 1;
        Some((Self(*start), allocation.kind))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if let Some(allocation) = lock(&ALLOCATIONS).get_mut(&self.0) {
            allocation.in_use -= 1;
        }
    }
}

/// For who puts work on a stream from outside: `begin` is not 0 before the work is enqueued, and 0 after
/// it. Not success: the range is no device's memory.
pub(crate) extern "C" fn in_use(address: u64, bytes: usize, begin: std::ffi::c_int) -> Code {
    call("in_use", || {
        let held = device_range("NCCL", address as usize, bytes.max(1))?;
        // What begins here ends in another call; that one ends its own use and the other.
        match begin {
            0 => drop((InUse(held.0), held)),
            _ => std::mem::forget(held),
        }
        Ok(())
    })
}

fn device_range(doing: &str, address: usize, bytes: usize) -> Result<InUse> {
    match InUse::begin(address, bytes) {
        Some((held, Kind::Device(_))) => Ok(held),
        _ => Err(misuse(
            INVALID_VALUE,
            format_args!("{doing}: {bytes} bytes at {address:#x} are not of one device allocation"),
        )),
    }
}

/// None: pageable memory.
fn host_range(doing: &str, address: usize, bytes: usize) -> Result<Option<InUse>> {
    match InUse::begin(address, bytes) {
        _ if address == 0 => Err(misuse(INVALID_VALUE, format_args!("{doing}: a null pointer"))),
        Some((held, Kind::Pinned)) => Ok(Some(held)),
        None => Ok(None),
        Some(_) => {
            Err(misuse(INVALID_VALUE, format_args!("{doing}: {address:#x} is a device's, not the host's")))
        }
    }
}

#[derive(Clone, Copy)]
enum Side {
    Device(u64),
    Host(usize),
}

impl Side {
    fn address(self) -> usize {
        match self {
            Self::Device(address) => address as usize,
            Self::Host(address) => address,
        }
    }

    fn hold(self, doing: &str, bytes: usize) -> Result<Option<InUse>> {
        match self {
            Self::Device(address) => device_range(doing, address as usize, bytes).map(Some),
            Self::Host(address) => host_range(doing, address, bytes),
        }
    }
}

/// # Safety
///
/// Host memory is valid; until the stream is there, if it is pinned.
unsafe fn copy(doing: &str, to: Side, from: Side, bytes: usize, stream: &Arc<Stream>) -> Result {
    current_device(doing)?;
    if bytes == 0 {
        return Ok(());
    }
    let target = to.hold(doing, bytes)?;
    let source = from.hold(doing, bytes)?;
    let is_pageable = target.is_none();
    let staged: Option<Vec<u8>> = source.is_none().then(|| {
        // SAFETY: the caller's memory, valid during the call.
        unsafe { std::slice::from_raw_parts(with_exposed_provenance_mut::<u8>(from.address()), bytes) }
            .to_vec()
    });
    stream.enqueue(Box::new(move || {
        let from = staged
            .as_ref()
            .map_or(with_exposed_provenance_mut(from.address()), |bytes| bytes.as_ptr().cast_mut());
        // SAFETY: both sides are held in use, or staged, or the caller waits; the two may overlap.
        unsafe { std::ptr::copy(from, with_exposed_provenance_mut::<u8>(to.address()), bytes) };
        drop((target, source));
    }));
    if is_pageable {
        stream.synchronize();
    }
    Ok(())
}

fn fill(doing: &str, address: u64, value: u8, bytes: usize, stream: &Arc<Stream>) -> Result {
    current_device(doing)?;
    if bytes == 0 {
        return Ok(());
    }
    let held = device_range(doing, address as usize, bytes)?;
    stream.enqueue(Box::new(move || {
        // SAFETY: the range is one allocation's, and held in use.
        unsafe { with_exposed_provenance_mut::<u8>(address as usize).write_bytes(value, bytes) };
        drop(held);
    }));
    Ok(())
}

/// Allocates memory of the current device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(into: *mut u64, bytes: usize) -> Code {
    call("cuMemAlloc_v2", || {
        let device = current_device("cuMemAlloc")?;
        if bytes > switches().memory.saturating_sub(used(device)) {
            return Err(OUT_OF_MEMORY);
        }
        wait("cuMemAlloc")?;
        let address = allocate(Kind::Device(device), bytes)?;
        // SAFETY: the caller's pointer.
        unsafe { write(into, address as u64) }
    })
}

/// Frees it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(address: u64) -> Code {
    call("cuMemFree_v2", || {
        current_device("cuMemFree")?;
        if address == 0 {
            return Ok(());
        }
        free("device memory", address as usize, |kind| matches!(kind, Kind::Device(_)))
    })
}

/// The current device's memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    call("cuMemGetInfo_v2", || {
        let device = current_device("cuMemGetInfo")?;
        let memory = switches().memory;
        // SAFETY: the caller's pointers.
        unsafe {
            write(free, memory.saturating_sub(used(device)))?;
            write(total, memory)
        }
    })
}

/// Allocates pinned memory of the host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(into: *mut *mut c_void, bytes: usize, flags: c_uint) -> Code {
    call("cuMemHostAlloc", || {
        current_device("cuMemHostAlloc")?;
        // Portable, mapped, write-combined.
        if flags > 7 {
            return Err(INVALID_VALUE);
        }
        wait("cuMemHostAlloc")?;
        let address = allocate(Kind::Pinned, bytes)?;
        // SAFETY: the caller's pointer.
        unsafe { write(into, with_exposed_provenance_mut(address)) }
    })
}

/// Frees it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(pointer: *mut c_void) -> Code {
    call("cuMemFreeHost", || {
        current_device("cuMemFreeHost")?;
        free("pinned memory", pointer.addr(), |kind| kind == Kind::Pinned)
    })
}

/// Fills bytes, in the order of the stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8Async(
    address: u64,
    value: c_uchar,
    bytes: usize,
    stream: *mut c_void,
) -> Code {
    call("cuMemsetD8Async", || fill("cuMemsetD8Async", address, value, bytes, &Stream::alive(stream)?))
}

/// Fills bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8_v2(address: u64, value: c_uchar, bytes: usize) -> Code {
    call("cuMemsetD8_v2", || {
        let stream = Stream::alive(std::ptr::null_mut())?;
        fill("cuMemsetD8", address, value, bytes, &stream)?;
        stream.synchronize();
        Ok(())
    })
}

macro_rules! copies {
    ($($(#[$doc:meta])* $name:ident, $name_async:ident, $to:ident: $to_type:ty => $to_side:expr, $from:ident: $from_type:ty => $from_side:expr;)*) => {$(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name_async($to: $to_type, $from: $from_type, bytes: usize, stream: *mut c_void) -> Code {
            // SAFETY: the caller's memory, as CUDA demands it.
            call(stringify!($name_async), || unsafe {
                copy(stringify!($name_async), $to_side, $from_side, bytes, &Stream::alive(stream)?)
            })
        }

        /// The same, done when the call returns.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($to: $to_type, $from: $from_type, bytes: usize) -> Code {
            call(stringify!($name), || {
                let stream = Stream::alive(std::ptr::null_mut())?;
                // SAFETY: the caller's memory, as CUDA demands it.
                unsafe { copy(stringify!($name), $to_side, $from_side, bytes, &stream) }?;
                stream.synchronize();
                Ok(())
            })
        }
    )*};
}

copies! {
    /// Copies to a device, in the order of the stream.
    cuMemcpyHtoD_v2, cuMemcpyHtoDAsync_v2, to: u64 => Side::Device(to), from: *const c_void => Side::Host(from.expose_provenance());
    /// Copies from a device, in the order of the stream.
    cuMemcpyDtoH_v2, cuMemcpyDtoHAsync_v2, to: *mut c_void => Side::Host(to.expose_provenance()), from: u64 => Side::Device(from);
    /// Copies within a device or between two, in the order of the stream.
    cuMemcpyDtoD_v2, cuMemcpyDtoDAsync_v2, to: u64 => Side::Device(to), from: u64 => Side::Device(from);
}

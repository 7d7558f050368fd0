//! The fake behaves as the driver does, and sees what a correct program does not do.

// What a call is given is in the same line; a slow stream is measured by the clock.
#![allow(clippy::undocumented_unsafe_blocks, clippy::disallowed_methods)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};

use kvpipe_fake_cuda::codes::*;
use kvpipe_fake_cuda::driver::*;
use kvpipe_fake_cuda::memory::*;
use kvpipe_fake_cuda::stream::*;
use kvpipe_fake_cuda::{Live, configure, live};

/// One test at a time: switches and what is alive are the process's.
struct Driver {
    before: Live,
    _alone: MutexGuard<'static, ()>,
}

impl Driver {
    fn new(switches: &str) -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        configure("");
        ok(|_: *mut ()| unsafe { cuInit(0) });
        let context = ok(|into| unsafe { cuDevicePrimaryCtxRetain(into, 0) });
        ok(|_: *mut ()| unsafe { cuCtxSetCurrent(context) });
        configure(switches);
        Self { before: live(), _alone: alone }
    }

    fn misuses(&self) -> u64 {
        live().misuses - self.before.misuses
    }
}

/// What a call writes through its first argument.
fn ok<T>(call: impl FnOnce(*mut T) -> Code) -> T {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    assert_eq!(call(value.as_mut_ptr()), SUCCESS);
    // SAFETY: zero is valid for all that is asked for here: numbers and raw pointers.
    unsafe { value.assume_init() }
}

fn allocate(bytes: usize) -> u64 {
    ok(|into| unsafe { cuMemAlloc_v2(into, bytes) })
}

fn pinned(bytes: usize) -> &'static mut [u8] {
    let pointer: *mut c_void = ok(|into| unsafe { cuMemHostAlloc(into, bytes, 0) });
    // SAFETY: so many bytes are allocated, and the tests free them last.
    unsafe { std::slice::from_raw_parts_mut(pointer.cast(), bytes) }
}

fn stream() -> *mut c_void {
    ok(|into| unsafe { cuStreamCreate(into, 1) })
}

fn event() -> *mut c_void {
    ok(|into| unsafe { cuEventCreate(into, 2) })
}

/// Holds a stream until it is told to go on.
fn hold(stream: *mut c_void) -> mpsc::Sender<()> {
    unsafe extern "C" fn wait(data: *mut c_void) {
        // SAFETY: the box from below, given once.
        let go_on: Box<mpsc::Receiver<()>> = unsafe { Box::from_raw(data.cast()) };
        let _ = go_on.recv();
    }
    let (sender, receiver) = mpsc::channel::<()>();
    let data = Box::into_raw(Box::new(receiver));
    assert_eq!(unsafe { cuLaunchHostFunc(stream, Some(wait), data.cast()) }, SUCCESS);
    sender
}

#[test]
fn bytes_go_to_the_device_and_come_back() {
    let driver = Driver::new("");
    let (first, second, stream) = (allocate(1000), allocate(1000), stream());
    let (source, target) = (pinned(1000), pinned(1000));
    source.iter_mut().enumerate().for_each(|(index, byte)| *byte = index as u8);
    unsafe {
        assert_eq!(cuMemcpyHtoDAsync_v2(first, source.as_ptr().cast(), 1000, stream), SUCCESS);
        assert_eq!(cuMemcpyDtoDAsync_v2(second + 1, first, 999, stream), SUCCESS);
        assert_eq!(cuMemsetD8Async(second, 7, 1, stream), SUCCESS);
        assert_eq!(cuMemcpyDtoHAsync_v2(target.as_mut_ptr().cast(), second, 1000, stream), SUCCESS);
        assert_eq!(cuStreamSynchronize(stream), SUCCESS);
    }
    assert_eq!(target[0], 7);
    assert_eq!(target[1..], source[..999]);
    let now = live();
    assert_eq!(now.allocations - driver.before.allocations, 2);
    assert_eq!(now.bytes - driver.before.bytes, 2000);
    assert_eq!((now.pinned - driver.before.pinned, now.streams - driver.before.streams), (2, 1));
    unsafe {
        assert_eq!(cuMemFree_v2(first) | cuMemFree_v2(second) | cuStreamDestroy_v2(stream), SUCCESS);
        assert_eq!(
            cuMemFreeHost(source.as_mut_ptr().cast()) | cuMemFreeHost(target.as_mut_ptr().cast()),
            SUCCESS
        );
    }
    assert_eq!(live(), driver.before);
}

#[test]
fn memory_waits_for_what_streams_have_to_do_if_it_is_told_to() {
    let driver = Driver::new("waits");
    type Act = fn(u64, usize) -> u64;
    let acts: [Act; 4] = [
        |_, _| allocate(8),
        |_, _| pinned(8).as_mut_ptr().expose_provenance() as u64,
        |device, _| unsafe { cuMemFree_v2(device) }.into(),
        |_, pinned| unsafe { cuMemFreeHost(pinned as *mut c_void) }.into(),
    ];
    let (device, host) = (allocate(8), pinned(8).as_mut_ptr().expose_provenance());
    let (stream, mut made) = (stream(), Vec::new());
    let context = ok(|into: *mut *mut c_void| unsafe { cuCtxGetCurrent(into) }).addr();
    for act in acts {
        let (go_on, (done, is_done)) = (hold(stream), mpsc::channel());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(unsafe { cuCtxSetCurrent(context as *mut c_void) }, SUCCESS);
                done.send(act(device, host)).unwrap();
            });
            // It has time to do what it must not.
            let early = is_done.recv_timeout(std::time::Duration::from_millis(50));
            assert!(early.is_err(), "{early:?}");
            go_on.send(()).unwrap();
            made.push(is_done.recv().unwrap());
        });
    }
    assert_eq!(made[2..], [0, 0]);
    unsafe {
        assert_eq!(cuMemFree_v2(made[0]) | cuMemFreeHost(made[1] as *mut c_void), SUCCESS);
        assert_eq!(cuStreamDestroy_v2(stream), SUCCESS);
    }
    assert_eq!(live(), driver.before);
}

#[test]
fn a_copy_of_pinned_memory_is_done_when_its_event_is() {
    let driver = Driver::new("");
    let (memory, stream, event, target) = (allocate(8), stream(), event(), pinned(8));
    target.fill(0);
    let go_on = hold(stream);
    unsafe {
        assert_eq!(cuEventQuery(event), SUCCESS, "never recorded");
        assert_eq!(cuMemcpyDtoHAsync_v2(target.as_mut_ptr().cast(), memory, 8, stream), SUCCESS);
        assert_eq!(cuEventRecord(event, stream), SUCCESS);
        assert_eq!(cuEventQuery(event), NOT_READY);
        assert_eq!(cuStreamQuery(stream), NOT_READY);
        assert_eq!(target, [0; 8]);
        go_on.send(()).unwrap();
        assert_eq!(cuEventSynchronize(event), SUCCESS);
        assert_eq!(cuEventQuery(event), SUCCESS);
    }
    assert_eq!(target, [POISON; 8]);
    assert_eq!(driver.misuses(), 0);
}

#[test]
fn a_pageable_source_is_free_when_the_call_returns() {
    let _driver = Driver::new("");
    let (memory, stream, mut source) = (allocate(8), stream(), vec![1_u8; 8]);
    let go_on = hold(stream);
    assert_eq!(unsafe { cuMemcpyHtoDAsync_v2(memory, source.as_ptr().cast(), 8, stream) }, SUCCESS);
    source.fill(2);
    go_on.send(()).unwrap();
    let mut target = vec![0_u8; 8];
    // Pageable too: returns after the copy.
    assert_eq!(unsafe { cuMemcpyDtoHAsync_v2(target.as_mut_ptr().cast(), memory, 8, stream) }, SUCCESS);
    assert_eq!(target, [1; 8]);
}

#[test]
fn a_stream_waits_for_the_event_of_another() {
    let _driver = Driver::new("");
    let (memory, producer, consumer, made) = (allocate(4), stream(), stream(), event());
    let target = pinned(4);
    let go_on = hold(producer);
    unsafe {
        assert_eq!(cuMemsetD8Async(memory, 9, 4, producer), SUCCESS);
        assert_eq!(cuEventRecord(made, producer), SUCCESS);
        assert_eq!(cuStreamWaitEvent(consumer, made, 0), SUCCESS);
        assert_eq!(cuMemcpyDtoHAsync_v2(target.as_mut_ptr().cast(), memory, 4, consumer), SUCCESS);
        assert_eq!(cuStreamQuery(consumer), NOT_READY);
        go_on.send(()).unwrap();
        assert_eq!(cuStreamSynchronize(consumer), SUCCESS);
    }
    assert_eq!(target, [9; 4]);
}

#[test]
fn what_is_no_allocation_is_neither_freed_nor_copied() {
    let driver = Driver::new("");
    let (memory, stream, mut host) = (allocate(64), stream(), [0_u8; 65]);
    let (pointer, pinned) = (host.as_mut_ptr().cast::<c_void>(), pinned(64));
    let pinned = pinned.as_mut_ptr().cast::<c_void>();
    unsafe {
        assert_eq!(cuMemcpyHtoDAsync_v2(memory, pointer, 65, stream), INVALID_VALUE, "beyond the end");
        assert_eq!(cuMemcpyDtoHAsync_v2(pointer, memory + 60, 5, stream), INVALID_VALUE, "beyond the end");
        assert_eq!(cuMemsetD8Async(memory - 1, 0, 2, stream), INVALID_VALUE, "before the start");
        assert_eq!(
            cuMemcpyDtoDAsync_v2(memory, pinned.addr() as u64, 1, stream),
            INVALID_VALUE,
            "not a device's"
        );
        assert_eq!(cuMemcpyHtoDAsync_v2(memory, memory as usize as *const c_void, 1, stream), INVALID_VALUE);
        assert_eq!(cuMemcpyHtoDAsync_v2(memory, null_mut(), 1, stream), INVALID_VALUE);
        assert_eq!(cuMemcpyHtoDAsync_v2(memory, null_mut(), 0, stream), SUCCESS, "nothing to copy");
        assert_eq!(cuMemFree_v2(memory + 1), INVALID_VALUE);
        assert_eq!(cuMemFree_v2(pinned.addr() as u64), INVALID_VALUE);
        assert_eq!(cuMemFreeHost(memory as usize as *mut c_void), INVALID_VALUE);
        assert_eq!(cuMemFree_v2(memory), SUCCESS);
        assert_eq!(cuMemFree_v2(memory), INVALID_VALUE, "freed twice");
        assert_eq!(cuMemsetD8Async(memory, 0, 1, stream), INVALID_VALUE, "freed");
        assert_eq!(cuMemFreeHost(pinned), SUCCESS);
    }
    assert_eq!(driver.misuses(), 11);
}

#[test]
fn memory_is_not_freed_while_a_stream_uses_it() {
    let driver = Driver::new("");
    let (memory, stream, target) = (allocate(8), stream(), pinned(8));
    let target = target.as_mut_ptr().cast::<c_void>();
    let go_on = hold(stream);
    unsafe {
        assert_eq!(cuMemcpyDtoHAsync_v2(target, memory, 8, stream), SUCCESS);
        assert_eq!(cuMemFree_v2(memory), INVALID_VALUE);
        assert_eq!(cuMemFreeHost(target), INVALID_VALUE);
        assert_eq!(driver.misuses(), 2);
        go_on.send(()).unwrap();
        assert_eq!(cuStreamSynchronize(stream), SUCCESS);
        assert_eq!(cuMemFree_v2(memory), SUCCESS);
        assert_eq!(cuMemFreeHost(target), SUCCESS);
    }
}

#[test]
fn who_puts_work_on_a_stream_holds_its_memory() {
    unsafe extern "C" fn tell(data: *mut c_void) {
        // SAFETY: the box from below, given once.
        let done: Box<mpsc::Sender<()>> = unsafe { Box::from_raw(data.cast()) };
        done.send(()).unwrap();
    }
    let driver = Driver::new("");
    let (memory, stream) = (allocate(8), stream());
    let (sender, receiver) = mpsc::channel::<()>();
    unsafe {
        let handle = &*stream.cast::<StreamHandle>();
        (handle.enqueue)(stream, tell, Box::into_raw(Box::new(sender)).cast());
        receiver.recv().unwrap();
        assert_eq!((handle.in_use)(memory, 8, 1), SUCCESS);
        assert_eq!(cuMemFree_v2(memory), INVALID_VALUE);
        assert_eq!((handle.in_use)(memory, 8, 0), SUCCESS);
        assert_eq!(cuMemFree_v2(memory), SUCCESS);
        assert_eq!((handle.in_use)(memory, 8, 1), INVALID_VALUE);
    }
    assert_eq!(driver.misuses(), 2);
}

#[test]
fn what_was_destroyed_is_not_used() {
    let driver = Driver::new("");
    let (stream, event) = (stream(), event());
    let go_on = hold(stream);
    unsafe {
        assert_eq!(cuEventRecord(event, stream), SUCCESS);
        assert_eq!(cuStreamDestroy_v2(stream), SUCCESS, "with work on it");
        assert_eq!(cuEventQuery(event), NOT_READY);
        go_on.send(()).unwrap();
        assert_eq!(cuEventSynchronize(event), SUCCESS, "what was on it is done");
        assert_eq!(cuEventDestroy_v2(event), SUCCESS);
        assert_eq!(cuEventQuery(event), INVALID_HANDLE);
        assert_eq!(cuEventDestroy_v2(event), INVALID_HANDLE);
        assert_eq!(cuStreamSynchronize(stream), INVALID_HANDLE);
        assert_eq!(cuStreamDestroy_v2(stream), INVALID_HANDLE);
    }
    assert_eq!(driver.misuses(), 4);
}

#[test]
fn a_thread_needs_a_context() {
    let driver = Driver::new("");
    let memory = allocate(1);
    std::thread::scope(|scope| {
        let code = scope.spawn(|| unsafe { cuMemAlloc_v2(&mut 0, 1) }).join().unwrap();
        assert_eq!(code, INVALID_CONTEXT);
    });
    let context: *mut c_void = ok(|into| unsafe { cuCtxGetCurrent(into) });
    unsafe {
        assert_eq!(cuCtxSetCurrent(null_mut()), SUCCESS);
        assert_eq!(cuMemFree_v2(memory), INVALID_CONTEXT);
        assert_eq!(cuCtxSetCurrent((context.addr() + 1) as *mut c_void), INVALID_CONTEXT);
        assert_eq!(cuCtxSetCurrent(context), SUCCESS);
        assert_eq!(cuMemFree_v2(memory), SUCCESS);
    }
    assert_eq!(driver.misuses(), 3);
}

#[test]
fn memory_has_an_end() {
    let driver = Driver::new("oom=1000");
    let used = usize::try_from(driver.before.bytes).unwrap();
    configure(&format!("oom={}", used + 1000));
    assert_eq!(unsafe { cuMemAlloc_v2(&mut 0, 1001) }, OUT_OF_MEMORY);
    let memory = allocate(600);
    assert_eq!(unsafe { cuMemAlloc_v2(&mut 0, 401) }, OUT_OF_MEMORY);
    let (mut free, mut total) = (0, 0);
    assert_eq!(unsafe { cuMemGetInfo_v2(&mut free, &mut total) }, SUCCESS);
    assert_eq!((free, total), (400, used + 1000));
    assert_eq!(unsafe { cuMemFree_v2(memory) }, SUCCESS);
    assert_eq!(unsafe { cuMemAlloc_v2(&mut 0, 0) }, INVALID_VALUE);
    assert_eq!(driver.misuses(), 0, "running out of memory is none");
}

#[test]
fn the_call_that_is_named_fails() {
    let driver = Driver::new("fail=cuEventQuery:2:700,fail=cuEventRecord:1+:719");
    let event = event();
    unsafe {
        assert_eq!(cuEventQuery(event), SUCCESS);
        assert_eq!(cuEventQuery(event), ILLEGAL_ADDRESS);
        assert_eq!(cuEventQuery(event), SUCCESS);
        assert_eq!(cuEventRecord(event, stream()), LAUNCH_FAILED);
        assert_eq!(cuEventRecord(event, stream()), LAUNCH_FAILED);
    }
    assert_eq!(driver.misuses(), 0);
}

#[test]
fn slow_streams_are_slow() {
    let _driver = Driver::new("slow=20000");
    let (stream, event) = (stream(), event());
    let start = std::time::Instant::now();
    unsafe {
        assert_eq!(cuEventRecord(event, stream) | cuEventRecord(event, stream), SUCCESS);
        assert_eq!(cuEventSynchronize(event), SUCCESS);
    }
    assert!(start.elapsed() >= std::time::Duration::from_millis(40));
}

#[test]
fn devices_are_as_many_as_are_said() {
    let _driver = Driver::new("devices=3,version=12040");
    assert_eq!(ok(|into| unsafe { cuDeviceGetCount(into) }), 3);
    assert_eq!(ok(|into| unsafe { cuDriverGetVersion(into) }), 12040);
    assert_eq!(ok(|into| unsafe { cuDeviceGet(into, 2) }), 2);
    assert_eq!(unsafe { cuDeviceGet(&mut 0, 3) }, INVALID_DEVICE);
    assert_eq!(ok(|into| unsafe { cuDeviceTotalMem_v2(into, 1) }), 1 << 30);
    let mut name = [1 as c_char; 7];
    assert_eq!(unsafe { cuDeviceGetName(name.as_mut_ptr(), 7, 0) }, SUCCESS);
    // SAFETY: the fake ends its names with a zero.
    assert_eq!(unsafe { CStr::from_ptr(name.as_ptr()) }, c"kvpipe");
    let major: c_int = ok(|into| unsafe { cuDeviceGetAttribute(into, 75, 2) });
    assert_eq!(major, 9);
    let uuids = [0, 1].map(|device| ok(|into| unsafe { cuDeviceGetUuid(into, device) }));
    assert_ne!(uuids[0], uuids[1]);
}

#[test]
fn a_driver_may_have_no_device_or_not_start() {
    let _driver = Driver::new("devices=0");
    assert_eq!(unsafe { cuInit(0) }, NO_DEVICE);
    configure("init=803");
    assert_eq!(unsafe { cuInit(0) }, SYSTEM_DRIVER_MISMATCH);
}

#[test]
fn codes_have_names_and_texts() {
    let name: *const c_char = ok(|into| unsafe { cuGetErrorName(700, into) });
    let text: *const c_char = ok(|into| unsafe { cuGetErrorString(600, into) });
    // SAFETY: constants with a final zero.
    assert_eq!(unsafe { CStr::from_ptr(name) }, c"CUDA_ERROR_ILLEGAL_ADDRESS");
    // SAFETY: the same.
    assert_eq!(unsafe { CStr::from_ptr(text) }, c"device not ready");
    let mut none = std::ptr::dangling();
    assert_eq!(unsafe { cuGetErrorName(12345, &mut none) }, INVALID_VALUE);
    assert!(none.is_null());
}

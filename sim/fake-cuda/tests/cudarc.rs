//! cudarc, which finds the driver by name, works on the fake as on a driver. It runs in children of this
//! process, since the folder of libraries is an environment variable.

use std::process::{Command, Output};

use cudarc::driver::{CudaContext, DriverError, result, sys};
use kvpipe_fake_cuda::{Live, library_folder};

const CHILD: &str = "KVPIPE_FAKE_CUDA_CHILD";

/// Runs this test alone, with the fake as the driver; its parent half sees what became of it.
fn child(test: &str, switches: &str) -> Option<Output> {
    if std::env::var_os(CHILD).is_some() {
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    command.env(CHILD, "1").env("LD_LIBRARY_PATH", library_folder().unwrap());
    Some(command.env("KVPIPE_FAKE_CUDA", switches).output().unwrap())
}

fn passes(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn live() -> Live {
    let mut live = Live::default();
    // SAFETY: the copy of the fake that cudarc has loaded.
    unsafe {
        let library = cudarc_library();
        let function = library.get::<unsafe extern "C" fn(*mut Live)>(b"kvpipe_fake_cuda_live").unwrap();
        function(&mut live);
    }
    live
}

fn cudarc_library() -> libloading::Library {
    // SAFETY: loaded already.
    unsafe { libloading::Library::new("libcuda.so.1") }.unwrap()
}

#[test]
fn the_safe_interface_copies_and_leaves_nothing() {
    if let Some(output) = child("the_safe_interface_copies_and_leaves_nothing", "") {
        return passes(&output);
    }
    let context = CudaContext::new(0).unwrap();
    assert_eq!(context.name().unwrap(), "kvpipe fake GPU");
    let (first, second) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let source: Vec<f32> = (0..1000_u16).map(f32::from).collect();
    let on_device = first.clone_htod(&source).unwrap();
    let event = first.record_event(None).unwrap();
    second.wait(&event).unwrap();
    let copy = second.clone_dtod(&on_device).unwrap();
    // SAFETY: written before it is read.
    let mut pinned = unsafe { context.alloc_pinned_with_flags::<f32>(1000, 0) }.unwrap();
    second.memcpy_dtoh(&copy, &mut pinned).unwrap();
    assert_eq!(pinned.as_slice().unwrap(), source);
    let zeros = first.alloc_zeros::<u8>(33).unwrap();
    assert_eq!(first.clone_dtoh(&zeros).unwrap(), [0; 33]);
    assert!(live().allocations > 0);
    drop((on_device, copy, zeros, pinned, event, first, second, context));
    assert_eq!(live(), Live::default());
}

#[test]
fn memory_runs_out_as_it_does_on_a_device() {
    if let Some(output) = child("memory_runs_out_as_it_does_on_a_device", "oom=1000") {
        return passes(&output);
    }
    let stream = CudaContext::new(0).unwrap().default_stream();
    // SAFETY: never read.
    let error = unsafe { stream.alloc::<u8>(1001) }.unwrap_err();
    assert_eq!(error, DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY));
}

#[test]
fn a_driver_without_a_device_says_so() {
    if let Some(output) = child("a_driver_without_a_device_says_so", "devices=0") {
        return passes(&output);
    }
    // SAFETY: only looks.
    assert!(unsafe { sys::is_culib_present() });
    assert_eq!(result::init(), Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)));
}

#[test]
fn a_switch_that_does_not_exist_is_no_test() {
    match child("a_switch_that_does_not_exist_is_no_test", "slwo=3") {
        Some(output) => assert!(!output.status.success()),
        None => result::init().unwrap(),
    }
}

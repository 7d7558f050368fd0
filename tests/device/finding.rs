//! Looking for a driver and its devices.

use std::ffi::c_void;
use std::fs;
use std::sync::Arc;

use kvpipe::Error;
use kvpipe::device::{CudaDevice, CudaVersion, Location, MemoryInfo};

use crate::support::{eventually, in_child, live, on_gpu, runtime};

/// What opening a device says in a child with these switches.
fn refused(name: &str, switches: &str, index: usize, check: impl FnOnce(Error)) {
    let folder = kvpipe_fake_cuda::library_folder().unwrap();
    in_child(name, &folder, switches, || check(CudaDevice::open(index).unwrap_err()));
}

fn assert_unavailable(error: &Error, begin: &str) {
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().starts_with(begin), "{error}");
}

#[test]
fn a_machine_without_a_driver_says_so_and_what_was_tried() {
    let folder = tempfile::tempdir().unwrap();
    // Wherever this machine may have one: these are found first, and are none.
    for name in ["libcuda.so", "libcuda.so.1"] {
        fs::write(folder.path().join(name), "not a library").unwrap();
    }
    let name = "finding::a_machine_without_a_driver_says_so_and_what_was_tried";
    in_child(name, folder.path(), "", || {
        // Again and again: nothing is left half done.
        for _ in 0..2 {
            let error = CudaDevice::open(1).unwrap_err();
            assert_unavailable(&error, "cuda:1 is not available: no driver: ");
            let said = error.to_string();
            assert!(said.contains("libcuda.so.1: ") && said.contains("libcuda.so: "), "{said}");
            assert!(!said.contains('\n'), "{said}");
            let error = CudaDevice::probe().unwrap_err();
            assert_unavailable(&error, "cuda is not available: no driver: ");
            let error = Location::Cuda(1).ensure_available().unwrap_err();
            assert_unavailable(&error, "cuda:1 is not available: no driver: ");
            Location::Cpu.ensure_available().unwrap();
        }
    });
}

#[test]
fn a_driver_without_a_device_says_so_and_has_a_version() {
    let name = "finding::a_driver_without_a_device_says_so_and_has_a_version";
    refused(name, "devices=0", 0, |error| {
        assert_eq!(error.to_string(), "cuda:0 is not available: no device: the driver sees none");
        assert_unavailable(&error, "cuda:0");
        let report = CudaDevice::probe().unwrap();
        assert_eq!((report.version, report.devices.len()), (CudaVersion(13_000), 0));
    });
}

#[test]
fn a_device_beyond_those_that_are_there_is_none() {
    let name = "finding::a_device_beyond_those_that_are_there_is_none";
    refused(name, "devices=2", 2, |error| {
        let said = "cuda:2 is not available: no device: the driver sees 2, counted from 0";
        assert_eq!(error.to_string(), said);
        CudaDevice::open(1).unwrap();
    });
}

#[test]
fn a_driver_that_is_too_old_says_which_is_needed() {
    let name = "finding::a_driver_that_is_too_old_says_which_is_needed";
    refused(name, "version=11030", 0, |error| {
        let begin = "cuda:0 is not available: driver too old: it is made for CUDA 11.3, and 11.4 is needed";
        assert_unavailable(&error, begin);
    });
}

#[test]
fn a_driver_that_lacks_a_function_is_too_old_and_says_which() {
    let folder = tempfile::tempdir().unwrap();
    let (fake, driver) = (kvpipe_fake_cuda::library().unwrap(), folder.path().join("libcuda.so"));
    kvpipe_fake_nccl::without_symbols(&fake, &["cuMemHostAlloc"], &driver).unwrap();
    let name = "finding::a_driver_that_lacks_a_function_is_too_old_and_says_which";
    in_child(name, folder.path(), "", || {
        for _ in 0..2 {
            let error = CudaDevice::open(0).unwrap_err();
            assert_unavailable(&error, "cuda:0 is not available: driver too old: it has no cuMemHostAlloc; ");
        }
    });
}

#[test]
fn a_driver_that_fails_gives_its_code_and_its_words() {
    let name = "finding::a_driver_that_fails_gives_its_code_and_its_words";
    refused(name, "init=999", 0, |error| {
        let Error::Cuda { call, code, text } = &error else { panic!("{error:?}") };
        assert_eq!((*call, *code), ("cuInit", 999));
        assert!(text.starts_with("CUDA_ERROR_UNKNOWN, "), "{text}");
    });
}

#[test]
fn probing_describes_every_device_and_opens_none() {
    let folder = kvpipe_fake_cuda::library_folder().unwrap();
    let name = "finding::probing_describes_every_device_and_opens_none";
    in_child(name, &folder, "devices=3,oom=4096,version=12040", || {
        let report = CudaDevice::probe().unwrap();
        assert_eq!(report.version.to_string(), "12.4");
        for (index, device) in report.devices.iter().enumerate() {
            assert_eq!((device.location, device.total_bytes), (Location::Cuda(index), 4096));
            assert!(!device.name.is_empty());
            assert!(device.compute_capability.0 > 0, "{device:?}");
        }
        Location::Cuda(2).ensure_available().unwrap();
        let error = Location::Cuda(3).ensure_available().unwrap_err();
        assert_unavailable(&error, "cuda:3 is not available: no device: ");
        assert_eq!((report.devices.len(), live().contexts), (3, 0));
    });
}

#[test]
fn a_device_is_opened_once_and_closed_with_its_last_user() {
    let name = "finding::a_device_is_opened_once_and_closed_with_its_last_user";
    on_gpu(name, "devices=2,oom=4096", async |device| {
        let again = CudaDevice::open(0).unwrap();
        assert!(Arc::ptr_eq(&device, &again));
        assert_eq!(live().contexts, 1);
        assert_eq!(device.location(), Location::Cuda(0));
        assert_eq!(device.memory().unwrap(), MemoryInfo { free: 4096, total: 4096 });
        assert!(!device.name().is_empty());
        let other = CudaDevice::open(1).unwrap();
        assert_eq!((other.location(), live().contexts), (Location::Cuda(1), 2));
        drop((device, again));
        assert_eq!(live().contexts, 1);
        drop(other);
        assert_eq!(CudaDevice::open(0).unwrap().location(), Location::Cuda(0));
    });
}

#[test]
fn a_device_is_open_while_memory_of_it_is_in_use() {
    let name = "finding::a_device_is_open_while_memory_of_it_is_in_use";
    on_gpu(name, "", async |device| {
        let buffer = kvpipe::device::DeviceBufferMut::allocate(&device, 100).unwrap().freeze();
        drop(device);
        let part = buffer.slice(10..20).unwrap();
        drop(buffer);
        assert_eq!((live().contexts, live().allocations), (1, 1));
        drop(part);
        eventually(|| live().contexts == 0).await;
    });
}

#[test]
fn a_threads_device_is_what_it_was_before_also_if_there_was_none() {
    let folder = kvpipe_fake_cuda::library_folder().unwrap();
    let name = "finding::a_threads_device_is_what_it_was_before_also_if_there_was_none";
    in_child(name, &folder, "devices=2", || {
        runtime().block_on(async {
            let (ours, theirs) = (CudaDevice::open(0).unwrap(), CudaDevice::open(1).unwrap());
            assert!(current().is_null());
            ours.memory().unwrap();
            assert!(current().is_null(), "ours may be closed while the thread goes on");
            theirs.make_current().unwrap();
            let before = current();
            assert!(!before.is_null());
            ours.memory().unwrap();
            assert_eq!(current(), before);
            assert!(ours.allocate(usize::MAX >> 1).is_err(), "and after a failure");
            assert_eq!(current(), before);
        });
    });
}

fn current() -> *mut c_void {
    let mut context = std::ptr::null_mut();
    // SAFETY: loaded already, and so declared by CUDA.
    unsafe {
        let library = libloading::Library::new("libcuda.so.1").unwrap();
        let ask = library.get::<unsafe extern "C" fn(*mut *mut c_void) -> u32>("cuCtxGetCurrent").unwrap();
        assert_eq!(ask(&raw mut context), 0);
    }
    context
}

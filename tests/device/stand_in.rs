//! A host in a device's place: whose memory is a vector's, whose streams are done at once, and whose
//! allocator waits when it is told to, as a GPU's does while a transfer is stuck.

use std::collections::BTreeMap;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Condvar, Mutex};

use kvpipe::device::{Device, DeviceBufferMut, Location, MemoryInfo, PinnedBuffer};
use kvpipe::{Result, Tensor};
use tokio::time::timeout;

use crate::support::{PATIENCE, eventually, is_done_at_once, runtime};

#[derive(Debug)]
struct Host {
    index: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_stuck: bool,
    /// By address.
    allocations: BTreeMap<u64, Vec<u64>>,
}

impl Host {
    fn open(index: usize) -> (Arc<Self>, Arc<dyn Device>) {
        let host = Arc::new(Self { index, state: Mutex::default(), changed: Condvar::new() });
        (Arc::clone(&host), host)
    }

    fn set_stuck(&self, is_stuck: bool) {
        self.state.lock().unwrap().is_stuck = is_stuck;
        self.changed.notify_all();
    }

    fn allocations(&self) -> usize {
        self.state.lock().unwrap().allocations.len()
    }

    fn with_allocations<T>(&self, change: impl FnOnce(&mut BTreeMap<u64, Vec<u64>>) -> T) -> T {
        let state = self.state.lock().unwrap();
        let mut state = self.changed.wait_while(state, |state| state.is_stuck).unwrap();
        change(&mut state.allocations)
    }
}

impl Device for Host {
    fn location(&self) -> Location {
        Location::Cuda(self.index)
    }

    fn name(&self) -> String {
        "a host".into()
    }

    fn memory(&self) -> Result<MemoryInfo> {
        Ok(MemoryInfo { free: usize::MAX, total: usize::MAX })
    }

    fn make_current(&self) -> Result<()> {
        Ok(())
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut memory = vec![0_u64; bytes.div_ceil(8)];
        let address = memory.as_mut_ptr().expose_provenance() as u64;
        self.with_allocations(|allocations| allocations.insert(address, memory));
        Ok(address)
    }

    unsafe fn free(&self, address: u64, _: usize) -> Result<()> {
        assert!(self.with_allocations(|allocations| allocations.remove(&address)).is_some());
        Ok(())
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<NonNull<u8>> {
        let address = self.allocate(bytes)?;
        Ok(NonNull::new(ptr::with_exposed_provenance_mut(address as usize)).unwrap())
    }

    unsafe fn free_pinned(&self, pointer: NonNull<u8>, bytes: usize) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.free(pointer.addr().get() as u64, bytes) }
    }

    fn create_stream(&self) -> Result<u64> {
        Ok(1)
    }

    unsafe fn destroy_stream(&self, _: u64) -> Result<()> {
        Ok(())
    }

    fn create_event(&self) -> Result<u64> {
        Ok(1)
    }

    unsafe fn destroy_event(&self, _: u64) -> Result<()> {
        Ok(())
    }

    unsafe fn record_event(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    unsafe fn stream_wait_event(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    unsafe fn event_is_complete(&self, _: u64) -> Result<bool> {
        Ok(true)
    }

    unsafe fn copy_to_device(&self, to: u64, from: *const u8, bytes: usize, _: u64) -> Result<()> {
        let to = ptr::with_exposed_provenance_mut(to as usize);
        // SAFETY: as the caller promises.
        unsafe { ptr::copy_nonoverlapping(from, to, bytes) };
        Ok(())
    }

    unsafe fn copy_to_host(&self, to: *mut u8, from: u64, bytes: usize, _: u64) -> Result<()> {
        let from = ptr::with_exposed_provenance(from as usize);
        // SAFETY: as the caller promises.
        unsafe { ptr::copy_nonoverlapping(from, to, bytes) };
        Ok(())
    }

    unsafe fn copy_within(&self, to: u64, from: u64, bytes: usize, stream: u64) -> Result<()> {
        let from = ptr::with_exposed_provenance(from as usize);
        // SAFETY: as the caller promises.
        unsafe { self.copy_to_device(to, from, bytes, stream) }
    }

    unsafe fn fill_zero(&self, to: u64, bytes: usize, _: u64) -> Result<()> {
        let to: *mut u8 = ptr::with_exposed_provenance_mut(to as usize);
        // SAFETY: as the caller promises.
        unsafe { to.write_bytes(0, bytes) };
        Ok(())
    }
}

#[test]
fn a_host_stands_in_for_a_device() {
    runtime().block_on(async {
        let (host, device) = Host::open(7);
        let tensor = Tensor::from_vec([1 << 20], (0..1_u32 << 20).collect()).unwrap();
        let there = tensor.to_device(&device).await.unwrap();
        assert_eq!(there.location(), Location::Cuda(7));
        assert_eq!(there.to_host().await.unwrap(), tensor);
        drop(there);
        eventually(|| host.allocations() == 0).await;
    });
}

/// And not the runtime, either, which may be what has to end a transfer that is stuck.
#[test]
fn a_device_that_is_stuck_holds_up_nobody_who_allocates_or_frees() {
    runtime().block_on(async {
        let (host, device) = Host::open(6);
        let memory = DeviceBufferMut::allocated(&device, 100).await.unwrap();
        let pinned = PinnedBuffer::allocated(&device, 100).await.unwrap();
        host.set_stuck(true);
        let mut allocating = Box::pin(DeviceBufferMut::allocated(&device, 100));
        let mut pinning = Box::pin(PinnedBuffer::allocated(&device, 100));
        for _ in 0..100 {
            assert!(!is_done_at_once(&mut allocating).await);
            assert!(!is_done_at_once(&mut pinning).await);
        }
        drop((memory, pinned));
        // Given up, and freed once it is there.
        drop(pinning);
        assert_eq!(host.allocations(), 2);
        host.set_stuck(false);
        let late = allocating.await.unwrap();
        eventually(|| host.allocations() == 1).await;
        drop(late);
        eventually(|| host.allocations() == 0).await;
    });
}

#[test]
fn a_device_that_hangs_in_a_free_holds_up_no_other() {
    runtime().block_on(async {
        let ((stuck, device), (other, other_device)) = (Host::open(4), Host::open(5));
        let memory = DeviceBufferMut::allocated(&device, 100).await.unwrap();
        stuck.set_stuck(true);
        drop(memory);
        let pinned = timeout(PATIENCE, PinnedBuffer::allocated(&other_device, 100)).await.unwrap().unwrap();
        let buffer =
            timeout(PATIENCE, DeviceBufferMut::allocated(&other_device, 100)).await.unwrap().unwrap();
        assert_eq!(other.allocations(), 2);
        drop((pinned, buffer));
        eventually(|| other.allocations() == 0).await;
        assert_eq!(stuck.allocations(), 1);
        stuck.set_stuck(false);
        eventually(|| stuck.allocations() == 0).await;
    });
}

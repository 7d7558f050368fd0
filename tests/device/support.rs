//! A process with a fake GPU, and a gate for its streams.

use std::ffi::{OsStr, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use kvpipe::device::{CudaDevice, Device, DeviceBuffer, DeviceBufferMut, Staging, Stream};
use kvpipe::{DType, Item, Tensor};
use kvpipe_fake_cuda::{Live, StreamHandle};

/// Beyond everything that happens here, but for a defect.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Says that this process is a child of a test.
const CHILD: &str = "KVPIPE_TEST_DEVICE_CHILD";

/// Runs `body` in a child of the test `name`, with a fake GPU that has the switches. When it is done
/// nothing may be left on the GPU, and nothing may have been misused.
pub(crate) fn on_gpu(name: &str, switches: &str, body: impl AsyncFnOnce(Arc<dyn Device>)) {
    let folder = kvpipe_fake_cuda::library_folder().unwrap();
    in_child(name, &folder, switches, || {
        runtime().block_on(async {
            body(CudaDevice::open(0).unwrap()).await;
            let is_empty = |live: Live| live == Live { misuses: live.misuses, ..Live::default() };
            let emptied = tokio::time::timeout(PATIENCE, async {
                while !is_empty(live()) {
                    tokio::task::yield_now().await;
                }
            });
            assert!(emptied.await.is_ok(), "{:?}", live());
            assert_eq!(live().misuses, 0);
        });
    });
}

/// Runs `body` in a child of the test `name`, whose driver is in `folder`.
pub(crate) fn in_child(name: &str, folder: &Path, switches: &str, body: impl FnOnce()) {
    if std::env::var_os(CHILD).as_deref() == Some(OsStr::new(name)) {
        return body();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, name)
        .env("LD_LIBRARY_PATH", folder)
        .env("KVPIPE_FAKE_CUDA", switches)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{complained}");
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// What is alive on the fake GPU of this process.
pub(crate) fn live() -> Live {
    let mut live = Live::default();
    // SAFETY: loaded already, and so declared by the fake.
    unsafe {
        let library = libloading::Library::new("libcuda.so.1").unwrap();
        let tell = library.get::<unsafe extern "C" fn(*mut Live)>("kvpipe_fake_cuda_live").unwrap();
        tell(&raw mut live);
    }
    live
}

/// Polls a condition that must come true.
pub(crate) async fn eventually(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(waited.is_ok(), "it does not come true");
}

/// Polls a future once; true if it is done.
pub(crate) async fn is_done_at_once(future: impl Future) -> bool {
    tokio::select! {
        biased;
        _ = future => true,
        () = std::future::ready(()) => false,
    }
}

/// Holds up a stream: what is put on it later begins once the gate is opened or dropped.
pub(crate) struct Gate {
    state: Arc<(Mutex<bool>, Condvar)>,
    reached: Arc<AtomicBool>,
}

impl Gate {
    pub(crate) fn on(stream: &Stream) -> Self {
        let gate = Self { state: Arc::default(), reached: Arc::default() };
        let data = Box::new((Arc::clone(&gate.state), Arc::clone(&gate.reached)));
        let handle: *mut StreamHandle = std::ptr::with_exposed_provenance_mut(stream.raw() as usize);
        // SAFETY: a stream of the fake is such a handle, which is never freed; `wait` takes the box.
        unsafe { ((*handle).enqueue)(handle.cast(), wait, Box::into_raw(data).cast()) };
        gate
    }

    pub(crate) fn open(self) {}

    /// Whether the stream has come so far.
    pub(crate) fn is_reached(&self) -> bool {
        self.reached.load(Ordering::SeqCst)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        *self.state.0.lock().unwrap() = true;
        self.state.1.notify_all();
    }
}

type GateData = (Arc<(Mutex<bool>, Condvar)>, Arc<AtomicBool>);

unsafe extern "C" fn wait(data: *mut c_void) {
    // SAFETY: `Gate::on` gave the box, for this one call.
    let (state, reached) = *unsafe { Box::from_raw(data.cast::<GateData>()) };
    reached.store(true, Ordering::SeqCst);
    let mut is_open = state.0.lock().unwrap();
    while !*is_open {
        is_open = state.1.wait(is_open).unwrap();
    }
}

/// `len` bytes, no part of which is like another, nor like those of any other `mark`.
pub(crate) fn content(len: usize, mark: u64) -> Vec<u8> {
    let words = (0..len.div_ceil(8) as u64).flat_map(|word| (mark << 40 | word).to_le_bytes());
    words.take(len).collect()
}

/// Such bytes, on the device.
pub(crate) async fn on_device(device: &Arc<dyn Device>, len: usize, mark: u64) -> DeviceBuffer {
    Staging::new(device).unwrap().to_device(&content(len, mark)).await.unwrap()
}

/// A tensor of such bytes, on the device.
pub(crate) async fn device_tensor(device: &Arc<dyn Device>, len: usize, mark: u64) -> Tensor {
    Tensor::on_device(DType::UInt8, [len], on_device(device, len, mark).await).unwrap()
}

/// All bytes of a buffer on a device.
pub(crate) async fn read(buffer: &DeviceBuffer) -> Vec<u8> {
    let mut bytes = vec![0; buffer.len()];
    Staging::new(buffer.device()).unwrap().to_host(buffer, &mut bytes).await.unwrap();
    bytes
}

/// A tensor that is `content(len, 2)` once the gate of its producer is opened.
pub(crate) async fn promised(device: &Arc<dyn Device>, len: usize) -> (Item, Gate) {
    let source = on_device(device, len, 2).await;
    let producer = Stream::new(device).unwrap();
    let target = DeviceBufferMut::allocate(device, len).unwrap();
    let (_, target) = producer.copy(&source, target).unwrap().done().await.unwrap();
    let gate = Gate::on(&producer);
    let ready = producer.record().unwrap();
    let tensor = Tensor::on_device(DType::UInt8, [len], target.freeze().with_ready(ready)).unwrap();
    (Some(tensor), gate)
}

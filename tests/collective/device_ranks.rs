//! Groups on NCCL, whose ranks share the fake GPU of this process.

use std::ffi::c_void;
use std::ptr::with_exposed_provenance_mut;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use kvpipe::collective::{Backend, ProcessGroupConfig};
use kvpipe::device::{CudaDevice, Device, DeviceBufferMut, Location, Stream};
use kvpipe::tensor::TensorMut;
use kvpipe::{DType, Tensor};
use kvpipe_fake_cuda::stream::StreamHandle;

use crate::child::cuda;
use crate::ranks;

pub(crate) fn config() -> ProcessGroupConfig {
    let backend = Backend::named("nccl", Location::Cuda(0)).unwrap();
    ProcessGroupConfig { backend, ..ranks::config() }
}

pub(crate) fn device() -> Arc<dyn Device> {
    CudaDevice::open(0).unwrap()
}

/// A copy on the GPU.
pub(crate) async fn on_gpu(tensor: &Tensor) -> Tensor {
    tensor.to_device(&device()).await.unwrap()
}

/// A copy on the GPU, to be written to.
pub(crate) async fn own(tensor: &Tensor) -> TensorMut {
    let (from, stream) = (on_gpu(tensor).await, Stream::new(&device()).unwrap());
    let to = DeviceBufferMut::allocate(&device(), tensor.byte_len()).unwrap();
    let (_, to) = stream.copy(from.device_buffer().unwrap(), to).unwrap().done().await.unwrap();
    TensorMut::on_device(tensor.dtype(), *tensor.shape(), to).unwrap()
}

/// Memory on the GPU for such a tensor.
pub(crate) async fn room(dtype: DType, shape: &[usize]) -> TensorMut {
    TensorMut::allocated(&device(), dtype, shape).await.unwrap()
}

/// Work on a stream that waits until this is dropped.
pub(crate) struct Gate(#[expect(dead_code, reason = "dropped")] Sender<()>);

/// A tensor on the GPU that is not ready before the gate opens.
pub(crate) async fn late(tensor: &Tensor) -> (Tensor, Gate) {
    let (tensor, stream) = (on_gpu(tensor).await, Stream::new(&device()).unwrap());
    let (gate, opened) = channel::<()>();
    let (handle, data) = (with_exposed_provenance_mut::<c_void>(stream.raw() as usize), Box::new(opened));
    // SAFETY: a stream of kvpipe-fake-cuda, whose handles are never freed.
    unsafe { ((*handle.cast::<StreamHandle>()).enqueue)(handle, wait, Box::into_raw(data).cast()) };
    let buffer = tensor.device_buffer().unwrap().clone().with_ready(stream.record().unwrap());
    (Tensor::on_device(tensor.dtype(), *tensor.shape(), buffer).unwrap(), Gate(gate))
}

unsafe extern "C" fn wait(data: *mut c_void) {
    // SAFETY: the box from above, given once.
    let opened = unsafe { Box::from_raw(data.cast::<Receiver<()>>()) };
    // An error means that the gate is gone.
    let _ = opened.recv();
}

/// Waits until there are so many events on the GPU: one for each late tensor, and one for each operation
/// that NCCL does.
pub(crate) async fn until_events(events: u64) {
    while cuda().events != events {
        tokio::task::yield_now().await;
    }
}

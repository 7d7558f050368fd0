//! Two ranks, and their tensors.

use std::ffi::c_void;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use kvpipe::device::{CudaDevice, Device, Stream};
use kvpipe::nccl::Library;
use kvpipe::net::TokioNet;
use kvpipe::store::MemoryStore;
use kvpipe::transport::Ring;
use kvpipe::transport::nccl::{NcclConfig, NcclIncoming, NcclOutgoing};
use kvpipe::transport::tcp::TcpConfig;
use kvpipe::{Error, Item, Pipe, PipeConfig, Tensor};
use kvpipe_fake_cuda::StreamHandle;

/// Longer than anything here takes, on a busy machine too.
pub(crate) const HANG: Duration = Duration::from_secs(120);

pub(crate) fn device() -> Arc<dyn Device> {
    CudaDevice::open(0).unwrap()
}

/// What both ends use. A dead peer is found after a second.
pub(crate) fn config() -> NcclConfig {
    config_on(0)
}

/// The same on another device.
pub(crate) fn config_on(device: usize) -> NcclConfig {
    let mut config = NcclConfig::new(CudaDevice::open(device).unwrap(), Library::load(None).unwrap());
    config.control = TcpConfig { heartbeat: Duration::from_secs(1), ..TcpConfig::default() };
    config
}

pub(crate) fn ring(rank: usize) -> Ring {
    Ring::new(rank, 2).unwrap()
}

/// One direction, from rank 0 to rank 1.
pub(crate) async fn edge(
    config: NcclConfig,
) -> (NcclOutgoing<TokioNet, MemoryStore>, NcclIncoming<TokioNet>) {
    edge_between(config.clone(), config).await
}

pub(crate) async fn edge_between(
    from: NcclConfig,
    to: NcclConfig,
) -> (NcclOutgoing<TokioNet, MemoryStore>, NcclIncoming<TokioNet>) {
    let (store, address) = (MemoryStore::new(), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0));
    let incoming = NcclIncoming::bind(TokioNet, &store, ring(1), address, to).await.unwrap();
    (NcclOutgoing::new(TokioNet, store, ring(0), from).unwrap(), incoming)
}

/// A pipe at each end of it.
pub(crate) async fn pipes(config: NcclConfig, limits: PipeConfig) -> (Pipe, Pipe) {
    let (outgoing, incoming) = edge(config).await;
    let (sender, driver) = Pipe::send_only(outgoing, limits.clone());
    tokio::spawn(driver);
    let (receiver, driver) = Pipe::receive_only(incoming, limits);
    tokio::spawn(driver);
    (sender, receiver)
}

/// A tensor of `bytes` that differ from place to place, and from mark to mark.
pub(crate) fn tensor(bytes: usize, mark: usize) -> Tensor {
    let content: Vec<u8> = (0..bytes).map(|index| (index * 31 + index / 251 + mark * 17) as u8).collect();
    Tensor::from_vec([bytes], content).unwrap()
}

/// A tensor on the device that is ready once something is sent, or the sender is dropped.
pub(crate) async fn promised(bytes: usize) -> (Tensor, Sender<()>) {
    let there = tensor(bytes, 0).to_device(&device()).await.unwrap();
    let producer = Stream::new(&device()).unwrap();
    let gate = hold_up(&producer);
    let ready = producer.record().unwrap();
    let buffer = there.device_buffer().unwrap().clone().with_ready(ready);
    (Tensor::on_device(there.dtype(), *there.shape(), buffer).unwrap(), gate)
}

/// Holds up a stream until something is sent, or the sender is dropped.
pub(crate) fn hold_up(stream: &Stream) -> Sender<()> {
    unsafe extern "C" fn wait(data: *mut c_void) {
        // SAFETY: `hold_up` gave the box, for this one call.
        let gate = unsafe { Box::from_raw(data.cast::<Receiver<()>>()) };
        let _ = gate.recv();
    }
    let (sender, receiver) = channel::<()>();
    let data = Box::into_raw(Box::new(receiver));
    let handle: *mut StreamHandle = std::ptr::with_exposed_provenance_mut(stream.raw() as usize);
    // SAFETY: a stream of the fake is such a handle; `wait` takes the box.
    unsafe { ((*handle).enqueue)(handle.cast(), wait, data.cast()) };
    sender
}

/// Polls a condition that must come true.
pub(crate) async fn eventually(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(HANG, waiting).await.expect("it does not come true");
}

/// What is received next, in host memory.
pub(crate) async fn receive(pipe: &Pipe) -> Result<Item, Error> {
    let item = tokio::time::timeout(HANG, pipe.recv()).await.expect("it hangs")?;
    match item {
        Some(tensor) => tensor.to_host().await.map(Some),
        None => Ok(None),
    }
}

/// The end of a stream that must fail.
pub(crate) async fn failure(pipe: &Pipe) -> Error {
    loop {
        if let Err(error) = receive(pipe).await {
            return error;
        }
    }
}

/// How sending ends.
pub(crate) async fn send_failure(pipe: &Pipe) -> Error {
    tokio::time::timeout(HANG, pipe.close()).await.expect("it hangs").unwrap_err()
}

//! kvpipe's devices and communicators in one process, on the host.

use std::sync::Arc;

use kvpipe::device::{Device, Stream};
use kvpipe::nccl::{Communicator, CommunicatorConfig, Library, ReduceOp};
use kvpipe::{Error, Tensor};
use kvpipe_sim::device::HostDevice;

#[tokio::test]
async fn ranks_of_one_process_reduce_and_exchange_tensors() {
    let library = Library::from_functions("linked", kvpipe_sim::nccl::functions()).unwrap();
    let id = library.unique_id().unwrap();
    let ranks = [0, 1].map(|rank| rank_of(rank, id, Arc::clone(&library)));
    let [first, second] = ranks.map(tokio::spawn);
    assert_eq!(first.await.unwrap(), [3.0; 1000]);
    assert_eq!(second.await.unwrap(), [3.0; 1000]);
    // Memory and streams are given back by threads of their own.
    while kvpipe_fake_cuda::live() != Default::default() || kvpipe_fake_nccl::live() != Default::default() {
        tokio::task::yield_now().await;
        assert_eq!((kvpipe_fake_cuda::live().misuses, kvpipe_fake_nccl::live().misuses), (0, 0));
    }
}

/// What the other rank sends: the sum of both.
async fn rank_of(rank: usize, id: kvpipe::nccl::UniqueId, library: Arc<Library>) -> Vec<f32> {
    let device: Arc<dyn Device> = HostDevice::open(0).unwrap();
    let stream = Stream::new(&device).unwrap();
    let config = CommunicatorConfig::default();
    let communicator =
        Communicator::with_unique_id(id, [rank, 2], Arc::clone(&device), library, config).await.unwrap();
    let own = Tensor::from_slice([1000], &[rank as f32 + 1.0; 1000]).unwrap();
    let own = own.to_device(&device).await.unwrap();
    let sum = communicator.all_reduce(&own, ReduceOp::Sum, &stream).await.unwrap();
    let mut group = communicator.group();
    group.send(&sum, 1 - rank).unwrap();
    group.recv(sum.dtype(), *sum.shape(), 1 - rank).await.unwrap();
    let received = group.run(&stream).await.unwrap().remove(0);
    received.to_host().await.unwrap().as_slice().unwrap().to_vec()
}

#[test]
fn a_device_that_is_not_there_is_not_opened() {
    assert!(matches!(HostDevice::open(1), Err(Error::Cuda { call: "cuDeviceGet", code: 101, .. })));
}

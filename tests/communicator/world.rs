//! Ranks on one fake device, and their tensors.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kvpipe::Tensor;
use kvpipe::device::{CudaDevice, Device, Stream};
use kvpipe::nccl::{Communicator, CommunicatorConfig, Library};

use crate::child::cuda;

/// Longer than anything here takes, on a busy machine too: what is still going on then hangs.
pub(crate) const HANG: Duration = Duration::from_secs(120);

/// A rank of a world.
pub(crate) struct Rank {
    pub(crate) communicator: Communicator,
    pub(crate) stream: Stream,
}

pub(crate) fn device() -> Arc<dyn Device> {
    CudaDevice::open(0).unwrap()
}

pub(crate) fn library() -> Arc<Library> {
    Library::load(None).unwrap()
}

pub(crate) fn config() -> CommunicatorConfig {
    CommunicatorConfig::default()
}

/// Communicators of so many ranks.
pub(crate) async fn world(ranks: usize) -> Vec<Arc<Rank>> {
    let id = library().unique_id().unwrap();
    let forming = (0..ranks).map(|rank| async move {
        let communicator =
            Communicator::with_unique_id(id, [rank, ranks], device(), library(), config()).await.unwrap();
        Arc::new(Rank { communicator, stream: Stream::new(&device()).unwrap() })
    });
    all(forming).await
}

/// Two ranks that have exchanged something in both directions, so that they are connected: until then the
/// first call to a peer is in progress, and no other may be made.
pub(crate) async fn connected() -> Vec<Arc<Rank>> {
    let world = world(2).await;
    let exchanging = world.iter().cloned().map(|rank| async move {
        let other = 1 - rank.communicator.rank();
        let byte = Tensor::from_slice([1], &[0_u8]).unwrap().to_device(&device()).await.unwrap();
        let mut group = rank.communicator.group();
        group.send(&byte, other).unwrap();
        group.recv(byte.dtype(), *byte.shape(), other).await.unwrap();
        group.run(&rank.stream).await.unwrap();
    });
    all(exchanging.collect::<Vec<_>>()).await;
    // What the exchange used is given back by threads.
    while cuda().allocations > 0 || cuda().events > 0 {
        tokio::task::yield_now().await;
    }
    world
}

/// Runs futures side by side, and gives their outputs in order.
pub(crate) async fn all<F>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    let tasks: Vec<_> = futures.into_iter().map(tokio::spawn).collect();
    let mut outputs = Vec::new();
    for task in tasks {
        outputs.push(tokio::time::timeout(HANG, task).await.expect("it hangs").unwrap());
    }
    outputs
}

/// What each rank of a world makes of the tensor that it has.
pub(crate) async fn each<T, F>(
    world: &[Arc<Rank>],
    inputs: &[Tensor],
    work: impl Fn(Arc<Rank>, Tensor) -> F,
) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let mut futures = Vec::new();
    for (rank, input) in world.iter().zip(inputs) {
        let input = input.to_device(&device()).await.unwrap();
        futures.push(work(Arc::clone(rank), input));
    }
    all(futures).await
}

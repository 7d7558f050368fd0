//! The limit on GPUs: how fast two processes move items by NCCL and nothing else.
//!
//! Groups of `ncclSend` or `ncclRecv` on one communicator, some of them enqueued ahead, into device memory
//! that is used again. Nothing is announced, acknowledged, queued or resumed. How many items a group has
//! decides much where they are small, and not the same way for every size, so the limit is the best of
//! [`GROUP_ITEMS`].

use std::sync::Arc;
use std::time::Duration;

use kvpipe::device::{DevicePool, Stream};
use kvpipe::group::{GroupConfig, StatelessProcessGroup};
use kvpipe::nccl::{Communicator, CommunicatorConfig};
use kvpipe::net::TokioNet;
use kvpipe::store::tcp::TcpStore;
use kvpipe::tensor::{DType, Shape, Tensor};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::peer::PEER_PATIENCE;
use crate::failure::Failure;
use crate::gpu::Gpu;

/// How many items a group has, in turn.
pub(super) const GROUP_ITEMS: [usize; 3] = [1, 8, 64];

/// Groups that are enqueued at most: the device is to have the next when it has done one.
const GROUPS_AHEAD: usize = 8;

/// One of the two ends.
pub(super) struct RawNccl {
    communicator: Arc<Communicator>,
    stream: Stream,
    pool: DevicePool,
    buffer_bytes: usize,
    peer: usize,
}

impl RawNccl {
    /// Meets the other end; both do so at the same time.
    pub(super) async fn meet(
        rank: usize,
        store: &TcpStore<TokioNet>,
        gpu: &Gpu,
        buffer_bytes: usize,
    ) -> Result<Self, Failure> {
        let group = StatelessProcessGroup::new(store.clone(), rank, 2, GroupConfig::default())?;
        let limits = CommunicatorConfig {
            connect_timeout: PEER_PATIENCE,
            operation_timeout: PEER_PATIENCE,
            ..CommunicatorConfig::default()
        };
        let (device, library) = (Arc::clone(&gpu.device), Arc::clone(&gpu.library));
        let communicator = Communicator::new(&group, device, Some(library), limits).await?;
        let (stream, pool) = (Stream::new(&gpu.device)?, DevicePool::new(&gpu.device, buffer_bytes));
        Ok(Self { communicator: Arc::new(communicator), stream, pool, buffer_bytes, peer: 1 - rank })
    }

    /// Sends so many items, the sources in turn, and returns when the device has done it.
    pub(super) async fn send(
        &self,
        sources: &[Tensor],
        items: u64,
        group_items: usize,
    ) -> Result<(), Failure> {
        let size = sources.first().map_or(0, Tensor::byte_len);
        let mut sources = sources.iter().cycle();
        let mut running = Running::new(self.groups_ahead(size, group_items));
        for count in groups(items, group_items) {
            let batch: Vec<Tensor> = sources.by_ref().take(count).cloned().collect();
            let (communicator, stream, peer) =
                (Arc::clone(&self.communicator), self.stream.clone(), self.peer);
            running
                .add(async move {
                    let mut group = communicator.group();
                    batch.iter().try_for_each(|tensor| group.send(tensor, peer))?;
                    group.run(&stream).await.map(drop)
                })
                .await?;
        }
        running.finish().await
    }

    /// Receives so many items of a size, and returns when they are there.
    pub(super) async fn receive(&self, size: usize, items: u64, group_items: usize) -> Result<(), Failure> {
        let shape = Shape::new(&[size])?;
        let mut running = Running::new(self.groups_ahead(size, group_items));
        for count in groups(items, group_items) {
            let (communicator, stream, peer) =
                (Arc::clone(&self.communicator), self.stream.clone(), self.peer);
            let pool = self.pool.clone();
            running
                .add(async move {
                    let mut group = communicator.group();
                    for _ in 0..count {
                        group.recv_into(
                            pool.take_beside(size, usize::MAX).await?,
                            DType::UInt8,
                            shape,
                            peer,
                        )?;
                    }
                    group.run(&stream).await.map(drop)
                })
                .await?;
        }
        running.finish().await
    }

    /// Sends a tensor and receives one like it, `count` times. Gives the time that each took.
    pub(super) async fn round_trips(&self, message: &Tensor, count: u64) -> Result<Vec<Duration>, Failure> {
        let mut latencies = Vec::new();
        for _ in 0..count {
            let begin = Instant::now();
            self.send(std::slice::from_ref(message), 1, 1).await?;
            self.receive(message.byte_len(), 1, 1).await?;
            latencies.push(begin.elapsed());
        }
        Ok(latencies)
    }

    /// Sends each of `count` messages of `size` bytes back.
    pub(super) async fn echo(&self, size: usize, count: u64) -> Result<(), Failure> {
        let shape = Shape::new(&[size])?;
        for _ in 0..count {
            let message = self.communicator.recv(DType::UInt8, shape, self.peer, &self.stream).await?;
            self.communicator.send(&message, self.peer, &self.stream).await?;
        }
        Ok(())
    }

    /// With as many bytes on the way as the pipe may have.
    fn groups_ahead(&self, size: usize, group_items: usize) -> usize {
        (self.buffer_bytes / size.saturating_mul(group_items).max(1)).clamp(1, GROUPS_AHEAD)
    }
}

/// The group sizes that don't have more on the way than a pipe of this budget; one item at least.
pub(super) fn group_sizes(size: usize, buffer_bytes: usize) -> impl Iterator<Item = usize> {
    let fits = move |items: usize| items == 1 || size.saturating_mul(items) <= buffer_bytes;
    GROUP_ITEMS.into_iter().filter(move |items| fits(*items))
}

/// How many items each group has.
fn groups(items: u64, group_items: usize) -> impl Iterator<Item = usize> {
    let group_items = group_items as u64;
    (0..items.div_ceil(group_items)).map(move |group| {
        let rest = items - group * group_items;
        usize::try_from(rest.min(group_items)).unwrap_or(usize::MAX)
    })
}

/// Groups that run at the same time. All have items of one size, so that it does not matter if one of them
/// comes before another.
struct Running {
    tasks: JoinSet<kvpipe::Result<()>>,
    most: usize,
}

impl Running {
    fn new(most: usize) -> Self {
        Self { tasks: JoinSet::new(), most }
    }

    async fn add(
        &mut self,
        group: impl Future<Output = kvpipe::Result<()>> + Send + 'static,
    ) -> Result<(), Failure> {
        if self.tasks.len() == self.most {
            self.join().await?;
        }
        self.tasks.spawn(group);
        Ok(())
    }

    async fn finish(mut self) -> Result<(), Failure> {
        while !self.tasks.is_empty() {
            self.join().await?;
        }
        Ok(())
    }

    async fn join(&mut self) -> Result<(), Failure> {
        match self.tasks.join_next().await {
            None => Ok(()),
            Some(Ok(ended)) => Ok(ended?),
            Some(Err(error)) => Err(Failure::new(format!("bug in kvpipe: a group of sends ended: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_all_items_and_no_more_than_they_may() {
        assert_eq!(groups(0, 8).count(), 0);
        assert_eq!(groups(16, 8).collect::<Vec<_>>(), [8, 8]);
        assert_eq!(groups(17, 8).collect::<Vec<_>>(), [8, 8, 1]);
    }

    #[test]
    fn a_group_is_no_more_than_the_budget_unless_it_is_one_item() {
        assert_eq!(group_sizes(10, 640).collect::<Vec<_>>(), [1, 8, 64]);
        assert_eq!(group_sizes(10, 639).collect::<Vec<_>>(), [1, 8]);
        assert_eq!(group_sizes(1000, 639).collect::<Vec<_>>(), [1]);
    }
}

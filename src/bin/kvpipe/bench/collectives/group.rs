//! What is measured: a process group of kvpipe.

use std::time::Duration;

use kvpipe::collective::{ProcessGroup, ProcessGroupConfig, ReduceOp};
use kvpipe::net::TokioNet;
use kvpipe::store::tcp::TcpStore;
use kvpipe::tensor::{DType, Tensor, TensorMut};
use kvpipe::transport::Ring;
use tokio::time::Instant;

use super::step::Work;
use crate::args::Operation;
use crate::failure::Failure;

/// A rank, and its memory.
pub(super) struct Group {
    group: ProcessGroup<TokioNet>,
    prepared: Option<Prepared>,
}

/// The memory of an operation, which comes back from it.
enum Prepared {
    AllReduce(TensorMut),
    AllGather(Tensor, TensorMut),
}

impl Group {
    /// Meets the others.
    pub(super) async fn join(
        store: &TcpStore<TokioNet>,
        ring: Ring,
        patience: Duration,
    ) -> Result<Self, Failure> {
        let config = ProcessGroupConfig { timeout: patience, ..ProcessGroupConfig::default() };
        let group = ProcessGroup::from_store(TokioNet, store, ring.rank(), ring.world_size(), config).await?;
        Ok(Self { group, prepared: None })
    }

    /// Has the memory for this, in place of the last, and looks at every element of a first result.
    pub(super) async fn prepare(&mut self, work: Work) -> Result<(), Failure> {
        // The old goes before the new comes.
        self.prepared = None;
        let number = |rank: usize| (rank + 1) as f32;
        let mut tensor = TensorMut::zeroed(DType::Float32, [work.elements])?;
        tensor.as_slice_mut()?.fill(number(self.group.rank()));
        let ranks = 0..self.group.size();
        let (prepared, expected): (_, Vec<f32>) = match work.operation {
            Operation::AllReduce => (Prepared::AllReduce(tensor), vec![ranks.map(number).sum()]),
            Operation::AllGather => {
                let output = TensorMut::zeroed(DType::Float32, [ranks.len() * work.elements])?;
                (Prepared::AllGather(tensor.freeze(), output), ranks.map(number).collect())
            }
        };
        let mut prepared = prepared.run(&self.group).await?;
        let (Prepared::AllReduce(output) | Prepared::AllGather(_, output)) = &mut prepared;
        let output = output.as_slice_mut::<f32>()?;
        let parts = output.chunks(work.elements).zip(&expected);
        if parts.into_iter().any(|(part, expected)| part.iter().any(|element| element != expected)) {
            return Err(Failure::new(format!("{} gave other numbers than {expected:?}", work.operation)));
        }
        if work.operation == Operation::AllReduce {
            // Sums of sums would soon be infinite.
            output.fill(0.0);
        }
        self.prepared = Some(prepared);
        Ok(())
    }

    /// How long `count` operations take, once all ranks have done some to warm up.
    pub(super) async fn time(&mut self, count: u64, warm_up: u64) -> Result<Duration, Failure> {
        let prepared = self.prepared.take();
        let mut prepared = prepared.ok_or_else(|| Failure::new("bug in kvpipe: nothing is prepared"))?;
        for _ in 0..warm_up {
            prepared = prepared.run(&self.group).await?;
        }
        self.group.barrier().await?;
        let begin = Instant::now();
        for _ in 0..count {
            prepared = prepared.run(&self.group).await?;
        }
        let elapsed = begin.elapsed();
        self.prepared = Some(prepared);
        Ok(elapsed)
    }

    pub(super) async fn leave(self) -> Result<(), Failure> {
        Ok(self.group.destroy().await?)
    }
}

impl Prepared {
    async fn run(self, group: &ProcessGroup<TokioNet>) -> Result<Self, Failure> {
        Ok(match self {
            Self::AllReduce(tensor) => {
                Self::AllReduce(group.all_reduce_in_place(tensor, ReduceOp::Sum).await?)
            }
            Self::AllGather(input, output) => {
                let output = group.all_gather_into(&input, output).await?;
                Self::AllGather(input, output)
            }
        })
    }
}

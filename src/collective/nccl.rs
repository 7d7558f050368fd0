//! Operations on device tensors, over NCCL.
//!
//! NCCL does not tell one rank of another's death, nor that it calls something else: it waits, or moves
//! wrong bytes. So beside the communicator there is always a [host mesh](super::host), and an operation has
//! two halves, in one turn: all ranks agree in what they call, by a barrier on the host, or an empty message
//! where it concerns two; and then NCCL is asked, while the mesh is looked after. What ends a group of hosts
//! in the middle of an operation ends this one: whoever finds it out tells the others, and each aborts its
//! communicator, on a thread of its own, for which nobody waits.
//!
//! | operation | NCCL's |
//! |---|---|
//! | barrier | nothing: to agree is all there is to it |
//! | all-reduce, reduce, broadcast, all-gather, reduce-scatter | the same |
//! | all-gather of unequal parts | a broadcast of each part, in one group |
//! | reduce-scatter of unequal parts | a reduce of each part, in one group |
//! | gather, scatter, all-to-all, send, receive | sends and receives, in one group |

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::config::POOL_IDLE_BYTES_MAX;
use super::host::{Host, Members, Parties};
use super::memory::{Input, Memory};
use super::plan::Planner;
use super::program::Program;
use super::request::{Checked, Operation, Request};
use crate::device::{Device, DeviceBufferMut, DevicePool, Location, Stream};
use crate::error::{Error, Result};
use crate::nccl::communicator::Collective;
use crate::nccl::{Communicator, CommunicatorConfig, DataType, Library};
use crate::net::Net;
use crate::tensor::{DType, Shape, TensorMut};
use crate::transport::timing::GOODBYE;
use crate::wire::UniqueId;
use crate::wire::collective::Call;

/// A rank's communicator, and what it works with.
pub(super) struct Nccl {
    communicator: Communicator,
    /// Of the group's own, so that nothing of the user's is waited for but what makes an input.
    stream: Stream,
    pool: DevicePool,
}

impl Nccl {
    /// Forms it by the deadline, with the ranks that `host` reaches. `limit` is for messages.
    pub(super) async fn form<N: Net>(
        host: &Host<N>,
        members: Members,
        planner: &Planner,
        (device, library): (Arc<dyn Device>, Option<Arc<Library>>),
        limit: Duration,
        deadline: Instant,
    ) -> Result<Self> {
        let stream = Stream::new(&device)?;
        let pool = DevicePool::new(&device, POOL_IDLE_BYTES_MAX);
        let config = CommunicatorConfig {
            connect_timeout: limit,
            // The deadline is that of the whole operation, and the group's to keep.
            operation_timeout: Duration::MAX,
            ..CommunicatorConfig::default()
        };
        let communicator = match (members.size, library) {
            (1, _) => Communicator::alone(device, config),
            (size, None) => {
                let (what, reason) = (format!("a group of {size} ranks on NCCL"), "no library was given");
                return Err(Error::Unavailable { what, reason: reason.into() });
            }
            (_, Some(library)) => meet(host, members, planner, (device, library), config, deadline).await?,
        };
        Ok(Self { communicator, stream, pool })
    }

    /// Memory for a result.
    pub(super) async fn output(&self, dtype: DType, shape: Shape, limit: Duration) -> Result<TensorMut> {
        let bytes = shape.byte_len(dtype)?;
        // The driver may wait for the device, which may wait for a rank.
        let memory = timeout(limit, self.pool.take_beside(bytes, POOL_IDLE_BYTES_MAX)).await;
        let location = self.communicator.device().location();
        let late = |_| Err(Error::timeout(format!("{location} to allocate {bytes} bytes"), limit));
        TensorMut::on_device(dtype, shape, memory.unwrap_or_else(late)?)
    }

    /// Carries out a call that was checked, and gives its output back.
    pub(super) async fn carry_out<N: Net>(
        &self,
        host: &Host<N>,
        planner: &Planner,
        Request { operation, input, output }: Request<'_>,
        checked: &Checked,
        limit: Duration,
    ) -> Result<Option<TensorMut>> {
        if operation.reduces_by().is_some() {
            DataType::for_reduction(checked.dtype)?;
        }
        let shape = output.as_ref().map(|output| *output.shape());
        let output = output.map(|output| self.own(output)).transpose()?;
        let input = match input {
            Some(input) => {
                let buffer = input.device_buffer().filter(|_| self.is_here(input.location()));
                Some(buffer.cloned().ok_or_else(|| self.elsewhere("input", input.location()))?)
            }
            None => None,
        };
        let rank = self.communicator.rank();
        let work = async {
            match collective(&operation, checked, rank) {
                Some(what) => {
                    self.communicator.collect(&what, checked.dtype, input, output, &self.stream).await
                }
                None => Ok(output),
            }
        };
        let (call, program) = (Call::new(&checked.words), agreement(planner, checked.parties, rank));
        let _ended_with_the_group = EndedWith { host, communicator: &self.communicator };
        let memory = Memory::new(Input::Apart(&[]), &mut [], &mut []);
        let output = host.run_then(checked.parties, &call, &program, memory, limit, work).await?;
        match (output, shape) {
            (Some(output), Some(shape)) => TensorMut::on_device(checked.dtype, shape, output).map(Some),
            _ => Ok(None),
        }
    }

    /// Lets NCCL finish what it does for others, if the group is well.
    pub(super) async fn leave(self, failure: Option<&Error>) {
        if let Some(failure) = failure {
            self.communicator.fail(failure.clone());
        }
        self.communicator.close(2 * GOODBYE).await;
    }

    fn own(&self, output: TensorMut) -> Result<DeviceBufferMut> {
        let location = output.location();
        let buffer = output.into_device_buffer().filter(|_| self.is_here(location));
        buffer.ok_or_else(|| self.elsewhere("output", location))
    }

    fn is_here(&self, location: Location) -> bool {
        location == self.communicator.device().location()
    }

    fn elsewhere(&self, what: &str, its: Location) -> Error {
        let ours = self.communicator.device().location();
        let advice = match its {
            Location::Cpu => "copy it there (Tensor::to_device), or use a group of the backend host",
            Location::Cuda(_) => "a group works on one device",
        };
        Error::Misuse(format!("this group works on {ours}, with NCCL, and the {what} is on {its}: {advice}"))
    }
}

/// Forms the communicator of ranks that have met.
async fn meet<N: Net>(
    host: &Host<N>,
    members: Members,
    planner: &Planner,
    (device, library): (Arc<dyn Device>, Arc<Library>),
    config: CommunicatorConfig,
    deadline: Instant,
) -> Result<Communicator> {
    let Members { rank, size } = members;
    let left = || deadline.saturating_duration_since(Instant::now());
    let mut id = match rank {
        0 => library.unique_id()?,
        _ => UniqueId([0; UniqueId::BYTES]),
    };
    // NCCL refuses ranks of another version, too, but after a while, and not at all ranks.
    let what = format!("forming a group on NCCL {}", library.version());
    let program = planner.broadcast(UniqueId::BYTES, 0, true);
    let mut scratch = vec![0; program.scratch_bytes];
    let memory = Memory::new(Input::Within { at: 0 }, &mut id.0, &mut scratch);
    host.run(Parties::All, &Call::new(&what), &program, memory, left()).await?;

    let forming = Communicator::warmed_up(id, [rank, size], device, library, config, deadline);
    let memory = Memory::new(Input::Apart(&[]), &mut [], &mut []);
    let call = Call::new(format!("{what}, with rank 0's id"));
    host.run_then(Parties::All, &call, &planner.barrier(), memory, left(), forming).await
}

/// Moves nothing, and ends only when all parties have called the same.
fn agreement(planner: &Planner, parties: Parties, rank: usize) -> Program {
    match parties {
        Parties::All => planner.barrier(),
        Parties::Two { from, to } if from == rank => planner.send(to, 0),
        Parties::Two { from, .. } => planner.recv(from, 0),
    }
}

/// What is asked of NCCL, if anything is.
fn collective(operation: &Operation, checked: &Checked, rank: usize) -> Option<Collective> {
    let parts = || checked.parts.clone();
    Some(match *operation {
        Operation::Barrier => return None,
        Operation::AllReduce { op } => Collective::AllReduce { op },
        Operation::Reduce { op, root } => Collective::Reduce { op, root },
        Operation::Broadcast { root } => Collective::Broadcast { root },
        Operation::AllGather { rows: None } => Collective::AllGather,
        Operation::AllGather { rows: Some(_) } => Collective::AllGatherV { parts: parts() },
        Operation::ReduceScatter { op, rows: None } => Collective::ReduceScatter { op },
        Operation::ReduceScatter { op, rows: Some(_) } => Collective::ReduceScatterV { op, parts: parts() },
        Operation::Gather { root } => Collective::Gather { root },
        Operation::Scatter { root } => Collective::Scatter { root },
        Operation::AllToAll => Collective::AllToAll,
        Operation::Send { from, to } if from == rank => Collective::Send { to },
        Operation::Send { from, .. } => Collective::Recv { from },
    })
}

/// Ends what NCCL does as soon as the group has failed, also where an operation's future is dropped.
struct EndedWith<'a, N: Net> {
    host: &'a Host<N>,
    communicator: &'a Communicator,
}

impl<N: Net> Drop for EndedWith<'_, N> {
    fn drop(&mut self) {
        if let Some(cause) = self.host.failure() {
            self.communicator.fail((*cause).clone());
        }
    }
}

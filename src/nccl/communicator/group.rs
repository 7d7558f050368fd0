//! Sends and receives that progress together.

use super::operations::{number, transfer};
use super::{Call, Communicator};
use crate::device::{DeviceBuffer, DeviceBufferMut, Event, Stream};
use crate::error::{Error, Result};
use crate::tensor::{DType, Shape, Tensor};

/// Sends and receives that are handed to NCCL in one, so that two ranks which send to each other don't
/// wait for each other. It is started and ended when it [runs](Self::run); dropped before, nothing has
/// happened.
#[derive(Debug)]
pub struct Group<'a> {
    communicator: &'a Communicator,
    calls: Vec<Call>,
    sources: Vec<DeviceBuffer>,
    targets: Vec<(DType, Shape, DeviceBufferMut)>,
}

impl Communicator {
    /// An empty group of operations.
    #[must_use]
    pub fn group(&self) -> Group<'_> {
        Group { communicator: self, calls: Vec::new(), sources: Vec::new(), targets: Vec::new() }
    }
}

impl Group<'_> {
    /// Adds the sending of a tensor to rank `dst`.
    ///
    /// # Errors
    /// [`Error::Misuse`] if there is no such other rank, or the tensor is not on the device.
    pub fn send(&mut self, tensor: &Tensor, dst: usize) -> Result<()> {
        self.check_peer(dst)?;
        let from = self.communicator.local(tensor)?;
        let (data_type, count) = transfer(tensor.dtype(), from.len());
        if count > 0 {
            self.calls.push(Call::Send { from: from.address(), count, data_type, peer: number(dst) });
            self.sources.push(from);
        }
        Ok(())
    }

    /// Adds the receiving of a tensor that rank `src` sends.
    ///
    /// # Errors
    /// [`Error::Misuse`] if there is no such other rank, or the tensor can't be; and as the device, if it
    /// has no memory for it.
    ///
    /// # Cancel safety
    /// Dropped early, nothing is added.
    pub async fn recv(&mut self, dtype: DType, shape: Shape, src: usize) -> Result<()> {
        self.check_peer(src)?;
        let to = self.communicator.output(shape.byte_len(dtype)?).await?;
        self.recv_into(to, dtype, shape, src)
    }

    /// As [`recv`](Self::recv), into memory that is there already, such as that of a
    /// [`DevicePool`](crate::device::DevicePool): to allocate takes longer than to receive.
    ///
    /// # Errors
    /// [`Error::Misuse`] if there is no such other rank, or the memory is elsewhere or not as long as the
    /// tensor.
    pub fn recv_into(&mut self, to: DeviceBufferMut, dtype: DType, shape: Shape, src: usize) -> Result<()> {
        self.check_peer(src)?;
        self.communicator.check_location("memory", to.device().location())?;
        if to.len() != shape.byte_len(dtype)? {
            let bytes = to.len();
            return Err(Error::Misuse(format!(
                "a tensor {dtype} {shape} can't be received into {bytes} bytes"
            )));
        }
        let (data_type, count) = transfer(dtype, to.len());
        if count > 0 {
            self.calls.push(Call::Recv { to: to.address(), count, data_type, peer: number(src) });
        }
        self.targets.push((dtype, shape, to));
        Ok(())
    }

    /// Does all of it, and gives what was received, in the order of [`recv`](Self::recv).
    ///
    /// # Errors
    /// As the operations of the [`Communicator`].
    ///
    /// # Cancel safety
    /// As theirs.
    pub async fn run(self, stream: &Stream) -> Result<Vec<Tensor>> {
        let Self { communicator, calls, sources, targets } = self;
        let targets = match calls.is_empty() {
            true => targets,
            false => {
                let after: Vec<Event> = sources.iter().filter_map(|from| from.ready().cloned()).collect();
                let operations = calls.len();
                // SAFETY: each address and count is of one of these buffers.
                let work = unsafe { communicator.enqueue(calls, (sources, targets), after, stream).await? };
                let awaited = || format!("{operations} sends and receives");
                communicator.finish(work, awaited).await?.1
            }
        };
        targets.into_iter().map(|(dtype, shape, to)| Tensor::on_device(dtype, shape, to.freeze())).collect()
    }

    fn check_peer(&self, peer: usize) -> Result<()> {
        self.communicator.check_rank(peer)?;
        match peer == self.communicator.rank {
            true => {
                Err(Error::Misuse(format!("rank {peer} is this rank, which has nothing to send to itself")))
            }
            false => Ok(()),
        }
    }
}

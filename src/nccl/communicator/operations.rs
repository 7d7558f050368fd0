//! The operations on tensors. Each returns when the device has done it.

use std::ffi::c_int;

use super::collective::Collective;
use super::{Call, Communicator};
use crate::device::{DeviceBuffer, DeviceBufferMut, InFlight, Location, Stream};
use crate::error::{Error, Result};
use crate::nccl::{DataType, ReduceOp};
use crate::tensor::{DType, Shape, Tensor};

/// Every operation takes the stream on which NCCL does it. It begins when what the stream had to do
/// before is done, and when the input is [ready](DeviceBuffer::ready). Inputs must be on the
/// communicator's device.
///
/// # Errors
/// [`Error::Misuse`] for an input that is elsewhere, a rank that does not exist, and sizes that don't
/// fit; all of them before NCCL is asked. [`Error::Nccl`] with what NCCL says, [`Error::Timeout`], and
/// the reason of [`abort`](Self::abort) are the end of the communicator.
///
/// # Cancel safety
/// Dropped early, the operation goes on without the caller, and frees its memory when it is done.
impl Communicator {
    /// The reduction over all ranks of tensors of the same dtype and shape, at every rank.
    ///
    /// # Errors
    /// See [above](Self#impl-Communicator-1). [`Error::Misuse`] also for a dtype that NCCL can't reduce.
    pub async fn all_reduce(&self, input: &Tensor, op: ReduceOp, stream: &Stream) -> Result<Tensor> {
        self.reducible(input)?;
        if self.is_idle(input) {
            return Ok(input.clone());
        }
        self.carry_out(&Collective::AllReduce { op }, Some(input), like(input), stream).await
    }

    /// The reduction over all ranks of tensors of the same dtype and shape, at rank `root`; None
    /// elsewhere.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub async fn reduce(
        &self,
        input: &Tensor,
        op: ReduceOp,
        root: usize,
        stream: &Stream,
    ) -> Result<Option<Tensor>> {
        self.check_rank(root)?;
        let from = self.reducible(input)?;
        let (is_root, reduction) = (root == self.rank, Collective::Reduce { op, root });
        if self.is_idle(input) {
            return Ok(is_root.then(|| input.clone()));
        }
        if is_root {
            return self.carry_out(&reduction, Some(input), like(input), stream).await.map(Some);
        }
        self.collect(&reduction, input.dtype(), Some(from), None, stream).await.map(|_| None)
    }

    /// The tensors of all ranks, of the same dtype and shape, joined along the first dimension in the
    /// order of ranks. Scalars become one dimension.
    ///
    /// # Errors
    /// See [above](Self#impl-Communicator-1).
    pub async fn all_gather(&self, input: &Tensor, stream: &Stream) -> Result<Tensor> {
        let from = self.local(input)?;
        let (rows, row_shape) = input.shape().rows();
        let shape = Shape::of_rows(rows * self.world_size, row_shape)?;
        if self.members.is_none() {
            return Tensor::on_device(input.dtype(), shape, from);
        }
        self.carry_out(&Collective::AllGather, Some(input), (input.dtype(), shape), stream).await
    }

    /// As [`all_gather`](Self::all_gather), of tensors that have `sizes[rank]` rows: that many in the
    /// first dimension, and the same others.
    ///
    /// # Errors
    /// See [above](Self#impl-Communicator-1). [`Error::Misuse`] also if `sizes` has not one entry for
    /// each rank, or the input not as many rows as its own.
    pub async fn all_gatherv(&self, input: &Tensor, sizes: &[usize], stream: &Stream) -> Result<Tensor> {
        let from = self.local(input)?;
        let (own_rows, row_shape) = input.shape().rows();
        let total = self.check_sizes(sizes)?;
        self.check_rows("its part of an all_gatherv", sizes[self.rank], own_rows)?;
        let shape = Shape::of_rows(total, row_shape)?;
        if self.members.is_none() {
            return Tensor::on_device(input.dtype(), shape, from);
        }
        let gathering = Collective::AllGatherV { parts: parts(sizes, row_shape, input.dtype())? };
        self.carry_out(&gathering, Some(input), (input.dtype(), shape), stream).await
    }

    /// Rank r's part, the r-th of equal parts along the first dimension, of the reduction over all
    /// ranks of tensors of the same dtype and shape.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce). [`Error::Misuse`] also if the first dimension can't be
    /// divided so.
    pub async fn reduce_scatter(&self, input: &Tensor, op: ReduceOp, stream: &Stream) -> Result<Tensor> {
        let from = self.reducible(input)?;
        let (all_rows, row_shape) = input.shape().rows();
        if input.shape().dims().is_empty() || all_rows % self.world_size != 0 {
            let ranks = self.world_size;
            return Err(Error::Misuse(format!("{} can't be divided among {ranks} ranks", input.shape())));
        }
        let shape = Shape::of_rows(all_rows / self.world_size, row_shape)?;
        if self.is_idle(input) {
            return Tensor::on_device(input.dtype(), shape, from);
        }
        let reduction = Collective::ReduceScatter { op };
        self.carry_out(&reduction, Some(input), (input.dtype(), shape), stream).await
    }

    /// As [`reduce_scatter`](Self::reduce_scatter), with a part of `sizes[rank]` rows for each rank.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce). [`Error::Misuse`] also if `sizes` has not one entry for each
    /// rank, or the input not as many rows as all of them.
    pub async fn reduce_scatterv(
        &self,
        input: &Tensor,
        sizes: &[usize],
        op: ReduceOp,
        stream: &Stream,
    ) -> Result<Tensor> {
        let from = self.reducible(input)?;
        let (all_rows, row_shape) = input.shape().rows();
        let total = self.check_sizes(sizes)?;
        self.check_rows("the input of a reduce_scatterv", total, all_rows)?;
        let shape = Shape::of_rows(sizes[self.rank], row_shape)?;
        if self.is_idle(input) {
            return Tensor::on_device(input.dtype(), shape, from);
        }
        let parts = parts(sizes, row_shape, input.dtype())?;
        let reduction = Collective::ReduceScatterV { op, parts };
        self.carry_out(&reduction, Some(input), (input.dtype(), shape), stream).await
    }

    /// The tensor of rank `root`, at every rank. All give its dtype and shape, `root` the tensor, too.
    ///
    /// # Errors
    /// See [above](Self#impl-Communicator-1). [`Error::Misuse`] also if `root` gives no tensor, or
    /// another one than it says.
    pub async fn broadcast(
        &self,
        dtype: DType,
        shape: Shape,
        input: Option<&Tensor>,
        root: usize,
        stream: &Stream,
    ) -> Result<Tensor> {
        self.check_rank(root)?;
        let broadcast = Collective::Broadcast { root };
        if root != self.rank {
            return self.carry_out(&broadcast, None, (dtype, shape), stream).await;
        }
        let input =
            input.filter(|input| (input.dtype(), *input.shape()) == (dtype, shape)).ok_or_else(|| {
                Error::Misuse(format!("rank {root} broadcasts, and so must give a tensor {dtype} {shape}"))
            })?;
        let from = self.local(input)?;
        self.collect(&broadcast, dtype, Some(from), None, stream).await?;
        Ok(input.clone())
    }

    /// Sends a tensor to rank `dst`, which must receive one of as many bytes.
    ///
    /// # Errors
    /// See [above](Self#impl-Communicator-1).
    pub async fn send(&self, input: &Tensor, dst: usize, stream: &Stream) -> Result<()> {
        let mut group = self.group();
        group.send(input, dst)?;
        group.run(stream).await.map(drop)
    }

    /// Receives a tensor that rank `src` sends.
    ///
    /// # Errors
    /// See [above](Self#impl-Communicator-1).
    pub async fn recv(&self, dtype: DType, shape: Shape, src: usize, stream: &Stream) -> Result<Tensor> {
        let mut group = self.group();
        group.recv(dtype, shape, src).await?;
        let mut received = group.run(stream).await?;
        received.pop().ok_or_else(|| Error::Bug("a receive received nothing".into()))
    }

    /// Enqueues the sending of bytes. They come back when the stream has sent them.
    pub(crate) async fn begin_send(
        &self,
        from: &DeviceBuffer,
        dst: usize,
        stream: &Stream,
    ) -> Result<InFlight<DeviceBuffer>> {
        let data_type = DataType::Uint8;
        let call = Call::Send { from: from.address(), count: from.len(), data_type, peer: number(dst) };
        let after = from.ready().cloned().into_iter().collect();
        // SAFETY: the buffer is constant, as long as that, and goes along.
        unsafe { self.enqueue(vec![call], from.clone(), after, stream).await }
    }

    /// Enqueues the receiving of as many bytes as `to` has. It comes back when they are there.
    pub(crate) async fn begin_recv(
        &self,
        to: DeviceBufferMut,
        src: usize,
        stream: &Stream,
    ) -> Result<InFlight<DeviceBufferMut>> {
        let data_type = DataType::Uint8;
        let call = Call::Recv { to: to.address(), count: to.len(), data_type, peer: number(src) };
        // SAFETY: the buffer is exclusive, as long as that, and goes along.
        unsafe { self.enqueue(vec![call], to, Vec::new(), stream).await }
    }

    /// The memory of a tensor that is on our device.
    pub(super) fn local(&self, tensor: &Tensor) -> Result<DeviceBuffer> {
        self.check_location("tensor", tensor.location())?;
        // What has the location of a device has a buffer there.
        tensor.device_buffer().cloned().ok_or_else(|| Error::Misuse("NCCL moves no host memory".into()))
    }

    /// The same of one that NCCL can compute with.
    fn reducible(&self, tensor: &Tensor) -> Result<DeviceBuffer> {
        DataType::for_reduction(tensor.dtype())?;
        self.local(tensor)
    }

    /// Refuses what is elsewhere.
    pub(super) fn check_location(&self, what: &str, its: Location) -> Result<()> {
        match self.device.location() {
            ours if ours == its => Ok(()),
            ours => {
                Err(Error::Misuse(format!("this communicator works on {ours}, and the {what} is on {its}")))
            }
        }
    }

    /// Memory for what an operation gives. The driver may wait for the device before it has any.
    pub(super) async fn output(&self, bytes: usize) -> Result<DeviceBufferMut> {
        let allocating = DeviceBufferMut::allocated(&self.device, bytes);
        self.wait(allocating, || format!("{} to allocate {bytes} bytes", self.device.location())).await
    }

    /// Refuses ranks that don't exist.
    pub(super) fn check_rank(&self, rank: usize) -> Result<()> {
        match rank < self.world_size {
            true => Ok(()),
            false => Err(Error::Misuse(format!("there is no rank {rank} of {}", self.world_size))),
        }
    }

    /// Whether there is nothing to do for NCCL: nobody else, or no bytes.
    fn is_idle(&self, input: &Tensor) -> bool {
        self.members.is_none() || input.byte_len() == 0
    }

    fn check_sizes(&self, sizes: &[usize]) -> Result<usize> {
        let total = sizes.iter().try_fold(0_usize, |sum, size| sum.checked_add(*size));
        match total {
            Some(total) if sizes.len() == self.world_size => Ok(total),
            _ => Err(Error::Misuse(format!("{} sizes for {} ranks", sizes.len(), self.world_size))),
        }
    }

    fn check_rows(&self, what: &str, expected: usize, found: usize) -> Result<()> {
        match expected == found {
            true => Ok(()),
            false => Err(Error::Misuse(format!("{what} has {found} rows, where the sizes say {expected}"))),
        }
    }

    /// Does it, with memory for the output, which is a tensor like that.
    async fn carry_out(
        &self,
        collective: &Collective,
        input: Option<&Tensor>,
        (dtype, shape): (DType, Shape),
        stream: &Stream,
    ) -> Result<Tensor> {
        let from = input.map(|input| self.local(input)).transpose()?;
        let to = self.output(shape.byte_len(dtype)?).await?;
        let output = self.collect(collective, dtype, from, Some(to), stream).await?;
        let output = output.ok_or_else(|| Error::Bug("an operation of NCCL had no output".into()))?;
        Tensor::on_device(dtype, shape, output.freeze())
    }
}

fn like(tensor: &Tensor) -> (DType, Shape) {
    (tensor.dtype(), *tensor.shape())
}

/// The bytes of each rank's rows.
fn parts(sizes: &[usize], row_shape: &[usize], dtype: DType) -> Result<Vec<usize>> {
    let row_bytes = Shape::of_rows(1, row_shape)?.byte_len(dtype)?;
    Ok(sizes.iter().map(|rows| rows * row_bytes).collect())
}

/// As what NCCL moves so many bytes of a dtype, and how many of it.
pub(super) fn transfer(dtype: DType, bytes: usize) -> (DataType, usize) {
    let (data_type, unit_bytes) = DataType::for_transfer(dtype);
    (data_type, bytes / unit_bytes)
}

/// A rank that was checked, as NCCL counts them.
pub(super) fn number(rank: usize) -> c_int {
    c_int::try_from(rank).unwrap_or(c_int::MAX)
}

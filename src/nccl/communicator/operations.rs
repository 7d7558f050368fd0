//! The operations on tensors. Each returns when the device has done it.

use std::ffi::c_int;

use super::{Call, Communicator};
use crate::device::{DeviceBuffer, DeviceBufferMut, Event, InFlight, Stream};
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
        let from = self.local(input)?;
        let data_type = DataType::for_reduction(input.dtype())?;
        if self.is_idle(input) {
            return Ok(input.clone());
        }
        let to = self.output(from.len()).await?;
        let count = input.shape().element_count();
        let call = Call::AllReduce { from: from.address(), to: to.address(), count, data_type, op };
        let output = self.carry_out(vec![call], from, Some(to), stream, "all_reduce").await?;
        tensor(input.dtype(), *input.shape(), output)
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
        let from = self.local(input)?;
        let data_type = DataType::for_reduction(input.dtype())?;
        let is_root = root == self.rank;
        if self.is_idle(input) {
            return Ok(is_root.then(|| input.clone()));
        }
        let to = match is_root {
            true => Some(self.output(from.len()).await?),
            false => None,
        };
        let (count, address) =
            (input.shape().element_count(), to.as_ref().map_or(0, DeviceBufferMut::address));
        let call =
            Call::Reduce { from: from.address(), to: address, count, data_type, op, root: number(root) };
        match self.carry_out(vec![call], from, to, stream, "reduce").await? {
            Some(output) => tensor(input.dtype(), *input.shape(), Some(output)).map(Some),
            None => Ok(None),
        }
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
            return tensor(input.dtype(), shape, Some(from));
        }
        let to = self.output(shape.byte_len(input.dtype())?).await?;
        if input.byte_len() == 0 {
            return tensor(input.dtype(), shape, Some(to.freeze()));
        }
        let (data_type, count) = transfer(input.dtype(), input.byte_len());
        let call = Call::AllGather { from: from.address(), to: to.address(), count, data_type };
        let output = self.carry_out(vec![call], from, Some(to), stream, "all_gather").await?;
        tensor(input.dtype(), shape, output)
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
            return tensor(input.dtype(), shape, Some(from));
        }
        let to = self.output(shape.byte_len(input.dtype())?).await?;
        let row_bytes = Shape::of_rows(1, row_shape)?.byte_len(input.dtype())?;
        let calls = parts(sizes, row_bytes).map(|(root, offset, bytes)| Call::Broadcast {
            from: from.address(),
            to: to.address() + offset,
            count: bytes,
            data_type: DataType::Uint8,
            root: number(root),
        });
        let output = self.carry_out(calls.collect(), from, Some(to), stream, "all_gatherv").await?;
        tensor(input.dtype(), shape, output)
    }

    /// Rank r's part, the r-th of equal parts along the first dimension, of the reduction over all
    /// ranks of tensors of the same dtype and shape.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce). [`Error::Misuse`] also if the first dimension can't be
    /// divided so.
    pub async fn reduce_scatter(&self, input: &Tensor, op: ReduceOp, stream: &Stream) -> Result<Tensor> {
        let from = self.local(input)?;
        let data_type = DataType::for_reduction(input.dtype())?;
        let (all_rows, row_shape) = input.shape().rows();
        if input.shape().dims().is_empty() || all_rows % self.world_size != 0 {
            let ranks = self.world_size;
            return Err(Error::Misuse(format!("{} can't be divided among {ranks} ranks", input.shape())));
        }
        let shape = Shape::of_rows(all_rows / self.world_size, row_shape)?;
        if self.is_idle(input) {
            return tensor(input.dtype(), shape, Some(from));
        }
        let to = self.output(shape.byte_len(input.dtype())?).await?;
        let count = shape.element_count();
        let call = Call::ReduceScatter { from: from.address(), to: to.address(), count, data_type, op };
        let output = self.carry_out(vec![call], from, Some(to), stream, "reduce_scatter").await?;
        tensor(input.dtype(), shape, output)
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
        let from = self.local(input)?;
        let data_type = DataType::for_reduction(input.dtype())?;
        let (all_rows, row_shape) = input.shape().rows();
        let total = self.check_sizes(sizes)?;
        self.check_rows("the input of a reduce_scatterv", total, all_rows)?;
        let shape = Shape::of_rows(sizes[self.rank], row_shape)?;
        if self.is_idle(input) {
            return tensor(input.dtype(), shape, Some(from));
        }
        let to = self.output(shape.byte_len(input.dtype())?).await?;
        let row_bytes = Shape::of_rows(1, row_shape)?.byte_len(input.dtype())?;
        let element_bytes = row_bytes / row_shape.iter().product::<usize>().max(1);
        let calls = parts(sizes, row_bytes).map(|(root, offset, bytes)| Call::Reduce {
            from: from.address() + offset,
            to: if root == self.rank { to.address() } else { 0 },
            count: bytes / element_bytes.max(1),
            data_type,
            op,
            root: number(root),
        });
        let calls = calls.collect();
        let output = self.carry_out(calls, from, Some(to), stream, "reduce_scatterv").await?;
        tensor(input.dtype(), shape, output)
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
        let bytes = shape.byte_len(dtype)?;
        let (data_type, count) = transfer(dtype, bytes);
        if root != self.rank {
            let to = self.output(bytes).await?;
            if bytes == 0 {
                return tensor(dtype, shape, Some(to.freeze()));
            }
            let call = Call::Broadcast { from: 0, to: to.address(), count, data_type, root: number(root) };
            let output = self.carry_out_with(vec![call], None, Some(to), stream, "broadcast").await?;
            return tensor(dtype, shape, output);
        }
        let input =
            input.filter(|input| (input.dtype(), *input.shape()) == (dtype, shape)).ok_or_else(|| {
                Error::Misuse(format!("rank {root} broadcasts, and so must give a tensor {dtype} {shape}"))
            })?;
        let from = self.local(input)?;
        if !self.is_idle(input) {
            // In place: NCCL writes nothing at the root then.
            let address = from.address();
            let call = Call::Broadcast { from: address, to: address, count, data_type, root: number(root) };
            self.carry_out(vec![call], from, None, stream, "broadcast").await?;
        }
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
        let (ours, its) = (self.device.location(), tensor.location());
        tensor.device_buffer().filter(|_| ours == its).cloned().ok_or_else(|| {
            Error::Misuse(format!("this communicator works on {ours}, and the tensor is on {its}"))
        })
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

    async fn carry_out(
        &self,
        calls: Vec<Call>,
        from: DeviceBuffer,
        to: Option<DeviceBufferMut>,
        stream: &Stream,
        what: &'static str,
    ) -> Result<Option<DeviceBuffer>> {
        self.carry_out_with(calls, Some(from), to, stream, what).await
    }

    /// Does it, and gives the output.
    async fn carry_out_with(
        &self,
        calls: Vec<Call>,
        from: Option<DeviceBuffer>,
        to: Option<DeviceBufferMut>,
        stream: &Stream,
        what: &'static str,
    ) -> Result<Option<DeviceBuffer>> {
        let after: Vec<Event> = from.iter().filter_map(|from| from.ready().cloned()).collect();
        // SAFETY: counts and addresses are computed above from the lengths of these two.
        let work = unsafe { self.enqueue(calls, (from, to), after, stream).await? };
        let awaited = || format!("{what} of {} ranks", self.world_size);
        let (_, to) = self.finish(work, awaited).await?;
        Ok(to.map(DeviceBufferMut::freeze))
    }
}

/// Rank, offset and length in bytes of each part that is not empty.
fn parts(sizes: &[usize], row_bytes: usize) -> impl Iterator<Item = (usize, u64, usize)> {
    sizes
        .iter()
        .scan(0, move |offset, size| {
            let begin = *offset;
            *offset += size * row_bytes;
            Some((begin as u64, size * row_bytes))
        })
        .enumerate()
        .map(|(rank, (offset, bytes))| (rank, offset, bytes))
        .filter(|(_, _, bytes)| *bytes > 0)
}

fn tensor(dtype: DType, shape: Shape, buffer: Option<DeviceBuffer>) -> Result<Tensor> {
    let buffer = buffer.ok_or_else(|| Error::Bug("an operation of NCCL had no output".into()))?;
    Tensor::on_device(dtype, shape, buffer)
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

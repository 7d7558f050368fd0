//! What can be asked of a group, whatever carries it.

use super::ReduceOp;
use super::group::ProcessGroup;
use super::request::{Operation, Request};
use crate::error::{Error, Result};
use crate::net::Net;
use crate::tensor::{DType, Shape, Tensor, TensorMut};

/// # Operations
///
/// Each has up to three forms: the plain one makes the memory for its result, `_into` fills memory that
/// the caller gives, and `_in_place` uses one and the same for both. Memory goes in and comes back; it is
/// lost if the operation fails.
///
/// *Errors*: see the [module](super); [`Error::Misuse`] besides, and nothing begun, for a tensor that is
/// not where the group works, for an output of another dtype or shape than the result, for a rank that
/// does not exist, and for a dtype that can't be reduced.
///
/// *Cancel safety*: none. Once it has begun, an operation whose future is dropped breaks the group. One
/// that waits for earlier calls to end may be dropped.
impl<N: Net> ProcessGroup<N> {
    /// Waits until every rank has called it.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn barrier(&self) -> Result<()> {
        let request = Request { operation: Operation::Barrier, input: None, output: None };
        self.carry_out(request).await.map(drop)
    }

    /// The reduction of the tensors of all ranks, which have the same dtype and shape, at all ranks.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn all_reduce(&self, input: &Tensor, op: ReduceOp) -> Result<Tensor> {
        let output = self.output(input.dtype(), *input.shape()).await?;
        self.all_reduce_into(input, output, op).await.map(TensorMut::freeze)
    }

    /// [`all_reduce`](Self::all_reduce) into `output`, a tensor like the input.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn all_reduce_into(
        &self,
        input: &Tensor,
        output: TensorMut,
        op: ReduceOp,
    ) -> Result<TensorMut> {
        self.fill(Operation::AllReduce { op }, Some(input), output).await
    }

    /// [`all_reduce`](Self::all_reduce) in place.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn all_reduce_in_place(&self, tensor: TensorMut, op: ReduceOp) -> Result<TensorMut> {
        self.fill(Operation::AllReduce { op }, None, tensor).await
    }

    /// The reduction of the tensors of all ranks, which have the same dtype and shape, at rank `root`;
    /// None elsewhere.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn reduce(&self, input: &Tensor, op: ReduceOp, root: usize) -> Result<Option<Tensor>> {
        let output = match root == self.rank() {
            true => Some(self.output(input.dtype(), *input.shape()).await?),
            false => None,
        };
        Ok(self.reduce_into(input, output, op, root).await?.map(TensorMut::freeze))
    }

    /// [`reduce`](Self::reduce) into `output`, a tensor like the input, which only `root` gives.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn reduce_into(
        &self,
        input: &Tensor,
        output: Option<TensorMut>,
        op: ReduceOp,
        root: usize,
    ) -> Result<Option<TensorMut>> {
        let operation = Operation::Reduce { op, root };
        self.carry_out(Request { operation, input: Some(input), output }).await
    }

    /// [`reduce`](Self::reduce) in place: at ranks other than `root` the tensor comes back as it was.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn reduce_in_place(&self, tensor: TensorMut, op: ReduceOp, root: usize) -> Result<TensorMut> {
        self.fill(Operation::Reduce { op, root }, None, tensor).await
    }

    /// The tensor of rank `root`, at all ranks. All give its dtype and shape, `root` the tensor, too.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn broadcast(
        &self,
        dtype: DType,
        shape: impl TryInto<Shape, Error: Into<Error>>,
        input: Option<&Tensor>,
        root: usize,
    ) -> Result<Tensor> {
        let output = self.output(dtype, shape).await?;
        let input = input.filter(|_| root == self.rank());
        self.broadcast_into(input, output, root).await.map(TensorMut::freeze)
    }

    /// [`broadcast`](Self::broadcast) into `output`, a tensor like the one that `root`, and nobody else,
    /// gives.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn broadcast_into(
        &self,
        input: Option<&Tensor>,
        output: TensorMut,
        root: usize,
    ) -> Result<TensorMut> {
        if input.is_some() != (root == self.rank()) {
            let what = format!("rank {root} broadcasts, and so it and no other rank gives the tensor");
            return Err(Error::Misuse(what));
        }
        self.fill(Operation::Broadcast { root }, input, output).await
    }

    /// [`broadcast`](Self::broadcast) of what `tensor` is at rank `root`, into what it is elsewhere.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn broadcast_in_place(&self, tensor: TensorMut, root: usize) -> Result<TensorMut> {
        self.fill(Operation::Broadcast { root }, None, tensor).await
    }

    /// The tensors of all ranks, of the same dtype and shape, joined along the first dimension in the
    /// order of ranks. Scalars become one dimension.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn all_gather(&self, input: &Tensor) -> Result<Tensor> {
        let (rows, row) = input.shape().rows();
        let output =
            self.output(input.dtype(), Shape::of_rows(total(&vec![rows; self.size()])?, row)?).await?;
        self.all_gather_into(input, output).await.map(TensorMut::freeze)
    }

    /// [`all_gather`](Self::all_gather) into `output`.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn all_gather_into(&self, input: &Tensor, output: TensorMut) -> Result<TensorMut> {
        self.fill(Operation::AllGather { rows: None }, Some(input), output).await
    }

    /// [`all_gather`](Self::all_gather) in place: rank r's tensor is the r-th of equal parts of `tensor`.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn all_gather_in_place(&self, tensor: TensorMut) -> Result<TensorMut> {
        self.fill(Operation::AllGather { rows: None }, None, tensor).await
    }

    /// As [`all_gather`](Self::all_gather), of tensors that have `rows[rank]` rows: that many in the first
    /// dimension, and the same others.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn all_gatherv(&self, input: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let (_, row) = input.shape().rows();
        let output = self.output(input.dtype(), Shape::of_rows(total(rows)?, row)?).await?;
        self.all_gatherv_into(input, rows, output).await.map(TensorMut::freeze)
    }

    /// [`all_gatherv`](Self::all_gatherv) into `output`.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn all_gatherv_into(
        &self,
        input: &Tensor,
        rows: &[usize],
        output: TensorMut,
    ) -> Result<TensorMut> {
        self.fill(Operation::AllGather { rows: Some(rows.into()) }, Some(input), output).await
    }

    /// [`all_gatherv`](Self::all_gatherv) in place: each rank's tensor is its part of `tensor`.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn all_gatherv_in_place(&self, tensor: TensorMut, rows: &[usize]) -> Result<TensorMut> {
        self.fill(Operation::AllGather { rows: Some(rows.into()) }, None, tensor).await
    }

    /// Rank r's part, the r-th of equal parts along the first dimension, of the reduction of the tensors of
    /// all ranks.
    ///
    /// # Errors
    /// See [above](#operations). [`Error::Misuse`] also if the first dimension can't be divided so.
    pub async fn reduce_scatter(&self, input: &Tensor, op: ReduceOp) -> Result<Tensor> {
        let shape = self.part(input.shape())?;
        let output = self.output(input.dtype(), shape).await?;
        self.reduce_scatter_into(input, output, op).await.map(TensorMut::freeze)
    }

    /// [`reduce_scatter`](Self::reduce_scatter) into `output`.
    ///
    /// # Errors
    /// As `reduce_scatter`.
    pub async fn reduce_scatter_into(
        &self,
        input: &Tensor,
        output: TensorMut,
        op: ReduceOp,
    ) -> Result<TensorMut> {
        self.fill(Operation::ReduceScatter { op, rows: None }, Some(input), output).await
    }

    /// [`reduce_scatter`](Self::reduce_scatter) in place: the result is a part of `tensor`, the rest of
    /// which is lost.
    ///
    /// # Errors
    /// As `reduce_scatter`.
    pub async fn reduce_scatter_in_place(&self, tensor: TensorMut, op: ReduceOp) -> Result<Tensor> {
        self.part(tensor.shape())?;
        self.reduce_own_part(tensor, None, op).await
    }

    /// As [`reduce_scatter`](Self::reduce_scatter), with a part of `rows[rank]` rows for each rank.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn reduce_scatterv(&self, input: &Tensor, rows: &[usize], op: ReduceOp) -> Result<Tensor> {
        let (_, row) = input.shape().rows();
        let own = rows.get(self.rank()).copied().unwrap_or_default();
        let output = self.output(input.dtype(), Shape::of_rows(own, row)?).await?;
        self.reduce_scatterv_into(input, rows, output, op).await.map(TensorMut::freeze)
    }

    /// [`reduce_scatterv`](Self::reduce_scatterv) into `output`.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn reduce_scatterv_into(
        &self,
        input: &Tensor,
        rows: &[usize],
        output: TensorMut,
        op: ReduceOp,
    ) -> Result<TensorMut> {
        let operation = Operation::ReduceScatter { op, rows: Some(rows.into()) };
        self.fill(operation, Some(input), output).await
    }

    /// [`reduce_scatterv`](Self::reduce_scatterv) in place: the result is a part of `tensor`, the rest of
    /// which is lost.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn reduce_scatterv_in_place(
        &self,
        tensor: TensorMut,
        rows: &[usize],
        op: ReduceOp,
    ) -> Result<Tensor> {
        self.reduce_own_part(tensor, Some(rows), op).await
    }

    /// The tensors of all ranks, of the same dtype and shape, joined along the first dimension, at rank
    /// `root`; None elsewhere.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn gather(&self, input: &Tensor, root: usize) -> Result<Option<Tensor>> {
        let (rows, row) = input.shape().rows();
        let output = match root == self.rank() {
            true => Some(
                self.output(input.dtype(), Shape::of_rows(total(&vec![rows; self.size()])?, row)?).await?,
            ),
            false => None,
        };
        Ok(self.gather_into(input, output, root).await?.map(TensorMut::freeze))
    }

    /// [`gather`](Self::gather) into `output`, which only `root` gives.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn gather_into(
        &self,
        input: &Tensor,
        output: Option<TensorMut>,
        root: usize,
    ) -> Result<Option<TensorMut>> {
        let operation = Operation::Gather { root };
        self.carry_out(Request { operation, input: Some(input), output }).await
    }

    /// Rank r's part, the r-th of equal parts along the first dimension, of the tensor of rank `root`. All
    /// give the part's dtype and shape, `root` the tensor, too.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn scatter(
        &self,
        dtype: DType,
        shape: impl TryInto<Shape, Error: Into<Error>>,
        input: Option<&Tensor>,
        root: usize,
    ) -> Result<Tensor> {
        let output = self.output(dtype, shape).await?;
        self.scatter_into(input, output, root).await.map(TensorMut::freeze)
    }

    /// [`scatter`](Self::scatter) into `output`.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn scatter_into(
        &self,
        input: Option<&Tensor>,
        output: TensorMut,
        root: usize,
    ) -> Result<TensorMut> {
        let input = input.filter(|_| root == self.rank());
        self.fill(Operation::Scatter { root }, input, output).await
    }

    /// Every rank's tensor, of the same dtype and shape, is cut along the first dimension into a part for
    /// each rank; the result is what all ranks have for this one, joined in their order.
    ///
    /// # Errors
    /// See [above](#operations). [`Error::Misuse`] also if the first dimension can't be divided so.
    pub async fn all_to_all(&self, input: &Tensor) -> Result<Tensor> {
        let output = self.output(input.dtype(), *input.shape()).await?;
        self.all_to_all_into(input, output).await.map(TensorMut::freeze)
    }

    /// [`all_to_all`](Self::all_to_all) into `output`, a tensor like the input.
    ///
    /// # Errors
    /// As `all_to_all`.
    pub async fn all_to_all_into(&self, input: &Tensor, output: TensorMut) -> Result<TensorMut> {
        self.part(input.shape())?;
        self.fill(Operation::AllToAll, Some(input), output).await
    }

    /// Sends a tensor to rank `dst`, which must receive one of that dtype and shape. Returns once it has.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn send(&self, input: &Tensor, dst: usize) -> Result<()> {
        let operation = Operation::Send { from: self.rank(), to: dst };
        self.carry_out(Request { operation, input: Some(input), output: None }).await.map(drop)
    }

    /// Receives the tensor that rank `src` sends.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn recv(
        &self,
        dtype: DType,
        shape: impl TryInto<Shape, Error: Into<Error>>,
        src: usize,
    ) -> Result<Tensor> {
        let output = self.output(dtype, shape).await?;
        self.recv_into(output, src).await.map(TensorMut::freeze)
    }

    /// [`recv`](Self::recv) into `output`.
    ///
    /// # Errors
    /// See [above](#operations).
    pub async fn recv_into(&self, output: TensorMut, src: usize) -> Result<TensorMut> {
        self.fill(Operation::Send { from: src, to: self.rank() }, None, output).await
    }

    async fn fill(
        &self,
        operation: Operation,
        input: Option<&Tensor>,
        output: TensorMut,
    ) -> Result<TensorMut> {
        let output = self.carry_out(Request { operation, input, output: Some(output) }).await?;
        output.ok_or_else(|| Error::Bug("an operation has lost its output".into()))
    }

    async fn reduce_own_part(
        &self,
        tensor: TensorMut,
        rows: Option<&[usize]>,
        op: ReduceOp,
    ) -> Result<Tensor> {
        let operation = Operation::ReduceScatter { op, rows: rows.map(Into::into) };
        let (count, row) = tensor.shape().rows();
        let (count, row) = (count, row.to_vec());
        let whole = self.fill(operation, None, tensor).await?.freeze();
        let even = vec![count / self.size(); self.size()];
        let rows = rows.unwrap_or(&even);
        let before = rows[..self.rank()].iter().sum();
        whole.slice_rows(before, Shape::of_rows(rows[self.rank()], &row)?)
    }

    /// The shape of one rank's part.
    fn part(&self, whole: &Shape) -> Result<Shape> {
        let (rows, row) = whole.rows();
        if whole.dims().is_empty() || rows % self.size() != 0 {
            let what =
                format!("{whole} can't be divided among {} ranks along its first dimension", self.size());
            return Err(Error::Misuse(what));
        }
        Shape::of_rows(rows / self.size(), row)
    }
}

fn total(rows: &[usize]) -> Result<usize> {
    let sum = rows.iter().try_fold(0_usize, |sum, rows| sum.checked_add(*rows));
    sum.ok_or_else(|| Error::Misuse("more rows than can be counted".into()))
}

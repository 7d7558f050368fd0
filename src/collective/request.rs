//! One call of an operation: whether it can be, in what all ranks must agree, and its program.

use super::ReduceOp;
use super::host::{Members, Parties};
use super::plan::Planner;
use super::program::Program;
use super::reduction::Reduction;
use crate::error::{Error, Result};
use crate::tensor::{DType, Shape, Tensor, TensorMut};

/// What is to be done. `rows` says how many of each rank's first dimension; None means equal parts.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    Barrier,
    AllReduce { op: ReduceOp },
    Reduce { op: ReduceOp, root: usize },
    Broadcast { root: usize },
    AllGather { rows: Option<Vec<usize>> },
    ReduceScatter { op: ReduceOp, rows: Option<Vec<usize>> },
    Gather { root: usize },
    Scatter { root: usize },
    AllToAll,
    Send { from: usize, to: usize },
}

/// A call, with its memory.
pub(super) struct Request<'a> {
    pub(super) operation: Operation,
    /// None where this rank gives none, and in place.
    pub(super) input: Option<&'a Tensor>,
    /// None where this rank gets nothing.
    pub(super) output: Option<TensorMut>,
}

/// A call that can be.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) parties: Parties,
    /// What all ranks must agree in.
    pub(super) words: String,
    pub(super) dtype: DType,
    /// Of the tensor, or, for what is divided among ranks, of the whole.
    elements: usize,
    bytes: usize,
    /// The length of each rank's part.
    pub(super) parts: Vec<usize>,
    in_place: bool,
}

impl Operation {
    /// As its method is called.
    fn name(&self) -> &'static str {
        match self {
            Self::Barrier => "barrier",
            Self::AllReduce { .. } => "all_reduce",
            Self::Reduce { .. } => "reduce",
            Self::Broadcast { .. } => "broadcast",
            Self::AllGather { rows: None } => "all_gather",
            Self::AllGather { rows: Some(_) } => "all_gatherv",
            Self::ReduceScatter { rows: None, .. } => "reduce_scatter",
            Self::ReduceScatter { rows: Some(_), .. } => "reduce_scatterv",
            Self::Gather { .. } => "gather",
            Self::Scatter { .. } => "scatter",
            Self::AllToAll => "all_to_all",
            Self::Send { .. } => "send",
        }
    }

    pub(super) fn reduces_by(&self) -> Option<ReduceOp> {
        match self {
            Self::AllReduce { op } | Self::Reduce { op, .. } | Self::ReduceScatter { op, .. } => Some(*op),
            _ => None,
        }
    }

    fn root(&self) -> Option<usize> {
        match self {
            Self::Reduce { root, .. }
            | Self::Broadcast { root }
            | Self::Gather { root }
            | Self::Scatter { root } => Some(*root),
            _ => None,
        }
    }

    /// Whether the output can be the input.
    fn can_be_in_place(&self) -> bool {
        !matches!(self, Self::Gather { .. } | Self::Scatter { .. } | Self::AllToAll | Self::Barrier)
    }
}

impl Request<'_> {
    /// Refuses what can't be, before anything is begun.
    pub(super) fn check(&self, members: Members) -> Result<Checked> {
        let Members { rank, size } = members;
        let operation = &self.operation;
        let parties = match *operation {
            Operation::Send { from, to } => {
                let peer = if from == rank { to } else { from };
                check_rank(peer, size)?;
                if from == to {
                    return Err(Error::Misuse(format!("rank {rank} can't send to itself")));
                }
                Parties::Two { from, to }
            }
            _ => Parties::All,
        };
        operation.root().map_or(Ok(()), |root| check_rank(root, size))?;
        let Some((dtype, part, whole)) = self.shapes(members)? else {
            let words = operation.name().to_owned();
            let (dtype, parts) = (DType::UInt8, Vec::new());
            return Ok(Checked { parties, words, dtype, elements: 0, bytes: 0, parts, in_place: false });
        };
        let parts = self.parts(dtype, &part, &whole, size)?;
        let checked = Checked {
            parties,
            words: self.words(dtype, &part, &whole),
            dtype,
            elements: whole.element_count(),
            bytes: whole.byte_len(dtype)?,
            parts,
            in_place: self.input.is_none(),
        };
        self.check_tensors(members, dtype, &part, &whole)?;
        Ok(checked)
    }

    /// The dtype, the shape of this rank's part and that of the whole; the same for what is not divided.
    fn shapes(&self, Members { rank, size }: Members) -> Result<Option<(DType, Shape, Shape)>> {
        let given = self.input.map(|input| (input.dtype(), *input.shape()));
        let taken = self.output.as_ref().map(|output| (output.dtype(), *output.shape()));
        let missing = || Error::Misuse(format!("{} needs a tensor here", self.operation.name()));
        let whole_of = |shape: &Shape, rows: &Option<Vec<usize>>| {
            let (own, row) = shape.rows();
            let even =
                || own.checked_mul(size).ok_or_else(|| Error::Misuse("more rows than can be counted".into()));
            let all = rows.as_ref().map_or_else(even, |rows| sum(rows, size))?;
            Shape::of_rows(all, row)
        };
        let part_of = |shape: &Shape, rows: &Option<Vec<usize>>| {
            let (all, row) = shape.rows();
            let own = match rows {
                Some(rows) => rows.get(rank).copied().unwrap_or_default(),
                None if all % size == 0 && !shape.dims().is_empty() => all / size,
                None => return Err(Error::Misuse(format!("{shape} can't be divided among {size} ranks"))),
            };
            Shape::of_rows(own, row)
        };
        let (dtype, part, whole) = match &self.operation {
            Operation::Barrier => return Ok(None),
            Operation::AllReduce { .. } | Operation::Reduce { .. } | Operation::Send { .. } => {
                let (dtype, shape) = given.or(taken).ok_or_else(missing)?;
                (dtype, shape, shape)
            }
            Operation::Broadcast { .. } => {
                let (dtype, shape) = taken.ok_or_else(missing)?;
                (dtype, shape, shape)
            }
            Operation::AllGather { rows } => match given {
                Some((dtype, given)) => {
                    let whole = whole_of(&given, rows)?;
                    let part = rows.as_ref().map_or(Ok(given), |_| part_of(&whole, rows))?;
                    (dtype, part, whole)
                }
                None => {
                    let (dtype, whole) = taken.ok_or_else(missing)?;
                    (dtype, part_of(&whole, rows)?, whole)
                }
            },
            Operation::Gather { .. } => {
                let (dtype, part) = given.ok_or_else(missing)?;
                (dtype, part, whole_of(&part, &None)?)
            }
            Operation::Scatter { .. } => {
                let (dtype, part) = taken.ok_or_else(missing)?;
                (dtype, part, whole_of(&part, &None)?)
            }
            Operation::ReduceScatter { rows, .. } => {
                let (dtype, whole) = given.or(taken).ok_or_else(missing)?;
                (dtype, part_of(&whole, rows)?, whole)
            }
            Operation::AllToAll => {
                let (dtype, whole) = given.ok_or_else(missing)?;
                (dtype, part_of(&whole, &None)?, whole)
            }
        };
        Ok(Some((dtype, part, whole)))
    }

    /// The bytes of each rank's part; none for what is not divided.
    fn parts(&self, dtype: DType, part: &Shape, whole: &Shape, size: usize) -> Result<Vec<usize>> {
        let rows = match &self.operation {
            Operation::AllGather { rows: Some(rows) } | Operation::ReduceScatter { rows: Some(rows), .. } => {
                if sum(rows, size)? != whole.rows().0 {
                    return Err(Error::Misuse(format!("{rows:?} are not the rows of a tensor {whole}")));
                }
                rows.clone()
            }
            Operation::AllGather { .. }
            | Operation::ReduceScatter { .. }
            | Operation::Gather { .. }
            | Operation::Scatter { .. }
            | Operation::AllToAll => vec![part.rows().0; size],
            _ => return Ok(Vec::new()),
        };
        let (_, row) = whole.rows();
        let bytes = |rows: &usize| Shape::of_rows(*rows, row)?.byte_len(dtype);
        let parts = rows.iter().map(bytes).collect::<Result<Vec<_>>>()?;
        if parts.iter().sum::<usize>() != whole.byte_len(dtype)? {
            return Err(Error::Misuse(format!("rows of {dtype} share bytes, and can't be divided here")));
        }
        Ok(parts)
    }

    /// What all ranks must agree in.
    fn words(&self, dtype: DType, part: &Shape, whole: &Shape) -> String {
        let name = self.operation.name();
        let by = |rows: &Option<Vec<usize>>| match rows {
            Some(rows) => format!(" by {rows:?} rows"),
            None => String::new(),
        };
        match &self.operation {
            Operation::Barrier => name.to_owned(),
            Operation::AllReduce { op } => format!("{name}({}) of {dtype} {whole}", op),
            Operation::Reduce { op, root } => {
                format!("{name}({}) of {dtype} {whole} to rank {root}", op)
            }
            Operation::Broadcast { root } => format!("{name} of {dtype} {whole} from rank {root}"),
            Operation::AllGather { rows } => format!("{name} of {dtype} {whole} in all{}", by(rows)),
            Operation::ReduceScatter { op, rows } => {
                format!("{name}({}) of {dtype} {whole}{}", op, by(rows))
            }
            Operation::Gather { root } => format!("{name} of {dtype} {part} each to rank {root}"),
            Operation::Scatter { root } => format!("{name} of {dtype} {part} each from rank {root}"),
            Operation::AllToAll => format!("{name} of {dtype} {whole}"),
            Operation::Send { from, to } => {
                format!("{name} of {dtype} {whole} from rank {from} to rank {to}")
            }
        }
    }

    /// Whether the tensors are those that the operation needs here.
    fn check_tensors(&self, members: Members, dtype: DType, part: &Shape, whole: &Shape) -> Result<()> {
        let Members { rank, .. } = members;
        let at_root = self.operation.root() == Some(rank);
        // What is given, and what is got, if there is any here.
        let (given, taken) = match self.operation {
            Operation::Barrier => (None, None),
            Operation::AllReduce { .. } => (Some(whole), Some(whole)),
            Operation::Reduce { .. } => (Some(whole), at_root.then_some(whole)),
            Operation::Broadcast { .. } => (at_root.then_some(whole), Some(whole)),
            Operation::AllGather { .. } => (Some(part), Some(whole)),
            Operation::ReduceScatter { .. } => (Some(whole), Some(part)),
            Operation::Gather { .. } => (Some(part), at_root.then_some(whole)),
            Operation::Scatter { .. } => (at_root.then_some(whole), Some(part)),
            Operation::AllToAll => (Some(whole), Some(whole)),
            Operation::Send { from, .. } if from == rank => (Some(whole), None),
            Operation::Send { .. } => (None, Some(whole)),
        };
        let name = self.operation.name();
        let in_place = self.input.is_none() && self.output.is_some() && self.operation.can_be_in_place();
        match (self.input, given) {
            (Some(input), Some(shape)) if (input.dtype(), input.shape()) != (dtype, shape) => {
                let found = format!("{} {}", input.dtype(), input.shape());
                return Err(Error::Misuse(format!(
                    "the input of this {name} is {dtype} {shape}, not {found}"
                )));
            }
            (None, Some(shape)) if !in_place => {
                return Err(Error::Misuse(format!("{name} needs a tensor {dtype} {shape} of rank {rank}")));
            }
            _ => {}
        }
        // In place, input and output are the same memory, or one is a part of the other.
        let taken = if in_place { Some(whole) } else { taken };
        match (&self.output, taken) {
            (Some(output), Some(shape)) if (output.dtype(), output.shape()) != (dtype, shape) => {
                let found = format!("{} {}", output.dtype(), output.shape());
                Err(Error::Misuse(format!("the output of this {name} is {dtype} {shape}, not {found}")))
            }
            (None, Some(_)) => Err(Error::Misuse(format!("{name} has a result at rank {rank}"))),
            (Some(_), None) => Err(Error::Misuse(format!("{name} has no result at rank {rank}"))),
            _ => Ok(()),
        }
    }
}

impl Checked {
    /// What this rank does in it.
    pub(super) fn program(
        &self,
        operation: &Operation,
        planner: &Planner,
        Members { rank, size }: Members,
    ) -> Result<Program> {
        let reduction = match operation.reduces_by() {
            Some(op) => Some(Reduction::new(self.dtype, op, size)?),
            None => None,
        };
        let part = self.parts.first().copied().unwrap_or_default();
        Ok(match (operation, &reduction) {
            (Operation::AllReduce { .. }, Some(reduction)) => {
                planner.all_reduce(self.elements, reduction, self.in_place)
            }
            (Operation::Reduce { root, .. }, Some(reduction)) => {
                planner.reduce(self.elements, reduction, *root, self.in_place)
            }
            (Operation::ReduceScatter { .. }, Some(reduction)) => {
                let elements: Vec<_> = self.parts.iter().map(|part| part / self.dtype.item_bytes()).collect();
                planner.reduce_scatterv(&elements, reduction, self.in_place)
            }
            (Operation::Broadcast { root }, _) => planner.broadcast(self.bytes, *root, self.in_place),
            (Operation::AllGather { .. }, _) => planner.all_gatherv(&self.parts, self.in_place),
            (Operation::Gather { root }, _) => planner.gather(part, *root),
            (Operation::Scatter { root }, _) => planner.scatter(part, *root),
            (Operation::AllToAll, _) => planner.all_to_all(part),
            (Operation::Send { from, to }, _) if *from == rank => planner.send(*to, self.bytes),
            (Operation::Send { from, .. }, _) => planner.recv(*from, self.bytes),
            (Operation::Barrier, _) => planner.barrier(),
            (_, None) => return Err(Error::Bug("a reduction has no operator".into())),
        })
    }

    /// In place: where in the output the input of rank `rank` begins.
    pub(super) fn input_at(&self, operation: &Operation, rank: usize) -> usize {
        match operation {
            Operation::AllGather { .. } => self.parts[..rank].iter().sum(),
            _ => 0,
        }
    }
}

fn check_rank(rank: usize, size: usize) -> Result<()> {
    match rank < size {
        true => Ok(()),
        false => Err(Error::Misuse(format!("there is no rank {rank} of {size}"))),
    }
}

/// All rows, one number for each rank.
fn sum(rows: &[usize], size: usize) -> Result<usize> {
    let sum = rows.iter().try_fold(0_usize, |sum, rows| sum.checked_add(*rows));
    match sum {
        Some(sum) if rows.len() == size => Ok(sum),
        _ => Err(Error::Misuse(format!("{rows:?} are not the rows of {size} ranks"))),
    }
}

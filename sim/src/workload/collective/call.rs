//! One operation of a process group, as all of its members have to call it.

use kvpipe::collective::{ProcessGroup, ReduceOp};
use kvpipe::tensor::{DType, Shape, Tensor, TensorMut};
use kvpipe::{Error, Result};

use super::reference::{self, NUMBERS};
use crate::draws::Draws;
use crate::net::SimNet;

/// Which operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Barrier,
    AllReduce,
    Reduce,
    Broadcast,
    AllGather,
    AllGatherv,
    ReduceScatter,
    ReduceScatterv,
    Gather,
    Scatter,
    AllToAll,
    Send,
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::Barrier,
        Self::AllReduce,
        Self::Reduce,
        Self::Broadcast,
        Self::AllGather,
        Self::AllGatherv,
        Self::ReduceScatter,
        Self::ReduceScatterv,
        Self::Gather,
        Self::Scatter,
        Self::AllToAll,
        Self::Send,
    ];

    /// As the method is called.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Barrier => "barrier",
            Self::AllReduce => "all_reduce",
            Self::Reduce => "reduce",
            Self::Broadcast => "broadcast",
            Self::AllGather => "all_gather",
            Self::AllGatherv => "all_gatherv",
            Self::ReduceScatter => "reduce_scatter",
            Self::ReduceScatterv => "reduce_scatterv",
            Self::Gather => "gather",
            Self::Scatter => "scatter",
            Self::AllToAll => "all_to_all",
            Self::Send => "send",
        }
    }

    pub(super) fn reduces(self) -> bool {
        matches!(self, Self::AllReduce | Self::Reduce | Self::ReduceScatter | Self::ReduceScatterv)
    }

    fn has_root(self) -> bool {
        matches!(self, Self::Reduce | Self::Broadcast | Self::Gather | Self::Scatter)
    }

    /// Whether each rank has a part of the whole, of the same size as the others'.
    fn is_even(self) -> bool {
        matches!(self, Self::AllGather | Self::ReduceScatter | Self::Gather | Self::Scatter | Self::AllToAll)
    }
}

/// An operation, and what everybody's tensors are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) kind: Kind,
    pub(super) dtype: DType,
    /// How many rows each rank's part has. What is not divided has as many as all of them.
    pub(super) rows: Vec<usize>,
    /// The dimensions of a row.
    row: Vec<usize>,
    pub(super) op: ReduceOp,
    /// Who sends, where only one does and it is no root.
    pub(super) from: usize,
    /// Who receives, where only one does; the root.
    pub(super) root: usize,
    /// What the elements are drawn from.
    pub(super) seed: u64,
}

/// What a caller gives for its result.
#[derive(Clone, Copy, Debug)]
enum Form {
    Plain,
    Into,
    InPlace,
}

/// Sums of integers and the like; the mean of small ones is exact enough to be the same in any order.
const OPS: [ReduceOp; 5] = [ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Min, ReduceOp::Max, ReduceOp::Avg];

/// What is only moved.
const MOVED: [DType; 4] = [DType::Bool, DType::Float8E4m3fn, DType::Complex64, DType::Complex128];

impl Call {
    /// A call of a group of so many, of at most so many bytes in all.
    pub(super) fn drawn(draws: &Draws, size: usize, bytes_max: usize) -> Self {
        let kinds = if size == 1 { &Kind::ALL[..11] } else { &Kind::ALL[..] };
        let kind = draws.pick(kinds).copied().unwrap_or(Kind::Barrier);
        Self::of(kind, draws, size, bytes_max)
    }

    fn of(kind: Kind, draws: &Draws, size: usize, bytes_max: usize) -> Self {
        let moved = !kind.reduces() && draws.one_in(3);
        let dtypes = if moved { &MOVED[..] } else { &NUMBERS[..] };
        let dtype = draws.pick(dtypes).copied().unwrap_or(DType::UInt8);
        let row = draws.pick(&[&[][..], &[], &[1], &[3], &[7, 2]]).map_or(Vec::new(), |row| row.to_vec());
        let row_bytes = dtype.item_bytes() * row.iter().product::<usize>();
        let each = bytes(draws).min(bytes_max).div_ceil(row_bytes * size);
        let rows = match kind.is_even() {
            true => vec![each; size],
            false => (0..size).map(|_| draws.bytes(0..=2 * each)).collect(),
        };
        let root = draws.bytes(0..=size - 1);
        let from = (root + draws.bytes(1..=size.max(2) - 1)) % size;
        let op = draws.pick(&OPS).copied().unwrap_or_default();
        Self { kind, dtype, rows, row, op, from, root, seed: draws.between(0..=u64::MAX) }
    }

    /// A barrier of so many.
    pub(super) fn barrier(size: usize) -> Self {
        let (dtype, op) = (DType::UInt8, ReduceOp::default());
        Self {
            kind: Kind::Barrier,
            dtype,
            rows: vec![0; size],
            row: Vec::new(),
            op,
            from: 0,
            root: 0,
            seed: 0,
        }
    }

    /// Another call that a rank may make by mistake: it differs in one thing, or in all.
    pub(super) fn mistaken(&self, draws: &Draws) -> Self {
        let size = self.rows.len();
        loop {
            let mut other = self.clone();
            match draws.between(0..=4) {
                0 => other.rows.iter_mut().for_each(|rows| *rows += 1),
                1 => other.dtype = draws.pick(&NUMBERS).copied().unwrap_or(DType::UInt8),
                2 => other.op = draws.pick(&OPS).copied().unwrap_or_default(),
                3 => other.root = (other.root + 1) % size,
                _ => {
                    let kind = draws.pick(&Kind::ALL[..11]).copied().unwrap_or(Kind::Barrier);
                    other = Self::of(kind, draws, size, 1000);
                }
            }
            if other.words() != self.words() {
                return other;
            }
        }
    }

    /// What it says of itself, and an error that is about it has to say.
    pub(super) fn words(&self) -> Vec<String> {
        let Self { kind, dtype, op, root, .. } = self;
        let mut words = vec![match kind.reduces() {
            true => format!("{}({op})", kind.name()),
            false => kind.name().to_owned(),
        }];
        if *kind != Kind::Barrier {
            let rows = match kind {
                Kind::Gather | Kind::Scatter => self.rows[0],
                _ => self.rows.iter().sum(),
            };
            words.push(format!("{dtype} {}", self.shape(rows).map_or(String::new(), |it| it.to_string())));
        }
        if kind.has_root() {
            words.push(format!("rank {root}"));
        }
        words
    }

    /// Whether all members call it.
    pub(super) fn is_everybodys(&self) -> bool {
        self.kind != Kind::Send
    }

    /// Whether this member calls it.
    pub(super) fn is_of(&self, member: usize) -> bool {
        self.is_everybodys() || [self.from, self.root].contains(&member)
    }

    /// The bytes of a row.
    pub(super) fn row_bytes(&self) -> usize {
        self.dtype.item_bytes() * self.row.iter().product::<usize>()
    }

    /// How many rows the tensor has that a member gives; none if it gives none.
    pub(super) fn input_rows(&self, member: usize) -> Option<usize> {
        let all = self.rows.iter().sum();
        match self.kind {
            Kind::Barrier => None,
            Kind::AllReduce | Kind::Reduce | Kind::ReduceScatter | Kind::ReduceScatterv | Kind::AllToAll => {
                Some(all)
            }
            Kind::AllGather | Kind::AllGatherv | Kind::Gather => Some(self.rows[member]),
            Kind::Broadcast | Kind::Scatter => (member == self.root).then_some(all),
            Kind::Send => (member == self.from).then_some(all),
        }
    }

    fn shape(&self, rows: usize) -> Result<Shape> {
        Shape::try_from(&[&[rows], &self.row[..]].concat()[..])
    }

    /// Makes the call, and gives what comes of it.
    pub(super) async fn make(&self, group: &ProcessGroup<SimNet>, draws: &Draws) -> Result<Option<Tensor>> {
        let forms = [Form::Plain, Form::Plain, Form::Into, Form::InPlace];
        let form = draws.pick(&forms).copied().unwrap_or(Form::Plain);
        match self.kind {
            Kind::Barrier => group.barrier().await.map(|()| None),
            Kind::AllReduce | Kind::ReduceScatter | Kind::ReduceScatterv | Kind::Reduce => {
                self.reduce(group, form).await
            }
            Kind::Broadcast | Kind::Scatter | Kind::Gather => self.rooted(group, form).await,
            Kind::AllGather | Kind::AllGatherv | Kind::AllToAll | Kind::Send => {
                self.exchange(group, form).await
            }
        }
    }

    async fn reduce(&self, group: &ProcessGroup<SimNet>, form: Form) -> Result<Option<Tensor>> {
        let Self { kind, op, root, rows, .. } = self;
        let (op, root, own) = (*op, *root, group.rank());
        let all = rows.iter().sum();
        if let Form::InPlace = form {
            let tensor = self.memory(all, &reference::input(self, own).unwrap_or_default())?;
            let reduced = match kind {
                Kind::AllReduce => group.all_reduce_in_place(tensor, op).await?.freeze(),
                Kind::Reduce => group.reduce_in_place(tensor, op, root).await?.freeze(),
                Kind::ReduceScatter => group.reduce_scatter_in_place(tensor, op).await?,
                _ => group.reduce_scatterv_in_place(tensor, rows, op).await?,
            };
            // Elsewhere it comes back as it was.
            let unchanged = *kind == Kind::Reduce && own != root;
            if unchanged && Some(&reduced.bytes()?[..]) != reference::input(self, own).as_deref() {
                return Err(Error::Bug(format!(
                    "a reduction to rank {root} changed the tensor of rank {own}"
                )));
            }
            return Ok((!unchanged).then_some(reduced));
        }
        let input = self.input(own)?;
        let into = matches!(form, Form::Into);
        Ok(Some(match (kind, into) {
            (Kind::AllReduce, false) => group.all_reduce(&input, op).await?,
            (Kind::AllReduce, true) => {
                group.all_reduce_into(&input, self.memory(all, &[])?, op).await?.freeze()
            }
            (Kind::Reduce, false) => return group.reduce(&input, op, root).await,
            (Kind::Reduce, true) => {
                let output = if own == root { Some(self.memory(all, &[])?) } else { None };
                return Ok(group.reduce_into(&input, output, op, root).await?.map(TensorMut::freeze));
            }
            (Kind::ReduceScatter, false) => group.reduce_scatter(&input, op).await?,
            (Kind::ReduceScatter, true) => {
                group.reduce_scatter_into(&input, self.memory(rows[own], &[])?, op).await?.freeze()
            }
            (_, false) => group.reduce_scatterv(&input, rows, op).await?,
            (_, true) => {
                group.reduce_scatterv_into(&input, rows, self.memory(rows[own], &[])?, op).await?.freeze()
            }
        }))
    }

    async fn rooted(&self, group: &ProcessGroup<SimNet>, form: Form) -> Result<Option<Tensor>> {
        let Self { kind, dtype, root, rows, .. } = self;
        let (root, own) = (*root, group.rank());
        let all: usize = rows.iter().sum();
        let input = match own == root || *kind == Kind::Gather {
            true => Some(self.input(own)?),
            false => None,
        };
        match (kind, form, &input) {
            (Kind::Broadcast, Form::InPlace, _) => {
                let tensor = self.memory(all, &reference::input(self, own).unwrap_or_default())?;
                group.broadcast_in_place(tensor, root).await.map(|tensor| Some(tensor.freeze()))
            }
            (Kind::Broadcast, Form::Plain, input) => {
                group.broadcast(*dtype, self.shape(all)?, input.as_ref(), root).await.map(Some)
            }
            (Kind::Broadcast, Form::Into, input) => {
                let output = self.memory(all, &[])?;
                group.broadcast_into(input.as_ref(), output, root).await.map(|tensor| Some(tensor.freeze()))
            }
            (Kind::Gather, Form::Plain, Some(input)) => group.gather(input, root).await,
            (Kind::Gather, _, Some(input)) => {
                let output = if own == root { Some(self.memory(all, &[])?) } else { None };
                Ok(group.gather_into(input, output, root).await?.map(TensorMut::freeze))
            }
            (_, Form::Plain, input) => {
                group.scatter(*dtype, self.shape(rows[own])?, input.as_ref(), root).await.map(Some)
            }
            (_, _, input) => {
                let output = self.memory(rows[own], &[])?;
                group.scatter_into(input.as_ref(), output, root).await.map(|tensor| Some(tensor.freeze()))
            }
        }
    }

    async fn exchange(&self, group: &ProcessGroup<SimNet>, form: Form) -> Result<Option<Tensor>> {
        let Self { kind, dtype, rows, from, root, .. } = self;
        let own = group.rank();
        let all: usize = rows.iter().sum();
        if *kind == Kind::Send {
            return match (own == *from, form) {
                (true, _) => group.send(&self.input(own)?, *root).await.map(|()| None),
                (false, Form::Plain) => group.recv(*dtype, self.shape(all)?, *from).await.map(Some),
                (false, _) => Ok(Some(group.recv_into(self.memory(all, &[])?, *from).await?.freeze())),
            };
        }
        let row_bytes = self.row_bytes();
        Ok(Some(match (kind, form) {
            (Kind::AllToAll, Form::Plain) => group.all_to_all(&self.input(own)?).await?,
            (Kind::AllToAll, _) => {
                group.all_to_all_into(&self.input(own)?, self.memory(all, &[])?).await?.freeze()
            }
            (_, Form::InPlace) => {
                let mut tensor = self.memory(all, &[])?;
                let at = rows[..own].iter().sum::<usize>() * row_bytes;
                let part = reference::input(self, own).unwrap_or_default();
                tensor.bytes_mut()?[at..][..part.len()].copy_from_slice(&part);
                match kind {
                    Kind::AllGather => group.all_gather_in_place(tensor).await?.freeze(),
                    _ => group.all_gatherv_in_place(tensor, rows).await?.freeze(),
                }
            }
            (Kind::AllGather, Form::Plain) => group.all_gather(&self.input(own)?).await?,
            (Kind::AllGather, _) => {
                group.all_gather_into(&self.input(own)?, self.memory(all, &[])?).await?.freeze()
            }
            (_, Form::Plain) => group.all_gatherv(&self.input(own)?, rows).await?,
            (_, _) => group.all_gatherv_into(&self.input(own)?, rows, self.memory(all, &[])?).await?.freeze(),
        }))
    }

    fn input(&self, member: usize) -> Result<Tensor> {
        let rows = self.input_rows(member).unwrap_or_default();
        Tensor::new(self.dtype, self.shape(rows)?, reference::input(self, member).unwrap_or_default().into())
    }

    /// Memory that begins with `bytes`, with rubbish behind.
    fn memory(&self, rows: usize, bytes: &[u8]) -> Result<TensorMut> {
        let mut tensor = TensorMut::zeroed(self.dtype, self.shape(rows)?)?;
        let memory = tensor.bytes_mut()?;
        memory.fill(0xA5);
        memory[..bytes.len()].copy_from_slice(bytes);
        Ok(tensor)
    }
}

/// The size of a payload: nothing, one element, small, around what goes by another algorithm, several chunks.
fn bytes(draws: &Draws) -> usize {
    match draws.between(0..=15) {
        0 | 1 => 0,
        2 | 3 => 1,
        4..=9 => draws.bytes(2..=400),
        10 | 11 => draws.bytes(3000..=20_000),
        12 => draws.bytes(30_000..=36_000),
        13 => draws.bytes(60_000..=70_000),
        _ => draws.bytes(250_000..=1_200_000),
    }
}

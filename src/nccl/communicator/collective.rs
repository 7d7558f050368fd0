//! What ranks do together with memory that they have.

use std::ops::Range;

use super::operations::{number, transfer};
use super::{Call, Communicator};
use crate::device::{DeviceBuffer, DeviceBufferMut, Event, Stream};
use crate::error::{Error, Result};
use crate::nccl::{DataType, ReduceOp};
use crate::tensor::DType;

/// An operation that all ranks call, or two. Parts are lengths in bytes, one for each rank.
#[derive(Clone, Debug)]
pub(crate) enum Collective {
    AllReduce { op: ReduceOp },
    Reduce { op: ReduceOp, root: usize },
    Broadcast { root: usize },
    AllGather,
    AllGatherV { parts: Vec<usize> },
    ReduceScatter { op: ReduceOp },
    ReduceScatterV { op: ReduceOp, parts: Vec<usize> },
    Gather { root: usize },
    Scatter { root: usize },
    AllToAll,
    Send { to: usize },
    Recv { from: usize },
}

impl Collective {
    fn name(&self) -> &'static str {
        match self {
            Self::AllReduce { .. } => "all_reduce",
            Self::Reduce { .. } => "reduce",
            Self::Broadcast { .. } => "broadcast",
            Self::AllGather => "all_gather",
            Self::AllGatherV { .. } => "all_gatherv",
            Self::ReduceScatter { .. } => "reduce_scatter",
            Self::ReduceScatterV { .. } => "reduce_scatterv",
            Self::Gather { .. } => "gather",
            Self::Scatter { .. } => "scatter",
            Self::AllToAll => "all_to_all",
            Self::Send { .. } => "send",
            Self::Recv { .. } => "recv",
        }
    }
}

impl Communicator {
    /// Does it, and gives the output back when it is there. Without an input it works in place: each rank's
    /// input is where its output is, or, where one of them is a part of the other, in its place in the
    /// whole. A root that broadcasts needs no output. In a world of one the output is the input.
    ///
    /// Nothing is asked of NCCL where there are no bytes.
    pub(crate) async fn collect(
        &self,
        collective: &Collective,
        dtype: DType,
        input: Option<DeviceBuffer>,
        output: Option<DeviceBufferMut>,
        stream: &Stream,
    ) -> Result<Option<DeviceBufferMut>> {
        let devices = [
            input.as_ref().map(DeviceBuffer::device),
            output.as_ref().map(DeviceBufferMut::device),
            Some(stream.device()),
        ];
        for device in devices.into_iter().flatten() {
            self.check_location("memory", device.location())?;
        }
        let awaited = || format!("{} of {} ranks", collective.name(), self.world_size);
        if self.members.is_none() {
            return match (&input, output) {
                (Some(input), Some(output)) => {
                    let (_, output) = self.finish(stream.copy(input, output)?, awaited).await?;
                    Ok(Some(output))
                }
                (_, output) => Ok(output),
            };
        }
        let ends = Ends {
            rank: self.rank,
            ranks: self.world_size,
            dtype,
            input: input.as_ref().map(|input| Span { address: input.address(), bytes: input.len() }),
            output: output.as_ref().map(|output| Span { address: output.address(), bytes: output.len() }),
        };
        let calls = ends.calls(collective)?;
        if calls.is_empty() {
            return Ok(output);
        }
        let after: Vec<Event> = input.iter().filter_map(|input| input.ready().cloned()).collect();
        // SAFETY: `Span::part` has given each address for as many bytes as the call counts, and what NCCL
        // writes to is of the output, which is exclusive; but a root's broadcast in place, which writes
        // nothing.
        let work = unsafe { self.enqueue(calls, (input, output), after, stream).await? };
        let (_, output) = self.finish(work, awaited).await?;
        Ok(output)
    }
}

/// An operation's memory at this rank.
struct Ends {
    rank: usize,
    ranks: usize,
    dtype: DType,
    input: Option<Span>,
    output: Option<Span>,
}

/// Memory that no call may reach beyond.
#[derive(Clone, Copy)]
struct Span {
    address: u64,
    bytes: usize,
}

impl Span {
    fn part(self, at: usize, bytes: usize) -> Result<u64> {
        match at.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(self.address + at as u64),
            _ => Err(Error::Bug(format!("{bytes} bytes at {at} were asked of {}", self.bytes))),
        }
    }
}

impl Ends {
    /// What NCCL is asked for at this rank, all of it together.
    fn calls(&self, collective: &Collective) -> Result<Vec<Call>> {
        let (given, taken) = (bytes(self.input.or(self.output)), bytes(self.output.or(self.input)));
        match collective {
            Collective::AllGatherV { parts } => {
                ranges(parts).map(|(root, part)| self.broadcast(root, &part)).collect()
            }
            Collective::ReduceScatterV { op, parts } => {
                ranges(parts).map(|(root, part)| self.reduce(*op, root, &part)).collect()
            }
            _ if given == 0 && taken == 0 => Ok(Vec::new()),
            Collective::AllReduce { op } => Ok(vec![self.all_reduce(*op, taken)?]),
            Collective::Reduce { op, root } => Ok(vec![self.reduce(*op, *root, &(0..given))?]),
            Collective::Broadcast { root } => Ok(vec![self.broadcast(*root, &(0..taken))?]),
            Collective::AllGather => Ok(vec![self.all_gather(taken / self.ranks)?]),
            Collective::ReduceScatter { op } => Ok(vec![self.reduce_scatter(*op, given / self.ranks)?]),
            Collective::Gather { root } => {
                let recvs = if *root == self.rank { 0..self.ranks } else { 0..0 };
                self.messages([*root], recvs, bytes(self.input))
            }
            Collective::Scatter { root } => {
                let sends = if *root == self.rank { 0..self.ranks } else { 0..0 };
                self.messages(sends, [*root], bytes(self.output))
            }
            Collective::AllToAll => self.messages(0..self.ranks, 0..self.ranks, given / self.ranks),
            Collective::Send { to } => self.messages([*to], [], given),
            Collective::Recv { from } => self.messages([], [*from], taken),
        }
    }

    fn all_reduce(&self, op: ReduceOp, bytes: usize) -> Result<Call> {
        let (data_type, count) = self.reducible(bytes)?;
        Ok(Call::AllReduce {
            from: self.from([0, 0], bytes)?,
            to: self.to([0, 0], bytes)?,
            count,
            data_type,
            op,
        })
    }

    /// Of a part of the input, to `root`.
    fn reduce(&self, op: ReduceOp, root: usize, part: &Range<usize>) -> Result<Call> {
        let (data_type, count) = self.reducible(part.len())?;
        let from = self.from([part.start; 2], part.len())?;
        let to = match root == self.rank {
            true => self.to([0, part.start], part.len())?,
            false => 0,
        };
        Ok(Call::Reduce { from, to, count, data_type, op, root: number(root) })
    }

    /// Of a part of the output, from `root`, whose input it is.
    fn broadcast(&self, root: usize, part: &Range<usize>) -> Result<Call> {
        let (data_type, count) = transfer(self.dtype, part.len());
        let from = match root == self.rank {
            true => self.from([0, part.start], part.len())?,
            false => 0,
        };
        let to = match self.output {
            None if root == self.rank => from,
            _ => self.to([part.start; 2], part.len())?,
        };
        Ok(Call::Broadcast { from, to, count, data_type, root: number(root) })
    }

    fn all_gather(&self, part: usize) -> Result<Call> {
        let (data_type, count) = transfer(self.dtype, part);
        let from = self.from([0, self.rank * part], part)?;
        Ok(Call::AllGather { from, to: self.to([0, 0], self.ranks * part)?, count, data_type })
    }

    fn reduce_scatter(&self, op: ReduceOp, part: usize) -> Result<Call> {
        let (data_type, count) = self.reducible(part)?;
        let from = self.from([0, 0], self.ranks * part)?;
        Ok(Call::ReduceScatter { from, to: self.to([0, self.rank * part], part)?, count, data_type, op })
    }

    /// To these ranks one part of the input after the other, and from these one of the output.
    fn messages(
        &self,
        sends: impl IntoIterator<Item = usize>,
        recvs: impl IntoIterator<Item = usize>,
        part: usize,
    ) -> Result<Vec<Call>> {
        let (data_type, count) = transfer(self.dtype, part);
        let sends = sends.into_iter().enumerate().map(|(index, peer)| {
            let from = self.from([index * part; 2], part)?;
            Ok(Call::Send { from, count, data_type, peer: number(peer) })
        });
        let recvs = recvs.into_iter().enumerate().map(|(index, peer)| {
            let to = self.to([index * part; 2], part)?;
            Ok(Call::Recv { to, count, data_type, peer: number(peer) })
        });
        sends.chain(recvs).collect()
    }

    /// Some bytes of the input, which begin here if it is apart, or there in the output.
    fn from(&self, [apart, within]: [usize; 2], bytes: usize) -> Result<u64> {
        match self.input {
            Some(input) => input.part(apart, bytes),
            None => self.to([within; 2], bytes),
        }
    }

    /// Some bytes of the output, which begin here if the input is apart, or there if it is the input.
    fn to(&self, [apart, within]: [usize; 2], bytes: usize) -> Result<u64> {
        let at = if self.input.is_some() { apart } else { within };
        self.output.unwrap_or(Span { address: 0, bytes: 0 }).part(at, bytes)
    }

    fn reducible(&self, bytes: usize) -> Result<(DataType, usize)> {
        Ok((DataType::for_reduction(self.dtype)?, bytes / self.dtype.item_bytes()))
    }
}

fn bytes(span: Option<Span>) -> usize {
    span.map_or(0, |span| span.bytes)
}

/// The parts that have bytes, and whose they are.
fn ranges(parts: &[usize]) -> impl Iterator<Item = (usize, Range<usize>)> {
    let ends = parts.iter().scan(0, |end, bytes| {
        *end += bytes;
        Some(*end - bytes..*end)
    });
    ends.enumerate().filter(|(_, part)| !part.is_empty())
}

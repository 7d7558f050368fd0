//! What operations do once their stream has come to them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{c_int, c_uint, c_void};
use std::io::{Read, Write};
use std::ptr::with_exposed_provenance_mut;
use std::thread;

use crate::codes::{INVALID_USAGE, Result, misuse};
use crate::comm::Comm;
use crate::link::{Direction, Lane};
use crate::reduce::{DataType, Reduction};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    Send,
    Recv,
    AllReduce,
    Reduce,
    AllGather,
    ReduceScatter,
    Broadcast,
}

pub(crate) struct Operation {
    pub(crate) function: Function,
    /// Addresses.
    pub(crate) source: usize,
    pub(crate) target: usize,
    pub(crate) count: usize,
    pub(crate) dtype: DataType,
    pub(crate) reduction: Reduction,
    /// The root, or the peer.
    pub(crate) peer: usize,
    pub(crate) stream: usize,
    pub(crate) held: Vec<Held>,
}

/// The beginning of what a stream's handle points to; see kvpipe-fake-cuda.
#[repr(C)]
pub(crate) struct StreamHandle {
    pub(crate) enqueue: unsafe extern "C" fn(*mut c_void, unsafe extern "C" fn(*mut c_void), *mut c_void),
    pub(crate) in_use: extern "C" fn(u64, usize, c_int) -> c_uint,
}

/// A device's memory that an operation uses, which must not be freed before it ends.
pub(crate) struct Held {
    pub(crate) in_use: extern "C" fn(u64, usize, c_int) -> c_uint,
    pub(crate) address: usize,
    pub(crate) bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        (self.in_use)(self.address as u64, self.bytes, 0);
    }
}

impl Operation {
    fn bytes(&self) -> usize {
        self.count * self.dtype.bytes()
    }

    pub(crate) fn is_collective(&self) -> bool {
        !matches!(self.function, Function::Send | Function::Recv)
    }

    /// How many bytes it reads and writes on one of `size` ranks.
    pub(crate) fn source_and_target_bytes(&self, rank: usize, size: usize) -> (usize, usize) {
        let bytes = self.bytes();
        let is_root = self.peer == rank;
        match self.function {
            Function::Send => (bytes, 0),
            Function::Recv => (0, bytes),
            Function::AllReduce => (bytes, bytes),
            Function::Reduce => (bytes, if is_root { bytes } else { 0 }),
            Function::AllGather => (bytes, bytes * size),
            Function::ReduceScatter => (bytes * size, bytes),
            Function::Broadcast => (if is_root { bytes } else { 0 }, bytes),
        }
    }

    /// What it needs to be connected: a collective one, a star around its root, or rank 0.
    pub(crate) fn lanes(&self, rank: usize, size: usize) -> BTreeSet<Lane> {
        let lane = |peer, direction| Lane { peer, is_collective: self.is_collective(), direction };
        let (to_centre, from_centre) = match self.function {
            Function::Send if self.peer == rank => return BTreeSet::new(),
            Function::Recv if self.peer == rank => return BTreeSet::new(),
            Function::Send => return BTreeSet::from([lane(self.peer, Direction::Out)]),
            Function::Recv => return BTreeSet::from([lane(self.peer, Direction::In)]),
            Function::Reduce => (true, false),
            Function::Broadcast => (false, true),
            Function::AllReduce | Function::AllGather | Function::ReduceScatter => (true, true),
        };
        let is_centre = self.peer == rank;
        let others = if is_centre { 0..size } else { self.peer..self.peer + 1 };
        let mut lanes = BTreeSet::new();
        for peer in others.filter(|peer| *peer != rank) {
            if if is_centre { from_centre } else { to_centre } {
                lanes.insert(lane(peer, Direction::Out));
            }
            if if is_centre { to_centre } else { from_centre } {
                lanes.insert(lane(peer, Direction::In));
            }
        }
        lanes
    }

    /// Both ends have to mean the same.
    fn header(&self) -> [u8; 24] {
        let function = if self.function == Function::Recv { Function::Send } else { self.function };
        let (dtype, reduction, root) = if self.is_collective() {
            (self.dtype.0, self.reduction as u32, self.peer as u32)
        } else {
            (0, 0, 0)
        };
        let mut header = [0; 24];
        for (index, word) in [function as u32, dtype, reduction, root].into_iter().enumerate() {
            header[4 * index..][..4].copy_from_slice(&word.to_ne_bytes());
        }
        header[16..].copy_from_slice(&(self.bytes() as u64).to_ne_bytes());
        header
    }

    fn read_source(&self, bytes: usize) -> &[u8] {
        // SAFETY: the caller of the operation gives so many bytes, and leaves them alone until its stream
        // has passed it.
        unsafe { slice(self.source, bytes) }
    }

    fn write_target(&self, bytes: &[u8]) {
        if !bytes.is_empty() {
            // SAFETY: as above; `bytes` is memory of ours.
            unsafe {
                with_exposed_provenance_mut::<u8>(self.target)
                    .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            }
        }
    }
}

unsafe fn slice<'a>(address: usize, bytes: usize) -> &'a [u8] {
    if bytes == 0 {
        return &[];
    }
    // SAFETY: the caller says so.
    unsafe { std::slice::from_raw_parts(with_exposed_provenance_mut(address), bytes) }
}

/// Operations that have to run one after the other, since they share a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    Collective,
    To(usize),
    From(usize),
}

impl Comm {
    /// Runs the operations of a group; all rows at once.
    pub(crate) fn transfer(&self, operations: &[Operation]) -> Result {
        let mut rows: BTreeMap<Row, Vec<&Operation>> = BTreeMap::new();
        for operation in operations {
            let row = match operation.function {
                Function::Send => Row::To(operation.peer),
                Function::Recv => Row::From(operation.peer),
                _ => Row::Collective,
            };
            rows.entry(row).or_default().push(operation);
        }
        let to_self = rows.remove(&Row::To(self.rank)).unwrap_or_default();
        let from_self = rows.remove(&Row::From(self.rank)).unwrap_or_default();
        for (send, receive) in to_self.into_iter().zip(from_self) {
            let source = send.read_source(send.bytes()).to_vec();
            receive.write_target(&source);
        }
        let mut rows = rows.into_values();
        let last = rows.next_back();
        thread::scope(|scope| {
            let others: Vec<_> = rows.map(|row| scope.spawn(|| self.transfer_row(row))).collect();
            let result = last.map_or(Ok(()), |row| self.transfer_row(row));
            // A panic would have ended the process.
            others.into_iter().filter_map(|other| other.join().ok()).fold(result, Result::and)
        })
    }

    fn transfer_row(&self, row: Vec<&Operation>) -> Result {
        for operation in row {
            // Told at once: the other rows may be stuck.
            self.run(operation).inspect_err(|code| self.fail(*code))?;
        }
        Ok(())
    }

    fn run(&self, operation: &Operation) -> Result {
        let (reads, writes) = operation.source_and_target_bytes(self.rank, self.size);
        let centre = operation.peer;
        match operation.function {
            Function::Send => self.put(operation, centre, operation.read_source(reads)),
            Function::Recv => {
                let target: &mut [u8] = match writes {
                    0 => &mut [],
                    // SAFETY: the caller gives so many bytes, which are this operation's alone.
                    _ => unsafe {
                        std::slice::from_raw_parts_mut(with_exposed_provenance_mut(operation.target), writes)
                    },
                };
                self.take_into(operation, centre, target)
            }
            Function::Broadcast if self.rank == centre => {
                let source = operation.read_source(reads).to_vec();
                operation.write_target(&source);
                self.others().try_for_each(|peer| self.put(operation, peer, &source))
            }
            Function::Broadcast => {
                operation.write_target(&self.take(operation, centre, writes)?);
                Ok(())
            }
            _ if self.rank == centre => self.collect(operation, reads, writes),
            Function::Reduce => self.put(operation, centre, operation.read_source(reads)),
            _ => {
                self.put(operation, centre, operation.read_source(reads))?;
                operation.write_target(&self.take(operation, centre, writes)?);
                Ok(())
            }
        }
    }

    /// The centre's part of what begins with data from everybody.
    fn collect(&self, operation: &Operation, reads: usize, writes: usize) -> Result {
        let mut parts = Vec::new();
        for rank in 0..self.size {
            parts.push(match rank {
                _ if rank == self.rank => operation.read_source(reads).to_vec(),
                peer => self.take(operation, peer, reads)?,
            });
        }
        let result = match operation.function {
            Function::AllGather => parts.concat(),
            _ => {
                let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                operation.reduction.reduce(operation.dtype, &parts)
            }
        };
        let share = |rank: usize| match operation.function {
            Function::ReduceScatter => &result[rank * writes..][..writes],
            _ => &result[..],
        };
        operation.write_target(share(self.rank));
        if operation.function == Function::Reduce {
            return Ok(());
        }
        self.others().try_for_each(|peer| self.put(operation, peer, share(peer)))
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        let rank = self.rank;
        (0..self.size).filter(move |peer| *peer != rank)
    }

    fn put(&self, operation: &Operation, peer: usize, bytes: &[u8]) -> Result {
        let lane = Lane { peer, is_collective: operation.is_collective(), direction: Direction::Out };
        let link = self.link(lane)?;
        let mut link = &*link;
        let written = link.write_all(&operation.header()).and_then(|()| link.write_all(bytes));
        written.map_err(|error| self.lost(peer, &error))
    }

    fn take(&self, operation: &Operation, peer: usize, bytes: usize) -> Result<Vec<u8>> {
        let mut taken = vec![0; bytes];
        self.take_into(operation, peer, &mut taken)?;
        Ok(taken)
    }

    fn take_into(&self, operation: &Operation, peer: usize, into: &mut [u8]) -> Result {
        let lane = Lane { peer, is_collective: operation.is_collective(), direction: Direction::In };
        let link = self.link(lane)?;
        let mut link = &*link;
        let mut header = [0; 24];
        link.read_exact(&mut header).map_err(|error| self.lost(peer, &error))?;
        if header != operation.header() {
            let (here, function) = (self.rank, operation.function);
            let what = format_args!("{function:?} of rank {here} meets something else of rank {peer}");
            return Err(misuse(INVALID_USAGE, what));
        }
        link.read_exact(into).map_err(|error| self.lost(peer, &error))
    }
}

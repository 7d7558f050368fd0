//! The calls of NCCL that enqueue work on a stream.

use std::ffi::c_int;

use crate::error::Result;
use crate::nccl::{DataType, Library, Progress, RawComm, ReduceOp};

/// One of them, with addresses in device memory. Counts are of elements, and per rank where ranks have
/// parts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    Send {
        from: u64,
        count: usize,
        data_type: DataType,
        peer: c_int,
    },
    Recv {
        to: u64,
        count: usize,
        data_type: DataType,
        peer: c_int,
    },
    AllReduce {
        from: u64,
        to: u64,
        count: usize,
        data_type: DataType,
        op: ReduceOp,
    },
    /// `to` counts at the root only.
    Reduce {
        from: u64,
        to: u64,
        count: usize,
        data_type: DataType,
        op: ReduceOp,
        root: c_int,
    },
    AllGather {
        from: u64,
        to: u64,
        count: usize,
        data_type: DataType,
    },
    ReduceScatter {
        from: u64,
        to: u64,
        count: usize,
        data_type: DataType,
        op: ReduceOp,
    },
    /// `from` counts at the root only.
    Broadcast {
        from: u64,
        to: u64,
        count: usize,
        data_type: DataType,
        root: c_int,
    },
}

impl Call {
    /// Enqueues it.
    ///
    /// # Safety
    /// The addresses that count at this rank are of memory of the communicator's device, as long as the
    /// counts say, which lives, and which nobody else writes to (or reads from, where NCCL writes), until
    /// the stream has done the work.
    pub(super) unsafe fn enqueue(self, library: &Library, comm: RawComm, stream: u64) -> Result<Progress> {
        // SAFETY: the caller's.
        unsafe {
            match self {
                Self::Send { from, count, data_type, peer } => {
                    library.send(from, count, data_type, peer, comm, stream)
                }
                Self::Recv { to, count, data_type, peer } => {
                    library.recv(to, count, data_type, peer, comm, stream)
                }
                Self::AllReduce { from, to, count, data_type, op } => {
                    library.all_reduce(from, to, count, data_type, op, comm, stream)
                }
                Self::Reduce { from, to, count, data_type, op, root } => {
                    library.reduce(from, to, count, data_type, op, root, comm, stream)
                }
                Self::AllGather { from, to, count, data_type } => {
                    library.all_gather(from, to, count, data_type, comm, stream)
                }
                Self::ReduceScatter { from, to, count, data_type, op } => {
                    library.reduce_scatter(from, to, count, data_type, op, comm, stream)
                }
                Self::Broadcast { from, to, count, data_type, root } => {
                    library.broadcast(from, to, count, data_type, root, comm, stream)
                }
            }
        }
    }

    /// Enqueues several between a start and an end, so that they progress together.
    ///
    /// # Safety
    /// As [`enqueue`](Self::enqueue), for each.
    pub(super) unsafe fn enqueue_group(
        calls: &[Self],
        library: &Library,
        comm: RawComm,
        stream: u64,
    ) -> Result<Progress> {
        // SAFETY: the group is ended below, whatever happens between.
        unsafe { library.group_start()? };
        // SAFETY: the caller's.
        let enqueued =
            calls.iter().try_for_each(|call| unsafe { call.enqueue(library, comm, stream) }.map(drop));
        // SAFETY: it was started above, on this thread.
        let ended = unsafe { library.group_end() };
        enqueued.and(ended)
    }
}

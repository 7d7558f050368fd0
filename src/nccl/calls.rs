//! NCCL's calls on communicators, one method for each, named as the function.
//!
//! They convert arguments and answers and nothing else: what may follow what is the communicator's
//! business. A call that gives [`Progress::InProgress`] was accepted.
//!
//! # Safety
//! For all of them, as nccl.h says: the communicator is one that this library made, and that was neither
//! destroyed nor aborted; no other thread calls on it, except for an abort; buffers lie in memory of its
//! device, are as long as count and data type say, and stay as they are until the stream has done the
//! work; the stream is one of its device.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::ReduceOp;
use super::codes::{DataType, Progress, ResultCode};
use super::functions::{Config, RawComm};
use super::library::Library;
use crate::error::Result;
use crate::wire::UniqueId;

/// Where NCCL writes a handle, perhaps later and from a thread of its own (up to 2.17 at the end of a
/// nonblocking initialisation, and nobody promises that it never will again). So it is never freed; a
/// communicator or a registration costs these 8 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot(&'static AtomicPtr<c_void>);

impl Slot {
    fn new() -> Self {
        Self(Box::leak(Box::new(AtomicPtr::new(ptr::null_mut()))))
    }

    /// What NCCL has written; null before that.
    pub(crate) fn get(self) -> *mut c_void {
        self.0.load(Ordering::Acquire)
    }
}

/// Communicators.
impl Library {
    /// Blocks until all ranks are there.
    #[cfg_attr(not(test), expect(dead_code, reason = "vLLM's library has it; our communicators don't block"))]
    pub(crate) unsafe fn comm_init_rank(
        &self,
        world_size: c_int,
        id: &UniqueId,
        rank: c_int,
    ) -> Result<(RawComm, Progress)> {
        let slot = Slot::new();
        // SAFETY: a communicator's handle has the layout of a pointer, and the slot stays.
        let code = unsafe { (self.functions.comm_init_rank)(slot.0.as_ptr().cast(), world_size, *id, rank) };
        self.made("ncclCommInitRank", code, slot)
    }

    /// With [`Config::NONBLOCKING`] it returns at once, and the communicator is one to poll or to abort.
    pub(crate) unsafe fn comm_init_rank_config(
        &self,
        world_size: c_int,
        id: &UniqueId,
        rank: c_int,
        mut config: Config,
    ) -> Result<(RawComm, Progress)> {
        let slot = Slot::new();
        let init = self.functions.comm_init_rank_config;
        // SAFETY: as above; the configuration is copied by the call.
        let code = unsafe { init(slot.0.as_ptr().cast(), world_size, *id, rank, &mut config) };
        self.made("ncclCommInitRankConfig", code, slot)
    }

    fn made(&self, call: &'static str, code: ResultCode, slot: Slot) -> Result<(RawComm, Progress)> {
        let progress = self.check(call, code)?;
        match RawComm(slot.get()) {
            RawComm::NULL => Err(self.failed(call, code, "it gave no communicator".into())),
            comm => Ok((comm, progress)),
        }
    }

    pub(crate) unsafe fn comm_finalize(&self, comm: RawComm) -> Result<Progress> {
        // SAFETY: the caller's promise.
        self.check("ncclCommFinalize", unsafe { (self.functions.comm_finalize)(comm) })
    }

    pub(crate) unsafe fn comm_destroy(&self, comm: RawComm) -> Result<Progress> {
        // SAFETY: the caller's promise.
        self.check("ncclCommDestroy", unsafe { (self.functions.comm_destroy)(comm) })
    }

    /// May hang, and so belongs on a thread of its own.
    pub(crate) unsafe fn comm_abort(&self, comm: RawComm) -> Result<Progress> {
        // SAFETY: the caller's promise.
        self.check("ncclCommAbort", unsafe { (self.functions.comm_abort)(comm) })
    }

    /// The state of the communicator: [`ResultCode::IN_PROGRESS`] until its last call is done, then that
    /// call's result, or the error that befell it since.
    pub(crate) unsafe fn comm_get_async_error(&self, comm: RawComm) -> Result<ResultCode> {
        let mut state = ResultCode::SUCCESS;
        // SAFETY: the caller's promise; it writes one code.
        let code = unsafe { (self.functions.comm_get_async_error)(comm, &mut state) };
        self.done("ncclCommGetAsyncError", code)?;
        Ok(state)
    }

    #[cfg_attr(not(test), expect(dead_code, reason = "a communicator knows what it was made with"))]
    pub(crate) unsafe fn comm_count(&self, comm: RawComm) -> Result<c_int> {
        let mut count = 0;
        // SAFETY: the caller's promise; it writes one number.
        let code = unsafe { (self.functions.comm_count)(comm, &mut count) };
        self.done("ncclCommCount", code)?;
        Ok(count)
    }

    #[cfg_attr(not(test), expect(dead_code, reason = "a communicator knows what it was made with"))]
    pub(crate) unsafe fn comm_user_rank(&self, comm: RawComm) -> Result<c_int> {
        let mut rank = 0;
        // SAFETY: the caller's promise; it writes one number.
        let code = unsafe { (self.functions.comm_user_rank)(comm, &mut rank) };
        self.done("ncclCommUserRank", code)?;
        Ok(rank)
    }
}

/// What moves data. Addresses are the device's, `stream` is a `CUstream`, counts are of elements.
#[allow(clippy::too_many_arguments, reason = "they are NCCL's")]
impl Library {
    pub(crate) unsafe fn all_reduce(
        &self,
        from: u64,
        to: u64,
        count: usize,
        data_type: DataType,
        op: ReduceOp,
        comm: RawComm,
        stream: u64,
    ) -> Result<Progress> {
        let call = self.functions.all_reduce;
        let (from, to, stream) = (source(from), target(to), target(stream));
        // SAFETY: the caller's promise.
        let code = unsafe { call(from, to, count, data_type.code(), op.code(), comm, stream) };
        self.check("ncclAllReduce", code)
    }

    /// `to` matters on `root` only.
    pub(crate) unsafe fn reduce(
        &self,
        from: u64,
        to: u64,
        count: usize,
        data_type: DataType,
        op: ReduceOp,
        root: c_int,
        comm: RawComm,
        stream: u64,
    ) -> Result<Progress> {
        let call = self.functions.reduce;
        let (from, to, stream) = (source(from), target(to), target(stream));
        // SAFETY: the caller's promise.
        let code = unsafe { call(from, to, count, data_type.code(), op.code(), root, comm, stream) };
        self.check("ncclReduce", code)
    }

    /// `count` is of what each rank gives.
    pub(crate) unsafe fn all_gather(
        &self,
        from: u64,
        to: u64,
        count: usize,
        data_type: DataType,
        comm: RawComm,
        stream: u64,
    ) -> Result<Progress> {
        let call = self.functions.all_gather;
        // SAFETY: the caller's promise.
        let code = unsafe { call(source(from), target(to), count, data_type.code(), comm, target(stream)) };
        self.check("ncclAllGather", code)
    }

    /// `count` is of what each rank gets.
    pub(crate) unsafe fn reduce_scatter(
        &self,
        from: u64,
        to: u64,
        count: usize,
        data_type: DataType,
        op: ReduceOp,
        comm: RawComm,
        stream: u64,
    ) -> Result<Progress> {
        let call = self.functions.reduce_scatter;
        let (from, to, stream) = (source(from), target(to), target(stream));
        // SAFETY: the caller's promise.
        let code = unsafe { call(from, to, count, data_type.code(), op.code(), comm, stream) };
        self.check("ncclReduceScatter", code)
    }

    /// `from` matters on `root` only, and may be null elsewhere.
    pub(crate) unsafe fn broadcast(
        &self,
        from: u64,
        to: u64,
        count: usize,
        data_type: DataType,
        root: c_int,
        comm: RawComm,
        stream: u64,
    ) -> Result<Progress> {
        let call = self.functions.broadcast;
        let (from, to, stream) = (source(from), target(to), target(stream));
        // SAFETY: the caller's promise.
        let code = unsafe { call(from, to, count, data_type.code(), root, comm, stream) };
        self.check("ncclBroadcast", code)
    }

    pub(crate) unsafe fn send(
        &self,
        from: u64,
        count: usize,
        data_type: DataType,
        peer: c_int,
        comm: RawComm,
        stream: u64,
    ) -> Result<Progress> {
        let call = self.functions.send;
        // SAFETY: the caller's promise.
        let code = unsafe { call(source(from), count, data_type.code(), peer, comm, target(stream)) };
        self.check("ncclSend", code)
    }

    pub(crate) unsafe fn recv(
        &self,
        to: u64,
        count: usize,
        data_type: DataType,
        peer: c_int,
        comm: RawComm,
        stream: u64,
    ) -> Result<Progress> {
        let call = self.functions.recv;
        // SAFETY: the caller's promise.
        let code = unsafe { call(target(to), count, data_type.code(), peer, comm, target(stream)) };
        self.check("ncclRecv", code)
    }

    /// What this thread calls from now on waits for [`group_end`](Self::group_end), on this thread too.
    pub(crate) unsafe fn group_start(&self) -> Result<()> {
        // SAFETY: the caller's promise.
        self.done("ncclGroupStart", unsafe { (self.functions.group_start)() })
    }

    pub(crate) unsafe fn group_end(&self) -> Result<Progress> {
        // SAFETY: the caller's promise.
        self.check("ncclGroupEnd", unsafe { (self.functions.group_end)() })
    }
}

/// Memory: NCCL's own, and that of others made known to it.
impl Library {
    pub(crate) unsafe fn mem_alloc(&self, bytes: usize) -> Result<u64> {
        let mut address = ptr::null_mut();
        // SAFETY: it writes one pointer; the caller has made a device current.
        let code = unsafe { (self.functions.mem_alloc()?)(&mut address, bytes) };
        self.done("ncclMemAlloc", code)?;
        Ok(number(address))
    }

    pub(crate) unsafe fn mem_free(&self, address: u64) -> Result<()> {
        // SAFETY: the caller's promise.
        self.done("ncclMemFree", unsafe { (self.functions.mem_free()?)(target(address)) })
    }

    /// Gives the handle to [deregister](Self::comm_deregister).
    pub(crate) unsafe fn comm_register(&self, comm: RawComm, address: u64, bytes: usize) -> Result<u64> {
        let mut handle = ptr::null_mut();
        let call = self.functions.comm_register()?;
        // SAFETY: the caller's promise; it writes one pointer.
        let code = unsafe { call(comm, target(address), bytes, &mut handle) };
        self.done("ncclCommRegister", code)?;
        Ok(number(handle))
    }

    pub(crate) unsafe fn comm_deregister(&self, comm: RawComm, handle: u64) -> Result<()> {
        let call = self.functions.comm_deregister()?;
        // SAFETY: the caller's promise.
        self.done("ncclCommDeregister", unsafe { call(comm, target(handle)) })
    }

    /// A collective. The window is in the slot once it is done.
    pub(crate) unsafe fn comm_window_register(
        &self,
        comm: RawComm,
        address: u64,
        bytes: usize,
        flags: c_int,
    ) -> Result<(Slot, Progress)> {
        let call = self.functions.comm_window_register()?;
        let slot = Slot::new();
        // SAFETY: the caller's promise; the slot stays.
        let code = unsafe { call(comm, target(address), bytes, slot.0.as_ptr(), flags) };
        Ok((slot, self.check("ncclCommWindowRegister", code)?))
    }

    pub(crate) unsafe fn comm_window_deregister(
        &self,
        comm: RawComm,
        window: *mut c_void,
    ) -> Result<Progress> {
        let call = self.functions.comm_window_deregister()?;
        // SAFETY: the caller's promise.
        self.check("ncclCommWindowDeregister", unsafe { call(comm, window) })
    }
}

/// A device address or a handle, as it goes through C.
fn target(number: u64) -> *mut c_void {
    ptr::with_exposed_provenance_mut(number as usize)
}

fn source(number: u64) -> *const c_void {
    target(number)
}

fn number(pointer: *mut c_void) -> u64 {
    pointer.expose_provenance() as u64
}

//! A table of functions that write down how they were called, and what is known by it of
//! [`calls`](super::calls).

use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use super::ReduceOp;
use super::codes::{DataType, Progress, ResultCode};
use super::functions::{Config, Functions, RawComm};
use super::library::Library;
use crate::error::{Error, Result};
use crate::wire::UniqueId;

thread_local! {
    /// What was called last, with its arguments.
    static CALLED: RefCell<String> = const { RefCell::new(String::new()) };
    /// What everything but the constructor answers.
    static ANSWER: Cell<ResultCode> = const { Cell::new(ResultCode::SUCCESS) };
}

fn called(what: String) -> ResultCode {
    CALLED.replace(what);
    ANSWER.get()
}

/// The communicator of these tests.
const COMM: RawComm = RawComm(ptr::without_provenance_mut(0xc0));

extern "C" fn get_version(version: *mut c_int) -> ResultCode {
    // SAFETY: the library's integer.
    unsafe { *version = 22703 };
    ResultCode::SUCCESS
}

extern "C" fn text_of(code: ResultCode) -> *const c_char {
    match code {
        ResultCode::SYSTEM_ERROR => c"unhandled system error".as_ptr(),
        _ => ptr::null(),
    }
}

extern "C" fn last_error(_: RawComm) -> *const c_char {
    c"ib0: link down\n".as_ptr()
}

extern "C" fn get_unique_id(id: *mut UniqueId) -> ResultCode {
    // SAFETY: the library's id.
    unsafe { *id = UniqueId([7; UniqueId::BYTES]) };
    called("ncclGetUniqueId".into())
}

/// Writes `value`, unless the call is to fail.
fn gives<T>(slot: *mut T, value: T, what: String) -> ResultCode {
    let answer = called(what);
    if answer == ResultCode::SUCCESS || answer == ResultCode::IN_PROGRESS {
        // SAFETY: where the library wants its answer.
        unsafe { *slot = value };
    }
    answer
}

extern "C" fn comm_init_rank(comm: *mut RawComm, world: c_int, id: UniqueId, rank: c_int) -> ResultCode {
    gives(comm, COMM, format!("ncclCommInitRank {rank} of {world}, id {}..{}", id.0[0], id.0[127]))
}

extern "C" fn comm_init_rank_config(
    comm: *mut RawComm,
    world: c_int,
    id: UniqueId,
    rank: c_int,
    config: *mut Config,
) -> ResultCode {
    // SAFETY: the library's configuration.
    let bytes = unsafe { config.cast::<[u8; 24]>().read() };
    gives(comm, COMM, format!("ncclCommInitRankConfig {rank} of {world}, id {}, config {bytes:x?}", id.0[0]))
}

/// Functions of a communicator alone.
macro_rules! on_communicator {
    ($($name:ident = $symbol:literal;)*) => {
        $(extern "C" fn $name(comm: RawComm) -> ResultCode {
            called(format!(concat!($symbol, " {:?}"), comm.0))
        })*
    };
}

on_communicator! {
    comm_finalize = "ncclCommFinalize";
    comm_destroy = "ncclCommDestroy";
    comm_abort = "ncclCommAbort";
}

extern "C" fn comm_get_async_error(comm: RawComm, state: *mut ResultCode) -> ResultCode {
    gives(state, ResultCode::REMOTE_ERROR, format!("ncclCommGetAsyncError {:?}", comm.0))
}

extern "C" fn comm_count(comm: RawComm, count: *mut c_int) -> ResultCode {
    gives(count, 5, format!("ncclCommCount {:?}", comm.0))
}

extern "C" fn comm_user_rank(comm: RawComm, rank: *mut c_int) -> ResultCode {
    gives(rank, 3, format!("ncclCommUserRank {:?}", comm.0))
}

/// Functions that are called with nothing but what is written down.
macro_rules! with_data {
    ($($name:ident = $symbol:literal($($argument:ident: $kind:ty),*);)*) => {
        $(extern "C" fn $name($($argument: $kind,)* comm: RawComm, stream: *mut c_void) -> ResultCode {
            let mut text = String::from($symbol);
            $(text.push_str(&format!(concat!(" ", stringify!($argument), " {:?}"), $argument));)*
            called(format!("{text} on {:?} {stream:?}", comm.0))
        })*
    };
}

with_data! {
    all_reduce = "ncclAllReduce"(from: *const c_void, to: *mut c_void, count: usize, kind: c_int, op: c_int);
    reduce = "ncclReduce"(from: *const c_void, to: *mut c_void, count: usize, kind: c_int, op: c_int, root: c_int);
    all_gather = "ncclAllGather"(from: *const c_void, to: *mut c_void, count: usize, kind: c_int);
    reduce_scatter = "ncclReduceScatter"(from: *const c_void, to: *mut c_void, count: usize, kind: c_int, op: c_int);
    broadcast = "ncclBroadcast"(from: *const c_void, to: *mut c_void, count: usize, kind: c_int, root: c_int);
    send = "ncclSend"(from: *const c_void, count: usize, kind: c_int, peer: c_int);
    recv = "ncclRecv"(to: *mut c_void, count: usize, kind: c_int, peer: c_int);
}

extern "C" fn group_start() -> ResultCode {
    called("ncclGroupStart".into())
}

extern "C" fn group_end() -> ResultCode {
    called("ncclGroupEnd".into())
}

extern "C" fn mem_alloc(address: *mut *mut c_void, bytes: usize) -> ResultCode {
    gives(address, ptr::without_provenance_mut(0xa0), format!("ncclMemAlloc {bytes}"))
}

extern "C" fn mem_free(address: *mut c_void) -> ResultCode {
    called(format!("ncclMemFree {address:?}"))
}

extern "C" fn comm_register(
    comm: RawComm,
    address: *mut c_void,
    bytes: usize,
    handle: *mut *mut c_void,
) -> ResultCode {
    let what = format!("ncclCommRegister {:?} {address:?} {bytes}", comm.0);
    gives(handle, ptr::without_provenance_mut(0xb0), what)
}

extern "C" fn comm_deregister(comm: RawComm, handle: *mut c_void) -> ResultCode {
    called(format!("ncclCommDeregister {:?} {handle:?}", comm.0))
}

extern "C" fn comm_window_register(
    comm: RawComm,
    address: *mut c_void,
    bytes: usize,
    window: *mut *mut c_void,
    flags: c_int,
) -> ResultCode {
    let what = format!("ncclCommWindowRegister {:?} {address:?} {bytes} flags {flags}", comm.0);
    gives(window, ptr::without_provenance_mut(0xd0), what)
}

extern "C" fn comm_window_deregister(comm: RawComm, window: *mut c_void) -> ResultCode {
    called(format!("ncclCommWindowDeregister {:?} {window:?}", comm.0))
}

const ALL: Functions = Functions {
    get_version,
    get_error_string: text_of,
    get_last_error: last_error,
    get_unique_id,
    comm_init_rank,
    comm_init_rank_config,
    comm_finalize,
    comm_destroy,
    comm_abort,
    comm_get_async_error,
    comm_count,
    comm_user_rank,
    all_reduce,
    reduce,
    all_gather,
    reduce_scatter,
    broadcast,
    send,
    recv,
    group_start,
    group_end,
    mem_alloc: Some(mem_alloc),
    mem_free: Some(mem_free),
    comm_register: Some(comm_register),
    comm_deregister: Some(comm_deregister),
    comm_window_register: Some(comm_window_register),
    comm_window_deregister: Some(comm_window_deregister),
};

/// The library, of which everything succeeds at first, whatever this thread's last test left behind.
fn library() -> Arc<Library> {
    ANSWER.set(ResultCode::SUCCESS);
    Library::from_functions("recorded", ALL).unwrap()
}

/// Asserts how NCCL was called.
#[track_caller]
fn assert_called(expected: &str) {
    assert_eq!(CALLED.take(), expected);
}

/// Asserts that `call` gives all three kinds of answers on: done, in progress, an error with the
/// function's name, its code and both of NCCL's texts.
#[track_caller]
fn assert_answers(symbol: &'static str, call: impl Fn() -> Result<Progress>) {
    assert_eq!(call().unwrap(), Progress::Done);
    ANSWER.set(ResultCode::IN_PROGRESS);
    assert_eq!(call().unwrap(), Progress::InProgress);
    ANSWER.set(ResultCode::SYSTEM_ERROR);
    let error = call().unwrap_err().to_string();
    ANSWER.set(ResultCode::SUCCESS);
    assert_eq!(error, format!("{symbol}: unhandled system error (NCCL code 2): ib0: link down"));
}

#[test]
fn all_reduce_passes_on_buffers_count_type_and_operation() {
    let library = library();
    assert_answers("ncclAllReduce", || {
        // SAFETY: the recorder touches no memory.
        unsafe { library.all_reduce(0x10, 0x20, 6, DataType::Float32, ReduceOp::Max, COMM, 0x5) }
    });
    assert_called("ncclAllReduce from 0x10 to 0x20 count 6 kind 7 op 2 on 0xc0 0x5");
}

#[test]
fn reduce_passes_on_its_root_as_well() {
    let library = library();
    assert_answers("ncclReduce", || {
        // SAFETY: the recorder touches no memory.
        unsafe { library.reduce(0x10, 0x20, 6, DataType::Int64, ReduceOp::Avg, 1, COMM, 0x5) }
    });
    assert_called("ncclReduce from 0x10 to 0x20 count 6 kind 4 op 4 root 1 on 0xc0 0x5");
}

#[test]
fn all_gather_passes_on_buffers_count_and_type() {
    let library = library();
    assert_answers("ncclAllGather", || {
        // SAFETY: the recorder touches no memory.
        unsafe { library.all_gather(0x10, 0x20, 6, DataType::Bfloat16, COMM, 0x5) }
    });
    assert_called("ncclAllGather from 0x10 to 0x20 count 6 kind 9 on 0xc0 0x5");
}

#[test]
fn reduce_scatter_passes_on_buffers_count_type_and_operation() {
    let library = library();
    assert_answers("ncclReduceScatter", || {
        // SAFETY: the recorder touches no memory.
        unsafe { library.reduce_scatter(0x10, 0x20, 6, DataType::Uint32, ReduceOp::Min, COMM, 0x5) }
    });
    assert_called("ncclReduceScatter from 0x10 to 0x20 count 6 kind 3 op 3 on 0xc0 0x5");
}

#[test]
fn broadcast_passes_on_its_root_and_takes_no_source_elsewhere() {
    let library = library();
    assert_answers("ncclBroadcast", || {
        // SAFETY: the recorder touches no memory.
        unsafe { library.broadcast(0, 0x20, 6, DataType::Float16, 1, COMM, 0) }
    });
    assert_called("ncclBroadcast from 0x0 to 0x20 count 6 kind 6 root 1 on 0xc0 0x0");
}

#[test]
fn send_passes_on_source_count_type_and_peer() {
    let library = library();
    assert_answers("ncclSend", || {
        // SAFETY: the recorder touches no memory.
        unsafe { library.send(0x7f00_1234_5600, 1 << 33, DataType::Uint8, 1, COMM, 0x5) }
    });
    assert_called("ncclSend from 0x7f0012345600 count 8589934592 kind 1 peer 1 on 0xc0 0x5");
}

#[test]
fn recv_passes_on_target_count_type_and_peer() {
    let library = library();
    assert_answers("ncclRecv", || {
        // SAFETY: the recorder touches no memory.
        unsafe { library.recv(0x20, 6, DataType::Float64, 1, COMM, 0x5) }
    });
    assert_called("ncclRecv to 0x20 count 6 kind 8 peer 1 on 0xc0 0x5");
}

#[test]
fn groups_start_at_once_and_may_be_in_progress_at_their_end() {
    let library = library();
    // SAFETY: nothing is in the group.
    unsafe { library.group_start() }.unwrap();
    assert_called("ncclGroupStart");
    // SAFETY: as above.
    assert_answers("ncclGroupEnd", || unsafe { library.group_end() });
    assert_called("ncclGroupEnd");
}

#[test]
fn communicators_are_finalized_destroyed_and_aborted() {
    let library = library();
    // SAFETY: the recorder touches no memory, here and below.
    assert_answers("ncclCommFinalize", || unsafe { library.comm_finalize(COMM) });
    assert_called("ncclCommFinalize 0xc0");
    // SAFETY: as above.
    assert_answers("ncclCommDestroy", || unsafe { library.comm_destroy(COMM) });
    assert_called("ncclCommDestroy 0xc0");
    // SAFETY: as above.
    assert_answers("ncclCommAbort", || unsafe { library.comm_abort(COMM) });
    assert_called("ncclCommAbort 0xc0");
}

/// An id whose bytes are told apart.
fn id() -> UniqueId {
    UniqueId(std::array::from_fn(|index| index as u8 + 1))
}

#[test]
fn a_communicator_is_made_with_the_ranks_and_the_whole_id() {
    let library = library();
    let make = || {
        // SAFETY: the recorder makes nothing.
        let (comm, progress) = unsafe { library.comm_init_rank(5, &id(), 3) }?;
        assert_eq!(comm, COMM);
        Ok(progress)
    };
    assert_answers("ncclCommInitRank", make);
    assert_called("ncclCommInitRank 3 of 5, id 1..128");
}

#[test]
fn a_nonblocking_communicator_is_made_with_the_configuration_of_2_14() {
    let library = library();
    let make = || {
        // SAFETY: the recorder makes nothing.
        let (comm, progress) = unsafe { library.comm_init_rank_config(5, &id(), 3, Config::NONBLOCKING) }?;
        assert_eq!(comm, COMM);
        Ok(progress)
    };
    assert_answers("ncclCommInitRankConfig", make);
    // size 24, magic 0xcafebeef, version 21400, blocking 0, and "not set" where later versions go on.
    assert_called(
        "ncclCommInitRankConfig 3 of 5, id 1, config [18, 0, 0, 0, 0, 0, 0, 0, \
         ef, be, fe, ca, 98, 53, 0, 0, 0, 0, 0, 0, 0, 0, 0, 80]",
    );
}

#[test]
fn a_success_without_a_communicator_is_an_error() {
    extern "C" fn gives_none(_: *mut RawComm, _: c_int, _: UniqueId, _: c_int) -> ResultCode {
        ResultCode::SUCCESS
    }
    let library = Library::from_functions("broken", Functions { comm_init_rank: gives_none, ..ALL }).unwrap();
    // SAFETY: nothing is made.
    let error = unsafe { library.comm_init_rank(2, &id(), 0) }.unwrap_err();
    let Error::Nccl { call, code, detail, .. } = error else { panic!("{error}") };
    assert_eq!((call, code, detail.as_str()), ("ncclCommInitRank", 0, "it gave no communicator"));
}

#[test]
fn a_communicator_tells_its_state_its_size_and_its_rank() {
    let library = library();
    // SAFETY: the recorder touches no memory, here and below.
    assert_eq!(unsafe { library.comm_get_async_error(COMM) }.unwrap(), ResultCode::REMOTE_ERROR);
    assert_called("ncclCommGetAsyncError 0xc0");
    // SAFETY: as above.
    assert_eq!(unsafe { library.comm_count(COMM) }.unwrap(), 5);
    assert_called("ncclCommCount 0xc0");
    // SAFETY: as above.
    assert_eq!(unsafe { library.comm_user_rank(COMM) }.unwrap(), 3);
    assert_called("ncclCommUserRank 0xc0");
}

#[test]
fn what_can_only_be_done_is_an_error_while_it_is_in_progress() {
    let library = library();
    ANSWER.set(ResultCode::IN_PROGRESS);
    // SAFETY: the recorder touches no memory.
    let error = unsafe { library.comm_count(COMM) }.unwrap_err();
    assert!(matches!(error, Error::Nccl { call: "ncclCommCount", code: 7, .. }), "{error:?}");
}

#[test]
fn a_unique_id_is_the_librarys() {
    let library = library();
    assert_eq!(library.unique_id().unwrap(), UniqueId([7; UniqueId::BYTES]));
    ANSWER.set(ResultCode::INVALID_USAGE);
    let error = library.unique_id().unwrap_err();
    assert_eq!(error.to_string(), "ncclGetUniqueId: ncclInvalidUsage (NCCL code 5): ib0: link down");
}

#[test]
fn memory_is_allocated_registered_and_given_back() {
    let library = library();
    // SAFETY: the recorder touches no memory, here and below.
    assert_eq!(unsafe { library.mem_alloc(4096) }.unwrap(), 0xa0);
    assert_called("ncclMemAlloc 4096");
    // SAFETY: as above.
    assert_eq!(unsafe { library.comm_register(COMM, 0xa0, 4096) }.unwrap(), 0xb0);
    assert_called("ncclCommRegister 0xc0 0xa0 4096");
    // SAFETY: as above.
    unsafe { library.comm_deregister(COMM, 0xb0) }.unwrap();
    assert_called("ncclCommDeregister 0xc0 0xb0");
    // SAFETY: as above.
    unsafe { library.mem_free(0xa0) }.unwrap();
    assert_called("ncclMemFree 0xa0");
}

#[test]
fn windows_are_registered_with_their_flags() {
    let library = library();
    let register = || {
        // SAFETY: the recorder touches no memory.
        let (window, progress) = unsafe { library.comm_window_register(COMM, 0xa0, 4096, 1) }?;
        assert_eq!(window.get().addr(), 0xd0);
        Ok(progress)
    };
    assert_answers("ncclCommWindowRegister", register);
    assert_called("ncclCommWindowRegister 0xc0 0xa0 4096 flags 1");
}

#[test]
fn windows_are_deregistered() {
    let library = library();
    let window = ptr::without_provenance_mut(0xd0);
    // SAFETY: the recorder touches no memory.
    assert_answers("ncclCommWindowDeregister", || unsafe { library.comm_window_deregister(COMM, window) });
    assert_called("ncclCommWindowDeregister 0xc0 0xd0");
}

#[test]
fn each_function_that_is_absent_is_unsupported_when_it_is_called() {
    let old = Functions {
        mem_alloc: None,
        mem_free: None,
        comm_register: None,
        comm_deregister: None,
        comm_window_register: None,
        comm_window_deregister: None,
        ..ALL
    };
    let library = Library::from_functions("old", old).unwrap();
    // SAFETY: nothing is called.
    let errors = unsafe {
        [
            library.mem_alloc(1).unwrap_err(),
            library.mem_free(0xa0).unwrap_err(),
            library.comm_register(COMM, 0xa0, 1).unwrap_err(),
            library.comm_deregister(COMM, 0xb0).unwrap_err(),
            library.comm_window_register(COMM, 0xa0, 1, 0).unwrap_err(),
            library.comm_window_deregister(COMM, ptr::null_mut()).unwrap_err(),
        ]
    };
    let missing = library.missing();
    assert_eq!(missing.len(), errors.len());
    for (missing, error) in missing.into_iter().zip(errors) {
        let Error::Unsupported { symbol, needs_version } = error else { panic!("{error}") };
        assert_eq!((symbol, needs_version), (missing.symbol, missing.needs_version));
        let since = if symbol.contains("Window") { "2.27" } else { "2.19" };
        assert_eq!(needs_version, since, "{symbol}");
    }
}

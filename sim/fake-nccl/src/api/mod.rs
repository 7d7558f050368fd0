//! The exported functions. Each has NCCL's contract.

mod memory;

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr::{null_mut, with_exposed_provenance_mut, without_provenance_mut};
use std::sync::Arc;
use std::thread;

use crate::bootstrap::UniqueId;
use crate::codes::{self, Code, INVALID_ARGUMENT, INVALID_USAGE, Result, SUCCESS, failed, misuse};
use crate::comm::{self, Comm};
use crate::group;
use crate::reduce::{DataType, Reduction};
use crate::switches::switches;
use crate::transfer::{Function, Held, Operation, StreamHandle};

pub use self::memory::*;

/// An `ncclComm_t`.
pub type RawComm = *mut c_void;
/// A `cudaStream_t`.
pub type RawStream = *mut c_void;

/// What `ncclConfig_t` begins with; its size says what more there is.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Bytes of the caller's struct.
    pub size: usize,
    /// 0xcafebeef.
    pub magic: c_uint,
    /// The version whose header the caller was compiled with.
    pub version: c_uint,
    /// 0, 1, or the smallest integer for the default.
    pub blocking: c_int,
}

const CONFIG_MAGIC: c_uint = 0xcafe_beef;

/// The first version with `blocking`.
const CONFIG_VERSION: c_uint = 21400;

fn call(symbol: &'static str, run: impl FnOnce() -> Result<Code>) -> Code {
    match switches().count(symbol, None) {
        Some(code) => failed(code, format_args!("{symbol} fails, as the switch says")),
        None => run().unwrap_or_else(|code| code),
    }
}

/// A call on a communicator, which is alive.
fn call_on(symbol: &'static str, handle: RawComm, run: impl FnOnce(&Arc<Comm>) -> Result<Code>) -> Code {
    call_on_or(symbol, handle, run, |_, code| code)
}

/// The same; `refuse` is told of an error.
fn call_on_or(
    symbol: &'static str,
    handle: RawComm,
    run: impl FnOnce(&Arc<Comm>) -> Result<Code>,
    refuse: impl FnOnce(&Comm, Code) -> Code,
) -> Code {
    let comm = match comm::find(handle.addr()) {
        Ok(comm) => comm,
        Err(code) => {
            group::note_error(code);
            return code;
        }
    };
    let result = match switches().count(symbol, Some(comm.rank)) {
        Some(code) => Err(failed(code, format_args!("{symbol} fails, as the switch says"))),
        None => run(&comm),
    };
    result.unwrap_or_else(|code| refuse(&comm, code))
}

unsafe fn write<T>(into: *mut T, value: T) -> Result {
    if into.is_null() {
        return Err(failed(INVALID_ARGUMENT, "a null pointer"));
    }
    // SAFETY: the caller of the exported function gives a place for a `T`.
    unsafe { into.write(value) };
    Ok(())
}

/// What a code means.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetErrorString(code: Code) -> *const c_char {
    codes::text(code).as_ptr()
}

/// Why the last call of this process failed; the communicator is not looked at.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetLastError(_comm: RawComm) -> *const c_char {
    codes::last_error()
}

/// As the switch says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(into: *mut c_int) -> Code {
    // SAFETY: the caller's pointer.
    call("ncclGetVersion", || unsafe { write(into, switches().version) }.map(|()| SUCCESS))
}

/// Starts to listen for the ranks of one communicator.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(into: *mut UniqueId) -> Code {
    // SAFETY: the caller's pointer.
    call("ncclGetUniqueId", || unsafe { write(into, UniqueId::create()?) }.map(|()| SUCCESS))
}

/// Returns when all ranks are there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRank(
    into: *mut RawComm,
    size: c_int,
    id: UniqueId,
    rank: c_int,
) -> Code {
    // SAFETY: the caller's pointer.
    call("ncclCommInitRank", || unsafe { init(into, size, &id, rank, true) })
}

/// The same, or without waiting, as the configuration says; null is the default.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRankConfig(
    into: *mut RawComm,
    size: c_int,
    id: UniqueId,
    rank: c_int,
    config: *const Config,
) -> Code {
    call("ncclCommInitRankConfig", || {
        // SAFETY: null, or a configuration of the size that it says.
        let is_blocking = unsafe { read_config(config) }?;
        // SAFETY: the caller's pointer.
        unsafe { init(into, size, &id, rank, is_blocking) }
    })
}

unsafe fn read_config(config: *const Config) -> Result<bool> {
    if config.is_null() {
        return Ok(true);
    }
    // SAFETY: these three are in every version of the struct.
    let (size, magic, version) = unsafe { ((*config).size, (*config).magic, (*config).version) };
    if magic != CONFIG_MAGIC || size < size_of::<Config>() {
        return Err(misuse(INVALID_ARGUMENT, "ncclConfig_t was not initialised"));
    }
    if version < CONFIG_VERSION {
        return Ok(true);
    }
    // SAFETY: the size is large enough.
    match unsafe { (*config).blocking } {
        0 => Ok(false),
        1 | c_int::MIN => Ok(true),
        other => Err(misuse(INVALID_ARGUMENT, format_args!("ncclConfig_t: blocking is {other}"))),
    }
}

unsafe fn init(
    into: *mut RawComm,
    size: c_int,
    id: &UniqueId,
    rank: c_int,
    is_blocking: bool,
) -> Result<Code> {
    // SAFETY: the caller's pointer.
    unsafe { write(into, null_mut()) }?;
    let ranks = usize::try_from(size).ok().zip(usize::try_from(rank).ok()).filter(|(size, rank)| rank < size);
    let (size, rank) =
        ranks.ok_or_else(|| misuse(INVALID_ARGUMENT, format_args!("rank {rank} of {size} ranks")))?;
    let in_group = group::is_open();
    let (handle, comm, code) = Comm::create((rank, size), id.meeting()?, is_blocking, in_group);
    if is_blocking && !in_group && code != SUCCESS {
        comm::forget(handle);
        comm.end(true);
        return Err(code);
    }
    // SAFETY: the caller's pointer.
    unsafe { write(into, without_provenance_mut(handle)) }?;
    if in_group {
        group::note_forming(comm);
        return Ok(SUCCESS);
    }
    Ok(code)
}

/// Ends what is under way, before `ncclCommDestroy`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommFinalize(handle: RawComm) -> Code {
    if handle.is_null() {
        return SUCCESS;
    }
    call_on_or("ncclCommFinalize", handle, Comm::finalize, group::refuse)
}

/// Ends the communicator; waits for what is under way if it was not finalized.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(handle: RawComm) -> Code {
    if handle.is_null() {
        return SUCCESS;
    }
    call_on("ncclCommDestroy", handle, |comm| {
        comm.ensure_ready()?;
        if !comm.is_finalized() {
            comm.flush()?;
        }
        comm::forget(handle.addr());
        comm.end(false);
        Ok(SUCCESS)
    })
}

/// Ends the communicator at once, whatever it is at.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommAbort(handle: RawComm) -> Code {
    if handle.is_null() {
        return SUCCESS;
    }
    call_on("ncclCommAbort", handle, |comm| {
        if comm.switches.abort_hangs {
            loop {
                thread::park();
            }
        }
        comm::forget(handle.addr());
        comm.end(true);
        Ok(SUCCESS)
    })
}

/// What the last call has come to, or what has gone wrong since.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(handle: RawComm, into: *mut Code) -> Code {
    let comm = match comm::find(handle.addr()) {
        Ok(comm) => comm,
        Err(code) => return code,
    };
    if let Some(code) = switches().count("ncclCommGetAsyncError", Some(comm.rank)) {
        return code;
    }
    // SAFETY: the caller's pointer.
    unsafe { write(into, comm.poll()) }.err().unwrap_or(SUCCESS)
}

/// How many ranks there are.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommCount(handle: RawComm, into: *mut c_int) -> Code {
    call_on("ncclCommCount", handle, |comm| {
        comm.ensure_ready()?;
        // SAFETY: the caller's pointer.
        unsafe { write(into, comm.size as c_int) }.map(|()| SUCCESS)
    })
}

/// Which of them this one is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommUserRank(handle: RawComm, into: *mut c_int) -> Code {
    call_on("ncclCommUserRank", handle, |comm| {
        comm.ensure_ready()?;
        // SAFETY: the caller's pointer.
        unsafe { write(into, comm.rank as c_int) }.map(|()| SUCCESS)
    })
}

/// The arguments of an operation, those that it does not have zero.
struct Arguments {
    function: Function,
    source: *const c_void,
    target: *mut c_void,
    count: usize,
    dtype: c_uint,
    reduction: c_uint,
    peer: c_int,
    stream: RawStream,
}

fn operate(symbol: &'static str, handle: RawComm, arguments: Arguments) -> Code {
    let run = |comm: &Arc<Comm>| {
        comm.ensure_ready()?;
        if comm.is_finalized() {
            return Err(misuse(INVALID_USAGE, format_args!("{symbol} after ncclCommFinalize")));
        }
        let dtype = DataType::check(arguments.dtype)?;
        let reduction =
            if matches!(arguments.function, Function::AllReduce | Function::Reduce | Function::ReduceScatter)
            {
                Reduction::check(arguments.reduction, dtype)?
            } else {
                Reduction::Sum
            };
        let peer = group::check_rank(comm, "root or peer", arguments.peer)?;
        let mut operation = Operation {
            function: arguments.function,
            source: arguments.source.expose_provenance(),
            target: arguments.target.expose_provenance(),
            count: arguments.count,
            dtype,
            reduction,
            peer,
            // The default streams have no object of their own.
            stream: if arguments.stream.addr() <= 2 { 0 } else { arguments.stream.expose_provenance() },
            held: Vec::new(),
        };
        let (reads, writes) = operation.source_and_target_bytes(comm.rank, comm.size);
        let (source, target) = (operation.source, operation.target);
        hold(&mut operation, symbol, source, reads)?;
        hold(&mut operation, symbol, target, writes)?;
        Ok(group::append(comm, operation))
    };
    call_on_or(symbol, handle, run, group::refuse)
}

/// Checks what an operation touches, and keeps it from being freed.
fn hold(operation: &mut Operation, symbol: &str, address: usize, bytes: usize) -> Result {
    if bytes == 0 {
        return Ok(());
    }
    if address == 0 {
        return Err(misuse(INVALID_ARGUMENT, format_args!("{symbol}: a null buffer")));
    }
    if operation.stream == 0 || memory::has(address, bytes) {
        return Ok(());
    }
    // SAFETY: a stream of kvpipe-fake-cuda, whose handles are never freed.
    let in_use = unsafe { (*with_exposed_provenance_mut::<StreamHandle>(operation.stream)).in_use };
    if in_use(address as u64, bytes, 1) != 0 {
        let what = format_args!("{symbol}: {bytes} bytes at {address:#x} are no device's");
        return Err(misuse(INVALID_ARGUMENT, what));
    }
    operation.held.push(Held { in_use, address, bytes });
    Ok(())
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*) = $function:ident $source:expr, $target:expr, $count:expr, $dtype:expr, $reduction:expr, $peer:expr;)*) => {$(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type,)* comm: RawComm, stream: RawStream) -> Code {
            operate(stringify!($name), comm, Arguments {
                function: Function::$function,
                source: $source,
                target: $target,
                count: $count,
                dtype: $dtype,
                reduction: $reduction,
                peer: $peer,
                stream,
            })
        }
    )*};
}

operations! {
    /// To everybody, what all have reduced.
    ncclAllReduce(source: *const c_void, target: *mut c_void, count: usize, dtype: c_uint, reduction: c_uint)
        = AllReduce source, target, count, dtype, reduction, 0;
    /// To the root, what all have reduced.
    ncclReduce(source: *const c_void, target: *mut c_void, count: usize, dtype: c_uint, reduction: c_uint, root: c_int)
        = Reduce source, target, count, dtype, reduction, root;
    /// To everybody, what all have, in the order of ranks; the count is one rank's.
    ncclAllGather(source: *const c_void, target: *mut c_void, count: usize, dtype: c_uint)
        = AllGather source, target, count, dtype, 0, 0;
    /// To each its share of what all have reduced; the count is one share's.
    ncclReduceScatter(source: *const c_void, target: *mut c_void, count: usize, dtype: c_uint, reduction: c_uint)
        = ReduceScatter source, target, count, dtype, reduction, 0;
    /// To everybody, what the root has.
    ncclBroadcast(source: *const c_void, target: *mut c_void, count: usize, dtype: c_uint, root: c_int)
        = Broadcast source, target, count, dtype, 0, root;
    /// To one.
    ncclSend(source: *const c_void, count: usize, dtype: c_uint, peer: c_int)
        = Send source, null_mut(), count, dtype, 0, peer;
    /// From one.
    ncclRecv(target: *mut c_void, count: usize, dtype: c_uint, peer: c_int)
        = Recv std::ptr::null(), target, count, dtype, 0, peer;
}

/// What follows on this thread happens together.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupStart() -> Code {
    call("ncclGroupStart", || {
        group::start();
        Ok(SUCCESS)
    })
}

/// Now.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupEnd() -> Code {
    let failure = switches().count("ncclGroupEnd", None);
    if let Some(code) = failure {
        group::note_error(failed(code, "ncclGroupEnd fails, as the switch says"));
    }
    group::end()
}

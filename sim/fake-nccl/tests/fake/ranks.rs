//! Ranks of a communicator, with a stream each, as the tests use them.

use std::any::Any;
use std::ffi::{c_int, c_void};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, MutexGuard, Once, PoisonError, mpsc};

use kvpipe_fake_cuda::driver::{cuCtxSetCurrent, cuDevicePrimaryCtxRetain, cuInit};
use kvpipe_fake_cuda::memory::{cuMemAlloc_v2, cuMemFree_v2, cuMemcpyDtoH_v2, cuMemcpyHtoD_v2};
use kvpipe_fake_cuda::stream::{
    cuLaunchHostFunc, cuStreamCreate, cuStreamDestroy_v2, cuStreamQuery, cuStreamSynchronize,
};
use kvpipe_fake_nccl::api::*;
use kvpipe_fake_nccl::codes::{Code, IN_PROGRESS, SUCCESS};
use kvpipe_fake_nccl::{Live, UniqueId, configure, live};

pub(crate) const INT8: u32 = 0;
pub(crate) const UINT8: u32 = 1;
pub(crate) const FLOAT32: u32 = 7;
pub(crate) const SUM: u32 = 0;

/// One test at a time: switches and what is alive are the process's.
pub(crate) struct Alone {
    before: (Live, kvpipe_fake_cuda::Live),
    _lock: MutexGuard<'static, ()>,
}

pub(crate) fn alone(switches: &str) -> Alone {
    static LOCK: Mutex<()> = Mutex::new(());
    let lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    configure(switches);
    kvpipe_fake_cuda::configure("");
    Alone { before: (live(), kvpipe_fake_cuda::live()), _lock: lock }
}

impl Alone {
    pub(crate) fn misuses(&self) -> u64 {
        live().misuses - self.before.0.misuses
    }

    /// Nothing is left, and nothing was done wrong.
    pub(crate) fn is_clean(&self) {
        assert_eq!(live(), self.before.0);
        assert_eq!(kvpipe_fake_cuda::live(), kvpipe_fake_cuda::Live { contexts: 1, ..self.before.1 });
    }
}

pub(crate) fn ok(code: Code) {
    assert_eq!(code, SUCCESS);
}

/// Binds a context to the calling thread.
pub(crate) fn use_device() {
    static RETAINED: Once = Once::new();
    RETAINED.call_once(|| unsafe {
        assert_eq!(cuInit(0), 0);
        assert_eq!(cuDevicePrimaryCtxRetain(&mut null_mut(), 0), 0);
    });
    // The fake's handle of the first context.
    assert_eq!(unsafe { cuCtxSetCurrent(0x7c00_0000_0000_usize as *mut c_void) }, 0);
}

pub(crate) fn unique_id() -> UniqueId {
    let mut id = UniqueId([0; 128]);
    ok(unsafe { ncclGetUniqueId(&mut id) });
    id
}

/// Memory of the fake device.
pub(crate) struct Buffer(pub(crate) u64, usize);

impl Buffer {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let mut address = 0;
        assert_eq!(unsafe { cuMemAlloc_v2(&mut address, bytes.len().max(1)) }, 0);
        assert_eq!(unsafe { cuMemcpyHtoD_v2(address, bytes.as_ptr().cast(), bytes.len()) }, 0);
        Self(address, bytes.len())
    }

    pub(crate) fn pointer(&self) -> *mut c_void {
        self.0 as *mut c_void
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.1];
        assert_eq!(unsafe { cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), self.0, self.1) }, 0);
        bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        assert_eq!(unsafe { cuMemFree_v2(self.0) }, 0);
    }
}

pub(crate) struct Stream(pub(crate) *mut c_void);

impl Stream {
    pub(crate) fn new() -> Self {
        let mut stream = null_mut();
        assert_eq!(unsafe { cuStreamCreate(&mut stream, 1) }, 0);
        Self(stream)
    }

    pub(crate) fn synchronize(&self) {
        assert_eq!(unsafe { cuStreamSynchronize(self.0) }, 0);
    }

    pub(crate) fn is_done(&self) -> bool {
        unsafe { cuStreamQuery(self.0) == 0 }
    }

    /// Holds it until it is told to go on.
    pub(crate) fn hold(&self) -> mpsc::Sender<()> {
        unsafe extern "C" fn wait(data: *mut c_void) {
            let go_on = unsafe { Box::from_raw(data.cast::<mpsc::Receiver<()>>()) };
            let _ = go_on.recv();
        }
        let (sender, receiver) = mpsc::channel::<()>();
        let data = Box::into_raw(Box::new(receiver)).cast();
        assert_eq!(unsafe { cuLaunchHostFunc(self.0, Some(wait), data) }, 0);
        sender
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        assert_eq!(unsafe { cuStreamDestroy_v2(self.0) }, 0);
    }
}

/// A communicator, its handle only.
#[derive(Clone, Copy)]
pub(crate) struct Comm(pub(crate) RawComm);

// SAFETY: a number that the library looks up.
unsafe impl Send for Comm {}

pub(crate) fn config(blocking: c_int) -> Config {
    Config { size: size_of::<Config>(), magic: 0xcafe_beef, version: 21403, blocking }
}

impl Comm {
    pub(crate) fn init(size: usize, id: UniqueId, rank: usize) -> Self {
        let mut comm = null_mut();
        ok(unsafe { ncclCommInitRank(&mut comm, size as c_int, id, rank as c_int) });
        Self(comm)
    }

    /// Formed without blocking; polls until it is done.
    pub(crate) fn init_nonblocking(size: usize, id: UniqueId, rank: usize) -> Self {
        let mut comm = null_mut();
        let code = unsafe { ncclCommInitRankConfig(&mut comm, size as c_int, id, rank as c_int, &config(0)) };
        assert!(code == IN_PROGRESS || code == SUCCESS, "{code}");
        assert_eq!(Self(comm).settle(), SUCCESS);
        Self(comm)
    }

    pub(crate) fn poll(self) -> Code {
        let mut code = -1;
        ok(unsafe { ncclCommGetAsyncError(self.0, &mut code) });
        code
    }

    /// Polls until the last call has ended.
    pub(crate) fn settle(self) -> Code {
        loop {
            match self.poll() {
                IN_PROGRESS => std::thread::yield_now(),
                code => return code,
            }
        }
    }

    pub(crate) fn send(self, buffer: &Buffer, peer: usize, stream: &Stream) -> Code {
        unsafe { ncclSend(buffer.pointer(), buffer.1, UINT8, peer as c_int, self.0, stream.0) }
    }

    pub(crate) fn recv(self, buffer: &Buffer, peer: usize, stream: &Stream) -> Code {
        unsafe { ncclRecv(buffer.pointer(), buffer.1, UINT8, peer as c_int, self.0, stream.0) }
    }

    pub(crate) fn all_reduce(self, buffer: &Buffer, stream: &Stream) -> Code {
        let pointer = buffer.pointer();
        unsafe { ncclAllReduce(pointer, pointer, buffer.1, UINT8, SUM, self.0, stream.0) }
    }

    pub(crate) fn destroy(self) {
        ok(unsafe { ncclCommDestroy(self.0) });
    }

    pub(crate) fn abort(self) {
        ok(unsafe { ncclCommAbort(self.0) });
    }
}

/// Runs a function as each rank of a communicator, in a thread of its own with a device.
pub(crate) fn ranks<T: Send>(size: usize, run: impl Fn(usize, Comm) -> T + Sync) -> Vec<T> {
    let id = unique_id();
    threads(size, |rank| run(rank, Comm::init(size, id, rank)))
}

pub(crate) fn threads<T: Send>(size: usize, run: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let run = &run;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..size)
            .map(|rank| {
                scope.spawn(move || {
                    use_device();
                    catch_unwind(AssertUnwindSafe(|| run(rank)))
                        .unwrap_or_else(|panic| give_up(rank, &*panic))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

pub(crate) fn group(calls: impl FnOnce()) -> Code {
    ok(unsafe { ncclGroupStart() });
    calls();
    unsafe { ncclGroupEnd() }
}

/// Ends the process: the other ranks would wait for this one for ever. Past the test harness, which
/// holds back what is printed.
fn give_up(rank: usize, panic: &(dyn Any + Send)) -> ! {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
    let _ = writeln!(std::io::stderr(), "rank {rank}: {text} (--nocapture shows where)");
    std::process::exit(101)
}

/// Calls `check` often: what must not happen had time to. No more than that hangs on how long it takes.
pub(crate) fn give_time(mut check: impl FnMut()) {
    for _ in 0..10_000 {
        check();
        std::thread::yield_now();
    }
}

/// Bytes that tell ranks and places apart.
pub(crate) fn pattern(rank: usize, length: usize) -> Vec<u8> {
    (0..length).map(|index| (rank * 31 + index * 7 + index / 256) as u8).collect()
}

pub(crate) fn no_config() -> *const Config {
    null()
}

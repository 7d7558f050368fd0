//! Ranks in several processes, some of them with the dynamic library.

use std::ffi::{c_int, c_void};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use crate::ranks::*;
use kvpipe_fake_nccl::UniqueId;
use kvpipe_fake_nccl::api::*;
use kvpipe_fake_nccl::codes::{REMOTE_ERROR, SUCCESS};

const CHILD: &str = "KVPIPE_FAKE_NCCL_CHILD";

/// This test again in a process of its own, as a rank.
fn child(test: &str, rank: usize, id: &UniqueId) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let id: String = id.0.iter().map(|byte| format!("{byte:02x}")).collect();
    command.args(["--exact", test, "--nocapture"]).env(CHILD, format!("{rank}:{id}"));
    command.stdout(Stdio::null()).spawn().unwrap()
}

/// Waits for a child in a thread. If it fails, so does this process, which would wait for it for ever.
fn succeeds(mut child: Child) -> JoinHandle<()> {
    std::thread::spawn(move || {
        if !child.wait().unwrap().success() {
            std::process::exit(101);
        }
    })
}

/// In the child: its rank, and the id.
fn parent() -> Option<(usize, UniqueId)> {
    let (rank, id) = std::env::var(CHILD).ok()?.split_once(':').map(|(r, i)| (r.to_owned(), i.to_owned()))?;
    let mut bytes = [0; 128];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&id[2 * index..][..2], 16).unwrap();
    }
    Some((rank.parse().unwrap(), UniqueId(bytes)))
}

#[test]
fn four_processes_go_round_and_reduce() {
    fn run(rank: usize, id: UniqueId) {
        use_device();
        let comm = Comm::init(4, id, rank);
        let (stream, length) = (Stream::new(), 1 << 20);
        let (source, target) = (Buffer::new(&pattern(rank, length)), Buffer::new(&vec![0; length]));
        for _ in 0..3 {
            ok(group(|| {
                ok(comm.send(&source, (rank + 1) % 4, &stream));
                ok(comm.recv(&target, (rank + 3) % 4, &stream));
            }));
        }
        stream.synchronize();
        assert!(target.bytes() == pattern((rank + 3) % 4, length));
        let sum = Buffer::new(&[rank as u8; 11]);
        ok(comm.all_reduce(&sum, &stream));
        stream.synchronize();
        assert_eq!(sum.bytes(), [6; 11]);
        comm.destroy();
    }
    if let Some((rank, id)) = parent() {
        return run(rank, id);
    }
    let alone = alone("");
    let id = unique_id();
    let test = "processes::four_processes_go_round_and_reduce";
    let children = [1, 2, 3].map(|rank| succeeds(child(test, rank, &id)));
    run(0, id);
    children.into_iter().for_each(|child| child.join().unwrap());
    alone.is_clean();
}

#[test]
fn a_process_that_is_killed_is_a_remote_error_if_it_is_said() {
    if let Some((rank, id)) = parent() {
        use_device();
        let comm = Comm::init(2, id, rank);
        let (stream, buffer) = (Stream::new(), Buffer::new(&[1]));
        ok(comm.send(&buffer, 0, &stream));
        // Until it is killed.
        loop {
            std::thread::park();
        }
    }
    let alone = alone("async_errors=on");
    use_device();
    let id = unique_id();
    let mut child = child("processes::a_process_that_is_killed_is_a_remote_error_if_it_is_said", 1, &id);
    let comm = Comm::init(2, id, 0);
    let (stream, buffer) = (Stream::new(), Buffer::new(&[0]));
    ok(comm.recv(&buffer, 1, &stream));
    stream.synchronize();
    ok(comm.recv(&buffer, 1, &stream));
    assert_eq!(comm.poll(), SUCCESS);
    child.kill().unwrap();
    child.wait().unwrap();
    while comm.poll() == SUCCESS {
        std::thread::yield_now();
    }
    assert_eq!(comm.poll(), REMOTE_ERROR);
    comm.abort();
    stream.synchronize();
    drop((stream, buffer));
    alone.is_clean();
}

type Init = unsafe extern "C" fn(*mut RawComm, c_int, UniqueId, c_int) -> c_int;
type Send = unsafe extern "C" fn(*const c_void, usize, u32, c_int, RawComm, *mut c_void) -> c_int;
type Destroy = unsafe extern "C" fn(RawComm) -> c_int;

#[test]
fn the_dynamic_libraries_work_together_and_with_the_rust_ones() {
    if let Some((rank, id)) = parent() {
        return with_dynamic_libraries(rank, id);
    }
    let alone = alone("");
    use_device();
    let id = unique_id();
    let test = "processes::the_dynamic_libraries_work_together_and_with_the_rust_ones";
    let child = succeeds(child(test, 1, &id));
    let comm = Comm::init(2, id, 0);
    let (stream, buffer) = (Stream::new(), Buffer::new(&[0; 1000]));
    ok(comm.recv(&buffer, 1, &stream));
    stream.synchronize();
    assert_eq!(buffer.bytes(), [0xcd; 1000], "fresh memory of the other process");
    comm.destroy();
    child.join().unwrap();
    drop((stream, buffer));
    alone.is_clean();
}

fn with_dynamic_libraries(rank: usize, id: UniqueId) {
    unsafe {
        let nccl = libloading::Library::new(kvpipe_fake_nccl::library().unwrap()).unwrap();
        let cuda = libloading::Library::new(kvpipe_fake_cuda::library().unwrap()).unwrap();
        let call = |name: &str| *cuda.get::<unsafe extern "C" fn(usize, usize) -> u32>(name).unwrap();
        let (mut context, mut stream, mut memory) = (0_usize, 0_usize, 0_u64);
        assert_eq!(call("cuInit")(0, 0), 0);
        assert_eq!(call("cuDevicePrimaryCtxRetain")((&raw mut context).addr(), 0), 0);
        assert_eq!(call("cuCtxSetCurrent")(context, 0), 0);
        assert_eq!(call("cuStreamCreate")((&raw mut stream).expose_provenance(), 1), 0);
        assert_eq!(call("cuMemAlloc_v2")((&raw mut memory).expose_provenance(), 1000), 0);
        let mut comm = std::ptr::null_mut();
        ok(nccl.get::<Init>("ncclCommInitRank").unwrap()(&mut comm, 2, id, rank as c_int));
        let send = nccl.get::<Send>("ncclSend").unwrap();
        let pointer = memory as *const c_void;
        assert_eq!(send(pointer, 1001, UINT8, 0, comm, stream as *mut c_void), 4, "it is looked up");
        ok(send(pointer, 1000, UINT8, 0, comm, stream as *mut c_void));
        assert_eq!(call("cuStreamSynchronize")(stream, 0), 0);
        ok(nccl.get::<Destroy>("ncclCommDestroy").unwrap()(comm));
        assert_eq!(call("cuMemFree_v2")(memory as usize, 0), 0);
    }
}

//! What goes wrong, or is made to.

use std::ffi::CStr;
use std::sync::{Barrier, mpsc};

use crate::ranks::*;
use kvpipe_fake_nccl::api::*;
use kvpipe_fake_nccl::codes::{
    IN_PROGRESS, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_USAGE, REMOTE_ERROR, SUCCESS, SYSTEM_ERROR,
};
use kvpipe_fake_nccl::{UniqueId, configure};

fn last_error() -> String {
    // SAFETY: texts end with a zero and are kept.
    unsafe { CStr::from_ptr(ncclGetLastError(std::ptr::null_mut())) }.to_string_lossy().into_owned()
}

#[test]
fn an_abort_wakes_a_receive_that_is_stuck() {
    let alone = alone("");
    let aborted = Barrier::new(2);
    ranks(2, |rank, comm| {
        let (stream, buffer) = (Stream::new(), Buffer::new(&[0; 4]));
        if rank == 0 {
            ok(comm.recv(&buffer, 1, &stream));
            stream.synchronize();
            ok(comm.recv(&buffer, 1, &stream));
            ok(comm.recv(&buffer, 1, &stream));
            give_time(|| assert!(!stream.is_done()));
            comm.abort();
            stream.synchronize();
            aborted.wait();
        } else {
            ok(comm.send(&buffer, 0, &stream));
            stream.synchronize();
            // Its end is not what wakes the other.
            aborted.wait();
            comm.destroy();
        }
    });
    alone.is_clean();
}

#[test]
fn an_abort_wakes_a_send_that_nobody_takes() {
    let alone = alone("");
    let (aborted, connected) = (Barrier::new(2), Barrier::new(2));
    ranks(2, |rank, comm| {
        let (stream, one, many) = (Stream::new(), Buffer::new(&[0]), Buffer::new(&vec![0; 64 << 20]));
        if rank == 0 {
            ok(comm.send(&one, 1, &stream));
            ok(comm.send(&many, 1, &stream));
            connected.wait();
            give_time(|| assert!(!stream.is_done()));
            comm.abort();
            stream.synchronize();
            aborted.wait();
        } else {
            ok(comm.recv(&one, 0, &stream));
            connected.wait();
            aborted.wait();
            comm.abort();
            stream.synchronize();
        }
    });
    alone.is_clean();
}

#[test]
fn an_abort_ends_an_initialisation_and_a_first_transfer() {
    let alone = alone("");
    use_device();
    let (stream, buffer) = (Stream::new(), Buffer::new(&[0]));
    let id = unique_id();
    let mut comm = std::ptr::null_mut();
    assert_eq!(unsafe { ncclCommInitRankConfig(&mut comm, 2, id, 0, &config(0)) }, IN_PROGRESS);
    Comm(comm).abort();

    for transfer in [Comm::send, Comm::recv] {
        let id = unique_id();
        let comms = threads(2, |rank| Comm::init_nonblocking(2, id, rank));
        assert_eq!(transfer(comms[0], &buffer, 1, &stream), IN_PROGRESS);
        give_time(|| assert_eq!(comms[0].poll(), IN_PROGRESS, "rank 1 does nothing"));
        comms[0].abort();
        comms[1].abort();
        stream.synchronize();
    }
    drop((stream, buffer));
    alone.is_clean();
}

#[test]
fn a_peer_that_is_gone_is_not_noticed_unless_it_is_said() {
    for noticed in [false, true] {
        let alone = alone(if noticed { "async_errors=on" } else { "" });
        let gone = Barrier::new(2);
        ranks(2, |rank, comm| {
            let (stream, buffer) = (Stream::new(), Buffer::new(&[0; 4]));
            if rank == 0 {
                ok(comm.recv(&buffer, 1, &stream));
                stream.synchronize();
                gone.wait();
                ok(comm.recv(&buffer, 1, &stream));
                if noticed {
                    while comm.poll() == SUCCESS {
                        std::thread::yield_now();
                    }
                    assert_eq!(comm.poll(), REMOTE_ERROR);
                    assert_eq!(comm.send(&buffer, 1, &stream), REMOTE_ERROR);
                    assert_eq!(unsafe { ncclCommDestroy(comm.0) }, REMOTE_ERROR, "an abort has to follow");
                }
                assert!(!stream.is_done(), "the work stays until the abort");
                comm.abort();
                stream.synchronize();
            } else {
                ok(comm.send(&buffer, 0, &stream));
                stream.synchronize();
                comm.abort();
                gone.wait();
            }
        });
        alone.is_clean();
    }
}

#[test]
fn an_error_comes_after_so_many_operations() {
    let alone = alone("async_error=2:3");
    ranks(1, |_, comm| {
        let (stream, buffer) = (Stream::new(), Buffer::new(&[1]));
        for _ in 0..2 {
            ok(comm.all_reduce(&buffer, &stream));
            stream.synchronize();
            assert_eq!(comm.poll(), SUCCESS);
        }
        ok(comm.all_reduce(&buffer, &stream));
        while comm.poll() == SUCCESS {
            std::thread::yield_now();
        }
        assert_eq!(comm.poll(), INTERNAL_ERROR);
        assert!(!stream.is_done());
        assert_eq!(comm.all_reduce(&buffer, &stream), INTERNAL_ERROR);
        comm.abort();
        stream.synchronize();
    });
    alone.is_clean();
}

#[test]
fn a_silent_rank_forms_no_communicator() {
    for silent in 0..2 {
        let alone = alone(&format!("silent,rank={silent}"));
        use_device();
        let id = unique_id();
        let comms = [0, 1].map(|rank| {
            let mut comm = std::ptr::null_mut();
            let code = unsafe { ncclCommInitRankConfig(&mut comm, 2, id, rank, &config(0)) };
            assert_eq!(code, IN_PROGRESS);
            Comm(comm)
        });
        give_time(|| assert_eq!(comms.map(Comm::poll), [IN_PROGRESS; 2]));
        comms.into_iter().for_each(Comm::abort);
        alone.is_clean();
    }
}

#[test]
fn an_abort_may_hang() {
    let alone = alone("abort_hangs");
    use_device();
    let comm = Comm::init(1, unique_id(), 0);
    let (tell, told) = mpsc::channel();
    // A thread that stays.
    std::thread::spawn(move || {
        tell.send("begins").unwrap();
        let comm = comm;
        comm.abort();
        tell.send("returns").unwrap();
    });
    assert_eq!(told.recv(), Ok("begins"));
    assert!(told.recv_timeout(std::time::Duration::from_millis(50)).is_err());
    ok(unsafe { ncclCommCount(comm.0, &mut 0) });
    comm.destroy();
    drop(alone);
}

#[test]
fn the_call_that_is_named_fails() {
    let _alone = alone("fail=ncclAllReduce:2:2,fail=ncclGetUniqueId:2:5,fail=ncclCommInitRank:2:1");
    ranks(1, |_, comm| {
        let (stream, buffer) = (Stream::new(), Buffer::new(&[1]));
        ok(comm.all_reduce(&buffer, &stream));
        assert_eq!(comm.all_reduce(&buffer, &stream), SYSTEM_ERROR);
        assert!(last_error().contains("ncclAllReduce"), "{}", last_error());
        ok(comm.all_reduce(&buffer, &stream));
        assert_eq!(unsafe { ncclGetUniqueId(&mut UniqueId([0; 128])) }, INVALID_USAGE);
        let id = unique_id();
        assert_eq!(unsafe { ncclCommInitRank(&mut std::ptr::null_mut(), 1, id, 0) }, 1);
        // In a group its end says so, and nothing of it is done.
        configure("fail=ncclSend:1:2");
        let code = group(|| {
            ok(comm.recv(&buffer, 0, &stream));
            assert_eq!(comm.send(&buffer, 0, &stream), SYSTEM_ERROR);
        });
        assert_eq!(code, SYSTEM_ERROR);
        configure("fail=ncclGroupEnd:1:6");
        assert_eq!(group(|| ()), REMOTE_ERROR);
        assert_eq!(group(|| ()), SUCCESS);
        stream.synchronize();
        comm.destroy();
    });
}

#[test]
fn only_the_rank_that_is_named_fails() {
    let alone = alone("rank=1,fail=ncclAllReduce:1+:2");
    let codes = ranks(2, |_, comm| {
        let (stream, buffer) = (Stream::new(), Buffer::new(&[1]));
        // On nothing, so that the ranks don't wait for each other.
        let (pointer, none) = (buffer.pointer(), 0);
        let code = unsafe { ncclAllReduce(pointer, pointer, none, UINT8, SUM, comm.0, stream.0) };
        comm.destroy();
        code
    });
    assert_eq!(codes, [SUCCESS, SYSTEM_ERROR]);
    alone.is_clean();
}

#[test]
fn versions_are_what_is_said_and_codes_have_texts() {
    let _alone = alone("version=21903");
    let mut version = 0;
    ok(unsafe { ncclGetVersion(&mut version) });
    assert_eq!(version, 21903);
    for (code, text) in [(0, "no error"), (6, "remote process"), (7, "in progress"), (99, "unknown")] {
        // SAFETY: constants with a final zero.
        let found = unsafe { CStr::from_ptr(ncclGetErrorString(code)) }.to_str().unwrap();
        assert!(found.contains(text), "{code}: {found}");
    }
}

#[test]
fn what_does_not_fit_together_is_an_error_of_the_communicator() {
    for is_collective in [false, true] {
        let alone = alone("");
        let seen = Barrier::new(2);
        ranks(2, |rank, comm| {
            let stream = Stream::new();
            let buffer = Buffer::new(&vec![0; 4 + rank]);
            ok(match (is_collective, rank) {
                (true, _) => comm.all_reduce(&buffer, &stream),
                (false, 0) => comm.recv(&buffer, 1, &stream),
                (false, _) => comm.send(&buffer, 0, &stream),
            });
            if rank == 0 {
                while comm.poll() == SUCCESS {
                    std::thread::yield_now();
                }
                assert_eq!(comm.poll(), INVALID_USAGE);
            }
            seen.wait();
            comm.abort();
            stream.synchronize();
        });
        assert_eq!(alone.misuses(), 1);
    }
}

#[test]
fn ranks_that_contradict_each_other_form_nothing() {
    let alone = alone("");
    for (size, rank) in [(3, 1), (2, 0)] {
        let id = unique_id();
        let mut comm = std::ptr::null_mut();
        assert_eq!(unsafe { ncclCommInitRankConfig(&mut comm, 2, id, 0, &config(0)) }, IN_PROGRESS);
        let mut other = std::ptr::null_mut();
        assert_eq!(unsafe { ncclCommInitRank(&mut other, size, id, rank) }, REMOTE_ERROR);
        assert!(other.is_null());
        assert_eq!(Comm(comm).settle(), REMOTE_ERROR);
        Comm(comm).abort();
    }
    let mut comm = std::ptr::null_mut();
    for (size, rank) in [(0, 0), (2, 2), (2, -1)] {
        assert_eq!(unsafe { ncclCommInitRank(&mut comm, size, unique_id(), rank) }, INVALID_ARGUMENT);
    }
    assert_eq!(unsafe { ncclCommInitRank(&mut comm, 1, UniqueId([0; 128]), 0) }, INVALID_ARGUMENT);
    assert_eq!(alone.misuses(), 6);
}

#[test]
fn what_is_over_is_not_used() {
    let alone = alone("");
    use_device();
    let comm = Comm::init(1, unique_id(), 0);
    ok(unsafe { ncclCommFinalize(comm.0) });
    assert_eq!(unsafe { ncclCommFinalize(comm.0) }, INVALID_ARGUMENT, "twice");
    let (stream, buffer) = (Stream::new(), Buffer::new(&[1]));
    assert_eq!(comm.all_reduce(&buffer, &stream), INVALID_USAGE, "finalized");
    comm.destroy();
    assert_eq!(unsafe { ncclCommDestroy(comm.0) }, INVALID_ARGUMENT);
    assert_eq!(unsafe { ncclCommAbort(comm.0) }, INVALID_ARGUMENT);
    assert_eq!(unsafe { ncclCommGetAsyncError(comm.0, &mut 0) }, INVALID_ARGUMENT);
    assert_eq!(unsafe { ncclGroupEnd() }, INVALID_USAGE);
    assert_eq!(alone.misuses(), 6);
    let none = std::ptr::null_mut();
    assert_eq!(unsafe { [ncclCommDestroy(none), ncclCommAbort(none), ncclCommFinalize(none)] }, [SUCCESS; 3]);
}

#[test]
fn memory_and_registrations_are_counted() {
    let alone = alone("");
    use_device();
    let comm = Comm::init(1, unique_id(), 0);
    let (mut memory, mut window, mut handle) = [std::ptr::null_mut(); 3].into();
    let stream = Stream::new();
    unsafe {
        ok(ncclMemAlloc(&mut memory, 100));
        ok(ncclCommWindowRegister(comm.0, memory, 100, &mut window, 1));
        ok(ncclCommRegister(comm.0, memory, 100, &mut handle));
        let live = kvpipe_fake_nccl::live();
        assert_eq!((live.communicators, live.registered, live.allocations), (1, 2, 1));
        // NCCL's own memory may be used on any stream.
        ok(ncclAllReduce(memory, memory, 25, FLOAT32, SUM, comm.0, stream.0));
        stream.synchronize();
        assert_eq!(ncclCommWindowRegister(comm.0, memory, 100, &mut window, 8), INVALID_ARGUMENT);
        ok(ncclCommWindowDeregister(comm.0, window));
        assert_eq!(ncclCommWindowDeregister(comm.0, window), INVALID_ARGUMENT);
        ok(ncclCommDeregister(comm.0, handle));
        ok(ncclMemFree(memory));
        assert_eq!(ncclMemFree(memory), INVALID_ARGUMENT);
        assert_eq!(ncclMemAlloc(&mut memory, 0), INVALID_ARGUMENT);
    }
    comm.destroy();
    assert_eq!(alone.misuses(), 3);
    assert_eq!(kvpipe_fake_nccl::live().allocations, 0);
}

//! Communicators whose calls do not block.

use crate::ranks::*;
use kvpipe_fake_nccl::api::*;
use kvpipe_fake_nccl::codes::{IN_PROGRESS, INVALID_ARGUMENT, SUCCESS};

fn nonblocking<T: Send>(size: usize, run: impl Fn(usize, Comm) -> T + Sync) -> Vec<T> {
    let id = unique_id();
    threads(size, |rank| run(rank, Comm::init_nonblocking(size, id, rank)))
}

#[test]
fn ranks_exchange_and_leave() {
    let alone = alone("");
    nonblocking(2, |rank, comm| {
        let (stream, buffer) = (Stream::new(), Buffer::new(&[rank as u8; 64]));
        // The first makes the connection.
        let code = if rank == 0 { comm.send(&buffer, 1, &stream) } else { comm.recv(&buffer, 0, &stream) };
        assert_eq!(code, IN_PROGRESS);
        assert_eq!(comm.settle(), SUCCESS);
        ok(if rank == 0 { comm.send(&buffer, 1, &stream) } else { comm.recv(&buffer, 0, &stream) });
        stream.synchronize();
        assert_eq!(buffer.bytes(), [0; 64]);
        let code = unsafe { ncclCommFinalize(comm.0) };
        assert!(code == SUCCESS || code == IN_PROGRESS);
        assert_eq!(comm.settle(), SUCCESS);
        comm.destroy();
    });
    alone.is_clean();
}

#[test]
fn initialisation_is_in_progress_until_all_are_there() {
    let alone = alone("");
    use_device();
    let id = unique_id();
    let mut comm = std::ptr::null_mut();
    assert_eq!(unsafe { ncclCommInitRankConfig(&mut comm, 2, id, 0, &config(0)) }, IN_PROGRESS);
    let first = Comm(comm);
    assert_eq!(first.poll(), IN_PROGRESS);
    assert_eq!(unsafe { ncclCommCount(first.0, &mut 0) }, INVALID_ARGUMENT, "not yet");
    let second = Comm::init_nonblocking(2, id, 1);
    assert_eq!(first.settle(), SUCCESS);
    let (mut size, mut rank) = (0, -1);
    ok(unsafe { ncclCommCount(first.0, &mut size) });
    ok(unsafe { ncclCommUserRank(second.0, &mut rank) });
    assert_eq!((size, rank), (2, 1));
    first.destroy();
    second.destroy();
    assert_eq!(alone.misuses(), 1);
}

#[test]
fn every_call_is_in_progress_for_as_many_polls_as_are_said() {
    let alone = alone("in_progress=3");
    let in_progress = |comm: Comm, code| {
        assert_eq!(code, IN_PROGRESS);
        assert_eq!([comm.poll(), comm.poll(), comm.poll()], [IN_PROGRESS; 3]);
        assert_eq!(comm.settle(), SUCCESS);
    };
    nonblocking(2, |rank, comm| {
        let (stream, buffer) = (Stream::new(), Buffer::new(&[rank as u8; 64]));
        for _ in 0..2 {
            let code =
                if rank == 0 { comm.send(&buffer, 1, &stream) } else { comm.recv(&buffer, 0, &stream) };
            in_progress(comm, code);
        }
        in_progress(comm, group(|| ok(comm.all_reduce(&buffer, &stream))));
        stream.synchronize();
        assert_eq!(buffer.bytes(), [0; 64]);
        in_progress(comm, unsafe { ncclCommFinalize(comm.0) });
        comm.destroy();
    });
    alone.is_clean();
}

#[test]
fn work_comes_onto_its_stream_when_the_call_has_ended() {
    let alone = alone("in_progress=1");
    nonblocking(1, |_, comm| {
        let (stream, source, target) = (Stream::new(), Buffer::new(&[1]), Buffer::new(&[0]));
        let code = group(|| {
            ok(comm.send(&source, 0, &stream));
            ok(comm.recv(&target, 0, &stream));
        });
        assert_eq!(code, IN_PROGRESS);
        stream.synchronize();
        assert_eq!(target.bytes(), [0], "nobody has polled");
        assert_eq!(comm.poll(), IN_PROGRESS);
        assert_eq!(comm.settle(), SUCCESS);
        stream.synchronize();
        assert_eq!(target.bytes(), [1]);
        comm.destroy();
    });
    alone.is_clean();
}

#[test]
fn a_call_that_follows_too_early_spoils_the_communicator() {
    let alone = alone("in_progress=1000000");
    use_device();
    let mut comm = std::ptr::null_mut();
    let id = unique_id();
    assert_eq!(unsafe { ncclCommInitRankConfig(&mut comm, 1, id, 0, &config(0)) }, IN_PROGRESS);
    let comm = Comm(comm);
    let (stream, buffer) = (Stream::new(), Buffer::new(&[1]));
    assert_eq!(unsafe { ncclCommDestroy(comm.0) }, INVALID_ARGUMENT);
    assert_eq!(comm.poll(), IN_PROGRESS, "which is no operation");
    assert_eq!(comm.all_reduce(&buffer, &stream), INVALID_ARGUMENT);
    assert_eq!(comm.poll(), INVALID_ARGUMENT);
    assert_eq!(unsafe { ncclCommFinalize(comm.0) }, INVALID_ARGUMENT);
    comm.abort();
    assert_eq!(alone.misuses(), 2);
}

#[test]
fn blocking_and_nonblocking_do_not_mix_in_a_group() {
    let alone = alone("");
    use_device();
    let (first, second) = (Comm::init(1, unique_id(), 0), Comm::init_nonblocking(1, unique_id(), 0));
    let (stream, buffer) = (Stream::new(), Buffer::new(&[1]));
    let code = group(|| {
        ok(first.all_reduce(&buffer, &stream));
        ok(second.all_reduce(&buffer, &stream));
    });
    assert_eq!(code, INVALID_ARGUMENT);
    first.destroy();
    second.destroy();
    assert_eq!(alone.misuses(), 1);
}

#[test]
fn several_nonblocking_communicators_share_a_group() {
    let alone = alone("in_progress=2");
    use_device();
    let id = unique_id();
    let mut comms = [std::ptr::null_mut(); 2];
    let code = group(|| {
        for (rank, comm) in comms.iter_mut().enumerate() {
            ok(unsafe { ncclCommInitRankConfig(comm, 2, id, rank as i32, &config(0)) });
        }
    });
    assert_eq!(code, IN_PROGRESS);
    let comms = comms.map(Comm);
    assert_eq!(comms.map(Comm::settle), [SUCCESS; 2]);
    let streams = [(); 2].map(|()| Stream::new());
    let buffers = [Buffer::new(&[1]), Buffer::new(&[2])];
    let code = group(|| {
        ok(comms[0].send(&buffers[0], 1, &streams[0]));
        ok(comms[1].recv(&buffers[1], 0, &streams[1]));
    });
    assert_eq!(code, IN_PROGRESS);
    assert_eq!(comms.map(Comm::settle), [SUCCESS; 2]);
    streams[1].synchronize();
    assert_eq!(buffers[1].bytes(), [1]);
    comms.into_iter().for_each(Comm::destroy);
    drop((streams, buffers));
    alone.is_clean();
}

#[test]
fn a_configuration_is_checked() {
    let alone = alone("");
    use_device();
    let mut comm = std::ptr::null_mut();
    let mut init = |config: *const Config| {
        let code = unsafe { ncclCommInitRankConfig(&mut comm, 1, unique_id(), 0, config) };
        if code == SUCCESS {
            Comm(comm).destroy();
        }
        code
    };
    assert_eq!(init(no_config()), SUCCESS);
    assert_eq!(init(&config(1)), SUCCESS);
    assert_eq!(init(&config(i32::MIN)), SUCCESS, "the default is to block");
    assert_eq!(init(&Config { version: 21300, ..config(0) }), SUCCESS, "before there was a choice");
    assert_eq!(init(&config(2)), INVALID_ARGUMENT);
    assert_eq!(init(&Config { magic: 0, ..config(0) }), INVALID_ARGUMENT);
    assert_eq!(init(&Config { size: 0, ..config(0) }), INVALID_ARGUMENT);
    assert_eq!(alone.misuses(), 3);
}

#[test]
fn initialisation_may_block_all_the_same() {
    let alone = alone("init_blocks,rank=0");
    let id = unique_id();
    // Two ranks, so that the first has to wait for the second.
    threads(2, |rank| {
        let mut comm = std::ptr::null_mut();
        let code = unsafe { ncclCommInitRankConfig(&mut comm, 2, id, rank as i32, &config(0)) };
        assert_eq!(code, if rank == 0 { SUCCESS } else { IN_PROGRESS });
        assert_eq!(Comm(comm).settle(), SUCCESS);
        Comm(comm).destroy();
    });
    alone.is_clean();
}

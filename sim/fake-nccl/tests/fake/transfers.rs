//! Sends, receives and groups of them.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::ranks::*;
use kvpipe_fake_nccl::api::*;
use kvpipe_fake_nccl::codes::{INVALID_ARGUMENT, INVALID_USAGE};

#[test]
fn what_is_sent_arrives_in_order() {
    let alone = alone("");
    let lengths = [1, 0, 7, 1 << 20, 3];
    ranks(2, |rank, comm| {
        let stream = Stream::new();
        let buffers: Vec<Buffer> = lengths
            .iter()
            .enumerate()
            .map(|(index, length)| {
                Buffer::new(&if rank == 0 { pattern(index, *length) } else { vec![0; *length] })
            })
            .collect();
        for buffer in &buffers {
            ok(if rank == 0 { comm.send(buffer, 1, &stream) } else { comm.recv(buffer, 0, &stream) });
        }
        stream.synchronize();
        for (index, buffer) in buffers.iter().enumerate() {
            assert_eq!(buffer.bytes(), pattern(index, lengths[index]));
        }
        comm.destroy();
    });
    alone.is_clean();
}

#[test]
fn a_group_progresses_together() {
    let alone = alone("");
    // More than the connections hold: in sequence, everybody would send and nobody receive.
    let length = 8 << 20;
    ranks(4, |rank, comm| {
        let (stream, next, previous) = (Stream::new(), (rank + 1) % 4, (rank + 3) % 4);
        let source = Buffer::new(&pattern(rank, length));
        let target = Buffer::new(&vec![0; length]);
        ok(group(|| {
            ok(comm.send(&source, next, &stream));
            ok(comm.recv(&target, previous, &stream));
        }));
        stream.synchronize();
        assert!(target.bytes() == pattern(previous, length));
        comm.destroy();
    });
    alone.is_clean();
}

#[test]
fn all_to_all_with_oneself_is_one_group() {
    let alone = alone("");
    ranks(4, |rank, comm| {
        let stream = Stream::new();
        let sources: Vec<_> = (0..4).map(|peer| Buffer::new(&pattern(rank * 4 + peer, 100))).collect();
        let targets: Vec<_> = (0..4).map(|_| Buffer::new(&[0; 100])).collect();
        ok(group(|| {
            for peer in 0..4 {
                ok(comm.recv(&targets[peer], peer, &stream));
                ok(comm.send(&sources[peer], peer, &stream));
            }
        }));
        stream.synchronize();
        for (peer, target) in targets.iter().enumerate() {
            assert_eq!(target.bytes(), pattern(peer * 4 + rank, 100));
        }
        comm.destroy();
    });
    alone.is_clean();
}

#[test]
fn a_group_may_hold_collectives_and_transfers_and_be_nested() {
    let alone = alone("");
    ranks(2, |rank, comm| {
        let (stream, sum) = (Stream::new(), Buffer::new(&[rank as u8 + 1; 5]));
        let (source, target) = (Buffer::new(&[rank as u8; 3]), Buffer::new(&[9; 3]));
        ok(group(|| {
            ok(comm.all_reduce(&sum, &stream));
            ok(group(|| ok(comm.send(&source, 1 - rank, &stream))));
            ok(comm.recv(&target, 1 - rank, &stream));
            ok(comm.all_reduce(&sum, &stream));
        }));
        stream.synchronize();
        assert_eq!(sum.bytes(), [6; 5]);
        assert_eq!(target.bytes(), [1 - rank as u8; 3]);
        comm.destroy();
    });
    alone.is_clean();
}

#[test]
fn one_thread_drives_several_communicators_in_a_group() {
    let alone = alone("");
    use_device();
    let id = unique_id();
    let mut comms = [std::ptr::null_mut(); 3];
    ok(group(|| {
        for (rank, comm) in comms.iter_mut().enumerate() {
            ok(unsafe { ncclCommInitRank(comm, 3, id, rank as i32) });
        }
    }));
    let comms = comms.map(Comm);
    let streams = [(); 3].map(|()| Stream::new());
    let buffers: Vec<_> = (0..3_u8).map(|rank| Buffer::new(&[rank + 1; 9])).collect();
    ok(group(|| {
        for rank in 0..3 {
            ok(comms[rank].all_reduce(&buffers[rank], &streams[rank]));
        }
    }));
    for rank in 0..3 {
        streams[rank].synchronize();
        assert_eq!(buffers[rank].bytes(), [6; 9]);
    }
    comms.into_iter().for_each(Comm::destroy);
    drop((buffers, streams));
    alone.is_clean();
}

#[test]
fn two_streams_of_a_group_wait_for_each_other() {
    let alone = alone("");
    ranks(2, |rank, comm| {
        let (first, second) = (Stream::new(), Stream::new());
        let (source, target) = (Buffer::new(&[rank as u8; 3]), Buffer::new(&[9; 3]));
        for _ in 0..3 {
            ok(group(|| {
                ok(comm.send(&source, 1 - rank, &first));
                ok(comm.recv(&target, 1 - rank, &second));
            }));
        }
        // Either stream stands for all of the group.
        if rank == 0 { &first } else { &second }.synchronize();
        assert_eq!(target.bytes(), [1 - rank as u8; 3]);
        first.synchronize();
        second.synchronize();
        comm.destroy();
    });
    alone.is_clean();
}

#[test]
fn operations_follow_each_other_over_streams() {
    let alone = alone("");
    ranks(2, |rank, comm| {
        let (first, second) = (Stream::new(), Stream::new());
        let buffers = [0, 1, 2].map(|number| Buffer::new(&[if rank == 0 { number } else { 9 }]));
        if rank == 0 {
            ok(comm.send(&buffers[0], 1, &first));
            let go_on = first.hold();
            ok(comm.send(&buffers[1], 1, &first));
            // On another stream, which is free, and yet after the one that is held.
            ok(comm.send(&buffers[2], 1, &second));
            give_time(|| assert!(!second.is_done()));
            go_on.send(()).unwrap();
        } else {
            buffers.iter().for_each(|buffer| ok(comm.recv(buffer, 0, &first)));
        }
        first.synchronize();
        second.synchronize();
        assert_eq!(buffers.map(|buffer| buffer.bytes()), [[0], [1], [2]]);
        comm.destroy();
    });
    alone.is_clean();
}

#[test]
fn without_a_stream_the_communicators_own_thread_does_it() {
    let alone = alone("");
    let received = ranks(2, |rank, comm| {
        let mut bytes = if rank == 0 { pattern(5, 1000) } else { vec![0; 1000] };
        let null = std::ptr::null_mut();
        // Host memory: nobody looks it up.
        ok(unsafe {
            match rank {
                0 => ncclSend(bytes.as_ptr().cast(), 1000, UINT8, 1, comm.0, null),
                _ => ncclRecv(bytes.as_mut_ptr().cast(), 1000, UINT8, 0, comm.0, null),
            }
        });
        // Returns when all is done.
        ok(unsafe { ncclCommFinalize(comm.0) });
        comm.destroy();
        bytes
    });
    assert_eq!(received[1], pattern(5, 1000));
    assert_eq!(alone.misuses(), 0);
}

#[test]
fn a_send_to_oneself_needs_its_receive() {
    let alone = alone("");
    ranks(1, |_, comm| {
        let (stream, source, target) = (Stream::new(), Buffer::new(&[1; 4]), Buffer::new(&[0; 4]));
        assert_eq!(comm.send(&source, 0, &stream), INVALID_USAGE);
        assert_eq!(group(|| ok(comm.recv(&target, 0, &stream))), INVALID_USAGE);
        ok(group(|| {
            ok(comm.send(&source, 0, &stream));
            ok(comm.recv(&target, 0, &stream));
        }));
        stream.synchronize();
        assert_eq!(target.bytes(), [1; 4]);
        comm.destroy();
    });
    assert_eq!(alone.misuses(), 2);
}

#[test]
fn the_first_send_waits_for_its_receive_and_the_next_does_not() {
    let alone = alone("");
    let (ready, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(Some(wait));
    let receives = AtomicBool::new(false);
    ranks(2, |rank, comm| {
        let (stream, buffer) = (Stream::new(), Buffer::new(&[rank as u8]));
        if rank == 0 {
            ok(comm.send(&buffer, 1, &stream));
            assert!(receives.load(Ordering::SeqCst), "nobody has received");
            // The second returns, and is even done, before anybody receives it.
            ok(comm.send(&buffer, 1, &stream));
            stream.synchronize();
            ready.send(()).unwrap();
        } else {
            // For a send that does not wait.
            give_time(|| ());
            receives.store(true, Ordering::SeqCst);
            ok(comm.recv(&buffer, 0, &stream));
            wait.lock().unwrap().take().unwrap().recv().unwrap();
            ok(comm.recv(&buffer, 0, &stream));
            stream.synchronize();
        }
        comm.destroy();
    });
    alone.is_clean();
}

#[test]
fn arguments_are_checked() {
    let alone = alone("");
    ranks(1, |_, comm| {
        let (stream, buffer) = (Stream::new(), Buffer::new(&[0; 4]));
        let (here, null) = (buffer.pointer(), std::ptr::null_mut());
        unsafe {
            assert_eq!(ncclSend(here, 4, 12, 0, comm.0, stream.0), INVALID_ARGUMENT, "type");
            assert_eq!(ncclSend(here, 4, UINT8, 1, comm.0, stream.0), INVALID_ARGUMENT, "peer");
            assert_eq!(ncclSend(here, 4, UINT8, -1, comm.0, stream.0), INVALID_ARGUMENT, "peer");
            assert_eq!(
                ncclAllReduce(here, here, 4, UINT8, 5, comm.0, stream.0),
                INVALID_ARGUMENT,
                "reduction"
            );
            assert_eq!(ncclAllReduce(here, here, 4, 10, SUM, comm.0, stream.0), INVALID_ARGUMENT, "float8");
            assert_eq!(ncclAllReduce(null, here, 4, UINT8, SUM, comm.0, stream.0), INVALID_ARGUMENT, "null");
            assert_eq!(
                ncclAllReduce(here, here, 5, UINT8, SUM, comm.0, stream.0),
                INVALID_ARGUMENT,
                "beyond"
            );
            assert_eq!(ncclSend(here, 4, UINT8, 0, null, stream.0), INVALID_ARGUMENT, "no communicator");
            assert_eq!(ncclBroadcast(here, here, 4, UINT8, 1, comm.0, stream.0), INVALID_ARGUMENT, "root");
        }
        ok(comm.all_reduce(&buffer, &stream));
        stream.synchronize();
        comm.destroy();
    });
    // The null buffer, and the one that is too short, which both libraries count as one.
    assert_eq!(alone.misuses(), 2);
}

#[test]
fn an_operation_holds_its_memory() {
    let _alone = alone("");
    let tried = std::sync::Barrier::new(2);
    ranks(2, |rank, comm| {
        let (stream, buffer) = (Stream::new(), Buffer::new(&[0; 4]));
        if rank == 0 {
            ok(comm.recv(&buffer, 1, &stream));
            ok(comm.recv(&buffer, 1, &stream));
            let freed = unsafe { kvpipe_fake_cuda::memory::cuMemFree_v2(buffer.0) };
            assert_eq!(freed, 1, "an invalid value, since it is in use");
            tried.wait();
            stream.synchronize();
        } else {
            ok(comm.send(&buffer, 0, &stream));
            tried.wait();
            ok(comm.send(&buffer, 0, &stream));
            stream.synchronize();
        }
        // Free when its stream has passed the operation.
        drop(buffer);
        comm.destroy();
    });
}

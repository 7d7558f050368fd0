//! Callers that know nothing of async: plain threads, outside of any runtime.

#![allow(missing_docs, reason = "a scenario is named after what must hold")]

use std::thread;

use kvpipe::{Error, Pipe, PipeConfig};
use tokio::runtime::Runtime;

use super::AnyBackend;
use super::support::{number, numbered, room};

/// Both ends, each driven by a thread of its own. Only setting up the transport may need `runtime`.
fn pipes(backend: &AnyBackend, runtime: &Runtime, config: PipeConfig) -> (Pipe, Pipe) {
    let (left, right) = runtime.block_on(backend.pair());
    (Pipe::spawn(left, config.clone()).unwrap(), Pipe::spawn(right, config).unwrap())
}

pub fn plain_threads_send_receive_and_close_without_a_runtime(backend: AnyBackend, runtime: &Runtime) {
    let (left, right) = pipes(&backend, runtime, room(1_000));
    thread::scope(|scope| {
        scope.spawn(|| {
            for sequence in 0..100 {
                assert_eq!(left.blocking_send(numbered(sequence, 400)).unwrap(), sequence);
            }
            left.sender().unwrap().finish();
            assert_eq!(left.blocking_recv().unwrap(), None);
            left.blocking_close().unwrap();
        });
        for sequence in 0..100 {
            assert_eq!(number(&right.blocking_recv().unwrap()), sequence);
        }
        assert!(right.blocking_recv().unwrap_err().is_closed());
        right.blocking_send(None).unwrap();
        right.blocking_close().unwrap();
        assert!(right.try_send(None).is_err(), "it is closed");
    });
}

pub fn many_threads_send_and_receive_on_one_pipe(backend: AnyBackend, runtime: &Runtime) {
    const THREADS: u64 = 4;
    const ITEMS_EACH: u64 = 100;
    let (left, right) = pipes(&backend, runtime, room(1_000));
    let mut received = thread::scope(|scope| {
        let senders: Vec<_> = (0..THREADS)
            .map(|thread| {
                let left = &left;
                scope.spawn(move || {
                    for place in 0..ITEMS_EACH {
                        left.blocking_send(numbered(thread * ITEMS_EACH + place, 100)).unwrap();
                    }
                })
            })
            .collect();
        let receivers: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| take_all(&right))).collect();
        for sender in senders {
            sender.join().unwrap();
        }
        left.sender().unwrap().finish();
        receivers.into_iter().flat_map(|receiver| receiver.join().unwrap()).collect::<Vec<_>>()
    });
    received.sort_unstable();
    assert_eq!(received, (0..THREADS * ITEMS_EACH).collect::<Vec<_>>());
}

/// What one of several receivers gets, whose numbers rise within each sender.
fn take_all(pipe: &Pipe) -> Vec<u64> {
    let mut numbers = Vec::new();
    loop {
        match pipe.blocking_recv() {
            Ok(item) => numbers.push(number(&item)),
            Err(Error::Closed) => return numbers,
            Err(error) => panic!("{error}"),
        }
    }
}

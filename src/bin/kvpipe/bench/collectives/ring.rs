//! The limit: how fast bare sockets around a ring move the bytes that an operation has to.
//!
//! Blocking std sockets. Every rank writes to the next one, and reads from the previous one, as many
//! bytes as a ring of its size needs; an operation is over when a rank has written and read them all.
//! What is read is not what is written, so nobody waits for a byte to come round, and nothing is added
//! up. Where all is read lies as far apart in memory as it would in a result.
//!
//! Whether two threads are faster than one that does both by turns depends on the size and on how many
//! processors there are, so both are tried.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use kvpipe::transport::Ring;
use tokio::time::Instant;

use super::step::{Way, Work};
use crate::args::Operation;
use crate::edges::Edges;

/// A rank's two sockets, and its memory.
pub(super) struct BareRing {
    edges: Edges,
    ring: Ring,
    /// Moved each way in one operation.
    bytes: usize,
    source: Memory,
    target: Memory,
}

/// The most that one thread writes before it reads. Each socket holds more, so not all ranks can be
/// stuck in writing: together they are never further ahead than one such piece each.
const TURN_BYTES: usize = 128 << 10;

/// The most that one of two threads writes or reads at once.
const PIECE_BYTES: usize = 1 << 20;

/// A peer that takes longer over a read or a write is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

impl BareRing {
    /// # Errors
    /// If a socket takes no options.
    pub(super) fn new(edges: Edges, ring: Ring) -> io::Result<Self> {
        for stream in [&edges.next, &edges.previous] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
        }
        Ok(Self { edges, ring, bytes: 0, source: Memory::default(), target: Memory::default() })
    }

    /// Has the memory for this, in place of the last.
    pub(super) fn prepare(&mut self, work: Work) {
        // The old goes before the new comes.
        (self.source, self.target) = (Memory::default(), Memory::default());
        let size = work.elements * size_of::<f32>();
        self.bytes = moved_bytes(work.operation, self.ring.world_size(), size);
        self.source = Memory::new(size.max(self.bytes.min(PIECE_BYTES)));
        self.target = match work.operation {
            Operation::AllReduce => Memory::new(self.source.bytes.len()),
            Operation::AllGather => Memory::new(self.bytes),
        };
    }

    /// How long `count` operations take, once all ranks have done some to warm up.
    ///
    /// # Errors
    /// Whatever a socket says.
    pub(super) fn time(&mut self, way: Way, count: u64, warm_up: u64) -> io::Result<Duration> {
        let Self { edges: Edges { next, previous }, ring, bytes, source, target } = self;
        let (next, previous, bytes) = (&*next, &*previous, *bytes);
        let rest = || {
            // Once round to know that all are there, and once more so that all know.
            pass_token(next, previous, ring.rank())?;
            pass_token(next, previous, ring.rank())
        };
        if way == Way::OneThread {
            return timed(count, warm_up, rest, || {
                for length in pieces(bytes, TURN_BYTES) {
                    { next }.write_all(source.next(length))?;
                    { previous }.read_exact(target.next(length))?;
                }
                Ok(())
            });
        }
        thread::scope(|scope| {
            let (begin, begun) = mpsc::channel();
            let (end, ended) = mpsc::channel();
            let writing = scope.spawn(move || {
                for () in begun {
                    for length in pieces(bytes, PIECE_BYTES) {
                        { next }.write_all(source.next(length))?;
                    }
                    // The reader is gone only after an error of its own.
                    let _ = end.send(());
                }
                io::Result::Ok(())
            });
            let stopped = |_| io::Error::other("the thread that writes has stopped");
            let elapsed = timed(count, warm_up, rest, || {
                begin.send(()).map_err(|_| stopped(mpsc::RecvError))?;
                for length in pieces(bytes, PIECE_BYTES) {
                    { previous }.read_exact(target.next(length))?;
                }
                ended.recv().map_err(stopped)
            });
            drop(begin);
            writing.join().map_err(|_| io::Error::other("the thread that writes panicked"))??;
            elapsed
        })
    }
}

/// What each rank of a ring sends, and receives, in one operation: all but one of as many blocks as
/// there are ranks, twice where they are added up first.
fn moved_bytes(operation: Operation, ranks: usize, size: usize) -> usize {
    match operation {
        Operation::AllReduce => 2 * (ranks - 1) * size / ranks,
        Operation::AllGather => (ranks - 1) * size,
    }
}

fn timed(
    count: u64,
    warm_up: u64,
    rest: impl Fn() -> io::Result<()>,
    mut operation: impl FnMut() -> io::Result<()>,
) -> io::Result<Duration> {
    for _ in 0..warm_up {
        operation()?;
    }
    rest()?;
    let begin = Instant::now();
    for _ in 0..count {
        operation()?;
    }
    Ok(begin.elapsed())
}

/// A byte once round the ring, from rank 0 to rank 0.
fn pass_token(mut next: &TcpStream, mut previous: &TcpStream, rank: usize) -> io::Result<()> {
    if rank == 0 {
        next.write_all(&[0])?;
        return previous.read_exact(&mut [0]);
    }
    previous.read_exact(&mut [0])?;
    next.write_all(&[0])
}

/// The lengths of what `bytes` fall into.
fn pieces(bytes: usize, piece: usize) -> impl Iterator<Item = usize> {
    (0..bytes).step_by(piece).map(move |at| piece.min(bytes - at))
}

/// Memory that is gone through again and again.
#[derive(Default)]
struct Memory {
    bytes: Vec<u8>,
    at: usize,
}

impl Memory {
    /// Every page of it written.
    fn new(size: usize) -> Self {
        Self { bytes: vec![1; size], at: 0 }
    }

    /// The next `length` bytes, of which there are as many.
    fn next(&mut self, length: usize) -> &mut [u8] {
        if self.at + length > self.bytes.len() {
            self.at = 0;
        }
        let at = self.at;
        self.at += length;
        &mut self.bytes[at..at + length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_moves_all_blocks_but_ones_own() {
        for (ranks, reduce, gather) in [(2, 1000, 1000), (4, 1500, 3000), (5, 1600, 4000)] {
            assert_eq!(moved_bytes(Operation::AllReduce, ranks, 1000), reduce);
            assert_eq!(moved_bytes(Operation::AllGather, ranks, 1000), gather);
        }
    }

    #[test]
    fn pieces_are_whole_but_the_last() {
        assert_eq!(pieces(5, 2).collect::<Vec<_>>(), [2, 2, 1]);
        assert_eq!(pieces(4, 4).collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn memory_begins_again_where_the_next_piece_has_no_room() {
        let mut memory = Memory::new(5);
        let starts = [2, 2, 2, 3].map(|length| memory.next(length).len() + memory.at);
        assert_eq!(starts, [4, 6, 4, 8]);
    }
}

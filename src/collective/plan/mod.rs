//! The programs of all operations.
//!
//! In the tables of costs *p* is the number of ranks and *n* the bytes of the whole payload; a message
//! costs α, each of its bytes β, and a byte that is combined γ.

mod all_gather;
mod all_reduce;
mod barrier;
mod blocks;
mod direct;
mod pair;
mod reduce_scatter;
mod rooted;

use std::ops::Range;

use super::program::{Compute, Part, Place, Program, Span, Step, Transmission};
use super::reduction::Reduction;
use blocks::chunks;

/// Makes one rank's programs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planner {
    rank: usize,
    size: usize,
    tuning: Tuning,
}

/// What caches work with.
const SCRATCH_ALIGNMENT: usize = 64;

/// When which algorithm is used. Every rank of a group must have the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tuning {
    /// The bytes of one message of a chunked algorithm.
    pub(super) chunk_bytes: usize,
    /// How many chunks of its own a rank sends to another before as many have come to itself. More would
    /// wait in sockets, and be in no cache any more when they are read: over loopback that costs half of
    /// the speed. Fewer than two would leave a connection idle. A link of latency `L` carries these bytes
    /// in each `L`.
    pub(super) chunks_ahead_max: usize,
    /// An all-gather of at most this many bytes, of all ranks together, goes by dissemination.
    pub(super) gathered_small_bytes_max: usize,
    /// An all-reduce of at most this many bytes goes by recursive doubling, a reduce-scatter pairwise.
    pub(super) reduced_small_bytes_max: usize,
    /// A broadcast or a reduction to one rank of at most this many bytes goes by a tree.
    pub(super) rooted_small_bytes_max: usize,
    /// A group of at most this many ranks reduces large payloads pairwise, a larger one in a ring.
    pub(super) pairwise_ranks_max: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            chunk_bytes: 256 << 10,
            chunks_ahead_max: 2,
            gathered_small_bytes_max: 64 << 10,
            reduced_small_bytes_max: 32 << 10,
            rooted_small_bytes_max: 64 << 10,
            pairwise_ranks_max: 8,
        }
    }
}

impl Planner {
    /// For rank `rank` of `size`.
    pub(super) fn new(rank: usize, size: usize, tuning: Tuning) -> Self {
        Self { rank, size, tuning }
    }

    /// The rank that is `distance` after this one, in a circle.
    fn after(&self, distance: usize) -> usize {
        (self.rank + distance) % self.size
    }

    /// The rank that is `distance` before this one, in a circle.
    fn before(&self, distance: usize) -> usize {
        (self.rank + self.size - distance % self.size) % self.size
    }

    /// What is left to do for a payload that is not in its place yet.
    fn copy(&self, program: &mut Program, from: Span, into: Span) {
        for chunk in chunks(0..from.bytes, self.tuning.chunk_bytes) {
            program.copy(from.within(&chunk), into.within(&chunk));
        }
    }

    /// The distances of a dissemination: powers of two below the size.
    fn doublings(&self) -> impl Iterator<Item = usize> + use<> {
        let size = self.size;
        std::iter::successors(Some(1_usize), |distance| distance.checked_mul(2))
            .take_while(move |distance| *distance < size)
    }
}

impl Program {
    fn receive(&mut self, rank: usize, into: Span) {
        self.steps.push(Step::Receive { rank, into });
    }

    fn copy(&mut self, from: Span, into: Span) {
        self.steps.push(Step::Compute(Compute::Copy { from, into }));
    }

    fn fold(&mut self, reduction: &Reduction, parts: Vec<Part>, into: Part) {
        self.steps.push(Step::Compute(Compute::Fold { reduction: *reduction, parts, into }));
    }

    /// Memory of its own, of which no byte is used for anything else.
    fn scratch(&mut self, bytes: usize) -> Span {
        let at = self.scratch_bytes.next_multiple_of(SCRATCH_ALIGNMENT);
        self.scratch_bytes = at + bytes;
        Span { place: Place::Scratch, at, bytes }
    }

    /// Once all steps so far are done.
    fn send(&mut self, rank: usize, from: Span) {
        self.send_after(self.steps.len(), rank, from);
    }

    fn send_after(&mut self, after: usize, rank: usize, from: Span) {
        self.sends.push(Transmission { rank, from, after });
    }
}

impl Span {
    /// A part of it, counted from its first byte.
    fn within(self, range: &Range<usize>) -> Self {
        Self { place: self.place, at: self.at + range.start, bytes: range.len() }
    }
}

/// Some bytes of the caller's input.
fn input(range: &Range<usize>) -> Span {
    Span { place: Place::Input, at: range.start, bytes: range.len() }
}

/// Some bytes of the caller's output.
fn output(range: &Range<usize>) -> Span {
    Span { place: Place::Output, at: range.start, bytes: range.len() }
}

#[cfg(test)]
mod tests;

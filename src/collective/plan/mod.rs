//! The programs of all operations.
//!
//! In the tables of costs *p* is the number of ranks and *n* the bytes of the whole payload; a message
//! costs α, each of its bytes β, and a byte that is combined γ.

mod barrier;
mod pair;

use super::program::{Compute, Place, Program, Span, Step, Transmission};

/// Makes one rank's programs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planner {
    rank: usize,
    size: usize,
    tuning: Tuning,
}

/// When which algorithm is used. Every rank of a group must have the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tuning {
    /// The bytes of one message of a chunked algorithm.
    pub(super) chunk_bytes: usize,
    /// An all-gather of at most this many bytes, of all ranks together, goes by dissemination.
    pub(super) all_gather_small_bytes_max: usize,
    /// An all-reduce of at most this many bytes goes by recursive doubling.
    pub(super) all_reduce_small_bytes_max: usize,
    /// A broadcast or a reduction to one rank of at most this many bytes goes by a tree.
    pub(super) rooted_small_bytes_max: usize,
    /// A group of at most this many ranks reduces large payloads pairwise, a larger one in a ring.
    pub(super) pairwise_ranks_max: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            chunk_bytes: 256 << 10,
            all_gather_small_bytes_max: 64 << 10,
            all_reduce_small_bytes_max: 32 << 10,
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

    /// Once all steps so far are done.
    fn send(&mut self, rank: usize, from: Span) {
        self.send_after(self.steps.len(), rank, from);
    }

    fn send_after(&mut self, after: usize, rank: usize, from: Span) {
        self.sends.push(Transmission { rank, from, after });
    }
}

/// Some bytes of the caller's input.
const fn input(at: usize, bytes: usize) -> Span {
    Span { place: Place::Input, at, bytes }
}

/// Some bytes of the caller's output.
const fn output(at: usize, bytes: usize) -> Span {
    Span { place: Place::Output, at, bytes }
}

/// Some bytes of the program's own.
const fn scratch(at: usize, bytes: usize) -> Span {
    Span { place: Place::Scratch, at, bytes }
}

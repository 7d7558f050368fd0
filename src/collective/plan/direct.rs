//! What has different bytes for every pair of ranks, and goes straight from one to the other.
//!
//! | operation | cost |
//! |---|---|
//! | gather, scatter | (p-1)/p n β at the root, beside a barrier |
//! | all-to-all | (p-1) α + (p-1)/p n β |
//!
//! No byte can move less often. In an all-to-all each round is a permutation of the ranks, so that no
//! two send to the same at once. A rank's own block is copied first, while messages begin to flow.

use std::ops::Range;

use super::{Planner, input, output};
use crate::collective::program::Program;

impl Planner {
    /// Blocks of as many bytes each, to the root's output.
    pub(in crate::collective) fn gather(&self, block_bytes: usize, root: usize) -> Program {
        let mut program = Program::default();
        let whole = 0..block_bytes;
        if self.rank == root {
            self.copy(&mut program, input(&whole), output(&nth(root, block_bytes)));
            for rank in (1..self.size).map(|distance| self.after(distance)) {
                program.receive(rank, output(&nth(rank, block_bytes)));
            }
        } else {
            program.send(root, input(&whole));
        }
        self.then_barrier(&mut program);
        program
    }

    /// Blocks of as many bytes each, of the root's input.
    pub(in crate::collective) fn scatter(&self, block_bytes: usize, root: usize) -> Program {
        let mut program = Program::default();
        let whole = 0..block_bytes;
        if self.rank == root {
            for rank in (1..self.size).map(|distance| self.after(distance)) {
                program.send_after(0, rank, input(&nth(rank, block_bytes)));
            }
            self.copy(&mut program, input(&nth(root, block_bytes)), output(&whole));
        } else {
            program.receive(root, output(&whole));
        }
        self.then_barrier(&mut program);
        program
    }

    /// Blocks of as many bytes each: of the input one for each rank, in the output one from each.
    pub(in crate::collective) fn all_to_all(&self, block_bytes: usize) -> Program {
        let mut program = Program::default();
        let own = nth(self.rank, block_bytes);
        self.copy(&mut program, input(&own), output(&own));
        for distance in 1..self.size {
            let (to, from) = (self.after(distance), self.before(distance));
            program.send_after(0, to, input(&nth(to, block_bytes)));
            program.receive(from, output(&nth(from, block_bytes)));
        }
        program
    }
}

fn nth(rank: usize, block_bytes: usize) -> Range<usize> {
    rank * block_bytes..(rank + 1) * block_bytes
}

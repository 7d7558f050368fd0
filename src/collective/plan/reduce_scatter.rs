//! A reduction of which every rank gets its block.
//!
//! | algorithm | cost | connections | own memory |
//! |---|---|---|---|
//! | pairwise | (p-1) α + (p-1)/p n (β + γ) | p-1 | p-1 chunks |
//! | ring | (p-1) α + (p-1)/p n (β + γ) | 2 | one chunk; out of place, (p-2)/p n more |
//!
//! Both move as few bytes as there can be. Pairwise, every rank sends each other its raw block, and
//! combines its own as all of them arrive: no partial result is stored or sent, so that 16-bit floats
//! travel as such and are rounded once. With many ranks each has many connections, and a chunk from each
//! of them in memory; then partial results go around a ring instead. Those of 16-bit floats never do.

use std::ops::Range;

use super::blocks::{Blocks, chunks};
use super::{Planner, input, output};
use crate::collective::program::{Form, Program, Span};
use crate::collective::reduction::Reduction;

/// Where the result goes that some bytes of a payload have.
type Target<'a> = &'a mut dyn FnMut(&mut Program, &Range<usize>) -> Span;

impl Planner {
    /// Blocks of these elements, one a rank.
    ///
    /// In place, the input is the whole output: the result is this rank's block of it, and what was in
    /// the others is lost.
    pub(in crate::collective) fn reduce_scatterv(
        &self,
        elements: &[usize],
        reduction: &Reduction,
        in_place: bool,
    ) -> Program {
        let bytes: Vec<_> = elements.iter().map(|elements| elements * reduction.element_bytes()).collect();
        let blocks = Blocks::of(&bytes);
        let mut program = Program::default();
        let own = blocks.block(self.rank);
        let mut result = |_: &mut Program, chunk: &Range<usize>| match in_place {
            true => output(chunk),
            false => output(&(chunk.start - own.start..chunk.end - own.start)),
        };
        if self.size == 1 {
            if !in_place {
                self.copy(&mut program, input(&own), output(&own));
            }
        } else if blocks.total() <= self.tuning.reduced_small_bytes_max || self.pairwise(reduction) {
            self.pairwise_reduce_scatter(&mut program, &blocks, reduction, &mut result);
        } else {
            let mut partial = |program: &mut Program, chunk: &Range<usize>| match in_place {
                true => output(chunk),
                false => program.scratch(chunk.len()),
            };
            self.ring_reduce_scatter(&mut program, &blocks, reduction, &mut partial, &mut result);
        }
        program
    }

    /// Whether large payloads are reduced pairwise.
    pub(super) fn pairwise(&self, reduction: &Reduction) -> bool {
        reduction.widens() || self.size <= self.tuning.pairwise_ranks_max
    }

    /// The bytes of a chunk: whole elements.
    pub(super) fn chunk_bytes(&self, reduction: &Reduction) -> usize {
        (self.tuning.chunk_bytes / reduction.element_bytes()).max(1) * reduction.element_bytes()
    }

    /// Gives the chunks of the result, and after how many steps each is there.
    pub(super) fn pairwise_reduce_scatter(
        &self,
        program: &mut Program,
        blocks: &Blocks,
        reduction: &Reduction,
        result: Target<'_>,
    ) -> Vec<(Span, usize)> {
        let chunk_bytes = self.chunk_bytes(reduction);
        let own = blocks.block(self.rank);
        self.send_blocks(program, blocks, chunk_bytes, chunks(own.clone(), chunk_bytes).count());
        let slots: Vec<_> = (1..self.size).map(|_| program.scratch(chunk_bytes.min(own.len()))).collect();
        let reduced = chunks(own, chunk_bytes).map(|chunk| {
            for distance in 1..self.size {
                program.receive(self.before(distance), slots[distance - 1].within(&(0..chunk.len())));
            }
            let of = |rank: usize| match (self.rank + self.size - rank) % self.size {
                0 => input(&chunk),
                distance => slots[distance - 1].within(&(0..chunk.len())),
            };
            let parts = (0..self.size).map(|rank| of(rank).elements()).collect();
            let into = result(program, &chunk);
            program.fold(reduction, parts, into.elements());
            (into, program.steps.len())
        });
        reduced.collect()
    }

    /// The first chunk of each block to its rank, then the second of each; not far ahead of our own
    /// block's chunks, of which there are `own_chunks`, and for which the steps are still to come.
    fn send_blocks(&self, program: &mut Program, blocks: &Blocks, chunk_bytes: usize, own_chunks: usize) {
        let begin = program.steps.len();
        let others = (1..self.size).map(|distance| self.after(distance));
        let mut left: Vec<_> = others.map(|rank| (rank, chunks(blocks.block(rank), chunk_bytes))).collect();
        let mut number = 0_usize;
        while !left.is_empty() {
            number += 1;
            let reduced = number.saturating_sub(self.tuning.chunks_ahead_max).min(own_chunks);
            // One message of every other rank, and what makes one of them all.
            let after = if reduced == 0 { 0 } else { begin + reduced * self.size };
            left.retain_mut(|(rank, chunks)| {
                let chunk = chunks.next();
                chunk.inspect(|chunk| program.send_after(after, *rank, input(chunk))).is_some()
            });
        }
    }

    /// Gives the chunks of the result, and after how many steps each is there.
    ///
    /// No partial result may be where another is, or where this rank's own chunks of the block before
    /// its own are: that they were sent does not mean that they were taken.
    pub(super) fn ring_reduce_scatter(
        &self,
        program: &mut Program,
        blocks: &Blocks,
        reduction: &Reduction,
        partial: Target<'_>,
        result: Target<'_>,
    ) -> Vec<(Span, usize)> {
        let chunk_bytes = self.chunk_bytes(reduction);
        let (to, from) = (self.after(1), self.before(1));
        for chunk in chunks(blocks.block(from), chunk_bytes) {
            program.send_after(0, to, input(&chunk));
        }
        let largest = (0..self.size).map(|rank| blocks.block(rank).len()).max().unwrap_or(0);
        let slot = program.scratch(chunk_bytes.min(largest));
        for distance in 2..self.size {
            for chunk in chunks(blocks.block(self.before(distance)), chunk_bytes) {
                let into = partial(program, &chunk);
                let received = slot.within(&(0..chunk.len()));
                program.receive(from, received);
                let form = if distance == 2 { Form::Elements } else { Form::Accumulators };
                let parts = vec![received.of(form), input(&chunk).elements()];
                program.fold(reduction, parts, into.accumulators());
                program.send(to, into);
            }
        }
        let reduced = chunks(blocks.block(self.rank), chunk_bytes).map(|chunk| {
            let received = slot.within(&(0..chunk.len()));
            program.receive(from, received);
            let form = if self.size == 2 { Form::Elements } else { Form::Accumulators };
            let into = result(program, &chunk);
            let parts = vec![received.of(form), input(&chunk).elements()];
            program.fold(reduction, parts, into.elements());
            (into, program.steps.len())
        });
        reduced.collect()
    }
}

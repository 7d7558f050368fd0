//! Every rank's block to every rank.
//!
//! | size | algorithm | cost |
//! |---|---|---|
//! | small | dissemination | ⌈log₂ p⌉ α + (p-1)/p n β |
//! | large | ring | (p-1) α + (p-1)/p n β |
//!
//! As few rounds as there can be against one neighbour on either side, so that the network carries
//! nothing twice and every connection is used in both directions all the time. Neither copies a block
//! on its way: it is received in its final place, and sent on from there.

use super::blocks::{Blocks, chunks};
use super::{Planner, input, output};
use crate::collective::program::{Program, Span};

/// A chunk of a rank's own block.
pub(super) struct Own {
    pub(super) from: Span,
    /// How many steps it is there after.
    pub(super) after: usize,
    /// Where it has to go as well.
    pub(super) into: Option<Span>,
}

impl Planner {
    /// Blocks of these bytes, one a rank. In place, the input is this rank's block of the output.
    pub(in crate::collective) fn all_gatherv(&self, block_bytes: &[usize], in_place: bool) -> Program {
        let blocks = Blocks::of(block_bytes);
        if blocks.total() <= self.tuning.gathered_small_bytes_max {
            return self.dissemination(&blocks, in_place);
        }
        let mut program = Program::default();
        let own = blocks.block(self.rank);
        let chunk = |chunk| {
            let from = input(&chunk);
            Own { from, after: 0, into: (!in_place).then_some(output(&own).within(&chunk)) }
        };
        let own: Vec<_> = chunks(0..own.len(), self.tuning.chunk_bytes).map(chunk).collect();
        self.ring_all_gather(&mut program, &blocks, self.tuning.chunk_bytes, &own);
        program
    }

    /// In every round, each rank sends all the blocks that its receiver lacks to one that is twice as
    /// far away as the last.
    fn dissemination(&self, blocks: &Blocks, in_place: bool) -> Program {
        let mut program = Program::default();
        let own = blocks.block(self.rank);
        if !in_place {
            program.copy(input(&(0..own.len())), output(&own));
        }
        for distance in self.doublings() {
            let (to, from) = (self.after(distance), self.before(distance));
            let count = distance.min(self.size - distance);
            if distance == 1 {
                program.send_after(0, to, input(&(0..own.len())));
            } else {
                blocks.up_to(self.rank, count).for_each(|piece| program.send(to, output(&piece)));
            }
            blocks.up_to(from, count).for_each(|piece| program.receive(from, output(&piece)));
        }
        program
    }

    /// Sends this rank's chunks, and passes on those of all others.
    pub(super) fn ring_all_gather(
        &self,
        program: &mut Program,
        blocks: &Blocks,
        chunk_bytes: usize,
        own: &[Own],
    ) {
        let (to, from) = (self.after(1), self.before(1));
        // One between two messages, so that no message waits for long.
        let mut copies = own.iter().filter_map(|chunk| Some((chunk.from, chunk.into?)));
        let (mut arrivals, mut passed_on) = (Vec::new(), Vec::new());
        for distance in 1..self.size {
            for chunk in chunks(blocks.block(self.before(distance)), chunk_bytes) {
                program.receive(from, output(&chunk));
                if distance == 1 {
                    arrivals.push(program.steps.len());
                }
                if distance + 1 < self.size {
                    passed_on.push((program.steps.len(), output(&chunk)));
                }
                copies.by_ref().take(1).for_each(|(from, into)| program.copy(from, into));
            }
        }
        copies.for_each(|(from, into)| program.copy(from, into));
        if self.size == 1 {
            return;
        }
        for (number, chunk) in own.iter().enumerate() {
            let arrival = number.checked_sub(self.tuning.chunks_ahead_max).and_then(|of| arrivals.get(of));
            program.send_after(chunk.after.max(arrival.copied().unwrap_or(0)), to, chunk.from);
        }
        passed_on.into_iter().for_each(|(after, chunk)| program.send_after(after, to, chunk));
    }
}

//! A reduction of which every rank gets all.
//!
//! | size | algorithm | cost |
//! |---|---|---|
//! | small | recursive doubling | ⌈log₂ p⌉ (α + n β + n γ), and 2 α + 2 n β if p is no power of two |
//! | large | reduce-scatter, then all-gather in a ring | 2 (p-1) α + 2 (p-1)/p n β + (p-1)/p n γ |
//!
//! As few rounds as there can be against as few bytes: a chunk is sent on as soon as it is combined, so
//! that both phases of the second use every connection in both directions all the time.
//!
//! Every rank has the same bits: either one rank has computed them for all, or each has combined the
//! same operands in the same order.

use super::all_gather::Own;
use super::blocks::Blocks;
use super::{Planner, input, output};
use crate::collective::program::Program;
use crate::collective::reduction::Reduction;

impl Planner {
    /// In place, the input is the output.
    pub(in crate::collective) fn all_reduce(
        &self,
        elements: usize,
        reduction: &Reduction,
        in_place: bool,
    ) -> Program {
        let mut program = Program::default();
        let whole = 0..elements * reduction.element_bytes();
        if self.size == 1 {
            if !in_place {
                self.copy(&mut program, input(&whole), output(&whole));
            }
        } else if whole.len() <= self.tuning.reduced_small_bytes_max {
            self.doubling(&mut program, elements, reduction, in_place);
        } else {
            self.scatter_and_gather(&mut program, elements, reduction);
        }
        program
    }

    /// What was sent is overwritten only by a result that it is a part of, chunk by chunk.
    fn scatter_and_gather(&self, program: &mut Program, elements: usize, reduction: &Reduction) {
        let blocks = Blocks::even(elements, reduction.element_bytes(), self.size);
        let reduced = if self.pairwise(reduction) {
            self.pairwise_reduce_scatter(program, &blocks, reduction, &mut |_, chunk| output(chunk))
        } else {
            let into = (&mut |_: &mut _, chunk: &_| output(chunk), &mut |_: &mut _, chunk: &_| output(chunk));
            self.ring_reduce_scatter(program, &blocks, reduction, into.0, into.1)
        };
        let own: Vec<_> = reduced.into_iter().map(|(from, after)| Own { from, after, into: None }).collect();
        self.ring_all_gather(program, &blocks, self.chunk_bytes(reduction), &own);
    }

    /// With as many ranks as the largest power of two; each further one gives its elements to one of
    /// them, and gets the result from it.
    fn doubling(&self, program: &mut Program, elements: usize, reduction: &Reduction, in_place: bool) {
        let core = 1 << self.size.ilog2();
        let further = self.size - core;
        let raw = 0..elements * reduction.element_bytes();
        let accumulator_bytes = elements * reduction.accumulator_bytes();
        if self.rank >= core {
            program.send(self.rank - core, input(&raw));
            program.receive(self.rank - core, output(&raw));
            return;
        }
        let slot = program.scratch(accumulator_bytes);
        let mut held = if self.rank < further {
            program.receive(self.rank + core, slot.within(&raw));
            let into = program.scratch(accumulator_bytes).accumulators();
            program.fold(reduction, vec![input(&raw).elements(), slot.within(&raw).elements()], into);
            into
        } else if in_place {
            // The result may be here before the partner has taken the input.
            let copy = program.scratch(raw.len());
            program.copy(input(&raw), copy);
            copy.elements()
        } else {
            input(&raw).elements()
        };
        let mut distance = 1;
        while distance < core {
            let partner = self.rank ^ distance;
            let theirs = match distance {
                1 if partner >= further => slot.within(&raw).elements(),
                _ => slot.accumulators(),
            };
            program.send(partner, held.span);
            program.receive(partner, theirs.span);
            distance *= 2;
            let into = match distance {
                _ if distance == core => output(&raw).elements(),
                _ => program.scratch(accumulator_bytes).accumulators(),
            };
            let parts = if self.rank < partner { vec![held, theirs] } else { vec![theirs, held] };
            program.fold(reduction, parts, into);
            held = into;
        }
        if self.rank < further {
            program.send(self.rank + core, held.span);
        }
    }
}

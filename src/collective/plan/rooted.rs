//! From one rank to all, and from all to one.
//!
//! | operation, size | algorithm | cost |
//! |---|---|---|
//! | broadcast, small | binomial tree | ⌈log₂ p⌉ (α + n β) |
//! | broadcast, large | chain | n β + (p-2) chunks β, then a barrier |
//! | reduce, small | binomial tree | ⌈log₂ p⌉ (α + n β + n γ) |
//! | reduce, large | chain | n β + (p-2) chunks (β + γ), then a barrier |
//! | reduce, large, 16-bit floats | pairwise reduce-scatter, then gather | 2 (p-1)/p n β + (p-1)/p n γ, then a barrier |
//!
//! Every rank has to know that all have begun. A tree needs no barrier for that: the rounds of a
//! dissemination contain those of a binomial tree, so the data rides on the barrier's messages.
//!
//! A chain is bandwidth-optimal: no connection carries a byte twice, and all are busy at once. Scattering
//! and then gathering would send twice (p-1)/p n out of the root. Partial results of 16-bit floats are
//! twice as large as they are, though, so for these the detour is the shorter way.

use super::blocks::{Blocks, chunks};
use super::{Planner, input, output};
use crate::collective::program::{Form, Part, Program, Span};
use crate::collective::reduction::Reduction;

impl Planner {
    /// From the root's input to all outputs. In place, the root's input is its output.
    pub(in crate::collective) fn broadcast(&self, bytes: usize, root: usize, in_place: bool) -> Program {
        let mut program = Program::default();
        let whole = 0..bytes;
        if self.rank == root && !in_place {
            self.copy(&mut program, input(&whole), output(&whole));
        }
        if bytes <= self.tuning.rooted_small_bytes_max {
            self.broadcast_tree(&mut program, bytes, root);
        } else {
            self.broadcast_chain(&mut program, bytes, root);
            self.then_barrier(&mut program);
        }
        program
    }

    /// In each round, those that have it are the first ones after the root, and each gives it to one
    /// that is beyond them; all other messages are empty.
    fn broadcast_tree(&self, program: &mut Program, bytes: usize, root: usize) {
        let position = self.position(root);
        let held = if position == 0 { input(&(0..bytes)) } else { output(&(0..bytes)) };
        for distance in self.doublings() {
            let gives = position < distance && position + distance < self.size;
            let gets = (distance..2 * distance).contains(&position);
            let after = if position == 0 && distance == 1 { 0 } else { program.steps.len() };
            program.send_after(after, self.after(distance), if gives { held } else { Span::EMPTY });
            program.receive(self.before(distance), if gets { held } else { Span::EMPTY });
        }
    }

    fn broadcast_chain(&self, program: &mut Program, bytes: usize, root: usize) {
        let position = self.position(root);
        for chunk in chunks(0..bytes, self.tuning.chunk_bytes) {
            if position == 0 && self.size > 1 {
                program.send_after(0, self.after(1), input(&chunk));
            } else if position > 0 {
                program.receive(self.before(1), output(&chunk));
                if position + 1 < self.size {
                    program.send(self.after(1), output(&chunk));
                }
            }
        }
    }

    /// From all inputs to the root's output; no other rank needs one. In place, the root's input is its
    /// output.
    pub(in crate::collective) fn reduce(
        &self,
        elements: usize,
        reduction: &Reduction,
        root: usize,
        in_place: bool,
    ) -> Program {
        let mut program = Program::default();
        let whole = 0..elements * reduction.element_bytes();
        if self.size == 1 {
            if !in_place {
                self.copy(&mut program, input(&whole), output(&whole));
            }
        } else if whole.len() <= self.tuning.rooted_small_bytes_max {
            self.reduce_tree(&mut program, elements, reduction, root);
        } else {
            if reduction.widens() {
                self.reduce_by_blocks(&mut program, elements, reduction, root);
            } else {
                self.reduce_chain(&mut program, whole.len(), reduction, root);
            }
            self.then_barrier(&mut program);
        }
        program
    }

    /// In each round, of those that still have a partial result, every second gives it to the one
    /// before; all other messages are empty.
    fn reduce_tree(&self, program: &mut Program, elements: usize, reduction: &Reduction, root: usize) {
        let position = self.position(root);
        let raw = 0..elements * reduction.element_bytes();
        let mut parts = vec![input(&raw).elements()];
        for distance in self.doublings() {
            let gives = position % (2 * distance) == distance;
            let gets = position.is_multiple_of(2 * distance) && position + distance < self.size;
            let given = if gives { self.combined(program, elements, reduction, &parts) } else { Span::EMPTY };
            program.send(self.before(distance), given);
            let received = if gets {
                // Of the last rank, and of the first round, that is an input.
                let alone = distance == 1 || position + distance + 1 == self.size;
                let form = if alone { Form::Elements } else { Form::Accumulators };
                let span = program.scratch(elements * reduction.bytes_of(form));
                parts.push(span.of(form));
                span
            } else {
                Span::EMPTY
            };
            program.receive(self.after(distance), received);
        }
        if position == 0 {
            program.fold(reduction, parts, output(&raw).elements());
        }
    }

    /// What a rank has in the end of its part of the tree.
    fn combined(
        &self,
        program: &mut Program,
        elements: usize,
        reduction: &Reduction,
        parts: &[Part],
    ) -> Span {
        match parts {
            [own] => own.span,
            _ => {
                let into = program.scratch(elements * reduction.accumulator_bytes());
                program.fold(reduction, parts.to_vec(), into.accumulators());
                into
            }
        }
    }

    /// From the rank before the root, the other way round, to the root. Partial results need memory for
    /// all of them: that one was sent does not mean that it was taken.
    fn reduce_chain(&self, program: &mut Program, bytes: usize, reduction: &Reduction, root: usize) {
        let position = self.position(root);
        let chunk_bytes = self.chunk_bytes(reduction);
        let last = position + 1 == self.size;
        let slot = program.scratch(if last { 0 } else { chunk_bytes.min(bytes) });
        for chunk in chunks(0..bytes, chunk_bytes) {
            if last {
                program.send(self.before(1), input(&chunk));
                continue;
            }
            let received = slot.within(&(0..chunk.len()));
            program.receive(self.after(1), received);
            let form = if position + 2 == self.size { Form::Elements } else { Form::Accumulators };
            let parts = vec![input(&chunk).elements(), received.of(form)];
            if position == 0 {
                program.fold(reduction, parts, output(&chunk).elements());
            } else {
                let into = program.scratch(chunk.len());
                program.fold(reduction, parts, into.accumulators());
                program.send(self.before(1), into);
            }
        }
    }

    /// Each rank one block, which then goes to the root.
    fn reduce_by_blocks(&self, program: &mut Program, elements: usize, reduction: &Reduction, root: usize) {
        let blocks = Blocks::even(elements, reduction.element_bytes(), self.size);
        let mut place = |program: &mut Program, chunk: &std::ops::Range<usize>| match self.rank == root {
            true => output(chunk),
            false => program.scratch(chunk.len()),
        };
        let reduced = self.pairwise_reduce_scatter(program, &blocks, reduction, &mut place);
        if self.rank != root {
            reduced.into_iter().for_each(|(chunk, after)| program.send_after(after, root, chunk));
            return;
        }
        for rank in (1..self.size).map(|distance| self.before(distance)) {
            for chunk in chunks(blocks.block(rank), self.chunk_bytes(reduction)) {
                program.receive(rank, output(&chunk));
            }
        }
    }

    /// How far after the root this rank is, in a circle.
    fn position(&self, root: usize) -> usize {
        (self.rank + self.size - root) % self.size
    }
}

//! Waiting for all ranks: ⌈log₂ p⌉ α.

use super::Planner;
use crate::collective::program::{Program, Span};

impl Planner {
    /// By dissemination: in every round each rank tells one that is twice as far away as the last what
    /// it has heard.
    pub(in crate::collective) fn barrier(&self) -> Program {
        let mut program = Program::default();
        self.then_barrier(&mut program);
        program
    }

    /// After what the program does. The first round waits for none of it: that this rank has begun is
    /// all that it tells.
    pub(super) fn then_barrier(&self, program: &mut Program) {
        for (round, distance) in self.doublings().enumerate() {
            let after = if round == 0 { 0 } else { program.steps.len() };
            program.send_after(after, self.after(distance), Span::EMPTY);
            program.receive(self.before(distance), Span::EMPTY);
        }
    }
}

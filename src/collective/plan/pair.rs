//! From one rank to another: α + n β there, and α for the receiver's answer.

use super::{Planner, input, output};
use crate::collective::program::{Program, Span};

impl Planner {
    /// Ends once the receiver has all of it.
    pub(in crate::collective) fn send(&self, receiver: usize, bytes: usize) -> Program {
        let mut program = Program::default();
        program.send(receiver, input(&(0..bytes)));
        program.receive(receiver, Span::EMPTY);
        program
    }

    /// Answers the sender.
    pub(in crate::collective) fn recv(&self, sender: usize, bytes: usize) -> Program {
        let mut program = Program::default();
        program.receive(sender, output(&(0..bytes)));
        program.send(sender, Span::EMPTY);
        program
    }
}

//! One rank's part in an operation, as data: what to receive, what to compute, what to send.
//!
//! A program is run as it stands: its steps strictly in order, and beside them its sends, strictly in
//! order too, each as soon as the steps that it builds on are done. Between two ranks messages arrive
//! in the order in which they were sent, and each has exactly the bytes that its receiver expects.
//!
//! # What every program keeps
//!
//! - It never deadlocks, even if no byte is buffered between ranks.
//! - A message may be read from memory late: until its receiver has all of it. No step before that
//!   overwrites it.
//! - It ends only after a message, straight or through others, came from every rank of the group.
//!   Since each message carries the call that it belongs to, whoever ends knows that all ranks agree.
//!   Where an operation has no bytes for a rank, an empty message goes there.

use super::reduction::Reduction;

/// What one rank does in one operation.
#[derive(Clone, Debug, Default)]
pub(super) struct Program {
    /// One after the other.
    pub(super) steps: Vec<Step>,
    /// One after the other, beside the steps.
    pub(super) sends: Vec<Transmission>,
    /// How much memory of its own it needs.
    pub(super) scratch_bytes: usize,
}

/// What is done in its turn.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Wait for a message of exactly these bytes.
    Receive {
        /// From whom.
        rank: usize,
        /// Where to.
        into: Span,
    },
    /// Compute.
    Compute(Compute),
}

/// A message to another rank.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transmission {
    /// To whom.
    pub(super) rank: usize,
    /// Its bytes.
    pub(super) from: Span,
    /// How many steps must be done before.
    pub(super) after: usize,
}

/// Some bytes of an operation's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) place: Place,
    pub(super) at: usize,
    pub(super) bytes: usize,
}

/// Whose memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The caller's, to read; in place, a part of the output.
    Input,
    /// The caller's, to be filled.
    Output,
    /// The program's own.
    Scratch,
}

/// A step without the network.
#[derive(Clone, Debug)]
pub(super) enum Compute {
    /// Copies bytes; where the two are the same memory, nothing is done.
    Copy {
        /// From where.
        from: Span,
        /// As many bytes.
        into: Span,
    },
    /// Combines the parts in this order. A part may be the very memory that the result goes to, or lie
    /// apart from it; nothing between.
    Fold {
        /// How.
        reduction: Reduction,
        /// At least one, with as many elements each.
        parts: Vec<Part>,
        /// The result. As [`Form::Elements`] it is complete: divided for a mean, and rounded.
        into: Part,
    },
}

/// Elements in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) span: Span,
    pub(super) form: Form,
}

/// What one rank's or the final elements are, or what is between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Of the dtype.
    Elements,
    /// Partial results: of `float32` for 16-bit floats, else of the dtype.
    Accumulators,
}

impl Span {
    /// What a message without bytes is sent from, and received into.
    pub(super) const EMPTY: Self = Self { place: Place::Scratch, at: 0, bytes: 0 };

    pub(super) const fn of(self, form: Form) -> Part {
        Part { span: self, form }
    }

    pub(super) const fn elements(self) -> Part {
        self.of(Form::Elements)
    }

    pub(super) const fn accumulators(self) -> Part {
        self.of(Form::Accumulators)
    }
}

//! The memory that a program works on.

use super::program::{Compute, Place, Span};
use super::reduction::Source;

/// What a program reads and fills. Where a span is not within, that is a bug, and panics.
#[derive(Debug)]
pub(super) struct Memory<'a> {
    input: Input<'a>,
    output: &'a mut [u8],
    scratch: &'a mut [u8],
}

/// Where the input is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Input<'a> {
    /// In memory of its own.
    Apart(&'a [u8]),
    /// In the output, from this byte on.
    Within {
        /// The first byte.
        at: usize,
    },
}

impl<'a> Memory<'a> {
    pub(super) fn new(input: Input<'a>, output: &'a mut [u8], scratch: &'a mut [u8]) -> Self {
        Self { input, output, scratch }
    }

    /// The bytes to send.
    pub(super) fn read(&self, span: Span) -> &[u8] {
        let (whole, at) = match (span.place, self.input) {
            (Place::Input, Input::Apart(input)) => (input, span.at),
            (Place::Input, Input::Within { at }) => (&*self.output, at + span.at),
            (Place::Output, _) => (&*self.output, span.at),
            (Place::Scratch, _) => (&*self.scratch, span.at),
        };
        &whole[at..][..span.bytes]
    }

    /// Where to receive.
    pub(super) fn write(&mut self, span: Span) -> &mut [u8] {
        self.split(span).0
    }

    /// Runs one step.
    pub(super) fn compute(&mut self, step: &Compute) {
        match step {
            Compute::Copy { from, into } => {
                let (into, rest) = self.split(*into);
                if let Source::Apart(from) = rest.source(*from) {
                    into.copy_from_slice(from);
                }
            }
            Compute::Fold { reduction, parts, into } => {
                let (target, rest) = self.split(into.span);
                let parts: Vec<_> = parts.iter().map(|part| (rest.source(part.span), part.form)).collect();
                reduction.fold(&parts, target, into.form);
            }
        }
    }

    /// A span to write, and everything else to read. The input has none to write, not even in place.
    fn split(&mut self, into: Span) -> (&mut [u8], Rest<'_>) {
        let (target, output, scratch) = match into.place {
            Place::Input => (&mut [][..], Around::whole(self.output), Around::whole(self.scratch)),
            Place::Output => {
                let (target, output) = Around::cut(self.output, into.at, into.bytes);
                (target, output, Around::whole(self.scratch))
            }
            Place::Scratch => {
                let (target, scratch) = Around::cut(self.scratch, into.at, into.bytes);
                (target, Around::whole(self.output), scratch)
            }
        };
        (target, Rest { input: self.input, output, scratch })
    }
}

/// Everything but the span that is written.
struct Rest<'a> {
    input: Input<'a>,
    output: Around<'a>,
    scratch: Around<'a>,
}

impl<'a> Rest<'a> {
    fn source(&self, span: Span) -> Source<'a> {
        match (span.place, self.input) {
            (Place::Input, Input::Apart(input)) => Source::Apart(&input[span.at..][..span.bytes]),
            (Place::Input, Input::Within { at }) => self.output.source(at + span.at, span.bytes),
            (Place::Output, _) => self.output.source(span.at, span.bytes),
            (Place::Scratch, _) => self.scratch.source(span.at, span.bytes),
        }
    }
}

/// Memory with a hole.
struct Around<'a> {
    before: &'a [u8],
    hole: usize,
    after: &'a [u8],
}

impl<'a> Around<'a> {
    fn whole(memory: &'a [u8]) -> Self {
        Self { before: memory, hole: 0, after: &[] }
    }

    fn cut(memory: &'a mut [u8], at: usize, bytes: usize) -> (&'a mut [u8], Self) {
        let (before, rest) = memory.split_at_mut(at);
        let (target, after) = rest.split_at_mut(bytes);
        (target, Self { before, hole: bytes, after })
    }

    fn source(&self, at: usize, bytes: usize) -> Source<'a> {
        let hole = self.before.len();
        if at + bytes <= hole {
            Source::Apart(&self.before[at..][..bytes])
        } else if (at, bytes) == (hole, self.hole) {
            Source::Target
        } else {
            Source::Apart(&self.after[at - hole - self.hole..][..bytes])
        }
    }
}

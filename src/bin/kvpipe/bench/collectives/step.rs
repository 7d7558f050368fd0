//! What the parent tells the ranks, kvpipe's and gloo's alike, and what they answer. One JSON value a
//! line, on their standard input and output; `gloo.py` has the other half of it, too.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::args::Operation;

/// What all ranks of one kind do next.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    /// Have the memory for this, in place of the last, and see that the numbers are right.
    Prepare(Work),
    /// Repeat it.
    Run { way: Way, count: u64, warm_up: u64 },
    /// End well.
    Leave,
}

/// One operation on tensors of f32.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Work {
    pub(super) operation: Operation,
    /// That each rank puts in.
    pub(super) elements: usize,
}

/// A rank's answer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Event {
    /// Rank 0's store listens here.
    Store(SocketAddr),
    /// The last step took so many seconds, or none that count. Also said once it has joined.
    Done(f64),
}

/// Who does it, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    /// A process group.
    Kvpipe,
    /// Gloo, into one tensor.
    Gloo,
    /// Gloo, into a list of tensors.
    GlooList,
    /// Bare sockets, where one thread writes and reads by turns.
    OneThread,
    /// Bare sockets, with a thread that writes and one that reads.
    TwoThreads,
}

/// Who does it; the best way of each counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    Kvpipe,
    Gloo,
    Bare,
}

impl Way {
    /// All that there are for an operation.
    pub(super) fn all(operation: Operation, gloo: bool) -> Vec<Self> {
        let mut ways = vec![Self::OneThread, Self::TwoThreads, Self::Kvpipe];
        if gloo {
            ways.push(Self::Gloo);
        }
        if gloo && operation == Operation::AllGather {
            ways.push(Self::GlooList);
        }
        ways
    }

    pub(super) fn contender(self) -> Contender {
        match self {
            Self::Kvpipe => Contender::Kvpipe,
            Self::Gloo | Self::GlooList => Contender::Gloo,
            Self::OneThread | Self::TwoThreads => Contender::Bare,
        }
    }
}

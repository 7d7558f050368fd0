//! The names of an edge's keys.

use std::fmt::Write;

use crate::transport::Ring;
use crate::wire::handshake::SessionId;
use crate::wire::text::GroupName;

/// Where the two ends of an edge find each other.
#[derive(Clone, Debug)]
pub(super) struct EdgeName(String);

impl EdgeName {
    /// The edge from `ring`'s rank to the next.
    pub(super) fn outgoing(group: &GroupName, ring: Ring) -> Self {
        Self::new(group, ring.rank(), ring.next())
    }

    /// The edge to `ring`'s rank from the previous one.
    pub(super) fn incoming(group: &GroupName, ring: Ring) -> Self {
        Self::new(group, ring.previous(), ring.rank())
    }

    fn new(group: &GroupName, from: usize, to: usize) -> Self {
        Self(format!("kvpipe/{group}/edge/{from}-{to}"))
    }

    /// Where a receiver says that it is there.
    pub(super) fn receiver(&self) -> String {
        format!("{}/receiver", self.0)
    }

    /// The keys that belong to one run of the receiving end.
    pub(super) fn run(&self, receiver: &SessionId) -> RunKeys {
        let mut base = format!("{}/", self.0);
        for byte in receiver {
            // Writing to a String does not fail.
            let _ = write!(base, "{byte:02x}");
        }
        RunKeys { base }
    }
}

/// The keys of one run of an edge.
#[derive(Clone, Debug)]
pub(super) struct RunKeys {
    base: String,
}

impl RunKeys {
    /// Where a sender says that this receiver is its peer.
    pub(super) fn sender(&self) -> String {
        format!("{}/sender", self.base)
    }

    /// The sender's heartbeat.
    pub(super) fn sender_alive(&self) -> String {
        format!("{}/alive/sender", self.base)
    }

    /// The receiver's heartbeat.
    pub(super) fn receiver_alive(&self) -> String {
        format!("{}/alive/receiver", self.base)
    }

    /// From the sender to the receiver.
    pub(super) fn data(&self) -> Track {
        Track(format!("{}/data", self.base))
    }

    /// From the receiver to the sender.
    pub(super) fn replies(&self) -> Track {
        Track(format!("{}/reply", self.base))
    }

    /// Everything but the messages of the two tracks. They go first when an end clears up, see
    /// [`Patient::publish`](super::patient::Patient::publish).
    pub(super) fn all_but_messages(&self) -> Vec<String> {
        vec![
            self.sender(),
            self.sender_alive(),
            self.receiver_alive(),
            self.data().consumed(),
            self.replies().consumed(),
        ]
    }
}

/// Messages in one direction, each under a key of its own, which its reader deletes.
#[derive(Clone, Debug)]
pub(super) struct Track(String);

impl Track {
    /// The message `number`, counted from 0.
    pub(super) fn message(&self, number: u64) -> String {
        format!("{}/{number}", self.0)
    }

    /// How many messages the reader has consumed. It is written before they are deleted, so whoever
    /// finds a message missing can tell from it whether the message has been there.
    pub(super) fn consumed(&self) -> String {
        format!("{}/consumed", self.0)
    }
}

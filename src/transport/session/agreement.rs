//! Whether two ends belong to one edge, and fit together.

use std::fmt::Display;

use crate::wire::handshake::{Endpoint, RefusalReason};

/// A reason to refuse, and both values.
pub(crate) type Objection = Option<(RefusalReason, String)>;

/// What shows that two ends do not belong to the same edge.
pub(crate) fn strangeness(sender: &Endpoint, receiver: &Endpoint) -> Objection {
    let edge = |endpoint: &Endpoint| format!("{} to {}", endpoint.from_rank, endpoint.to_rank);
    let group = |endpoint: &Endpoint| format!("{:?}", endpoint.group.as_str());
    let secret = |endpoint: &Endpoint| if endpoint.authenticated { "one" } else { "none" };
    let (a, b) = (sender, receiver);
    if a.group != b.group {
        return Some((RefusalReason::Group, differ("groups differ", group(a), group(b))));
    }
    if (a.from_rank, a.to_rank) != (b.from_rank, b.to_rank) {
        return Some((RefusalReason::Rank, differ("ranks differ", edge(a), edge(b))));
    }
    if a.authenticated != b.authenticated {
        return Some((RefusalReason::Secret, differ("only one end has a secret", secret(a), secret(b))));
    }
    None
}

/// How the two ends of an edge are set up differently. Only judged after the proofs, so that it ends
/// the meeting for both, and no stranger can make it do so.
pub(crate) fn difference(sender: &Endpoint, receiver: &Endpoint) -> Objection {
    let (a, b) = (sender, receiver);
    if a.world_size != b.world_size {
        let text = differ("world sizes differ", a.world_size, b.world_size);
        return Some((RefusalReason::WorldSize, text));
    }
    if a.max_item_bytes != b.max_item_bytes {
        let text = differ("item limits (max_item_bytes) differ", a.max_item_bytes, b.max_item_bytes);
        return Some((RefusalReason::ItemLimit, text));
    }
    if a.checksum != b.checksum {
        let text = differ("checksum settings differ", a.checksum, b.checksum);
        return Some((RefusalReason::Checksum, text));
    }
    None
}

fn differ(what: &str, sender: impl Display, receiver: impl Display) -> String {
    format!("{what}: the sender has {sender}, the receiver {receiver}")
}

/// [`Ring`](crate::transport::Ring) holds no rank that does not fit.
pub(crate) fn rank_on_wire(rank: usize) -> u32 {
    u32::try_from(rank).unwrap_or(u32::MAX)
}

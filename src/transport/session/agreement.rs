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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::text::GroupName;

    fn endpoint() -> Endpoint {
        Endpoint {
            group: GroupName::new("group").unwrap(),
            from_rank: rank_on_wire(2),
            to_rank: rank_on_wire(3),
            world_size: 4,
            session: [5; 16],
            nonce: [6; 32],
            max_item_bytes: 7,
            heartbeat_ms: 8,
            checksum: true,
            authenticated: false,
        }
    }

    fn with(change: fn(&mut Endpoint)) -> Endpoint {
        let mut changed = endpoint();
        change(&mut changed);
        changed
    }

    #[test]
    fn each_end_has_a_session_a_nonce_and_a_heartbeat_limit_of_its_own() {
        let other = with(|it| (it.session, it.nonce, it.heartbeat_ms) = ([0; 16], [0; 32], 0));
        assert_eq!((strangeness(&endpoint(), &other), difference(&endpoint(), &other)), (None, None));
    }

    /// What makes one end another than the other.
    type Change = fn(&mut Endpoint);

    #[test]
    fn a_stranger_is_known_by_group_edge_and_secret_and_both_values_are_named() {
        use RefusalReason::{Group, Rank, Secret};
        let group = r#"groups differ: the sender has "group", the receiver "other""#;
        let secret = "only one end has a secret: the sender has none, the receiver one";
        let ranks = |of: &str| format!("ranks differ: the sender has 2 to 3, the receiver {of}");
        let cases: [(Change, _, String); 4] = [
            (|it| it.group = GroupName::new("other").unwrap(), Group, group.into()),
            (|it| it.from_rank = 1, Rank, ranks("1 to 3")),
            (|it| it.to_rank = 4, Rank, ranks("2 to 4")),
            (|it| it.authenticated = true, Secret, secret.into()),
        ];
        for (change, reason, text) in cases {
            assert_eq!(strangeness(&endpoint(), &with(change)), Some((reason, text)));
            assert_eq!(difference(&endpoint(), &with(change)), None, "{reason}");
        }
    }

    #[test]
    fn ends_of_one_edge_may_differ_in_world_size_item_limit_and_checksums() {
        use RefusalReason::{Checksum, ItemLimit, WorldSize};
        let cases: [(Change, _, _); 3] = [
            (|it| it.world_size = 5, WorldSize, ["world sizes differ", "4", "5"]),
            (|it| it.max_item_bytes = 8, ItemLimit, ["item limits (max_item_bytes) differ", "7", "8"]),
            (|it| it.checksum = false, Checksum, ["checksum settings differ", "true", "false"]),
        ];
        for (change, reason, [what, sender, receiver]) in cases {
            let text = format!("{what}: the sender has {sender}, the receiver {receiver}");
            assert_eq!(difference(&endpoint(), &with(change)), Some((reason, text)));
            assert_eq!(strangeness(&endpoint(), &with(change)), None, "{reason}");
        }
    }
}

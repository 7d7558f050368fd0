//! What the two ends of an acknowledged edge know of each other: pure state, without I/O, payloads
//! or a clock. It outlives the connections that carry it.
//!
//! A *session* is one run of one end, named by a random id. An edge is between two sessions from its
//! first connection on, and only ever resumed between them: what a process held is lost with it.
//!
//! # The sender
//!
//! | state | on | becomes | and |
//! |---|---|---|---|
//! | unmet | accepted, `received` 0 | sending | remember the peer's session |
//! | sending | item handed to the wire | sending | `sent` + 1 |
//! | sending | close handed to the wire | closing | |
//! | sending, closing | `Acknowledge` of at most `sent` | same | settle |
//! | closing | `Finished` of all that was sent | ended | settle everything, `Goodbye` |
//! | sending, closing | `Closed` of at most `sent` | ended | the receiver has left |
//! | sending, closing | `Abort` | ended | |
//! | sending, closing | connection lost | lost | all that was sent stays in doubt |
//! | lost | accepted by the same session, `received` from `acknowledged` to `sent` | sending | settle below `received`, send again from there: the peer holds nothing of it |
//! | lost | accepted or refused by another session | ended | the peer has restarted |
//! | lost | time is up, or nobody listens there | ended | the peer is gone; nothing is missing if the user has closed and all is acknowledged |
//! | lost | so many connections broke without an item getting through | ended | as before |
//! | sending, closing | silence for the heartbeat limit | ended | as before; a silent peer is not resumed |
//! | any | anything else | ended | the peer broke the protocol |
//!
//! # The receiver
//!
//! | state | on | becomes | and |
//! |---|---|---|---|
//! | unmet | first connection of a session | receiving | remember the peer's session |
//! | receiving | item with the sequence number `received` | receiving | deliver, then `received` + 1 |
//! | receiving, complete | item below `received` | same | skip: a duplicate |
//! | receiving, complete | `Close` of `received` items | complete | `Finished`, once the user has taken all |
//! | complete | `Goodbye` | ended | |
//! | receiving, complete | `Abort` | ended | |
//! | receiving, complete | connection lost | lost | |
//! | any but unmet | connection of the same session | as before the loss | it takes the place of the one before, and learns what is `received` |
//! | receiving, complete | silence for the heartbeat limit, while reading | ended | the peer is gone, and not resumed |
//! | receiving | our user leaves | ended | `Closed` with the number of items taken |
//! | receiving, complete | connection of another session | same | refused: busy |
//! | lost | connection of another session | ended | refused; the peer has restarted |
//! | lost | time is up | ended | the peer is gone; nothing is missing if the stream was complete |
//! | any | a session that wants to resume another than ours, or that does not know ours although we hold items of it | same | refused |
//! | any | anything else | ended | the peer broke the protocol |
//!
//! # Why nothing is lost, doubled, or wrongly in doubt
//!
//! The receiver says what it has received only when it accepts a connection, and after it has dropped
//! the one before. So nothing that was sent earlier can arrive after that word, and whatever is at or
//! above it can be sent again, and is not in doubt any more. Until that word, it is.

mod agreement;
#[cfg(any(test, fuzzing))]
pub(crate) mod hostile;
#[cfg(any(test, fuzzing))]
pub(crate) mod model;
mod receive;
mod send;
mod silence;

pub(crate) use self::agreement::{Objection, difference, rank_on_wire, strangeness};
pub(crate) use self::receive::{Admission, Arrival, Claim, ReceiveSession};
pub(crate) use self::send::{Heard, Reunion, SendSession};
pub(crate) use self::silence::{Silence, TICKS};

/// The protocol was broken; in words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Violation(pub(crate) String);

//! The promises, as what breaks them.

use std::time::Duration;

use kvpipe::Error;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// Sequence numbers count from 0.
    #[error("the item at place {place} was accepted as number {sequence}")]
    Misnumbered {
        /// The items accepted before it.
        place: usize,
        /// What the send method returned.
        sequence: u64,
    },
    /// Not the item whose turn it was: lost, doubled, out of order, damaged or never sent.
    #[error("in the place of item {place} ({expected}) came {came}")]
    WrongItem {
        /// Whose turn it was.
        place: usize,
        /// What it looks like.
        expected: String,
        /// What came, and which accepted item it equals.
        came: String,
    },
    /// Two receiving pipes were given items of one sending pipe.
    #[error("what this pipe received was sent by a pipe whose items went to {other} as well")]
    SharedSender {
        /// The other receiving end.
        other: String,
    },
    /// A close succeeded, and something is missing.
    #[error("the close succeeded with {received} of {accepted} items received, {undelivered} undelivered")]
    ClosedTooEarly {
        /// Items that the peer pipe had.
        received: u64,
        /// Items accepted.
        accepted: usize,
        /// Items that the sender still holds.
        undelivered: usize,
    },
    /// The receiver saw a graceful end, and something is missing.
    #[error("the receiver saw the end after {delivered} of {accepted} items")]
    EndedTooEarly {
        /// Items delivered.
        delivered: usize,
        /// Items accepted.
        accepted: usize,
    },
    /// The receiver was told of the end before it had taken what had arrived.
    #[error("the receiver saw the end ({end}) after {delivered} of {received} items that had arrived")]
    EndOvertook {
        /// What it saw.
        end: String,
        /// Items delivered.
        delivered: usize,
        /// Items that the receiving pipe had.
        received: u64,
    },
    /// The receiver saw a graceful end that its sender did not make.
    #[error("the receiver saw the end, and the sender had not finished")]
    EndInvented,
    /// `undelivered` is not exactly what is not acknowledged.
    #[error("undelivered has the numbers {numbers:?}, and {acknowledged} of {accepted} are acknowledged")]
    WrongUndelivered {
        /// Their sequence numbers.
        numbers: Vec<u64>,
        /// Items acknowledged.
        acknowledged: u64,
        /// Items accepted.
        accepted: usize,
    },
    /// An undelivered item is not the one that was accepted.
    #[error("the undelivered item {sequence} is not the one that was accepted")]
    ChangedUndelivered {
        /// Its number.
        sequence: u64,
    },
    /// Acknowledged, and yet the receiving pipe never had it.
    #[error("{acknowledged} items are acknowledged, and only {received} were received")]
    FalseAcknowledgement {
        /// Items acknowledged.
        acknowledged: u64,
        /// Items that the receiving pipe had.
        received: u64,
    },
    /// More was received than was ever accepted.
    #[error("{received} items were received, and only {accepted} were accepted")]
    ReceivedTooMany {
        /// Items that the receiving pipe had.
        received: u64,
        /// Items accepted.
        accepted: u64,
    },
    /// A flush succeeded before everything was in the peer's inbox.
    #[error("the flush succeeded with {received} of {accepted} items received")]
    FalseFlush {
        /// Items that the receiving pipe had.
        received: u64,
        /// Items accepted before the flush.
        accepted: usize,
    },
    /// The receiver has it, and the sender was told that it can't.
    #[error("item {sequence} was received, and its sender is told that there is no doubt that it was not")]
    FalseCertainty {
        /// Its number.
        sequence: u64,
    },
    /// Items are said to be in doubt that can't be.
    #[error("{in_doubt} items are in doubt, and {in_flight} were on their way to somebody")]
    FalseDoubt {
        /// How many.
        in_doubt: usize,
        /// How many the statistics say are on their way.
        in_flight: usize,
    },
    /// Items are handed to the wire in order, so no doubt can follow certainty.
    #[error("item {sequence} is in doubt, and one before it is not")]
    DoubtAfterCertainty {
        /// Its number.
        sequence: u64,
    },
    /// The sender was told a wrong number of items that the receiving user took.
    #[error("the sender was told that {told} items were taken, and {delivered} were")]
    WrongTaken {
        /// In the error.
        told: u64,
        /// Items delivered.
        delivered: usize,
    },
    /// More bytes are held than may be.
    #[error("{held} bytes of more than one item are held of at most {limit}")]
    OverBudget {
        /// By a queue.
        held: usize,
        /// Its budget or window.
        limit: usize,
    },
    /// More items are held than may be.
    #[error("{held} items are held of at most {limit}")]
    TooManyItems {
        /// By a queue.
        held: usize,
        /// Its limit.
        limit: usize,
    },
    /// An error that nothing in the plan can cause.
    #[error("{call} failed without cause: {error}")]
    NoCause {
        /// What was called.
        call: &'static str,
        /// What it gave.
        error: String,
    },
    /// A call with a deadline returned too early or too late.
    #[error("{call} with a deadline of {deadline:?} returned after {after:?}")]
    Deadline {
        /// What was called.
        call: &'static str,
        /// Its limit.
        deadline: Duration,
        /// How long it took.
        after: Duration,
    },
    /// Two ranks look for each other for longer than they may.
    #[error("for {after:?} nothing has got through, and this end has not failed")]
    NotMet {
        /// Simulated time.
        after: Duration,
    },
    /// A close takes longer than it may.
    #[error("a close with a limit of {close_timeout:?} has waited for {after:?}, and nothing has moved")]
    CloseStalls {
        /// Simulated time.
        after: Duration,
        /// Its limit without progress.
        close_timeout: Duration,
    },
    /// A peer is dead, and an end does not know it.
    #[error("rank {peer} died {after:?} ago, and this end does not know")]
    DeathUnnoticed {
        /// Who died.
        peer: usize,
        /// Simulated time.
        after: Duration,
    },
    /// A process group has failed at a member, or a member is dead, and another one does not know it.
    #[error("its {call} goes on {after:?} after another member has failed")]
    FailureUnnoticed {
        /// What it has called.
        call: &'static str,
        /// Simulated time.
        after: Duration,
    },
    /// The software of a rank has ended, and something is left of it.
    #[error("{tasks} tasks and {sockets} sockets are left after the end")]
    Remains {
        /// On its runtime.
        tasks: usize,
        /// That listen, or are an end of a connection.
        sockets: usize,
    },
    /// The software of a rank has ended, and a pipe of its has not.
    #[error("{drivers} drivers of pipes still run {after:?} after the world was healed")]
    DriversLeft {
        /// How many.
        drivers: usize,
        /// Simulated time.
        after: Duration,
    },
    /// Something waits for ever.
    #[error("it still waits {after:?} after the world was healed: {what}")]
    NoEnd {
        /// Who and for what.
        what: String,
        /// Simulated time.
        after: Duration,
    },
    /// Keys are left in the store, though everybody has left gracefully.
    #[error("{keys} keys and {queued} queue entries are left in the store")]
    KeysLeft {
        /// How many.
        keys: usize,
        /// In queues.
        queued: usize,
    },
    /// A task panicked, for whose end nobody may wait.
    #[error("it panicked: {what}")]
    Panicked {
        /// What it said, and where.
        what: String,
    },
    /// What the software under test says itself.
    #[error("{0}")]
    Told(String),
}

impl Violation {
    pub(crate) fn no_cause(call: &'static str, error: &Error) -> Self {
        Self::NoCause { call, error: error.to_string() }
    }
}

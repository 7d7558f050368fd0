//! [`Oracle`]: judges what a sender and a receiver saw of one stream by kvpipe's first three promises.
//!
//! 1. First in, first out, each item exactly once: what is delivered is a prefix of what was accepted.
//! 2. `None` is an item and keeps its place.
//! 3. Every accepted item is delivered, or its sender is told: a close that succeeds means that all
//!    are; after a failure `undelivered` is exactly what is not acknowledged, and what was received of
//!    it comes first and is in doubt.

use kvpipe::pipe::Undelivered;
use kvpipe::{Error, Item};

/// The history of one stream. It is told what happens when it happens: an item is accepted before it
/// can be delivered.
#[derive(Debug, Default)]
pub struct Oracle {
    accepted: Vec<Item>,
    delivered: usize,
    sender: Option<SenderEnd>,
    receiver: Option<Error>,
    violations: Vec<Violation>,
}

/// How the sender's end ended.
#[derive(Clone, Debug)]
pub struct SenderEnd {
    /// What `close` gave.
    pub closed: Result<(), Error>,
    /// What `undelivered` gave after that.
    pub undelivered: Vec<Undelivered>,
    /// How many items the statistics say are acknowledged.
    pub acknowledged: u64,
}

/// What a stream without a violation came to.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Items accepted by the sender.
    pub accepted: usize,
    /// Items that the receiving user took.
    pub delivered: usize,
    /// Why the sender failed, if it did.
    pub failure: Option<Error>,
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Sequence numbers count from 0.
    #[error("the item at place {place} was accepted as number {sequence}")]
    Misnumbered {
        /// The items accepted before it.
        place: usize,
        /// What the send method returned.
        sequence: u64,
    },
    /// More was delivered than was ever sent.
    #[error("item {place} was delivered, and only {place} were accepted")]
    Invented {
        /// The items delivered before it.
        place: usize,
    },
    /// Not the item whose turn it was: lost, doubled, out of order or damaged.
    #[error("in the place of item {place} ({expected}) came {came}")]
    WrongItem {
        /// Whose turn it was.
        place: usize,
        /// What it looks like.
        expected: String,
        /// What came, and which accepted item it equals.
        came: String,
    },
    /// A close succeeded, and something is missing.
    #[error("the close succeeded with {delivered} of {accepted} items delivered, {undelivered} undelivered")]
    ClosedTooEarly {
        /// Items delivered.
        delivered: usize,
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
    /// Acknowledged, and yet the receiver never had it.
    #[error("{acknowledged} items are acknowledged, and only {delivered} were delivered")]
    FalseAcknowledgement {
        /// Items acknowledged.
        acknowledged: u64,
        /// Items delivered.
        delivered: usize,
    },
    /// The receiver has it, and the sender was told that it can't.
    #[error("item {sequence} was delivered, and its sender is told that there is no doubt that it was not")]
    FalseCertainty {
        /// Its number.
        sequence: u64,
    },
    /// Items are handed to the wire in order, so no doubt can follow certainty.
    #[error("item {sequence} is in doubt, and one before it is not")]
    DoubtAfterCertainty {
        /// Its number.
        sequence: u64,
    },
    /// An end waits for ever.
    #[error("the {0} never ended")]
    NoEnd(&'static str),
}

impl Oracle {
    /// The sender accepted `item` and numbered it.
    pub fn accepted(&mut self, sequence: u64, item: &Item) {
        let place = self.accepted.len();
        if sequence != place as u64 {
            self.violations.push(Violation::Misnumbered { place, sequence });
        }
        self.accepted.push(item.clone());
    }

    /// The receiving user took `item`.
    pub fn delivered(&mut self, item: &Item) {
        let place = self.delivered;
        self.delivered += 1;
        match self.accepted.get(place) {
            None => self.violations.push(Violation::Invented { place }),
            Some(expected) if expected == item => {}
            Some(expected) => {
                let twin = self.accepted.iter().position(|accepted| accepted == item);
                let twin =
                    twin.map_or(", like none that was accepted".into(), |twin| format!(", like item {twin}"));
                let violation =
                    Violation::WrongItem { place, expected: look_of(expected), came: look_of(item) + &twin };
                self.violations.push(violation);
            }
        }
    }

    /// The sender's end is over.
    pub fn sender_ended(&mut self, end: SenderEnd) {
        self.sender = Some(end);
    }

    /// The receiver has taken what there was, and got this error instead of one more.
    pub fn receiver_ended(&mut self, why: Error) {
        self.receiver = Some(why);
    }

    /// What the stream came to, once both ends are over.
    ///
    /// # Errors
    /// Every promise that was broken.
    pub fn judge(mut self) -> Result<Verdict, Vec<Violation>> {
        let (accepted, delivered) = (self.accepted.len(), self.delivered);
        match self.receiver {
            None => self.violations.push(Violation::NoEnd("receiver")),
            Some(Error::Closed) if delivered < accepted => {
                self.violations.push(Violation::EndedTooEarly { delivered, accepted });
            }
            Some(_) => {}
        }
        let failure = match self.sender.take() {
            None => {
                self.violations.push(Violation::NoEnd("sender"));
                None
            }
            Some(end) => {
                self.judge_sender(&end);
                end.closed.err()
            }
        };
        match self.violations.is_empty() {
            true => Ok(Verdict { accepted, delivered, failure }),
            false => Err(self.violations),
        }
    }

    fn judge_sender(&mut self, end: &SenderEnd) {
        let SenderEnd { closed, undelivered, acknowledged } = end;
        let (accepted, delivered) = (self.accepted.len(), self.delivered);
        if closed.is_ok() && (delivered < accepted || !undelivered.is_empty()) {
            let undelivered = undelivered.len();
            self.violations.push(Violation::ClosedTooEarly { delivered, accepted, undelivered });
        }
        if *acknowledged > delivered as u64 {
            let violation = Violation::FalseAcknowledgement { acknowledged: *acknowledged, delivered };
            self.violations.push(violation);
        }
        let numbers = undelivered.iter().map(|item| item.sequence);
        if !numbers.clone().eq(*acknowledged..accepted as u64) {
            let (numbers, acknowledged) = (numbers.collect(), *acknowledged);
            self.violations.push(Violation::WrongUndelivered { numbers, acknowledged, accepted });
            return;
        }
        let mut certain = false;
        // As just seen they are the last of the accepted ones.
        let first = accepted - undelivered.len();
        for (item, sent) in undelivered.iter().zip(&self.accepted[first..]) {
            let sequence = item.sequence;
            if item.item != *sent {
                self.violations.push(Violation::ChangedUndelivered { sequence });
            }
            if !item.in_doubt && sequence < delivered as u64 {
                self.violations.push(Violation::FalseCertainty { sequence });
            }
            if item.in_doubt && certain {
                self.violations.push(Violation::DoubtAfterCertainty { sequence });
            }
            certain |= !item.in_doubt;
        }
    }
}

fn look_of(item: &Item) -> String {
    match item {
        None => "None".into(),
        Some(tensor) => format!("{} bytes", tensor.byte_len()),
    }
}

//! What was sent and received on one edge.

use kvpipe::{Error, Item, PipeConfig};

use super::{ReceiverEnd, ReceiverLook, SenderEnd, SenderLook, Violation};

/// The pipes of an edge, in the order in which they were opened.
#[derive(Debug, Default)]
pub(super) struct Edge {
    pub(super) senders: Vec<Sent>,
    pub(super) receivers: Vec<Received>,
}

/// A sending pipe.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) accepted: Vec<Item>,
    pub(super) finishing: bool,
    pub(super) aborted: bool,
    pub(super) end: Option<SenderEnd>,
    limits: Limits,
}

/// A receiving pipe.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) delivered: Vec<Item>,
    pub(super) end: Option<ReceiverEnd>,
    /// Items that were ever in its inbox.
    received: u64,
    /// The sending pipe that it belongs to, once an item tells.
    sender: Option<usize>,
    limits: Limits,
}

#[derive(Debug)]
struct Limits {
    bytes: usize,
    items: usize,
}

impl Limits {
    /// More bytes than the limit are allowed if they are one item's, which is `alone`.
    fn check(&self, held: usize, alone: bool, items: usize) -> Result<(), Violation> {
        if held > self.bytes && !alone {
            return Err(Violation::OverBudget { held, limit: self.bytes });
        }
        match items > self.items {
            true => Err(Violation::TooManyItems { held: items, limit: self.items }),
            false => Ok(()),
        }
    }
}

impl Sent {
    pub(super) fn new(config: &PipeConfig) -> Self {
        let limits = Limits { bytes: config.budget_bytes, items: config.max_items };
        Self { accepted: Vec::new(), finishing: false, aborted: false, end: None, limits }
    }

    pub(super) fn accept(&mut self, sequence: u64, item: &Item) -> Result<(), Violation> {
        let place = self.accepted.len();
        self.accepted.push(item.clone());
        if sequence == place as u64 { Ok(()) } else { Err(Violation::Misnumbered { place, sequence }) }
    }
}

impl Received {
    pub(super) fn new(config: &PipeConfig) -> Self {
        let limits = Limits { bytes: config.window_bytes, items: config.max_items };
        Self { delivered: Vec::new(), end: None, received: 0, sender: None, limits }
    }
}

impl Edge {
    pub(super) fn deliver(&mut self, number: usize, item: &Item, pipe: &str) -> Result<(), Violation> {
        let Self { senders, receivers } = self;
        let place = receivers[number].delivered.len();
        receivers[number].delivered.push(item.clone());
        receivers[number].received = receivers[number].received.max(place as u64 + 1);
        let came = &receivers[number].delivered;
        if let Some(sender) = receivers[number].sender {
            return match senders[sender].accepted.get(place) {
                Some(expected) if expected == item => Ok(()),
                expected => Err(wrong(place, expected, item, &senders[sender].accepted)),
            };
        }
        let mut candidates = (0..senders.len()).filter(|&sender| senders[sender].accepted.starts_with(came));
        let Some(sender) = candidates.next() else {
            let accepted = senders.last().map_or(&[][..], |sent| &sent.accepted);
            return Err(wrong(place, accepted.get(place), item, accepted));
        };
        // Nones only, or nothing: all streams begin like that.
        if candidates.next().is_some() || came.iter().flatten().all(|tensor| tensor.byte_len() == 0) {
            return Ok(());
        }
        let taken = receivers.iter().position(|other| other.sender == Some(sender));
        receivers[number].sender = Some(sender);
        match taken {
            Some(other) => Err(Violation::SharedSender { other: format!("{pipe}, {other}") }),
            None => Ok(()),
        }
    }

    pub(super) fn look_at_sender(&mut self, number: usize, look: SenderLook) -> Result<(), Violation> {
        let SenderLook { acknowledged, held_items, held_bytes, permit_bytes } = look;
        let sent = &self.senders[number];
        let first = usize::try_from(acknowledged).unwrap_or(usize::MAX);
        let unacknowledged = sent.accepted.get(first..).unwrap_or_default();
        let holders = with_payload(unacknowledged) + usize::from(permit_bytes > 0);
        sent.limits.check(held_bytes, holders <= 1, held_items)?;
        self.check_acknowledged(number, acknowledged)
    }

    pub(super) fn look_at_receiver(&mut self, number: usize, look: ReceiverLook) -> Result<(), Violation> {
        let ReceiverLook { taken, queued_items, held_bytes, arriving_bytes } = look;
        let accepted = self.accepted_by(number);
        let received = &mut self.receivers[number];
        // What is queued is the sender's to know; of one that is not known yet there is at most one item.
        let first = received.delivered.len();
        let queued = |sender: usize| self.senders[sender].accepted.get(first..first + queued_items);
        let holders =
            received.sender.and_then(queued).map_or(usize::from(held_bytes > arriving_bytes), with_payload);
        received.limits.check(held_bytes, holders + usize::from(arriving_bytes > 0) <= 1, queued_items)?;
        received.received = received.received.max(taken + queued_items as u64);
        if received.received > accepted {
            return Err(Violation::ReceivedTooMany { received: received.received, accepted });
        }
        Ok(())
    }

    pub(super) fn has_met(&self, number: usize, sends: bool) -> bool {
        match sends {
            true => self.receiver_of(number).is_some_and(|receiver| receiver.received > 0),
            false => self.receivers[number].received > 0,
        }
    }

    pub(super) fn expects_anybody(&self, receiver: usize) -> bool {
        let Received { end, received, .. } = &self.receivers[receiver];
        let has_closed = |sent: &Sent| matches!(&sent.end, Some(SenderEnd { closed: Ok(()), .. }));
        end.is_none() && *received == 0 && !self.senders.iter().any(has_closed)
    }

    pub(super) fn expects_more(&self, receiver: usize) -> bool {
        let Received { end, sender, received, .. } = &self.receivers[receiver];
        let more_to_come = |sender: usize| {
            let Sent { finishing, accepted, .. } = &self.senders[sender];
            !finishing || *received < accepted.len() as u64
        };
        end.is_none() && sender.is_some_and(more_to_come)
    }

    pub(super) fn has_more(&self, sender: usize) -> bool {
        let Sent { end, finishing, accepted, .. } = &self.senders[sender];
        let more_to_go = |receiver: &Received| !finishing || receiver.received < accepted.len() as u64;
        end.is_none() && self.receiver_of(sender).is_some_and(more_to_go)
    }

    /// The receiver to which the items of a sender go, once an item tells.
    fn receiver_of(&self, sender: usize) -> Option<&Received> {
        self.receivers.iter().find(|receiver| receiver.sender == Some(sender))
    }

    pub(super) fn flushed(&self, number: usize, accepted: usize) -> Result<(), Violation> {
        let received = self.received_of(number);
        match received < accepted as u64 {
            true => Err(Violation::FalseFlush { received, accepted }),
            false => Ok(()),
        }
    }

    pub(super) fn judge(&self, tell: &mut dyn FnMut(String, Violation)) {
        for (number, received) in self.receivers.iter().enumerate() {
            if let Some(ReceiverEnd::Saw(end)) = &received.end {
                self.judge_receiver(received, end, &mut |violation| {
                    tell(format!("receiver {number}"), violation);
                });
            }
        }
        for (number, sent) in self.senders.iter().enumerate() {
            if let Some(end) = &sent.end {
                self.judge_sender(number, sent, end, &mut |violation| {
                    tell(format!("sender {number}"), violation);
                });
            }
        }
    }

    fn judge_receiver(&self, receiver: &Received, end: &Error, tell: &mut dyn FnMut(Violation)) {
        let (delivered, received) = (receiver.delivered.len(), receiver.received);
        if (delivered as u64) < received {
            tell(Violation::EndOvertook { end: end.to_string(), delivered, received });
        }
        if !end.is_closed() {
            return;
        }
        let Some(sender) = receiver.sender else {
            // It got nothing that tells one sender from another, and then that was all of somebody's.
            let all_of = |sent: &Sent| sent.finishing && !sent.aborted && sent.accepted == receiver.delivered;
            if !self.senders.iter().any(all_of) {
                tell(Violation::EndInvented);
            }
            return;
        };
        let Sent { accepted, finishing, aborted, .. } = &self.senders[sender];
        if delivered < accepted.len() {
            tell(Violation::EndedTooEarly { delivered, accepted: accepted.len() });
        }
        if !finishing || *aborted {
            tell(Violation::EndInvented);
        }
    }

    fn judge_sender(&self, number: usize, sent: &Sent, end: &SenderEnd, tell: &mut dyn FnMut(Violation)) {
        let SenderEnd { closed, undelivered, acknowledged, in_flight } = end;
        let (accepted, received) = (sent.accepted.len(), self.received_of(number));
        if closed.is_ok() && (received < accepted as u64 || !undelivered.is_empty()) {
            let undelivered = undelivered.len();
            tell(Violation::ClosedTooEarly { received, accepted, undelivered });
        }
        if let Err(violation) = self.check_acknowledged(number, *acknowledged) {
            tell(violation);
        }
        let receiver = self.receiver_of(number);
        if let (Err(Error::ReceiverClosed { taken, .. }), Some(receiver)) = (closed, receiver)
            && *taken != receiver.delivered.len() as u64
        {
            tell(Violation::WrongTaken { told: *taken, delivered: receiver.delivered.len() });
        }
        let numbers = undelivered.iter().map(|item| item.sequence);
        if !numbers.clone().eq(*acknowledged..accepted as u64) {
            let (numbers, acknowledged) = (numbers.collect(), *acknowledged);
            tell(Violation::WrongUndelivered { numbers, acknowledged, accepted });
            return;
        }
        let in_doubt = undelivered.iter().filter(|item| item.in_doubt).count();
        // The peer's last word comes behind its last acknowledgement.
        let last_word = matches!(closed, Err(Error::ReceiverClosed { .. } | Error::PeerAborted { .. }));
        if in_doubt != *in_flight || in_doubt > 0 && (last_word || self.receivers.is_empty()) {
            tell(Violation::FalseDoubt { in_doubt, in_flight: *in_flight });
        }
        // What only Nones could tell belongs to somebody, and not to whom.
        let received = receiver.map_or(0, |receiver| receiver.received);
        let mut certain = false;
        // As just seen they are the last of the accepted ones.
        let first = accepted - undelivered.len();
        for (item, sent) in undelivered.iter().zip(&sent.accepted[first..]) {
            let sequence = item.sequence;
            if item.item != *sent {
                tell(Violation::ChangedUndelivered { sequence });
            }
            // After a last word what the peer did not take is certain not to be taken any more.
            if !item.in_doubt && sequence < received && !last_word {
                tell(Violation::FalseCertainty { sequence });
            }
            if item.in_doubt && certain {
                tell(Violation::DoubtAfterCertainty { sequence });
            }
            certain |= !item.in_doubt;
        }
    }

    fn check_acknowledged(&self, number: usize, acknowledged: u64) -> Result<(), Violation> {
        let received = self.received_of(number);
        match acknowledged > received {
            true => Err(Violation::FalseAcknowledgement { acknowledged, received }),
            false => Ok(()),
        }
    }

    /// How many items of a sender were in an inbox, at most.
    fn received_of(&self, sender: usize) -> u64 {
        let might = |receiver: &&Received| receiver.sender.is_none_or(|known| known == sender);
        let of = |receiver: &Received| receiver.received;
        match self.receiver_of(sender) {
            Some(receiver) => of(receiver),
            None => self.receivers.iter().filter(might).map(of).max().unwrap_or(0),
        }
    }

    /// How many items were accepted of those that may come to a receiver, at most.
    fn accepted_by(&self, receiver: usize) -> u64 {
        let accepted = |sent: &Sent| sent.accepted.len() as u64;
        match self.receivers[receiver].sender {
            Some(sender) => accepted(&self.senders[sender]),
            None => self.senders.iter().map(accepted).max().unwrap_or(0),
        }
    }
}

fn wrong(place: usize, expected: Option<&Item>, came: &Item, accepted: &[Item]) -> Violation {
    let twin = accepted.iter().position(|accepted| accepted == came);
    let twin = twin.map_or(", like none that was accepted".into(), |twin| format!(", like item {twin}"));
    let expected = expected.map_or("nothing".into(), look_of);
    Violation::WrongItem { place, expected, came: look_of(came) + &twin }
}

fn look_of(item: &Item) -> String {
    match item {
        None => "None".into(),
        Some(tensor) => format!("{} bytes", tensor.byte_len()),
    }
}

fn with_payload(items: &[Item]) -> usize {
    items.iter().flatten().filter(|tensor| tensor.byte_len() > 0).count()
}

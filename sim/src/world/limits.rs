//! The limits in time that the ends of a pipe have by their configuration: until they have met, and until a
//! close ends.

use std::time::Duration;

use super::state::State;
use crate::oracle::{EndId, Violation};

/// How long the ends of a world's pipes may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// For two ranks to find each other.
    pub(super) connect: Duration,
    /// For everything else that an end waits for: the way of an item, silences, a connection that is
    /// resumed.
    pub(super) slack: Duration,
}

/// Half of a pipe that is looked at after every step.
#[derive(Debug)]
pub(super) struct Watched<H> {
    pub(super) end: EndId,
    pub(super) half: H,
    /// Since when it has waited for a peer that it has never heard of.
    unmet_since: Option<Duration>,
}

/// A sender's close that has not ended.
#[derive(Debug)]
pub(super) struct Closing {
    end: EndId,
    close_timeout: Duration,
    /// What had moved when somebody looked last: the items acknowledged, and whether the stream failed.
    moved: (u64, bool),
    since: Duration,
}

/// What a close takes beyond its `close_timeout`: it tells the peer, if that can still be told.
const GOODBYE: Duration = Duration::from_secs(1);

impl<H> Watched<H> {
    pub(super) fn new(end: EndId, half: H) -> Self {
        Self { end, half, unmet_since: None }
    }

    /// How long it has waited, if it does.
    fn waits(&mut self, waits: bool, now: Duration) -> Duration {
        self.unmet_since = waits.then(|| self.unmet_since.unwrap_or(now));
        self.unmet_since.map_or(Duration::ZERO, |since| now - since)
    }
}

impl Closing {
    pub(super) fn new(end: &EndId, close_timeout: Duration, now: Duration) -> Self {
        Self { end: end.clone(), close_timeout, moved: (0, false), since: now }
    }
}

impl State {
    /// At ends that take longer than they may.
    pub(super) fn look_for_stalls(&mut self, now: Duration, limits: Limits) {
        self.look_for_unmet(now, limits);
        self.look_for_stalled_closes(now, limits);
    }

    fn look_for_unmet(&mut self, now: Duration, limits: Limits) {
        let mut found = Vec::new();
        let Self { oracle, senders, receivers, .. } = self;
        for watched in receivers {
            let Watched { end, half, .. } = &*watched;
            // One that has a sender hears what that one has to say.
            let has_sender = || {
                let is_its = |sender: &&Watched<kvpipe::pipe::Sender>| sender.end.edge() == end.edge();
                senders.iter().filter(is_its).any(|sender| sender.half.failure().is_none())
            };
            let waits = half.failure().is_none() && oracle.expects_anybody(end) && !has_sender();
            let after = watched.waits(waits, now);
            if after > limits.connect + limits.slack {
                found.push((watched.end.clone(), after));
            }
        }
        for watched in senders {
            let Watched { end, half, .. } = &*watched;
            let nothing_through = half.stats().delivered_items == 0 && half.failure().is_none();
            let waits = nothing_through && oracle.accepted_items(end) > 0 && !oracle.has_ended(end, true);
            let after = watched.waits(waits, now);
            if after > limits.connect + limits.slack {
                found.push((watched.end.clone(), after));
            }
        }
        for (end, after) in found {
            self.oracle.finds(end, Violation::NotMet { after });
        }
    }

    fn look_for_stalled_closes(&mut self, now: Duration, limits: Limits) {
        for closing in self.closing.values_mut() {
            let Some(watched) = self.senders.iter().find(|watched| watched.end == closing.end) else {
                continue;
            };
            let delivered = watched.half.stats().delivered_items;
            let moved = (delivered, watched.half.failure().is_some());
            if moved != closing.moved {
                (closing.moved, closing.since) = (moved, now);
            }
            let (after, close_timeout) = (now - closing.since, closing.close_timeout);
            let connect = if delivered == 0 { limits.connect } else { Duration::ZERO };
            if after > connect + close_timeout + GOODBYE + limits.slack {
                self.oracle.finds(&closing.end, Violation::CloseStalls { after, close_timeout });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kvpipe::pipe::{Driver, Receiver, Sender};
    use kvpipe::transport::{Transport, memory};
    use kvpipe::{Pipe, PipeConfig};

    use super::*;
    use crate::net::{Conditions, Network};
    use crate::oracle::EdgeName;
    use crate::world::causes::{Causes, Expectations};

    const SECOND: Duration = Duration::from_secs(1);

    const LIMITS: Limits = Limits { connect: Duration::from_secs(10), slack: Duration::from_secs(2) };

    /// The ends of a pipe whose driver nobody polls.
    fn halves() -> (Sender, Receiver, Driver) {
        let (outgoing, incoming) = memory::pair().0.split();
        let (pipe, driver) = Pipe::new(outgoing, incoming, PipeConfig::default());
        (pipe.sender().unwrap().clone(), pipe.receiver().unwrap().clone(), driver)
    }

    fn state() -> State {
        let network = Network::new(1, Conditions::drawn(&crate::draws::Draws::new(1, "")));
        State::new(Causes::new(Expectations::Nothing, 2), &network, BTreeMap::new())
    }

    fn edge() -> EdgeName {
        EdgeName { pipe: "kv".into(), from: 0 }
    }

    /// Whether something is found at this time, and nothing at the one before.
    fn is_found_after(state: &mut State, limit: Duration) -> bool {
        state.look_for_stalls(SECOND, LIMITS);
        state.look_for_stalls(SECOND + limit, LIMITS);
        let was_content = state.oracle.is_content();
        state.look_for_stalls(SECOND + limit + Duration::from_millis(1), LIMITS);
        was_content && !state.oracle.is_content()
    }

    #[test]
    fn a_sender_whose_first_item_does_not_get_through_must_fail_in_time() {
        let (mut state, (sender, _receiver, _driver)) = (state(), halves());
        let end = state.oracle.opens_sender(edge(), &PipeConfig::default());
        state.senders.push(Watched::new(end.clone(), sender.clone()));
        state.look_for_stalls(Duration::ZERO, LIMITS);
        state.look_for_stalls(SECOND * 100, LIMITS);
        assert!(state.oracle.is_content(), "it has nothing to send");
        state.oracle.accepted(&end, 0, &None);
        assert!(is_found_after(&mut state, LIMITS.connect + LIMITS.slack));
    }

    #[test]
    fn a_receiver_that_nobody_sends_to_must_fail_in_time() {
        let (mut state, (sender, receiver, _driver)) = (state(), halves());
        let config = PipeConfig::default();
        let end = state.oracle.opens_receiver(edge(), &config);
        state.receivers.push(Watched::new(end, receiver));
        let of_sender = state.oracle.opens_sender(edge(), &config);
        state.senders.push(Watched::new(of_sender, sender.clone()));
        state.look_for_stalls(Duration::ZERO, LIMITS);
        state.look_for_stalls(SECOND * 100, LIMITS);
        assert!(state.oracle.is_content(), "there is a sender");
        sender.abort("a test");
        assert!(is_found_after(&mut state, LIMITS.connect + LIMITS.slack));
    }

    #[test]
    fn a_close_must_end_in_time_after_the_last_that_moved() {
        let (mut state, (sender, _receiver, _driver)) = (state(), halves());
        let end = state.oracle.opens_sender(edge(), &PipeConfig::default());
        state.senders.push(Watched::new(end.clone(), sender.clone()));
        state.closing.insert(0, Closing::new(&end, SECOND * 3, Duration::ZERO));
        state.look_for_stalls(SECOND / 2, LIMITS);
        // A failure is known at once, and then only the peer is to be told.
        sender.abort("a test");
        assert!(is_found_after(&mut state, LIMITS.connect + SECOND * 3 + GOODBYE + LIMITS.slack));
    }
}

//! What should be: lists of what was sent, and how far everybody has come.

use std::collections::BTreeMap;

use super::{Call, RANKS};

/// The objects of a rank for another, or for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Route {
    pub(super) from: usize,
    pub(super) to: Option<usize>,
}

#[derive(Debug, Default)]
struct Line {
    objects: Vec<(usize, Fate)>,
    /// The place of what each rank reads next.
    next: [usize; RANKS],
    /// Sends under way.
    sending: usize,
    /// Whether something may be left of a send that came to nothing.
    is_unsettled: bool,
}

/// Whether an object is to be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Its send has not succeeded, and may never have had a place.
    Open,
    /// It has its place.
    Sent,
    /// So is everything before it, and it is in the store.
    Stored,
    /// Somebody received what comes behind it.
    NotSent,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    lines: BTreeMap<Route, Line>,
    /// What each rank has given for a gathering that has not ended.
    pub(super) gathering: [Vec<usize>; RANKS],
    is_gathering: [bool; RANKS],
    /// Calls about broadcasts under way.
    broadcasting: [usize; RANKS],
    pub(super) passed: [u64; RANKS],
    has_come: [bool; RANKS],
    is_waiting: [bool; RANKS],
}

impl Model {
    /// Whether the documentation allows a call, and it is clear which one comes first.
    pub(super) fn allows(&self, rank: usize, call: Call) -> bool {
        match call {
            Call::Send { .. } | Call::Receive { .. } => true,
            Call::Broadcast | Call::ReceiveBroadcast { .. } => self.gathering[rank].is_empty(),
            Call::Gather => !self.is_gathering[rank] && self.broadcasting[rank] == 0,
            Call::Barrier => !self.is_waiting[rank],
        }
    }

    pub(super) fn begin(&mut self, rank: usize, call: Call, object: usize) {
        self.broadcasting[rank] += usize::from(is_broadcast(call));
        match call {
            Call::Receive { .. } | Call::ReceiveBroadcast { .. } => {}
            Call::Send { .. } | Call::Broadcast => self.begin_to_send(route_of(rank, call), object),
            Call::Gather => {
                self.is_gathering[rank] = true;
                self.gathering[rank].push(object);
                self.begin_to_send(route_of(rank, call), object);
            }
            Call::Barrier => (self.is_waiting[rank], self.has_come[rank]) = (true, true),
        }
    }

    fn begin_to_send(&mut self, route: Route, object: usize) {
        let line = self.lines.entry(route).or_default();
        // With nothing before it, it has its place at the first poll.
        let is_first = line.sending == 0 && !line.is_unsettled;
        line.objects.push((object, if is_first { Fate::Sent } else { Fate::Open }));
        line.sending += 1;
    }

    /// A call has ended; without an outcome if it failed or was dropped.
    pub(super) fn end(&mut self, rank: usize, call: Call, object: usize, outcome: Option<Vec<usize>>) {
        self.broadcasting[rank] -= usize::from(is_broadcast(call));
        let route = route_of(rank, call);
        match call {
            Call::Send { .. } => self.end_to_send(route, object, outcome.is_some()),
            Call::Broadcast => {
                assert!(outcome.as_ref().is_none_or(|given| given == &[object]), "given back {outcome:?}");
                self.end_to_send(route, object, outcome.is_some());
            }
            Call::Receive { .. } | Call::ReceiveBroadcast { .. } => {
                if let Some(received) = outcome {
                    self.receive(route, rank, received[0]);
                }
            }
            Call::Gather => self.end_gathering(rank, object, outcome),
            Call::Barrier => {
                self.is_waiting[rank] = false;
                if outcome.is_some() {
                    self.pass_barrier(rank);
                }
            }
        }
    }

    fn end_to_send(&mut self, route: Route, object: usize, is_stored: bool) {
        let line = self.lines.entry(route).or_default();
        line.sending -= 1;
        line.is_unsettled = !is_stored;
        if is_stored {
            line.settle(object, Fate::Stored);
        }
    }

    fn receive(&mut self, route: Route, reader: usize, object: usize) {
        let line = self.lines.entry(route).or_default();
        loop {
            let place = line.next[reader];
            let Some((due, fate)) = line.objects.get_mut(place) else {
                panic!("rank {reader} received {object} of {route:?} again, or nobody sent it");
            };
            line.next[reader] += 1;
            if *due == object {
                assert!(*fate != Fate::NotSent, "others received what comes behind {object} of {route:?}");
                *fate = if *fate == Fate::Open { Fate::Sent } else { *fate };
                return;
            }
            let (due, is_lost) = (*due, matches!(fate, Fate::Sent | Fate::Stored));
            assert!(!is_lost, "rank {reader} received {object} of {route:?}, and {due} was due");
            *fate = Fate::NotSent;
        }
    }

    fn end_gathering(&mut self, rank: usize, object: usize, outcome: Option<Vec<usize>>) {
        self.is_gathering[rank] = false;
        let own = Route { from: rank, to: None };
        let Some(gathered) = outcome else { return self.end_to_send(own, object, false) };
        // The first that had its place, in this call or in one before.
        let given = std::mem::take(&mut self.gathering[rank]);
        assert!(given.contains(&gathered[rank]), "rank {rank} gave {given:?}, and gathered {gathered:?}");
        self.end_to_send(own, gathered[rank], true);
        let line = self.lines.entry(own).or_default();
        for other in given.into_iter().filter(|&object| object != gathered[rank]) {
            line.settle(other, Fate::NotSent);
        }
        for from in (0..RANKS).filter(|&from| from != rank) {
            self.receive(Route { from, to: None }, rank, gathered[from]);
        }
    }

    fn pass_barrier(&mut self, rank: usize) {
        let barrier = self.passed[rank];
        for other in 0..RANKS {
            let has_come =
                self.passed[other] > barrier || self.passed[other] == barrier && self.has_come[other];
            assert!(has_come, "rank {rank} passed barrier {barrier}, and rank {other} has not come");
        }
        self.passed[rank] += 1;
        self.has_come[rank] = false;
    }

    /// Whether a rank has something to read that is sure to be there.
    pub(super) fn owes(&self, route: Route, reader: usize) -> bool {
        self.lines.get(&route).is_some_and(|line| {
            line.objects[line.next[reader]..].iter().any(|(_, fate)| *fate == Fate::Stored)
        })
    }

    /// Nobody gets any further: who waits has a reason to.
    pub(super) fn check_at_rest(&self, waiting: &[(usize, Call)]) {
        for &(rank, call) in waiting {
            match call {
                Call::Send { .. } | Call::Broadcast => {
                    panic!("rank {rank} has begun {call:?}, and need not wait")
                }
                Call::Receive { .. } | Call::ReceiveBroadcast { .. } => {
                    let route = route_of(rank, call);
                    assert!(
                        !self.owes(route, rank),
                        "rank {rank} has begun {call:?}, and there is something"
                    );
                }
                Call::Gather | Call::Barrier => {}
            }
        }
        let are_together = self.passed.iter().all(|passed| *passed == self.passed[0]);
        assert!(!(are_together && self.is_waiting == [true; RANKS]), "all wait in one barrier");
    }
}

impl Line {
    fn settle(&mut self, object: usize, fate: Fate) {
        let Some((_, known)) = self.objects.iter_mut().find(|(known, _)| *known == object) else {
            panic!("nobody sent {object}");
        };
        let agree = match fate {
            Fate::NotSent => matches!(*known, Fate::Open | Fate::NotSent),
            _ => *known != Fate::NotSent,
        };
        assert!(agree, "{object} is {known:?}, and {fate:?}");
        *known = fate;
    }
}

fn is_broadcast(call: Call) -> bool {
    matches!(call, Call::Broadcast | Call::ReceiveBroadcast { .. } | Call::Gather)
}

/// Whose objects a call sends or receives.
fn route_of(rank: usize, call: Call) -> Route {
    match call {
        Call::Send { to } => Route { from: rank, to: Some(to) },
        Call::Receive { from } => Route { from, to: Some(rank) },
        Call::ReceiveBroadcast { from } => Route { from, to: None },
        Call::Broadcast | Call::Gather | Call::Barrier => Route { from: rank, to: None },
    }
}

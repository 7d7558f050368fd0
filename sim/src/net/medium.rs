//! What lies between the hosts: links, each one way, and whether the hosts have power.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::task::Waker;
use std::time::Duration;

use super::conditions::{Conditions, Struck, uniform};
use super::flow::Transit;
use crate::draws::Draws;

/// How long a segment takes within a host. Not nothing, lest a loop over such a connection stop time.
const WITHIN_HOST: Duration = Duration::from_millis(1);

/// From which host to which.
pub(super) type Way = [IpAddr; 2];

#[derive(Debug)]
pub(super) struct Medium {
    pub(super) conditions: Conditions,
    pub(super) struck: Struck,
    /// Who has to look again. They are woken when nothing is locked: a waker may run anything.
    pub(super) wakers: Vec<Waker>,
    /// Those that differ from an ordinary one.
    links: BTreeMap<Way, Link>,
    /// Whether they have power. An address that is none of theirs is nobody's.
    hosts: BTreeMap<IpAddr, bool>,
}

#[derive(Debug, Default)]
struct Link {
    blocked: bool,
    held: bool,
    latency: Option<[Duration; 2]>,
}

impl Medium {
    pub(super) fn new(conditions: Conditions) -> Self {
        let (struck, wakers) = (Struck::default(), Vec::new());
        Self { conditions, struck, wakers, links: BTreeMap::new(), hosts: BTreeMap::new() }
    }

    /// It is on the network, with power or without.
    pub(super) fn has(&self, host: IpAddr) -> bool {
        self.hosts.contains_key(&host)
    }

    /// True if the host was not there before, or had no power.
    pub(super) fn power_on(&mut self, host: IpAddr) -> bool {
        self.hosts.insert(host, true) != Some(true)
    }

    /// True if the host had power before.
    pub(super) fn power_off(&mut self, host: IpAddr) -> bool {
        self.hosts.insert(host, false) == Some(true)
    }

    pub(super) fn set_blocked(&mut self, way: Way, blocked: bool) {
        self.links.entry(way).or_default().blocked = blocked;
    }

    pub(super) fn set_held(&mut self, way: Way, held: bool) {
        self.links.entry(way).or_default().held = held;
    }

    pub(super) fn set_latency(&mut self, way: Way, latency: Option<[Duration; 2]>) {
        self.links.entry(way).or_default().latency = latency;
    }

    /// All links are ordinary ones.
    pub(super) fn heal(&mut self) {
        self.links.clear();
    }

    /// What is sent this way gets lost.
    pub(super) fn loses(&self, way: Way) -> bool {
        let powered = |host| self.hosts.get(&host).copied().unwrap_or_default();
        !way.into_iter().all(powered) || self.links.get(&way).is_some_and(|link| link.blocked)
    }

    pub(super) fn holds(&self, way: Way) -> bool {
        self.links.get(&way).is_some_and(|link| link.held)
    }

    /// What becomes of a segment that is sent now.
    pub(super) fn depart(&mut self, way: Way, now: Duration, draws: &Draws) -> Transit {
        if self.loses(way) {
            Transit::Lost
        } else if self.holds(way) {
            self.struck.held += 1;
            Transit::Held
        } else {
            Transit::Arrives(now + self.latency(way, draws))
        }
    }

    /// How long a segment takes that is sent now.
    pub(super) fn latency(&mut self, way @ [from, to]: Way, draws: &Draws) -> Duration {
        if from == to {
            return WITHIN_HOST;
        }
        let Some(changed) = self.links.get(&way).and_then(|link| link.latency) else {
            return self.conditions.draw_latency(draws);
        };
        let latency = uniform(changed, draws);
        let [_, usual_most] = self.conditions.latency;
        self.struck.slowed += usize::from(latency > usual_most);
        latency
    }
}

//! The hand that strikes: carries out a plan while the simulation runs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use turmoil::Sim;

use super::{Life, Shared};
use crate::fault::{Fault, FaultPlan, Kind, Place, Planned};
use crate::net::{Network, Struck};

/// A plan that is being carried out.
#[derive(Debug)]
pub(super) struct Injector {
    faults: Vec<Planned>,
    /// What is to come, the next at the end: when, whether it begins or passes, and which fault.
    steps: Vec<(Duration, Step, usize)>,
    addresses: BTreeMap<Place, IpAddr>,
    /// How many partitions and holds lie over a link.
    blocked: BTreeMap<[IpAddr; 2], usize>,
    held: BTreeMap<[IpAddr; 2], usize>,
    /// Who is down, and by which fault.
    down: BTreeMap<Place, usize>,
    /// What the network had counted when a fault began.
    before: BTreeMap<usize, Struck>,
    struck: BTreeSet<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Begins,
    Passes,
}

impl Injector {
    pub(super) fn new(plan: &FaultPlan, sim: &Sim<'static>) -> Self {
        let mut steps = Vec::new();
        let mut places = BTreeSet::from([Place::Store]);
        for (number, Planned { at, fault }) in plan.faults.iter().enumerate() {
            steps.push((*at, Step::Begins, number));
            if !fault.is_for_good() {
                steps.push((*at + fault.lasts(), Step::Passes, number));
            }
            places.extend(fault.places());
        }
        steps.sort_unstable();
        steps.reverse();
        let address = |place: Place| (place, sim.lookup(place.to_string()));
        Self {
            faults: plan.faults.clone(),
            steps,
            addresses: places.into_iter().map(address).collect(),
            blocked: BTreeMap::new(),
            held: BTreeMap::new(),
            down: BTreeMap::new(),
            before: BTreeMap::new(),
            struck: BTreeSet::new(),
        }
    }

    /// Does what is due. The world is healed with the last of it.
    pub(super) fn strike(
        &mut self,
        now: Duration,
        sim: &mut Sim<'static>,
        network: &Network,
        shared: &Shared,
    ) {
        while let Some((at, step, number)) = self.steps.last().copied()
            && at <= now
        {
            self.steps.pop();
            let fault = self.faults[number].fault.clone();
            match step {
                Step::Begins => {
                    network.trace().note("world", &fault);
                    self.before.insert(number, network.struck());
                    self.begin(number, &fault, sim, network, shared);
                }
                Step::Passes => {
                    self.pass(number, &fault, sim, network);
                    self.count(number, &network.struck());
                    self.before.remove(&number);
                }
            }
            if self.steps.is_empty() {
                network.trace().note("world", "is healed");
                network.heal();
            }
        }
    }

    /// Whether a rank is down that comes back.
    pub(super) fn awaits_a_rank(&self) -> bool {
        self.steps.iter().any(|(_, step, number)| {
            let victim = self.faults[*number].fault.dies();
            *step == Step::Passes
                && victim.is_some_and(|place| place != Place::Store && self.down.get(&place) == Some(number))
        })
    }

    /// How many faults of each kind really hit something.
    pub(super) fn struck(&mut self, network: &Network) -> BTreeMap<Kind, u64> {
        let now = network.struck();
        // What was under way when the world ended.
        let under_way: Vec<_> = self.before.keys().copied().collect();
        under_way.into_iter().for_each(|number| self.count(number, &now));
        let mut struck = BTreeMap::new();
        for number in &self.struck {
            *struck.entry(self.faults[*number].fault.kind()).or_default() += 1;
        }
        struck
    }

    fn begin(
        &mut self,
        number: usize,
        fault: &Fault,
        sim: &mut Sim<'static>,
        network: &Network,
        shared: &Shared,
    ) {
        shared.lock().causes.begins(sim.elapsed(), fault);
        match fault {
            Fault::Reset(pair) => {
                let [one, other] = self.link(*pair);
                network.cut(one, other);
            }
            Fault::ResetAfter(pair, bytes) => {
                let [from, to] = self.link(*pair);
                network.cut_after(from, to, *bytes);
            }
            Fault::Partition(_, links, _) => {
                for link in links.iter().map(|pair| self.link(*pair)).collect::<Vec<_>>() {
                    if add(&mut self.blocked, link) {
                        network.block(link[0], link[1]);
                    }
                }
            }
            Fault::Hold(pair, _) => {
                let link = self.link(*pair);
                if add(&mut self.held, link) {
                    network.hold(link[0], link[1]);
                }
            }
            Fault::Slow(pair, latency, _) => {
                let [from, to] = self.link(*pair);
                network.set_latency(from, to, Some(*latency));
            }
            Fault::Kill(place, _) | Fault::PowerLoss(place, _) => {
                self.kill(number, *place, sim, network, shared)
            }
            Fault::ClockJump(place, by) => {
                let mut state = shared.lock();
                if runs(&state.lives, *place) {
                    self.struck.insert(number);
                }
                state.causes.jumps(*place);
                let jumps = state.jumps.entry(*place).or_default();
                jumps.pending += *by;
                let waker = jumps.waker.take();
                drop(state);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
    }

    fn kill(
        &mut self,
        number: usize,
        place: Place,
        sim: &mut Sim<'static>,
        network: &Network,
        shared: &Shared,
    ) {
        if self.down.contains_key(&place) {
            return;
        }
        self.down.insert(place, number);
        if runs(&shared.lock().lives, place) {
            self.struck.insert(number);
        }
        if let Fault::PowerLoss(..) = self.faults[number].fault {
            network.power_off(self.addresses[&place]);
        }
        shared.lock().causes.dies(place);
        sim.crash(place.to_string());
        if let Place::Rank(rank) = place {
            let mut state = shared.lock();
            state.dies_in_groups(rank, sim.elapsed());
            let life = state.lives.entry(rank).or_default();
            *life = Life { running: false, ..life.clone() };
            if self.faults[number].fault.is_for_good() {
                state.dead.insert(rank, sim.elapsed());
            }
        }
    }

    fn pass(&mut self, number: usize, fault: &Fault, sim: &mut Sim<'static>, network: &Network) {
        match fault {
            Fault::Partition(_, links, _) => {
                for link in links.iter().map(|pair| self.link(*pair)).collect::<Vec<_>>() {
                    if remove(&mut self.blocked, link) {
                        network.unblock(link[0], link[1]);
                    }
                }
            }
            Fault::Hold(pair, _) => {
                let link = self.link(*pair);
                if remove(&mut self.held, link) {
                    network.release(link[0], link[1]);
                }
            }
            Fault::Slow(pair, ..) => {
                let [from, to] = self.link(*pair);
                network.set_latency(from, to, None);
            }
            Fault::Kill(place, _) | Fault::PowerLoss(place, _) => {
                if self.down.get(place) != Some(&number) {
                    return;
                }
                self.down.remove(place);
                network.trace().note("world", format_args!("{place} is back"));
                if let Fault::PowerLoss(..) = fault {
                    network.power_on(self.addresses[place]);
                }
                sim.bounce(place.to_string());
            }
            Fault::Reset(_) | Fault::ResetAfter(..) | Fault::ClockJump(..) => {}
        }
    }

    /// Counts a fault of the network as one that struck if the network noticed anything of its kind
    /// since it began.
    fn count(&mut self, number: usize, now: &Struck) {
        let Some(before) = self.before.get(&number) else { return };
        let noticed = match &self.faults[number].fault {
            Fault::Reset(_) | Fault::ResetAfter(..) => now.cut > before.cut,
            Fault::Partition(..) => now.lost + now.connects_lost > before.lost + before.connects_lost,
            Fault::Hold(..) => now.held > before.held,
            Fault::Slow(..) => now.slowed > before.slowed,
            Fault::Kill(..) | Fault::PowerLoss(..) | Fault::ClockJump(..) => false,
        };
        if noticed {
            self.struck.insert(number);
        }
    }

    fn link(&self, pair: [Place; 2]) -> [IpAddr; 2] {
        pair.map(|place| self.addresses[&place])
    }
}

/// Whether software runs there that has not come to its end.
fn runs(lives: &BTreeMap<usize, Life>, place: Place) -> bool {
    match place {
        Place::Store => lives.values().any(|life| life.running),
        Place::Rank(rank) => lives.get(&rank).is_some_and(|life| life.running),
    }
}

/// True for the first.
fn add(links: &mut BTreeMap<[IpAddr; 2], usize>, link: [IpAddr; 2]) -> bool {
    let count = links.entry(link).or_default();
    *count += 1;
    *count == 1
}

/// True for the last.
fn remove(links: &mut BTreeMap<[IpAddr; 2], usize>, link: [IpAddr; 2]) -> bool {
    let count = links.entry(link).or_default();
    *count -= 1;
    *count == 0
}

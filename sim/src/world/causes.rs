//! Which errors have a cause: what has struck so far, what each rank's user has done, and whom that can
//! reach.
//!
//! An end of the edge from rank *a* to rank *b* may fail only after something happened that concerns it:
//!
//! | | what concerns an edge over tcp | over the store |
//! |---|---|---|
//! | links | *a–b* | *a–store* and *b–store* |
//! | hosts that die, clocks that jump | *a*, *b* | *a*, *b*, the store's |
//! | until the two have met | their links to the store and its host as well | |
//! | the same, of ranks that meet in a group first | all ranks' links to the store, and all hosts | the same |
//! | what users do | leave this edge; begin anew at *a* or *b* | the same |
//!
//! A process group may fail of what befalls any two of its members, for they fail together; until it has
//! formed, of what befalls their links to the store and its host as well; and of what a member does
//! ([`Deed`](super::Deed)).
//!
//! A failure of one edge is no cause for another: a pipe's two directions have nothing to do with each
//! other, and what a rank does *because* of a failure (open a new pipe, leave) is one of its deeds.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use kvpipe::Error;

use crate::fault::{Fault, Place, Planned};
use crate::oracle::EdgeName;

/// Which errors an end, and the software of a rank, may see. A peer that breaks the protocol, ends that are
/// set up differently, and bugs have no cause in any world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expectations {
    /// Every error that some fault can cause, at any end and at any time.
    #[default]
    Anything,
    /// Nothing may fail, whatever strikes.
    Nothing,
    /// Only what the faults that have struck and the users' deeds can cause, where and when they can.
    Beyond(Tolerance),
}

/// What the edges of a world have to bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tolerance {
    /// Whether items go over the store, and not over tcp.
    pub over_store: bool,
    /// The longest silence that must not end an edge.
    pub silence: Duration,
    /// Whether a connection that is reset is resumed.
    pub resumes: bool,
    /// Whether the ranks meet in a group before they open a pipe, so that each of them waits for all.
    pub group: bool,
}

/// What may have befallen an edge or a rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Blame {
    /// An end died, or was out of the other's hearing for too long.
    pub(crate) severed: bool,
    /// An end began anew.
    pub(crate) restarted: bool,
    /// A user left before the end.
    pub(crate) left: bool,
    /// A clock jumped, and so a deadline passed too early.
    pub(crate) late: bool,
}

/// What has happened so far that can be the cause of an error.
#[derive(Clone, Debug, Default)]
pub(crate) struct Causes {
    expectations: Expectations,
    world_size: usize,
    /// Those that have begun.
    faults: Vec<Planned>,
    /// Links of which a connection was reset.
    cut: BTreeSet<[Place; 2]>,
    dead: BTreeSet<Place>,
    jumped: BTreeSet<Place>,
    /// Ranks that have begun anew.
    anew: BTreeSet<usize>,
    /// Edges that a user left.
    left: BTreeSet<EdgeName>,
}

impl Causes {
    pub(crate) fn new(expectations: Expectations, world_size: usize) -> Self {
        Self { expectations, world_size, ..Self::default() }
    }

    /// A link's fault has begun.
    pub(crate) fn begins(&mut self, at: Duration, fault: &Fault) {
        self.faults.push(Planned { at, fault: fault.clone() });
    }

    /// The links on which resets have begun. When they strike, or whether, the network knows.
    pub(crate) fn resets(&self) -> Vec<[Place; 2]> {
        let link = |Planned { fault, .. }: &Planned| match fault {
            Fault::Reset(link) | Fault::ResetAfter(link, _) => Some(*link),
            _ => None,
        };
        self.faults.iter().filter_map(link).collect()
    }

    /// The connections that there were between two hosts were reset.
    pub(crate) fn cuts(&mut self, link: [Place; 2]) {
        self.cut.insert(ordered(link));
    }

    pub(crate) fn dies(&mut self, place: Place) {
        self.dead.insert(place);
    }

    pub(crate) fn jumps(&mut self, place: Place) {
        self.jumped.insert(place);
    }

    pub(crate) fn begins_anew(&mut self, rank: usize) {
        self.anew.insert(rank);
    }

    pub(crate) fn leaves(&mut self, edge: &EdgeName) {
        self.left.insert(edge.clone());
    }

    /// All that these faults may ever do to anybody, if all ranks begin anew, or all users leave.
    pub(crate) fn foresee(mut self, faults: &[Planned], [anew, left]: [bool; 2]) -> Blame {
        for Planned { at, fault } in faults {
            self.begins(*at, fault);
            match fault {
                Fault::Reset(link) | Fault::ResetAfter(link, _) => self.cuts(*link),
                Fault::ClockJump(place, _) => self.jumps(*place),
                _ => {}
            }
            if let Some(place) = fault.dies() {
                self.dies(place);
            }
            if let (Some(Place::Rank(rank)), false) = (fault.dies(), fault.is_for_good()) {
                self.begins_anew(rank);
            }
        }
        if anew {
            self.anew.extend(0..self.world_size);
        }
        let ranks = 0..self.world_size;
        ranks
            .flat_map(|rank| {
                [self.of_edge_from(rank, left, false, Duration::MAX), self.of_rank(rank, Duration::MAX)]
            })
            .fold(Blame::default(), Blame::or)
    }

    /// What may have befallen an edge by now, of which items have got through or not.
    pub(crate) fn of_edge(&self, edge: &EdgeName, has_met: bool, now: Duration) -> Blame {
        self.of_edge_from(edge.from, self.left.contains(edge), has_met, now)
    }

    /// Whether nothing can have befallen an edge, while another one may have been severed.
    pub(crate) fn spare(&self, edge: &EdgeName, now: Duration) -> bool {
        let mut others = (0..self.world_size).filter(|from| *from != edge.from);
        self.of_edge(edge, true, now) == Blame::default()
            && others.any(|from| self.of_edge_from(from, false, true, now).severed)
    }

    fn of_edge_from(&self, from: usize, left: bool, has_met: bool, now: Duration) -> Blame {
        let Expectations::Beyond(tolerance) = self.expectations else { return self.of_any() };
        let ranks = [from, (from + 1) % self.world_size];
        let ends = ranks.map(Place::Rank);
        let (mut links, mut hosts) = match tolerance.over_store {
            false => (vec![ends], ends.to_vec()),
            true => (ends.map(to_store).to_vec(), [&ends[..], &[Place::Store]].concat()),
        };
        // An abort is said once: whoever aborts does not connect again to say it. And while a connection is
        // broken, a clock that jumps is that of a rank which waits in vain.
        let resumes = tolerance.resumes && !left && !self.have_jumped(&hosts);
        let mut severed = !resumes && self.are_cut(&links);
        if !has_met {
            let met_by = self.who_meets(&ranks, tolerance);
            let to_meet: Vec<_> = met_by.iter().copied().map(to_store).collect();
            // A request to the store whose connection is reset may have been carried out or not: only a pipe
            // over the store can find out, a group and a rank that looks for its peer give up.
            severed |= (tolerance.group || !tolerance.over_store) && self.are_cut(&to_meet);
            links.extend(to_meet);
            hosts.extend(met_by);
            hosts.push(Place::Store);
        }
        let late = self.have_jumped(&hosts);
        severed |= self.have_died(&hosts) || self.silence(&links, now) > tolerance.silence;
        severed |= tolerance.over_store && late;
        let restarted = ranks.iter().any(|rank| self.anew.contains(rank));
        Blame { severed, restarted, left, late }
    }

    /// What may have befallen the software of a rank by now, apart from its pipes.
    pub(crate) fn of_rank(&self, rank: usize, now: Duration) -> Blame {
        let Expectations::Beyond(tolerance) = self.expectations else { return self.of_any() };
        let mut hosts = self.who_meets(&[rank], tolerance);
        let links: Vec<_> = hosts.iter().copied().map(to_store).collect();
        hosts.retain(|host| *host != Place::Rank(rank));
        hosts.push(Place::Store);
        let severed = self.have_died(&hosts)
            || self.silence(&links, now) > tolerance.silence
            || (tolerance.group || !tolerance.over_store) && self.are_cut(&links);
        hosts.push(Place::Rank(rank));
        Blame { severed, late: self.have_jumped(&hosts), ..Blame::default() }
    }

    /// What may have befallen a process group by now.
    pub(crate) fn of_group(&self, members: &[usize], has_formed: bool, now: Duration) -> Blame {
        let Expectations::Beyond(tolerance) = self.expectations else { return self.of_any() };
        let mut hosts: Vec<_> = members.iter().copied().map(Place::Rank).collect();
        let mut links: Vec<_> = hosts
            .iter()
            .enumerate()
            .flat_map(|(place, one)| hosts[..place].iter().map(|other| [*one, *other]))
            .collect();
        if !has_formed {
            links.extend(hosts.iter().copied().map(to_store));
            hosts.push(Place::Store);
        }
        // Each link has an edge of its own, whose end is as patient as the others.
        let silence = links.iter().map(|link| self.silence_of_meeting(*link, now)).max().unwrap_or_default();
        let late = self.have_jumped(&hosts);
        Blame {
            // A rank whose clock has jumped gives up one that it connects to.
            severed: self.are_cut(&links) || self.have_died(&hosts) || silence > tolerance.silence || late,
            restarted: members.iter().any(|rank| self.anew.contains(rank)),
            left: false,
            late,
        }
    }

    /// How long the ends of a link may have been out of each other's hearing, if they were connecting.
    fn silence_of_meeting(&self, link: [Place; 2], now: Duration) -> Duration {
        let slow = |Planned { at, fault }: &&Planned| {
            matches!(fault, Fault::Slow(..)) && fault.is_on(link) && (*at <= now || !self.jumped.is_empty())
        };
        let slow: Duration = self.faults.iter().filter(slow).map(|planned| planned.fault.silence()).sum();
        self.silence(&[link], now) + slow * (HANDSHAKE_WAYS - 1)
    }

    /// Everything or nothing.
    fn of_any(&self) -> Blame {
        let any = self.expectations == Expectations::Anything;
        Blame { severed: any, restarted: any, left: any, late: any }
    }

    /// Those who must have come for these to go on.
    fn who_meets(&self, ranks: &[usize], tolerance: Tolerance) -> Vec<Place> {
        match tolerance.group {
            true => (0..self.world_size).map(Place::Rank).collect(),
            false => ranks.iter().copied().map(Place::Rank).collect(),
        }
    }

    /// How long the ends of these links were out of each other's hearing by now, at most.
    fn silence(&self, links: &[[Place; 2]], now: Duration) -> Duration {
        let concerns = |planned: &&Planned| links.iter().any(|link| planned.fault.is_on(*link));
        let silence = |Planned { at, fault }: &Planned| match self.jumped.is_empty() {
            true => fault.silence().min(now.saturating_sub(*at)),
            // It was longer to a host whose clock jumped.
            false => fault.silence(),
        };
        self.faults.iter().filter(concerns).map(silence).sum()
    }

    fn are_cut(&self, links: &[[Place; 2]]) -> bool {
        links.iter().any(|link| self.cut.contains(&ordered(*link)))
    }

    fn have_died(&self, hosts: &[Place]) -> bool {
        hosts.iter().any(|host| self.dead.contains(host))
    }

    fn have_jumped(&self, hosts: &[Place]) -> bool {
        hosts.iter().any(|host| self.jumped.contains(host))
    }
}

impl Blame {
    /// Whether it explains this error.
    pub(crate) fn explains(self, error: &Error) -> bool {
        let Self { severed, restarted, left, late } = self;
        match error {
            Error::Closed => true,
            Error::PeerRestarted { .. } => restarted,
            Error::Misuse(_) => left,
            Error::Timeout { .. } => severed || restarted || late,
            Error::PeerGone { .. } | Error::Io { .. } => severed || restarted,
            Error::PeerAborted { .. } | Error::ReceiverClosed { .. } => left || severed || restarted || late,
            // A peer that breaks the protocol, a setting that differs, a bug: never.
            _ => false,
        }
    }

    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            severed: self.severed || other.severed,
            restarted: self.restarted || other.restarted,
            left: self.left || other.left,
            late: self.late || other.late,
        }
    }
}

/// How often two ranks wait for each other until they are connected, each of them once more at the end.
const HANDSHAKE_WAYS: u32 = 6;

fn to_store(rank: Place) -> [Place; 2] {
    [rank, Place::Store]
}

fn ordered([one, other]: [Place; 2]) -> [Place; 2] {
    [one.min(other), one.max(other)]
}

impl fmt::Display for Expectations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anything => f.write_str("anything may fail"),
            Self::Nothing => f.write_str("nothing may fail"),
            Self::Beyond(Tolerance { silence, resumes, .. }) => {
                let resets = if *resumes { "" } else { "no reset and " };
                write!(f, "an edge bears {resets}{silence:?} of silence, and fails only of what concerns it")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANKS: usize = 4;

    /// What an edge bears here.
    const BEARABLE: Duration = Duration::from_millis(500);

    const SECOND: Duration = Duration::from_secs(1);

    const TCP: Tolerance = Tolerance { over_store: false, silence: BEARABLE, resumes: true, group: false };

    const LINK: [Place; 2] = [Place::Rank(0), Place::Rank(1)];

    fn causes(tolerance: Tolerance) -> Causes {
        Causes::new(Expectations::Beyond(tolerance), RANKS)
    }

    fn edge(from: usize) -> EdgeName {
        EdgeName { pipe: "kv".into(), from }
    }

    /// The edges that may be severed, of which items have got through or not.
    fn severed(causes: &Causes, has_met: bool, now: Duration) -> Vec<usize> {
        (0..RANKS).filter(|from| causes.of_edge(&edge(*from), has_met, now).severed).collect()
    }

    fn hold(link: [Place; 2]) -> Fault {
        Fault::Hold(link, SECOND * 2)
    }

    #[test]
    fn a_silent_link_severs_its_own_edge_once_it_was_silent_for_long_enough() {
        let mut causes = causes(TCP);
        causes.begins(SECOND, &hold(LINK));
        for has_met in [false, true] {
            assert!(severed(&causes, has_met, SECOND + BEARABLE).is_empty());
            assert_eq!(severed(&causes, has_met, SECOND + BEARABLE * 2), [0]);
        }
        // The other way as well: acknowledgements go back.
        let [one, other] = LINK;
        assert!(hold([other, one]).is_on(LINK));
        let partition = Fault::Partition(crate::fault::Shape::OneWay, vec![[other, one]], SECOND);
        causes.begins(SECOND, &partition);
        assert_eq!(severed(&causes, true, SECOND * 9), [0]);
    }

    #[test]
    fn a_short_silence_severs_nothing_and_several_short_ones_on_one_link_do() {
        let mut causes = causes(TCP);
        let short = Fault::Hold(LINK, BEARABLE);
        causes.begins(Duration::ZERO, &short);
        assert!(severed(&causes, true, SECOND * 9).is_empty());
        causes.begins(Duration::ZERO, &short);
        assert_eq!(severed(&causes, true, SECOND * 9), [0]);
    }

    #[test]
    fn a_reset_severs_only_what_may_not_resume() {
        let mut cut = causes(TCP);
        cut.cuts(LINK);
        assert!(severed(&cut, true, SECOND).is_empty());
        cut.leaves(&edge(0));
        assert_eq!(severed(&cut, true, SECOND), [0], "an abort is said once");
        let mut cut = causes(Tolerance { resumes: false, ..TCP });
        cut.cuts([LINK[1], LINK[0]]);
        assert_eq!(severed(&cut, true, SECOND), [0]);
        let mut cut = causes(TCP);
        cut.cuts(LINK);
        cut.jumps(Place::Rank(2));
        assert!(severed(&cut, true, SECOND).is_empty());
        cut.jumps(Place::Rank(1));
        assert_eq!(severed(&cut, true, SECOND), [0]);
    }

    #[test]
    fn a_death_severs_the_edges_of_the_dead_and_that_of_the_store_those_that_have_not_met() {
        let mut dead = causes(TCP);
        dead.dies(Place::Rank(0));
        assert_eq!(severed(&dead, true, SECOND), [0, 3]);
        assert!(!dead.of_rank(2, SECOND).severed);
        assert!(dead.spare(&edge(1), SECOND) && !dead.spare(&edge(3), SECOND));
        assert!(!causes(TCP).spare(&edge(1), SECOND));
        let mut dead = causes(TCP);
        dead.dies(Place::Store);
        assert!(severed(&dead, true, SECOND).is_empty());
        assert_eq!(severed(&dead, false, SECOND), [0, 1, 2, 3]);
        assert!(dead.of_rank(2, SECOND).severed);
    }

    #[test]
    fn a_link_to_the_store_matters_to_those_who_look_for_each_other_there() {
        let mut causes = causes(TCP);
        causes.begins(Duration::ZERO, &hold([Place::Store, Place::Rank(1)]));
        assert!(severed(&causes, true, SECOND * 9).is_empty());
        assert_eq!(severed(&causes, false, SECOND * 9), [0, 1]);
        let of_ranks: Vec<_> = (0..RANKS).filter(|rank| causes.of_rank(*rank, SECOND * 9).severed).collect();
        assert_eq!(of_ranks, [1]);
    }

    #[test]
    fn who_meets_in_a_group_waits_for_all_and_not_for_their_other_edges() {
        let mut grouped = causes(Tolerance { group: true, ..TCP });
        grouped.begins(Duration::ZERO, &hold([Place::Store, Place::Rank(1)]));
        assert!(severed(&grouped, true, SECOND * 9).is_empty());
        assert_eq!(severed(&grouped, false, SECOND * 9), [0, 1, 2, 3]);
        assert!((0..RANKS).all(|rank| grouped.of_rank(rank, SECOND * 9).severed));
        let mut grouped = causes(Tolerance { group: true, ..TCP });
        grouped.begins(Duration::ZERO, &hold(LINK));
        assert_eq!(severed(&grouped, false, SECOND * 9), [0]);
        assert!(!grouped.of_rank(0, SECOND * 9).severed);
    }

    #[test]
    fn an_edge_over_the_store_needs_the_two_links_to_it_and_no_other() {
        let over_store = Tolerance { over_store: true, ..TCP };
        let mut held = causes(over_store);
        held.begins(Duration::ZERO, &hold(LINK));
        assert!(severed(&held, false, SECOND * 9).is_empty());
        held.begins(Duration::ZERO, &hold([Place::Rank(1), Place::Store]));
        assert_eq!(severed(&held, true, SECOND * 9), [0, 1]);
        let mut cut = causes(over_store);
        cut.cuts([Place::Rank(1), Place::Store]);
        assert!(severed(&cut, false, SECOND).is_empty());
        assert!(!cut.of_rank(1, SECOND).severed);
        let mut dead = causes(over_store);
        dead.dies(Place::Store);
        assert_eq!(severed(&dead, true, SECOND), [0, 1, 2, 3]);
    }

    #[test]
    fn a_deed_matters_to_its_own_edges() {
        let mut causes = causes(TCP);
        causes.leaves(&edge(2));
        causes.begins_anew(0);
        let blames: Vec<_> = (0..RANKS).map(|from| causes.of_edge(&edge(from), true, SECOND)).collect();
        assert_eq!(blames.iter().map(|blame| blame.left).collect::<Vec<_>>(), [false, false, true, false]);
        assert_eq!(
            blames.iter().map(|blame| blame.restarted).collect::<Vec<_>>(),
            [true, false, false, true]
        );
        assert!(blames.iter().all(|blame| !blame.severed && !blame.late));
    }

    #[test]
    fn what_may_happen_is_foreseen_from_the_plan() {
        let restart = Planned { at: SECOND, fault: Fault::Kill(Place::Rank(1), Some(SECOND)) };
        let foreseen = |faults: &[Planned], deeds| causes(TCP).foresee(faults, deeds);
        let blame = foreseen(std::slice::from_ref(&restart), [false, false]);
        assert_eq!(blame, Blame { severed: true, restarted: true, ..Blame::default() });
        let reset = Planned { at: SECOND, fault: Fault::Reset(LINK) };
        assert_eq!(foreseen(std::slice::from_ref(&reset), [false, false]), Blame::default());
        let blame = foreseen(&[reset], [false, true]);
        assert_eq!(blame, Blame { severed: true, left: true, ..Blame::default() });
        assert_eq!(foreseen(&[], [true, false]), Blame { restarted: true, ..Blame::default() });
    }

    #[test]
    fn a_group_fails_of_what_befalls_its_members_and_until_it_has_formed_their_way_to_the_store() {
        let tolerance = Tolerance { resumes: false, ..TCP };
        let severed = |causes: &Causes, has_formed| {
            [[0, 1, 2], [0, 2, 3]].map(|members| causes.of_group(&members, has_formed, SECOND * 9).severed)
        };
        let mut held = causes(tolerance);
        held.begins(SECOND, &hold(LINK));
        assert_eq!(severed(&held, true), [true, false]);
        assert!(!held.of_group(&[0, 1, 2], true, SECOND + BEARABLE).severed);
        let mut cut = causes(tolerance);
        cut.cuts([Place::Rank(3), Place::Rank(2)]);
        assert_eq!(severed(&cut, true), [false, true]);
        let mut cut = causes(tolerance);
        cut.cuts([Place::Rank(1), Place::Store]);
        assert_eq!(severed(&cut, true), [false, false]);
        assert_eq!(severed(&cut, false), [true, false]);
        let mut late = causes(tolerance);
        late.jumps(Place::Rank(1));
        assert_eq!([[0, 1], [2, 3]].map(|members| late.of_group(&members, true, SECOND).late), [true, false]);
    }

    #[test]
    fn short_silences_of_different_links_do_not_add_up_in_a_group_and_slow_ways_of_one_do() {
        let mut causes = causes(Tolerance { resumes: false, ..TCP });
        for link in [[0, 1], [1, 2], [2, 0]] {
            causes.begins(Duration::ZERO, &Fault::Hold(link.map(Place::Rank), BEARABLE));
        }
        assert!(!causes.of_group(&[0, 1, 2], true, SECOND).severed);
        let latency = [Duration::ZERO, BEARABLE / HANDSHAKE_WAYS];
        let slow = [Place::Rank(3), Place::Rank(0)];
        causes.begins(Duration::ZERO, &Fault::Slow(slow, latency, SECOND));
        assert!(!causes.of_group(&[0, 3], true, SECOND).severed);
        causes.begins(Duration::ZERO, &Fault::Slow(slow, latency, SECOND));
        assert!(causes.of_group(&[0, 3], true, SECOND).severed);
    }
}

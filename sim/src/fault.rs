//! [`FaultPlan`]: what goes wrong in a world, and when.
//!
//! A plan is data. It is drawn from a seed, printed, and made smaller: a run with a part of the plan is
//! a run of the same seed.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::draws::Draws;

/// A host of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Where the store is served.
    Store,
    /// A rank.
    Rank(usize),
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// All connections of two hosts are reset, now.
    Reset([Place; 2]),
    /// The same, when so many more bytes have come from the first to the second.
    ResetAfter([Place; 2], usize),
    /// Nothing that is sent from the first to the second of a pair gets through; it is lost, and sent
    /// again by the system, ever more seldom.
    Partition(Shape, Vec<[Place; 2]>, Duration),
    /// What is sent from the first to the second waits, and nothing is lost.
    Hold([Place; 2], Duration),
    /// What is sent from the first to the second takes longer, between these times.
    Slow([Place; 2], [Duration; 2], Duration),
    /// A process is killed; its connections are closed by the system. It starts anew after this time,
    /// or never.
    Kill(Place, Option<Duration>),
    /// A host is off from one moment to the next, and nobody is told. It is on again after this time,
    /// or never.
    PowerLoss(Place, Option<Duration>),
    /// A host stands still, and then its clock is ahead of what it has done by so much.
    ClockJump(Place, Duration),
}

/// The shape of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Every host is on one of two sides.
    Uniform,
    /// One host is alone.
    Isolate,
    /// From one host to another, and not back.
    OneWay,
}

/// The kinds of faults, to choose from and to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// [`Fault::Reset`].
    Reset,
    /// [`Fault::ResetAfter`].
    ResetAfter,
    /// [`Fault::Partition`] in two halves.
    Partition,
    /// [`Fault::Partition`] of one host.
    Isolation,
    /// [`Fault::Partition`] of one direction.
    OneWay,
    /// [`Fault::Hold`].
    Hold,
    /// [`Fault::Slow`].
    Slow,
    /// [`Fault::Kill`], and it comes back.
    Restart,
    /// [`Fault::Kill`] for good.
    Kill,
    /// [`Fault::PowerLoss`], and it comes back.
    Reboot,
    /// [`Fault::PowerLoss`] for good.
    PowerLoss,
    /// [`Fault::ClockJump`].
    ClockJump,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Reset,
        Self::ResetAfter,
        Self::Partition,
        Self::Isolation,
        Self::OneWay,
        Self::Hold,
        Self::Slow,
        Self::Restart,
        Self::Kill,
        Self::Reboot,
        Self::PowerLoss,
        Self::ClockJump,
    ];

    /// What it is called in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::ResetAfter => "reset after bytes",
            Self::Partition => "partition in two",
            Self::Isolation => "isolation",
            Self::OneWay => "one-way partition",
            Self::Hold => "hold",
            Self::Slow => "slow link",
            Self::Restart => "kill and restart",
            Self::Kill => "kill",
            Self::Reboot => "power loss and reboot",
            Self::PowerLoss => "power loss",
            Self::ClockJump => "clock jump",
        }
    }
}

/// A fault and when it strikes, since the beginning of the simulation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// When.
    pub at: Duration,
    /// What.
    pub fault: Fault,
}

/// What goes wrong in a world, and when. `Default` is a world in which nothing does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultPlan {
    /// By time.
    pub faults: Vec<Planned>,
    /// Which faults of the whole plan these are, if they are a part of one.
    numbers: Option<Vec<usize>>,
}

/// What a plan may be drawn from.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The kinds; one that stands there twice comes twice as often.
    pub kinds: Vec<Kind>,
    /// How many faults.
    pub count: RangeInclusive<usize>,
    /// The hosts whose links are struck.
    pub places: Vec<Place>,
    /// The hosts that are killed, switched off, or stand still.
    pub victims: Vec<Place>,
    /// When the last fault begins, at the latest.
    pub within: Duration,
    /// How long partitions, holds, slow phases and clock jumps last.
    pub lasts: [Duration; 2],
    /// The most bytes until a [`Fault::ResetAfter`].
    pub bytes_max: usize,
}

impl FaultPlan {
    /// A plan of these faults.
    #[must_use]
    pub fn new(mut faults: Vec<Planned>) -> Self {
        faults.sort_by_key(|planned| planned.at);
        Self { faults, numbers: None }
    }

    /// A plan drawn from a seed: bursts of faults, and quiet times between them.
    #[must_use]
    pub fn drawn(draws: &Draws, choice: &Choice) -> Self {
        let mut faults = Vec::new();
        // Most worlds are over before their last fault could begin: more of them come early.
        let burst_at = || between(draws, [Duration::ZERO, choice.within / (1 << draws.between(0..=3))]);
        let mut burst = burst_at();
        for _ in 0..draws.bytes(choice.count.clone()) {
            let at = burst + Duration::from_millis(draws.between(0..=30));
            if let Some(fault) = choice.draw(draws) {
                faults.push(Planned { at, fault });
            }
            if draws.one_in(2) {
                burst = burst_at();
            }
        }
        Self::new(faults)
    }

    /// The faults of these numbers only.
    #[must_use]
    pub fn only(&self, kept: &BTreeSet<usize>) -> Self {
        let kept = self.faults.iter().enumerate().filter(|(number, _)| kept.contains(number));
        let (numbers, faults) = kept.map(|(number, planned)| (number, planned.clone())).unzip();
        Self { faults, numbers: Some(numbers) }
    }

    /// When the last fault has passed. One that never does, such as a kill for good, has passed at once.
    #[must_use]
    pub fn healed_at(&self) -> Duration {
        self.faults.iter().map(|planned| planned.at + planned.fault.lasts()).max().unwrap_or_default()
    }

    /// How long hosts may be out of each other's hearing, at most and all together: links that are down,
    /// held or slow.
    #[must_use]
    pub fn silence(&self) -> Duration {
        self.faults.iter().map(|planned| planned.fault.silence()).sum()
    }

    /// Whether there is a fault of which this holds.
    pub fn any(&self, holds: impl Fn(&Fault) -> bool) -> bool {
        self.faults.iter().any(|planned| holds(&planned.fault))
    }
}

impl Choice {
    /// One to four resets, holds and slow phases of the links between these hosts, a second or two long
    /// in all, and nobody dies: what to start from.
    #[must_use]
    pub fn between(places: &[Place]) -> Self {
        Self {
            kinds: vec![Kind::Reset, Kind::ResetAfter, Kind::Hold, Kind::Slow],
            count: 1..=4,
            places: places.to_vec(),
            victims: Vec::new(),
            within: Duration::from_secs(1),
            lasts: [10, 150].map(Duration::from_millis),
            bytes_max: 100_000,
        }
    }

    /// None if the kind that was drawn needs more hosts than there are.
    fn draw(&self, draws: &Draws) -> Option<Fault> {
        let kind = *draws.pick(&self.kinds)?;
        let lasts = between(draws, self.lasts);
        let victim = || draws.pick(&self.victims).copied();
        Some(match kind {
            Kind::Reset => Fault::Reset(self.pair(draws)?),
            // Small numbers are as likely as large ones: within headers, within payloads.
            Kind::ResetAfter => {
                let most = (self.bytes_max >> draws.between(0..=12)).max(1);
                Fault::ResetAfter(self.pair(draws)?, draws.bytes(1..=most))
            }
            Kind::Partition => self.uniform(draws, lasts),
            Kind::Isolation => self.isolation(*draws.pick(&self.places)?, lasts),
            Kind::OneWay => Fault::Partition(Shape::OneWay, vec![self.pair(draws)?], lasts),
            Kind::Hold => Fault::Hold(self.pair(draws)?, lasts),
            Kind::Slow => {
                let latency = [lasts / 50, lasts / 5];
                Fault::Slow(self.pair(draws)?, latency, lasts)
            }
            Kind::Restart => Fault::Kill(victim()?, Some(lasts)),
            Kind::Kill => Fault::Kill(victim()?, None),
            Kind::Reboot => Fault::PowerLoss(victim()?, Some(lasts)),
            Kind::PowerLoss => Fault::PowerLoss(victim()?, None),
            Kind::ClockJump => Fault::ClockJump(victim()?, lasts),
        })
    }

    /// Two different hosts.
    fn pair(&self, draws: &Draws) -> Option<[Place; 2]> {
        let one = *draws.pick(&self.places)?;
        let others: Vec<_> = self.places.iter().copied().filter(|&other| other != one).collect();
        Some([one, *draws.pick(&others)?])
    }

    fn uniform(&self, draws: &Draws, lasts: Duration) -> Fault {
        let mut sides: Vec<_> = self.places.iter().map(|&place| (place, draws.one_in(2))).collect();
        if let [(_, first), .., (_, last)] = &mut sides[..] {
            *last = !*first;
        }
        let apart = |(one, one_side): &(Place, bool)| {
            let across = sides.iter().filter(|(_, side)| side != one_side);
            across.map(|(other, _)| [*one, *other]).collect::<Vec<_>>()
        };
        Fault::Partition(Shape::Uniform, sides.iter().flat_map(apart).collect(), lasts)
    }

    fn isolation(&self, alone: Place, lasts: Duration) -> Fault {
        let others = self.places.iter().copied().filter(|&other| other != alone);
        let links = others.flat_map(|other| [[alone, other], [other, alone]]).collect();
        Fault::Partition(Shape::Isolate, links, lasts)
    }
}

impl Fault {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Reset(_) => Kind::Reset,
            Self::ResetAfter(..) => Kind::ResetAfter,
            Self::Partition(Shape::Uniform, ..) => Kind::Partition,
            Self::Partition(Shape::Isolate, ..) => Kind::Isolation,
            Self::Partition(Shape::OneWay, ..) => Kind::OneWay,
            Self::Hold(..) => Kind::Hold,
            Self::Slow(..) => Kind::Slow,
            Self::Kill(_, Some(_)) => Kind::Restart,
            Self::Kill(_, None) => Kind::Kill,
            Self::PowerLoss(_, Some(_)) => Kind::Reboot,
            Self::PowerLoss(_, None) => Kind::PowerLoss,
            Self::ClockJump(..) => Kind::ClockJump,
        }
    }

    /// Whether it never passes.
    #[must_use]
    pub fn is_for_good(&self) -> bool {
        matches!(self, Self::Kill(_, None) | Self::PowerLoss(_, None))
    }

    /// The hosts that it is about.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        match self {
            Self::Reset(pair) | Self::ResetAfter(pair, _) | Self::Hold(pair, _) | Self::Slow(pair, ..) => {
                pair.to_vec()
            }
            Self::Partition(_, links, _) => links.concat(),
            Self::Kill(place, _) | Self::PowerLoss(place, _) | Self::ClockJump(place, _) => vec![*place],
        }
    }

    /// Whether it is about the link of these two hosts, whichever way.
    #[must_use]
    pub fn is_on(&self, [one, other]: [Place; 2]) -> bool {
        let is_it = |link: &[Place; 2]| *link == [one, other] || *link == [other, one];
        match self {
            Self::Partition(_, links, _) => links.iter().any(is_it),
            Self::Reset(link) | Self::ResetAfter(link, _) | Self::Hold(link, _) | Self::Slow(link, ..) => {
                is_it(link)
            }
            Self::Kill(..) | Self::PowerLoss(..) | Self::ClockJump(..) => false,
        }
    }

    /// Who is killed or switched off.
    #[must_use]
    pub fn dies(&self) -> Option<Place> {
        match self {
            Self::Kill(place, _) | Self::PowerLoss(place, _) => Some(*place),
            _ => None,
        }
    }

    /// How long until it has passed.
    #[must_use]
    pub fn lasts(&self) -> Duration {
        match self {
            Self::Partition(.., lasts) | Self::Hold(_, lasts) | Self::Slow(.., lasts) => *lasts,
            Self::Kill(_, back) | Self::PowerLoss(_, back) => back.unwrap_or_default(),
            Self::ResetAfter(..) => RESET_WITHIN,
            Self::Reset(_) | Self::ClockJump(..) => Duration::ZERO,
        }
    }

    /// How long the hosts of a link may be out of each other's hearing through it, at most.
    #[must_use]
    pub fn silence(&self) -> Duration {
        match self {
            // What is lost is sent again after pauses that double, the last of them beyond its end.
            Self::Partition(.., lasts) => *lasts * 2 + Duration::from_millis(400),
            Self::Hold(_, lasts) => *lasts,
            Self::Slow(_, [_, most], _) => *most,
            _ => Duration::ZERO,
        }
    }
}

/// How long a reset waits for its bytes.
const RESET_WITHIN: Duration = Duration::from_secs(2);

fn between(draws: &Draws, [least, most]: [Duration; 2]) -> Duration {
    #[expect(clippy::cast_possible_truncation, reason = "half a billion years in milliseconds")]
    let ms = |duration: Duration| duration.as_millis() as u64;
    Duration::from_millis(draws.between(ms(least)..=ms(most)))
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store => f.pad("store"),
            Self::Rank(rank) => f.pad(&format!("rank{rank}")),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset([one, other]) => write!(f, "the connections of {one} and {other} are reset"),
            Self::ResetAfter([from, to], bytes) => {
                write!(f, "the connections of {from} and {to} are reset {bytes} bytes from {from} later")
            }
            Self::Partition(shape, links, lasts) => {
                let shape = match shape {
                    Shape::Uniform => "a partition in two",
                    Shape::Isolate => "a host is isolated",
                    Shape::OneWay => "a link is down one way",
                };
                let links: Vec<_> = links.iter().map(|[from, to]| format!("{from}>{to}")).collect();
                write!(f, "{shape} for {lasts:?}: {}", links.join(" "))
            }
            Self::Hold([from, to], lasts) => write!(f, "{from}>{to} is held for {lasts:?}"),
            Self::Slow([from, to], [least, most], lasts) => {
                write!(f, "{from}>{to} takes {least:?} to {most:?} for {lasts:?}")
            }
            Self::Kill(place, back) => write!(f, "{place} is killed{}", Back(*back)),
            Self::PowerLoss(place, back) => write!(f, "{place} loses its power{}", Back(*back)),
            Self::ClockJump(place, by) => write!(f, "the clock of {place} jumps by {by:?}"),
        }
    }
}

struct Back(Option<Duration>);

impl fmt::Display for Back {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(after) => write!(f, ", and is back after {after:?}"),
            None => f.write_str(" for good"),
        }
    }
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.faults.is_empty() {
            return f.write_str("  nothing goes wrong");
        }
        let numbers = self.numbers.clone().unwrap_or_else(|| (0..self.faults.len()).collect());
        for (place, (number, Planned { at, fault })) in numbers.iter().zip(&self.faults).enumerate() {
            let end = if place + 1 < self.faults.len() { "\n" } else { "" };
            write!(f, "  fault {number}, at {at:?}: {fault}{end}")?;
        }
        Ok(())
    }
}

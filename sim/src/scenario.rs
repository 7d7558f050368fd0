//! Named families of worlds: what the ranks do, and what may go wrong.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::draws::Draws;
use crate::fault::{Choice, FaultPlan, Kind, Place};
use crate::net::Conditions;
use crate::workload::items::{LARGE_BYTES, Sizes};
use crate::workload::{
    Collectives, EDGE_MEETS_WITHIN, Ending, Pace, Settings, Software, Traffic, Wire, Workload,
};
use crate::world::{Blame, Causes, Expectations, MEET_WITHIN, Report, Tolerance, World};

/// A family of worlds, one for each seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// Two ranks over tcp, and nothing goes wrong.
    Calm,
    /// Two ranks over tcp. Their connections are reset, held and slow, never for too long: nobody may
    /// notice.
    Pair,
    /// Two ranks over tcp whose connections are reset, and that may not resume.
    NoResume,
    /// Two to five ranks in a ring. As `pair`, with a group before and after.
    Ring,
    /// Two to five ranks in a ring, with partitions of any length.
    Partitions,
    /// Two to four ranks, of which some are killed or lose their power, and may come back.
    Crashes,
    /// As `ring`, while the store's host is killed, switched off and cut off: edges outlive it.
    StoreOutage,
    /// Two or three ranks whose pipes go over the store. Nobody may notice short faults.
    StoreWire,
    /// The same, with faults of any kind and length.
    StoreWireFaults,
    /// Two or three ranks whose clocks jump.
    Clocks,
    /// Two or three ranks that abort, drop and stop receiving, over connections that are reset.
    Leavers,
    /// What vLLM sends, over two pipes, with resets.
    Vllm,
    /// Anything at once.
    Chaos,
    /// Groups of two to eight ranks that compute together. Their links are held and slow, never for too
    /// long: no operation may fail.
    Collective,
    /// The same, and in each group a member makes a mistake: all must learn which.
    CollectiveMistakes,
    /// Groups that compute together, with resets, partitions and delays of any length.
    CollectiveFaults,
    /// Groups that compute together, of whose ranks some are killed or lose their power, or whose clocks
    /// jump.
    CollectiveCrashes,
}

/// A world of a seed, or a smaller one: part of its faults, fewer items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Which family.
    pub scenario: Scenario,
    /// Which of the family.
    pub seed: u64,
    /// The numbers of the faults that strike, or all.
    pub faults: Option<BTreeSet<usize>>,
    /// At most so many items for each sender.
    pub items: Option<usize>,
}

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What the ranks do.
    pub software: Software,
    /// What goes wrong.
    pub faults: FaultPlan,
    /// Which errors that can cause.
    pub expectations: Expectations,
    /// Whether nothing can keep the ranks from leaving an empty store.
    pub leaves_no_keys: bool,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Calm,
        Self::Pair,
        Self::NoResume,
        Self::Ring,
        Self::Partitions,
        Self::Crashes,
        Self::StoreOutage,
        Self::StoreWire,
        Self::StoreWireFaults,
        Self::Clocks,
        Self::Leavers,
        Self::Vllm,
        Self::Chaos,
        Self::Collective,
        Self::CollectiveMistakes,
        Self::CollectiveFaults,
        Self::CollectiveCrashes,
    ];

    /// Those in which ranks compute together.
    const COLLECTIVE: [Self; 4] =
        [Self::Collective, Self::CollectiveMistakes, Self::CollectiveFaults, Self::CollectiveCrashes];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Pair => "pair",
            Self::NoResume => "no-resume",
            Self::Ring => "ring",
            Self::Partitions => "partitions",
            Self::Crashes => "crashes",
            Self::StoreOutage => "store-outage",
            Self::StoreWire => "store-wire",
            Self::StoreWireFaults => "store-wire-faults",
            Self::Clocks => "clocks",
            Self::Leavers => "leavers",
            Self::Vllm => "vllm",
            Self::Chaos => "chaos",
            Self::Collective => "collective",
            Self::CollectiveMistakes => "collective-mistakes",
            Self::CollectiveFaults => "collective-faults",
            Self::CollectiveCrashes => "collective-crashes",
        }
    }

    /// What it is, in a line.
    #[must_use]
    pub fn about(self) -> &'static str {
        match self {
            Self::Calm => "two ranks over tcp, and nothing goes wrong",
            Self::Pair => "two ranks over tcp, resets and delays nobody may notice",
            Self::NoResume => "two ranks over tcp that may not resume, and resets",
            Self::Ring => "2 to 5 ranks and a group, resets and short delays",
            Self::Partitions => "2 to 5 ranks, partitions of any length",
            Self::Crashes => "2 to 4 ranks that are killed and come back, or do not",
            Self::StoreOutage => "2 to 5 ranks over tcp, and a store that goes away",
            Self::StoreWire => "pipes over the store, resets and short delays",
            Self::StoreWireFaults => "pipes over the store, anything",
            Self::Clocks => "2 or 3 ranks whose clocks jump",
            Self::Leavers => "2 or 3 ranks that abort, drop, and stop receiving",
            Self::Vllm => "what vLLM's workers say to each other, over resets",
            Self::Chaos => "anything at once",
            Self::Collective => "process groups of 2 to 8 ranks, short delays",
            Self::CollectiveMistakes => "process groups in which one calls wrongly",
            Self::CollectiveFaults => "process groups, resets and partitions",
            Self::CollectiveCrashes => "process groups whose ranks die",
        }
    }

    /// The family of a seed in the standard mix.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let pipes = &Self::ALL[..Self::ALL.len() - Self::COLLECTIVE.len()];
        // One in four computes.
        let draws = Draws::new(seed, "collective scenario");
        if draws.one_in(4) {
            return draws.pick(&Self::COLLECTIVE).copied().unwrap_or(Self::Collective);
        }
        let choices = pipes.len() as u64;
        // Every third one is the pair, which most users have.
        match Draws::new(seed, "scenario").between(0..=choices + 5) {
            number if number < choices => pipes[usize::try_from(number).unwrap_or(0)],
            _ => Self::Pair,
        }
    }

    /// The world of a seed.
    #[must_use]
    pub fn setup(self, seed: u64) -> Setup {
        let draws = Draws::new(seed, self.name());
        let software = match Self::COLLECTIVE.contains(&self) {
            true => Software::Collectives(self.collectives(&draws, seed)),
            false => Software::Pipes(self.workload(&draws)),
        };
        let faults = match self.choice(software.ranks()) {
            Some(choice) => FaultPlan::drawn(&draws.fork("faults"), &choice),
            None => FaultPlan::default(),
        };
        let mut setup =
            Setup { software, faults, expectations: Expectations::Nothing, leaves_no_keys: false };
        setup.expect();
        setup
    }

    fn collectives(self, draws: &Draws, seed: u64) -> Collectives {
        let conditions = Conditions::drawn(&Draws::new(seed, "conditions"));
        let windows = OPERATION_WITHIN.as_micros() / conditions.time_for(1).as_micros().max(1);
        let bytes_max =
            conditions.window_bytes.saturating_mul(usize::try_from(windows).unwrap_or(usize::MAX));
        let mut collectives = Collectives::drawn(draws, bytes_max, self == Self::CollectiveMistakes);
        collectives.reforms = match self {
            Self::Collective => 0,
            Self::CollectiveMistakes => 1,
            _ => draws.bytes(0..=1),
        };
        collectives
    }

    fn workload(self, draws: &Draws) -> Workload {
        let wire = match self {
            Self::StoreWire | Self::StoreWireFaults => Wire::Store,
            Self::Chaos if draws.one_in(3) => Wire::Store,
            _ => Wire::Tcp,
        };
        let mut settings = Settings::drawn(draws, wire);
        if self == Self::NoResume || self == Self::Chaos && draws.one_in(4) {
            settings.reconnect = Duration::ZERO;
        }
        let pace = Pace::drawn(draws);
        if pace == Pace::SlowReceiver {
            // A close does not wait for ever for the peer's user; this one takes several long breaks.
            settings.pipe.close_timeout = Duration::from_secs(30);
        }
        let ranks = match self {
            Self::Ring | Self::Partitions | Self::StoreOutage => draws.bytes(2..=5),
            Self::Crashes | Self::Chaos => draws.bytes(2..=4),
            Self::StoreWire | Self::StoreWireFaults | Self::Clocks | Self::Leavers => draws.bytes(2..=3),
            // The others have no pipes.
            _ => 2,
        };
        let traffic = match self {
            Self::Vllm => {
                Traffic::Vllm { layers: draws.pick(&[None, None, Some(32), Some(80)]).copied().flatten() }
            }
            _ if ranks == 2 && draws.one_in(2) => Traffic::Edge,
            _ => Traffic::Ring,
        };
        let small = wire == Wire::Store || ranks > 2;
        let endings = match self {
            Self::Leavers | Self::Chaos => {
                vec![Ending::Orderly, Ending::Orderly, Ending::StopReceiving, Ending::Abort, Ending::Drop]
            }
            _ => vec![Ending::Orderly],
        };
        Workload {
            ranks,
            traffic,
            items: if small { draws.bytes(3..=20) } else { draws.bytes(5..=40) },
            sizes: Sizes {
                bytes_max: settings.pipe.budget_bytes
                    * draws.bytes(1..=4).min((1 << 20) / settings.pipe.budget_bytes),
                large_items_max: if small { 1 } else { 2 },
            },
            tasks: [draws.bytes(1..=3), draws.bytes(1..=2)],
            pace,
            group: !matches!(self, Self::Calm | Self::Pair | Self::Vllm | Self::StoreWire) || draws.one_in(8),
            parts_together: false,
            endings,
            reopens: if matches!(self, Self::Crashes | Self::Chaos) { draws.bytes(0..=2) } else { 0 },
            settings,
        }
    }

    fn choice(self, ranks: usize) -> Option<Choice> {
        use Kind::{
            ClockJump, Hold, Isolation, Kill, OneWay, Partition, PowerLoss, Reboot, Reset, ResetAfter,
            Restart, Slow,
        };

        let ranks: Vec<_> = (0..ranks).map(Place::Rank).collect();
        let all: Vec<_> = ranks.iter().copied().chain([Place::Store]).collect();
        let short = Choice::between(&ranks);
        let long = Choice {
            count: 1..=6,
            within: Duration::from_secs(3),
            lasts: [50, 4000].map(Duration::from_millis),
            ..Choice::between(&all)
        };
        Some(match self {
            Self::Calm => return None,
            Self::Pair | Self::Vllm => {
                Choice { kinds: vec![Reset, ResetAfter, ResetAfter, Hold, Slow], ..short }
            }
            Self::NoResume => Choice { kinds: vec![Reset, ResetAfter, ResetAfter, ResetAfter], ..short },
            Self::Ring => Choice { places: all, count: 1..=6, ..short },
            Self::Partitions => {
                Choice { kinds: vec![Partition, Isolation, OneWay, OneWay, Hold, Reset], ..long }
            }
            Self::Crashes => Choice {
                kinds: vec![Restart, Reboot, Kill, PowerLoss, Reset, Hold],
                victims: ranks,
                count: 1..=4,
                ..long
            },
            Self::StoreOutage => Choice {
                kinds: vec![Restart, Reboot, Kill, PowerLoss, Isolation],
                victims: vec![Place::Store],
                places: vec![Place::Store, Place::Rank(0)],
                count: 1..=3,
                ..long
            },
            Self::StoreWire => Choice { places: all, kinds: vec![Reset, ResetAfter, Hold, Slow], ..short },
            Self::StoreWireFaults => Choice {
                kinds: vec![Reset, Hold, Slow, OneWay, Isolation, Restart, Reboot, Kill, PowerLoss],
                victims: all,
                count: 1..=4,
                ..long
            },
            Self::Clocks => {
                Choice { kinds: vec![ClockJump, ClockJump, Reset, Hold], victims: all, count: 1..=4, ..long }
            }
            Self::Leavers => Choice { count: 0..=3, ..short },
            Self::Collective | Self::CollectiveMistakes => {
                Choice { places: all, kinds: vec![Hold, Slow], count: 0..=4, ..short }
            }
            Self::CollectiveFaults => Choice {
                kinds: vec![Reset, ResetAfter, Partition, Isolation, OneWay, Hold, Slow],
                count: 1..=3,
                within: COMPUTES_WITHIN,
                ..long
            },
            Self::CollectiveCrashes => Choice {
                kinds: vec![Restart, Reboot, Kill, PowerLoss, ClockJump, Hold],
                victims: ranks,
                count: 1..=2,
                within: COMPUTES_WITHIN,
                ..long
            },
            Self::Chaos => Choice { kinds: Kind::ALL.to_vec(), victims: all, count: 1..=8, ..long },
        })
    }
}

/// What operations take of whom nobody is in a hurry, by the size of their payloads.
const OPERATION_WITHIN: Duration = Duration::from_millis(200);

/// Most groups are done after this time.
const COMPUTES_WITHIN: Duration = Duration::from_millis(1500);

impl Setup {
    /// Which errors the faults and the ranks' manners can cause.
    fn expect(&mut self) {
        let Self { software, faults, .. } = self;
        let workload = match software {
            Software::Pipes(workload) => workload,
            Software::Collectives(collectives) => {
                let silence = collectives.bearable();
                let tolerance = Tolerance { over_store: false, silence, resumes: false, group: false };
                self.expectations = Expectations::Beyond(tolerance);
                return;
            }
        };
        let Workload { ranks, settings, group, .. } = workload;
        let tolerance = Tolerance {
            over_store: settings.wire == Wire::Store,
            silence: settings.bearable(),
            resumes: !settings.reconnect.is_zero(),
            group: *group,
        };
        self.expectations = Expectations::Beyond(tolerance);
        let leaves = workload.endings.iter().any(|ending| *ending != Ending::Orderly);
        let reopens = workload.reopens > 0;
        let foreseen = Causes::new(self.expectations, *ranks).foresee(&faults.faults, [reopens, leaves]);
        workload.parts_together = foreseen == Blame::default();
        // Whoever leaves early leaves no keys either.
        self.leaves_no_keys = foreseen == Blame { left: leaves, ..Blame::default() };
    }

    /// The world of this setup.
    #[must_use]
    pub fn world(&self, seed: u64) -> World {
        let world = World::new(seed, self.software.ranks())
            .faults(self.faults.clone())
            .expects(self.expectations)
            .leaves_no_keys(self.leaves_no_keys);
        match &self.software {
            Software::Pipes(workload) => self.world_of_pipes(world, workload, seed),
            Software::Collectives(collectives) => self.world_of_groups(world, collectives),
        }
    }

    fn world_of_pipes(&self, world: World, workload: &Workload, seed: u64) -> World {
        let Settings { wire, heartbeat, reconnect, .. } = workload.settings;
        // Without a store to hear of it from, two attempts to reach it come first.
        let attempts = if wire == Wire::Store { heartbeat * 2 } else { heartbeat };
        // A connection that is broken just then is waited for. What was under way when its sender died
        // still comes, after a hold or by a slow link.
        let deaths_known_within = attempts + reconnect + self.faults.silence() + Duration::from_secs(1);
        let world = world.limits(EDGE_MEETS_WITHIN, self.slack(workload, seed));
        match workload.pace {
            // While its inbox is full a receiver does not read, and silence says nothing.
            Pace::SlowReceiver => world,
            Pace::Brisk | Pace::IdleThenBurst => world.deaths_known_within(deaths_known_within),
        }
    }

    fn world_of_groups(&self, world: World, collectives: &Collectives) -> World {
        let Collectives { timeout, heartbeat, reforms, .. } = collectives;
        // A member that is missed is looked for after a while; whoever finds out looks for those that it has
        // to tell.
        let known_within = *heartbeat * 3 + self.faults.silence() + self.slow() + Duration::from_secs(1);
        // Each run is formed, fails at last, and is left.
        let runs = u32::try_from(reforms + 1).unwrap_or(u32::MAX);
        let patience = (*timeout * 3 + Duration::from_secs(5)) * runs + MEET_WITHIN;
        world.failures_known_within(known_within).leaves_nothing(true).patience(patience)
    }

    /// By how much a limit of a pipe may seem to be exceeded: an item is on its way, or nothing gets through,
    /// or a broken connection is being resumed.
    fn slack(&self, workload: &Workload, seed: u64) -> Duration {
        let Settings { wire, heartbeat, reconnect, .. } = workload.settings;
        // Two ranks that did not meet over a store take away what they left there, in two parts, each for as
        // long as an answer may take.
        let clearing_up = if wire == Wire::Store { heartbeat * 2 } else { Duration::ZERO };
        let conditions = Conditions::drawn(&Draws::new(seed, "conditions"));
        let on_its_way = conditions.time_for(workload.sizes.bytes_max.max(LARGE_BYTES));
        let waits = heartbeat + reconnect + clearing_up + Duration::from_secs(1);
        on_its_way + self.slow() + self.faults.silence() + waits
    }

    /// How long links are slow, all together.
    fn slow(&self) -> Duration {
        let slow = self.faults.faults.iter().filter(|planned| planned.fault.kind() == Kind::Slow);
        slow.map(|planned| planned.fault.lasts()).sum()
    }
}

impl Case {
    /// The whole world of a seed, of the family that is its in the standard mix.
    #[must_use]
    pub fn standard(seed: u64) -> Self {
        Self::new(Scenario::of_seed(seed), seed)
    }

    /// The whole world of a seed.
    #[must_use]
    pub fn new(scenario: Scenario, seed: u64) -> Self {
        Self { scenario, seed, faults: None, items: None }
    }

    /// What the world is made of. What may fail is judged by all the faults of the seed, so that a part
    /// of them is not judged otherwise.
    #[must_use]
    pub fn setup(&self) -> Setup {
        let mut setup = self.scenario.setup(self.seed);
        if let Some(kept) = &self.faults {
            setup.faults = setup.faults.only(kept);
        }
        if let Some(items) = self.items {
            setup.software = setup.software.at_most(items);
        }
        setup
    }

    /// Runs it.
    #[must_use]
    pub fn run(&self) -> Report {
        let setup = self.setup();
        let software = setup.software.clone();
        setup.world(self.seed).run(move |rank| software.clone().run(rank))
    }
}

/// How to run it again.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--scenario {} --seed {}", self.scenario.name(), self.seed)?;
        if let Some(faults) = &self.faults {
            let numbers: Vec<_> = faults.iter().map(usize::to_string).collect();
            write!(f, " --faults {}", if numbers.is_empty() { "none".into() } else { numbers.join(",") })?;
        }
        if let Some(items) = self.items {
            write!(f, " --items {items}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { software, faults, expectations, .. } = self;
        write!(f, "{software}  {expectations}\n{faults}")
    }
}

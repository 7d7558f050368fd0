//! Process groups of overlapping members, whose results are compared with a naive reference.

mod call;
mod member;
mod reference;

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use kvpipe::Result;
use kvpipe::collective::ProcessGroupConfig;
use kvpipe::tensor::BufferPool;
use kvpipe::transport::tcp::Secret;
use tokio::task::JoinSet;

use self::call::Call;
use super::program::all;
use crate::draws::Draws;
use crate::world::Rank;

/// What the ranks of a world compute together.
#[derive(Clone, Debug)]
pub struct Collectives {
    /// How many ranks there are.
    pub ranks: usize,
    /// How many operations a group has at most, a last barrier aside.
    pub items: usize,
    /// The limit of each, and that of forming a group.
    pub timeout: Duration,
    /// The silence after which a member counts as dead.
    pub heartbeat: Duration,
    /// Whether messages have a checksum.
    pub checksum: bool,
    /// Whether the ranks know a secret.
    pub secret: bool,
    /// How often a group that has failed is formed again.
    pub reforms: usize,
    /// Whether a member of each group does something wrong, the first time that it has formed.
    pub mistakes: bool,
    groups: Rc<[Group]>,
}

/// A group, and what its members do in each run.
#[derive(Debug)]
struct Group {
    name: String,
    /// The ranks, in the order that they have in the group.
    members: Vec<usize>,
    calls: Vec<Call>,
    mistake: Mistake,
    /// For what else is to be drawn.
    draws: Draws,
}

/// Something that a member does wrong.
#[derive(Clone, Debug)]
struct Mistake {
    member: usize,
    /// At which of the calls that all members make.
    at: usize,
    what: Wrong,
}

/// What may be wrong.
#[derive(Clone, Debug)]
enum Wrong {
    /// The member calls something else.
    Other,
    /// It calls the next one first.
    Order,
    /// It calls nothing.
    Absence,
    /// It drops the future of the call after this time.
    Drop(Duration),
    /// It leaves: as it should, or by dropping the group.
    Leave { says_so: bool },
}

/// What a group of so many ranks at most does, and a few have more: they reduce large payloads in a ring.
const RANKS_USUALLY: usize = 8;

const POOL_BYTES: usize = 4 << 20;

impl Collectives {
    /// Drawn from a seed. Limits in time are short, so that a run is, and payloads of at most so many bytes.
    #[must_use]
    pub fn drawn(draws: &Draws, bytes_max: usize, mistakes: bool) -> Self {
        let ranks = if draws.one_in(16) { draws.bytes(9..=10) } else { draws.bytes(2..=RANKS_USUALLY) };
        let items = draws.bytes(3..=24);
        let count = draws.bytes(1..=3);
        let group = |number| Group::drawn(draws, number, ranks, bytes_max);
        Self {
            ranks,
            items,
            timeout: Duration::from_millis(draws.between(4500..=7000)),
            heartbeat: Duration::from_millis(draws.between(700..=1300)),
            checksum: draws.one_in(2),
            secret: draws.one_in(3),
            reforms: 0,
            mistakes,
            groups: (0..count).map(group).collect(),
        }
    }

    /// The longest silence that must not break a group.
    #[must_use]
    pub fn bearable(&self) -> Duration {
        self.heartbeat / 2
    }

    /// What the software of a rank is.
    ///
    /// # Errors
    /// Why it could not begin. What becomes of its groups is no error: that is judged where it happens.
    pub async fn run(self, rank: Rank) -> Result<()> {
        let mut tasks = JoinSet::new();
        for number in 0..self.groups.len() {
            if self.groups[number].members.contains(&rank.number()) {
                let (own, rank) = (self.clone(), rank.clone());
                tasks.spawn_local(async move { own.groups[number].take_part(&own, &rank).await });
            }
        }
        all(tasks).await
    }

    /// The same with fewer operations.
    #[must_use]
    pub fn at_most(self, items: usize) -> Self {
        Self { items: self.items.min(items), ..self }
    }

    fn config(&self) -> Result<ProcessGroupConfig> {
        Ok(ProcessGroupConfig {
            timeout: self.timeout,
            heartbeat: self.heartbeat,
            checksum: self.checksum,
            secret: if self.secret { Some(Secret::new("a secret of all ranks")?) } else { None },
            pool: BufferPool::new(POOL_BYTES),
            ..ProcessGroupConfig::default()
        })
    }
}

/// No group has more calls.
const CALLS_MAX: usize = 24;

/// What counts as large: one of them is enough for a group, and takes most of the time.
const LARGE_BYTES: usize = 72_000;

impl Group {
    /// The first has all ranks, the others some of them.
    fn drawn(draws: &Draws, number: usize, ranks: usize, bytes_max: usize) -> Self {
        let mut left: Vec<_> = (0..ranks).collect();
        let size = if number == 0 { ranks } else { draws.bytes(1..=ranks) };
        let members: Vec<_> = (0..size).map(|_| left.remove(draws.bytes(0..=left.len() - 1))).collect();
        let mut bytes_max = bytes_max;
        let calls = (0..CALLS_MAX).map(|_| {
            let call = Call::drawn(draws, size, bytes_max);
            if call.rows.iter().sum::<usize>() * call.row_bytes() > LARGE_BYTES {
                bytes_max = LARGE_BYTES;
            }
            call
        });
        let calls = calls.collect();
        let what = match draws.between(0..=9) {
            0..=4 => Wrong::Other,
            5 => Wrong::Order,
            6 => Wrong::Absence,
            7 => Wrong::Drop(Duration::from_micros(draws.between(0..=60_000))),
            _ => Wrong::Leave { says_so: draws.one_in(2) },
        };
        let mistake = Mistake { member: draws.bytes(0..=size - 1), at: draws.bytes(0..=CALLS_MAX), what };
        Self {
            name: format!("g{number}"),
            members,
            calls,
            mistake,
            draws: draws.fork(&format!("another call of {number}")),
        }
    }
}

impl fmt::Display for Collectives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ranks, items, timeout, heartbeat, checksum, secret, reforms, mistakes, groups } = self;
        writeln!(
            f,
            "  {ranks} ranks, {items} operations and a barrier in each group, formed {} times",
            reforms + 1
        )?;
        for Group { name, members, mistake: Mistake { member, what, .. }, .. } in groups.iter() {
            write!(f, "  {name} of ranks {members:?}")?;
            match mistakes {
                true => writeln!(f, ", of which rank {} makes a mistake: {what}", members[*member])?,
                false => writeln!(f)?,
            }
        }
        writeln!(
            f,
            "  limits: heartbeat {heartbeat:?}, operations {timeout:?}{}{}",
            if *checksum { ", checksums" } else { "" },
            if *secret { ", a secret" } else { "" },
        )
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Other => "another call",
            Self::Order => "another order",
            Self::Absence => "absence",
            Self::Drop(_) => "a call that is dropped",
            Self::Leave { says_so: true } => "leaving early",
            Self::Leave { says_so: false } => "dropping the group",
        })
    }
}

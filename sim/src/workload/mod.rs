//! What ranks do in a world when nobody brings software of his own: [`Workload`].

mod collective;
pub mod items;
mod program;
mod settings;
mod vllm;

use std::fmt;

use kvpipe::Result;

pub use self::collective::Collectives;
use self::items::Sizes;
pub use self::settings::{EDGE_MEETS_WITHIN, Settings, Wire};
use crate::draws::Draws;
use crate::world::Rank;

/// What the ranks of a world do.
#[derive(Clone, Debug)]
pub enum Software {
    /// They send each other items.
    Pipes(Workload),
    /// They compute together.
    Collectives(Collectives),
}

impl Software {
    /// How many ranks there are.
    #[must_use]
    pub fn ranks(&self) -> usize {
        match self {
            Self::Pipes(workload) => workload.ranks,
            Self::Collectives(collectives) => collectives.ranks,
        }
    }

    /// How many items each sender sends, or operations each group has.
    #[must_use]
    pub fn items(&self) -> usize {
        match self {
            Self::Pipes(workload) => workload.items,
            Self::Collectives(collectives) => collectives.items,
        }
    }

    /// The same with fewer of them.
    #[must_use]
    pub fn at_most(self, items: usize) -> Self {
        match self {
            Self::Pipes(workload) => Self::Pipes(workload.at_most(items)),
            Self::Collectives(collectives) => Self::Collectives(collectives.at_most(items)),
        }
    }

    /// What the software of a rank is.
    ///
    /// # Errors
    /// Why it could not begin.
    pub async fn run(self, rank: Rank) -> Result<()> {
        match self {
            Self::Pipes(workload) => workload.run(rank).await,
            Self::Collectives(collectives) => collectives.run(rank).await,
        }
    }
}

/// What the ranks of a world do with pipes.
#[derive(Clone, Debug)]
pub struct Workload {
    /// How many there are.
    pub ranks: usize,
    /// Who sends what.
    pub traffic: Traffic,
    /// How the pipes are set up.
    pub settings: Settings,
    /// How many items each sender sends, about.
    pub items: usize,
    /// How large they are.
    pub sizes: Sizes,
    /// Tasks that send on one pipe, and that receive.
    pub tasks: [usize; 2],
    /// How much time passes between calls.
    pub pace: Pace,
    /// Whether the ranks meet in a group before, and talk over it.
    pub group: bool,
    /// Whether they meet in a barrier after, too.
    pub parts_together: bool,
    /// How the ranks may leave, each in its own way; one that stands there twice is taken twice as often.
    pub endings: Vec<Ending>,
    /// How often a rank opens a new pipe when the one before has failed.
    pub reopens: usize,
}

/// Who sends what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Rank 0 to rank 1.
    Edge,
    /// Every rank to the next one, and the last one to the first.
    Ring,
    /// What a prefill and a decode worker of vLLM say to each other, over two pipes.
    Vllm {
        /// Answers come layer by layer, and there are so many.
        layers: Option<usize>,
    },
}

/// How much time passes between the calls of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Little, now and then.
    Brisk,
    /// Once, in the middle, senders do nothing for several heartbeat limits, and then send all at once.
    IdleThenBurst,
    /// Receivers take their time.
    SlowReceiver,
}

/// How a rank leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It sends everything, takes everything, and closes.
    Orderly,
    /// It stops receiving somewhere, and sends on.
    StopReceiving,
    /// It aborts its stream somewhere, and receives on.
    Abort,
    /// It drops everything somewhere.
    Drop,
}

impl Workload {
    /// What the software of a rank is.
    ///
    /// # Errors
    /// Why it could not begin. What becomes of its pipes is no error: the oracle judges that.
    pub async fn run(self, rank: Rank) -> Result<()> {
        match self.traffic {
            Traffic::Vllm { layers } => vllm::run(&self, rank, layers).await,
            Traffic::Edge | Traffic::Ring => program::run(&self, rank).await,
        }
    }

    /// The same with fewer items.
    #[must_use]
    pub fn at_most(self, items: usize) -> Self {
        Self { items: self.items.min(items), ..self }
    }
}

impl Pace {
    /// Drawn, the brisk one half of the time.
    #[must_use]
    pub fn drawn(draws: &Draws) -> Self {
        match draws.between(0..=7) {
            0 => Self::IdleThenBurst,
            1 | 2 => Self::SlowReceiver,
            _ => Self::Brisk,
        }
    }
}

impl fmt::Display for Software {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pipes(workload) => workload.fmt(f),
            Self::Collectives(collectives) => collectives.fmt(f),
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ranks, traffic, settings, items, tasks, pace, group, endings, reopens, .. } = self;
        let [senders, receivers] = tasks;
        let group = if *group { ", a group before" } else { "" };
        writeln!(f, "  {ranks} ranks, {traffic}{group}")?;
        writeln!(
            f,
            "  {items} items and a first one from each, {senders} sending and {receivers} receiving tasks, {pace}"
        )?;
        let mut ways: Vec<String> = endings.iter().map(Ending::to_string).collect();
        ways.dedup();
        write!(f, "  leaving: {}", ways.join(", or "))?;
        match reopens {
            0 => writeln!(f)?,
            new => writeln!(f, "; {new} new pipes after failures")?,
        }
        write!(f, "{settings}")
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Edge => f.write_str("rank 0 sends to rank 1"),
            Self::Ring => f.write_str("each sends to the next"),
            Self::Vllm { layers: None } => f.write_str("vLLM's requests and answers"),
            Self::Vllm { layers: Some(layers) } => {
                write!(f, "vLLM's requests, and answers in {layers} layers")
            }
        }
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Brisk => "brisk",
            Self::IdleThenBurst => "idle for long, then a burst",
            Self::SlowReceiver => "slow receivers",
        })
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Orderly => "close when all is done",
            Self::StopReceiving => "stop receiving",
            Self::Abort => "abort",
            Self::Drop => "drop everything",
        })
    }
}

//! What a benchmark of collectives says: a table that grows, or JSON lines.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::gloo::Gloo;
use super::step::{Contender, Way};
use crate::args::{CollectivesArgs, Operation};
use crate::bench::measurement::median;
use crate::bench::report::{row, significant};
use crate::failure::Failure;
use crate::output::Output;
use crate::units::{ByteSize, Count};

/// Shows what it is told, and counts who was faster.
pub(super) struct Report<'a> {
    output: &'a Output,
    beside_gloo: u64,
    ahead_of_gloo: u64,
}

/// One operation, of one size, by so many ranks.
pub(super) struct Measured {
    pub(super) operation: Operation,
    pub(super) ranks: u16,
    /// What each rank puts in, in bytes.
    pub(super) size: usize,
    pub(super) figures: Vec<Figure>,
}

/// One way to do it.
pub(super) struct Figure {
    pub(super) way: Way,
    /// Operations of a round.
    pub(super) count: u64,
    /// The time of one operation in each.
    pub(super) rounds: Vec<Duration>,
}

const COLUMNS: [(&str, usize); 9] = [
    ("OPERATION", 10),
    ("RANKS", 6),
    ("SIZE", 9),
    ("US", 11),
    ("GB/S", 8),
    ("GLOO US", 11),
    ("X GLOO", 8),
    ("LIMIT US", 11),
    ("X LIMIT", 9),
];

impl<'a> Report<'a> {
    pub(super) fn new(output: &'a Output) -> Self {
        Self { output, beside_gloo: 0, ahead_of_gloo: 0 }
    }

    /// What is being done.
    pub(super) fn doing(&self, what: impl fmt::Display) {
        self.output.doing(&what.to_string());
    }

    /// What is measured beside what, and the head of the table.
    pub(super) fn begin(&self, args: &CollectivesArgs, gloo: Result<&Gloo, &String>) -> Result<(), Failure> {
        let rounds = Count(u64::from(args.rounds), "round");
        self.output.text(format_args!("f32 between processes over TCP loopback; medians of {rounds}"))?;
        match gloo {
            Ok(gloo) => self
                .output
                .result(format_args!("beside {gloo}"), &Detail::Gloo { version: gloo.to_string() })?,
            Err(why) => self
                .output
                .result(format_args!("skipped: gloo: {why}"), &Detail::Skipped { what: "gloo", why })?,
        }
        self.output.text("")?;
        self.output.text(row(&COLUMNS, COLUMNS.map(|(name, _)| name.to_owned()).into()))
    }

    pub(super) fn measured(&mut self, measured: Measured) -> Result<(), Failure> {
        let Some([kvpipe, limit]) =
            measured.best(Contender::Kvpipe).zip(measured.best(Contender::Bare)).map(<[_; 2]>::from)
        else {
            return Err(Failure::new("bug in kvpipe: nothing was measured"));
        };
        let gloo = measured.best(Contender::Gloo);
        let Measured { operation, ranks, size, .. } = measured;
        let times = |other: f64| other / kvpipe;
        if let Some(gloo) = gloo {
            self.beside_gloo += 1;
            self.ahead_of_gloo += u64::from(gloo > kvpipe);
        }
        let result = match operation {
            Operation::AllReduce => size,
            Operation::AllGather => size * usize::from(ranks),
        };
        let line = Line {
            operation,
            ranks,
            size,
            us: significant(kvpipe),
            gigabytes_per_second: significant(result as f64 / kvpipe / 1e3),
            gloo_us: gloo.map(significant),
            gloo_ratio: gloo.map(times).map(significant),
            limit_us: significant(limit),
            limit_ratio: significant(times(limit)),
        };
        let or_dash = |cell: Option<String>| cell.unwrap_or_else(|| "-".into());
        let cells = vec![
            operation.to_string(),
            ranks.to_string(),
            ByteSize(size).to_string(),
            format!("{kvpipe:.1}"),
            format!("{:.2}", line.gigabytes_per_second),
            or_dash(gloo.map(|gloo| format!("{gloo:.1}"))),
            or_dash(gloo.map(|gloo| format!("{:.2}", times(gloo)))),
            format!("{limit:.1}"),
            format!("{:.2}", times(limit)),
        ];
        self.output.result(row(&COLUMNS, cells), &line)?;
        let ways = measured.figures.iter().map(JsonWay::from).collect();
        self.output.json(&Detail::Ways { operation, ranks, size, ways })
    }

    pub(super) fn end(&self) -> Result<(), Failure> {
        if self.beside_gloo == 0 {
            return Ok(());
        }
        let (ahead, figures) = (self.ahead_of_gloo, self.beside_gloo);
        self.output.text("")?;
        self.output.result(
            format_args!("ahead of gloo in {ahead} of {figures}"),
            &Detail::AheadOfGloo { ahead, figures },
        )
    }
}

impl Measured {
    /// Microseconds of one operation, in the fastest way; None if there is none.
    fn best(&self, contender: Contender) -> Option<f64> {
        let of_contender = self.figures.iter().filter(|figure| figure.way.contender() == contender);
        of_contender.map(|figure| median(figure.rounds.clone())).min().map(microseconds)
    }
}

fn microseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// The JSON line of a figure.
#[derive(Serialize)]
struct Line {
    operation: Operation,
    ranks: u16,
    size: usize,
    us: f64,
    #[serde(rename = "GBps")]
    gigabytes_per_second: f64,
    gloo_us: Option<f64>,
    gloo_ratio: Option<f64>,
    limit_us: f64,
    limit_ratio: f64,
}

/// JSON lines of what else is known, told from those by `detail`.
#[derive(Serialize)]
#[serde(tag = "detail", rename_all = "snake_case")]
enum Detail<'a> {
    Gloo { version: String },
    Skipped { what: &'static str, why: &'a str },
    Ways { operation: Operation, ranks: u16, size: usize, ways: Vec<JsonWay> },
    AheadOfGloo { ahead: u64, figures: u64 },
}

#[derive(Serialize)]
struct JsonWay {
    way: Way,
    count: u64,
    us: f64,
    fastest_us: f64,
    slowest_us: f64,
}

impl From<&Figure> for JsonWay {
    fn from(figure: &Figure) -> Self {
        let rounds = &figure.rounds;
        let us = |duration: Option<Duration>| significant(microseconds(duration.unwrap_or_default()));
        Self {
            way: figure.way,
            count: figure.count,
            us: us(Some(median(rounds.clone()))),
            fastest_us: us(rounds.iter().min().copied()),
            slowest_us: us(rounds.iter().max().copied()),
        }
    }
}

//! What a benchmark says: a table that grows, or JSON lines.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

use super::Plan;
use super::measurement::{Measurement, SizeMeasurement, Speed};
use crate::args::DemoTransport;
use crate::failure::Failure;
use crate::output::Output;
use crate::units::{ByteSize, Count};

/// Shows what it is told, and keeps what the plot needs.
pub(super) struct Report<'a> {
    plan: &'a Plan,
    output: &'a Output,
    sizes: Vec<SizeMeasurement>,
}

/// The most memory that each process had resident, where it is known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peaks {
    pub(super) sender: Option<u64>,
    pub(super) receiver: Option<u64>,
}

impl<'a> Report<'a> {
    pub(super) fn new(plan: &'a Plan, output: &'a Output) -> Self {
        Self { plan, output, sizes: Vec::new() }
    }

    pub(super) fn sizes(&self) -> &[SizeMeasurement] {
        &self.sizes
    }

    /// What is measured, and the head of the table.
    pub(super) fn begin(&self) -> Result<(), Failure> {
        let rounds = Count(u64::from(self.plan.rounds), "round");
        let buffer = Decimal(self.plan.buffer_size.0 as u64);
        match self.plan.transport {
            DemoTransport::Tcp => self.output.text(format_args!(
                "two processes over TCP loopback; up to {buffer} on the way; medians of {rounds}\n\n\
                     {:>9} {:>8} {:>8} {:>11} {:>7} {:>10} {:>10} {:>14} {:>10} {:>10}",
                "ITEM",
                "ITEMS",
                "GB/S",
                "SOCKET GB/S",
                "RATIO",
                "P50 US",
                "P99 US",
                "SOCKET P50 US",
                "ITS READS",
                "CRC COSTS"
            )),
            DemoTransport::Memory => self.output.text(format_args!(
                "two threads of one process; up to {buffer} on the way; medians of {rounds}; nothing is \
                     copied\n\n{:>9} {:>8} {:>12} {:>13} {:>7} {:>10} {:>10} {:>15}",
                "ITEM", "ITEMS", "ITEMS/S", "CHANNEL/S", "RATIO", "P50 US", "P99 US", "CHANNEL P50 US"
            )),
        }
    }

    pub(super) fn measured(&mut self, measured: Measurement) -> Result<(), Failure> {
        match measured {
            Measurement::Size(size) => {
                self.size(&size)?;
                self.sizes.push(size);
                Ok(())
            }
            Measurement::Nones { items, speed, limit } => self.nones(items, speed, limit),
            Measurement::RoundTrip { bytes, pipe_us, limit_us } => {
                let ratio = pipe_us / limit_us;
                let value = Detail::RoundTrip {
                    transport: self.transport(),
                    size: bytes,
                    p50_us: significant(pipe_us),
                    limit_p50_us: significant(limit_us),
                    ratio: significant(ratio),
                };
                self.output.result(
                    format_args!(
                        "round trip of {bytes} bytes  {pipe_us:.1} us; bare socket {limit_us:.1} us: {ratio:.2} times"
                    ),
                    &value,
                )
            }
        }
    }

    fn transport(&self) -> String {
        let name = self.plan.transport.to_possible_value();
        name.map_or_else(String::new, |name| name.get_name().to_owned())
    }

    fn size(&self, measured: &SizeMeasurement) -> Result<(), Failure> {
        let size = measured.size;
        let cost = measured.checksum_cost_percent();
        self.output.json(&Line {
            transport: self.transport(),
            size,
            items: measured.items,
            gigabytes_per_second: significant(measured.pipe.gigabytes(size)),
            limit_gigabytes_per_second: significant(measured.limit.gigabytes(size)),
            ratio: significant(measured.ratio()),
            p50_us: significant(measured.latency.p50_us),
            p99_us: significant(measured.latency.p99_us),
        })?;
        let value = Detail::Size {
            transport: self.transport(),
            size,
            limits: measured
                .limits
                .iter()
                .map(|limit| JsonLimit {
                    read_cap: limit.read_cap,
                    gigabytes_per_second: significant(limit.speed.gigabytes(size)),
                })
                .collect(),
            limit_p50_us: significant(measured.limit_latency.p50_us),
            limit_p99_us: significant(measured.limit_latency.p99_us),
            checksum_cost_percent: cost.map(significant),
        };
        match self.plan.transport {
            DemoTransport::Tcp => self.output.result(TcpRow(measured), &value),
            DemoTransport::Memory => self.output.result(MemoryRow(measured), &value),
        }
    }

    fn nones(&self, items: u64, speed: Speed, limit: Option<Speed>) -> Result<(), Failure> {
        let beside = limit.map_or_else(String::new, |limit| {
            format!("; channel {}: {:.2}", Thousands(limit.0), speed.0 / limit.0)
        });
        self.output.text("")?;
        self.output.result(
            format_args!("items without payload   {} a second{beside}", Thousands(speed.0)),
            &Detail::Nones {
                transport: self.transport(),
                items,
                items_per_second: significant(speed.0),
                limit_items_per_second: limit.map(|limit| significant(limit.0)),
            },
        )
    }

    pub(super) fn peaks(
        &self,
        peaks: &Peaks,
        buffer_size: ByteSize,
        largest: ByteSize,
    ) -> Result<(), Failure> {
        let bound = ByteSize(buffer_size.0.max(largest.0));
        let value = Detail::Memory {
            transport: self.transport(),
            size: largest.0,
            buffer_bytes: buffer_size.0,
            sender_peak_bytes: peaks.sender,
            receiver_peak_bytes: peaks.receiver,
        };
        let (Some(sender), Some(receiver)) = (peaks.sender, peaks.receiver) else {
            return self.output.result("peak memory             not known: this system has no /proc", &value);
        };
        let over = |peak: u64| (peak as f64 - bound.0 as f64) / f64::from(1 << 20);
        self.output.result(
            format_args!(
                "peak resident memory    {bound} {:+.0} MiB sender, {:+.0} MiB receiver; {bound} is the larger of \
                 buffer ({buffer_size}) and item ({largest})",
                over(sender),
                over(receiver),
            ),
            &value,
        )
    }

    /// What the columns mean.
    pub(super) fn end(&self) -> Result<(), Failure> {
        Ok(())
    }
}

impl SizeMeasurement {
    pub(super) fn ratio(&self) -> f64 {
        self.pipe.0 / self.limit.0
    }

    /// By how much the pipe is slower than without checksums.
    fn checksum_cost_percent(&self) -> Option<f64> {
        self.without_checksum.map(|without| 100.0 * (1.0 - self.pipe.0 / without.0))
    }

    fn best_reads(&self) -> String {
        let best = self.limits.iter().max_by(|a, b| a.speed.0.total_cmp(&b.speed.0));
        best.and_then(|best| best.read_cap)
            .map_or_else(|| "whole".to_owned(), |cap| ByteSize(cap).to_string())
    }
}

struct TcpRow<'a>(&'a SizeMeasurement);

impl fmt::Display for TcpRow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let measured = self.0;
        let size = measured.size;
        write!(
            f,
            "{:>9} {:>8} {:>8.2} {:>11.2} {:>7.2} {:>10.1} {:>10.1} {:>14.1} {:>10} {:>8.1} %",
            ByteSize(size).to_string(),
            measured.items,
            measured.pipe.gigabytes(size),
            measured.limit.gigabytes(size),
            measured.ratio(),
            measured.latency.p50_us,
            measured.latency.p99_us,
            measured.limit_latency.p50_us,
            measured.best_reads(),
            measured.checksum_cost_percent().unwrap_or(0.0),
        )
    }
}

struct MemoryRow<'a>(&'a SizeMeasurement);

impl fmt::Display for MemoryRow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let measured = self.0;
        write!(
            f,
            "{:>9} {:>8} {:>12} {:>13} {:>7.2} {:>10.1} {:>10.1} {:>15.1}",
            ByteSize(measured.size).to_string(),
            measured.items,
            Thousands(measured.pipe.0).to_string(),
            Thousands(measured.limit.0).to_string(),
            measured.ratio(),
            measured.latency.p50_us,
            measured.latency.p99_us,
            measured.limit_latency.p50_us,
        )
    }
}

/// The JSON line of a size.
#[derive(Serialize)]
struct Line {
    transport: String,
    size: usize,
    items: u64,
    #[serde(rename = "GBps")]
    gigabytes_per_second: f64,
    #[serde(rename = "limit_GBps")]
    limit_gigabytes_per_second: f64,
    ratio: f64,
    p50_us: f64,
    p99_us: f64,
}

/// JSON lines of what else is known, told from those by `detail`.
#[derive(Serialize)]
#[serde(tag = "detail", rename_all = "snake_case")]
enum Detail {
    Size {
        transport: String,
        size: usize,
        limits: Vec<JsonLimit>,
        limit_p50_us: f64,
        limit_p99_us: f64,
        checksum_cost_percent: Option<f64>,
    },
    Nones {
        transport: String,
        items: u64,
        items_per_second: f64,
        limit_items_per_second: Option<f64>,
    },
    RoundTrip {
        transport: String,
        size: usize,
        p50_us: f64,
        limit_p50_us: f64,
        ratio: f64,
    },
    Memory {
        transport: String,
        size: usize,
        buffer_bytes: usize,
        sender_peak_bytes: Option<u64>,
        receiver_peak_bytes: Option<u64>,
    },
}

#[derive(Serialize)]
struct JsonLimit {
    read_cap: Option<usize>,
    #[serde(rename = "GBps")]
    gigabytes_per_second: f64,
}

/// Four digits: the rest is noise.
fn significant(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// `1,234,567`
struct Thousands(f64);

impl fmt::Display for Thousands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:.0}", self.0);
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// Bytes in powers of 1000 where they are round in those.
struct Decimal(u64);

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "KB")] {
            if self.0 > 0 && self.0.is_multiple_of(unit) {
                return write!(f, "{} {name}", self.0 / unit);
            }
        }
        usize::try_from(self.0).map_or(Ok(()), |bytes| write!(f, "{}", ByteSize(bytes)))
    }
}

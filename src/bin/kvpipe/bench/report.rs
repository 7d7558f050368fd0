//! What a benchmark says: a table that grows, or JSON lines.

use std::fmt;

use serde::Serialize;

use super::Plan;
use super::measurement::{LimitWay, Measurement, SizeMeasurement, Speed};
use crate::args::{BenchTransport, name_of};
use crate::failure::Failure;
use crate::gpu::Loaded;
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
        let between = match self.plan.transport {
            BenchTransport::Tcp => "two processes over TCP loopback",
            BenchTransport::Nccl => "two processes, by NCCL",
            BenchTransport::Memory => "two threads of one process, nothing is copied",
        };
        let buffer = self.plan.buffer_size;
        let rounds = Count(u64::from(self.plan.rounds), "round");
        let columns = self.columns();
        let head = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        self.output.text(format_args!("{between}; up to {buffer} on the way; medians of {rounds}"))?;
        if let (Some(placement), Some(library)) = (&self.plan.placement, &self.plan.library) {
            self.output.text(format_args!("{placement}\n{}", Loaded(library)))?;
        }
        self.output.text("")?;
        self.output.text(row(columns, head))
    }

    /// Their names, and how wide they are.
    fn columns(&self) -> &'static [(&'static str, usize)] {
        match self.plan.transport {
            BenchTransport::Tcp => &[
                ("ITEM", 9),
                ("ITEMS", 9),
                ("GB/S", 8),
                ("SOCKET", 8),
                ("RATIO", 7),
                ("P50 US", 10),
                ("P99 US", 10),
                ("SOCKET P50", 12),
                ("SOCKET READS", 14),
                ("CRC COSTS", 11),
            ],
            BenchTransport::Nccl => &[
                ("ITEM", 9),
                ("ITEMS", 8),
                ("GB/S", 8),
                ("NCCL", 8),
                ("RATIO", 7),
                ("P50 US", 10),
                ("P99 US", 10),
                ("NCCL P50", 9),
                ("GROUPS OF", 10),
            ],
            BenchTransport::Memory => &[
                ("ITEM", 9),
                ("ITEMS", 9),
                ("ITEMS/S", 12),
                ("CHANNEL", 12),
                ("RATIO", 7),
                ("P50 US", 10),
                ("P99 US", 10),
                ("CHANNEL P50", 13),
            ],
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
                let bare = if self.plan.placement.is_some() { "bare NCCL" } else { "bare socket" };
                let value = Detail::RoundTrip {
                    transport: self.transport(),
                    size: bytes,
                    p50_us: significant(pipe_us),
                    limit_p50_us: significant(limit_us),
                    ratio: significant(ratio),
                };
                self.output.result(
                    format_args!(
                        "{:<26} {pipe_us:.1} us; {bare} {limit_us:.1} us: {ratio:.2} times as long",
                        format!("{bytes} bytes there and back")
                    ),
                    &value,
                )
            }
        }
    }

    fn transport(&self) -> String {
        name_of(&self.plan.transport)
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
                    by: limit.by,
                    gigabytes_per_second: significant(limit.speed.gigabytes(size)),
                })
                .collect(),
            limit_p50_us: significant(measured.limit_latency.p50_us),
            limit_p99_us: significant(measured.limit_latency.p99_us),
            checksum_cost_percent: cost.map(significant),
        };
        let cells = match self.plan.transport {
            BenchTransport::Tcp => tcp_cells(measured),
            BenchTransport::Nccl => nccl_cells(measured),
            BenchTransport::Memory => memory_cells(measured),
        };
        self.output.result(row(self.columns(), cells), &value)
    }

    fn nones(&self, items: u64, speed: Speed, limit: Option<Speed>) -> Result<(), Failure> {
        let beside = limit.map_or_else(String::new, |limit| {
            format!("; channel {}: ratio {:.2}", Thousands(limit.0), speed.0 / limit.0)
        });
        self.output.text("")?;
        self.output.result(
            format_args!("items without payload      {} a second{beside}", Thousands(speed.0)),
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
        let value = Detail::Memory {
            transport: self.transport(),
            size: largest.0,
            buffer_bytes: buffer_size.0,
            sender_peak_bytes: peaks.sender,
            receiver_peak_bytes: peaks.receiver,
        };
        let (Some(sender), Some(receiver)) = (peaks.sender, peaks.receiver) else {
            return self
                .output
                .result("peak memory                not known: this system has no /proc", &value);
        };
        let mebibytes = |bytes: u64| bytes.div_ceil(1 << 20);
        self.output.result(
            format_args!(
                "peak memory                sender {} MiB, receiver {} MiB; buffers of {buffer_size}, items up to {largest}",
                mebibytes(sender),
                mebibytes(receiver),
            ),
            &value,
        )
    }
}

impl SizeMeasurement {
    pub(super) fn ratio(&self) -> f64 {
        self.pipe.0 / self.limit.0
    }

    /// By how much the pipe is slower with checksums.
    fn checksum_cost_percent(&self) -> Option<f64> {
        self.with_checksum.map(|with| 100.0 * (1.0 - with.0 / self.pipe.0))
    }

    fn best_limit(&self) -> String {
        let best = self.limits.iter().max_by(|a, b| a.speed.0.total_cmp(&b.speed.0));
        match best.map(|best| best.by) {
            Some(LimitWay::ReadCap(Some(cap))) => ByteSize(cap).to_string(),
            Some(LimitWay::GroupItems(items)) => items.to_string(),
            Some(LimitWay::ReadCap(None)) | None => "whole".to_owned(),
        }
    }
}

fn tcp_cells(measured: &SizeMeasurement) -> Vec<String> {
    let cost = measured.checksum_cost_percent();
    let mut cells = nccl_cells(measured);
    cells.push(cost.map_or_else(String::new, |percent| format!("{percent:.1} %")));
    cells
}

fn nccl_cells(measured: &SizeMeasurement) -> Vec<String> {
    let size = measured.size;
    vec![
        ByteSize(size).to_string(),
        measured.items.to_string(),
        format!("{:.2}", measured.pipe.gigabytes(size)),
        format!("{:.2}", measured.limit.gigabytes(size)),
        format!("{:.2}", measured.ratio()),
        format!("{:.1}", measured.latency.p50_us),
        format!("{:.1}", measured.latency.p99_us),
        format!("{:.1}", measured.limit_latency.p50_us),
        measured.best_limit(),
    ]
}

fn memory_cells(measured: &SizeMeasurement) -> Vec<String> {
    vec![
        ByteSize(measured.size).to_string(),
        measured.items.to_string(),
        Thousands(measured.pipe.0).to_string(),
        Thousands(measured.limit.0).to_string(),
        format!("{:.2}", measured.ratio()),
        format!("{:.1}", measured.latency.p50_us),
        format!("{:.1}", measured.latency.p99_us),
        format!("{:.1}", measured.limit_latency.p50_us),
    ]
}

/// A line of the table, every cell to the right of its column.
pub(super) fn row(columns: &[(&str, usize)], cells: Vec<String>) -> String {
    columns.iter().zip(cells).map(|((_, width), cell)| format!("{cell:>width$}")).collect()
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
    #[serde(flatten)]
    by: LimitWay,
    #[serde(rename = "GBps")]
    gigabytes_per_second: f64,
}

/// Four digits: the rest is noise.
pub(super) fn significant(value: f64) -> f64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in [(0.0, "0"), (999.4, "999"), (1000.0, "1,000"), (1_234_567.8, "1,234,568")] {
            assert_eq!(Thousands(number).to_string(), text);
        }
    }

    #[test]
    fn four_digits_are_kept_of_any_magnitude() {
        for (value, kept) in [(0.0, 0.0), (0.000_123_456, 0.000_123_5), (123_456.0, 123_500.0)] {
            assert_eq!(significant(value).to_bits(), f64::to_bits(kept));
        }
    }
}

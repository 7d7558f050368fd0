//! What a demo says at its end.

use std::fmt::{self, Write as _};
use std::time::Duration;

use kvpipe::device::Location;
use kvpipe::nccl::Library;
use serde::{Deserialize, Serialize};

use super::workload;
use crate::args::{DemoArgs, DemoTransport, Wire, name_of};
use crate::failure::Failure;
use crate::gpu::Placement;
use crate::output::Output;
use crate::units::Size;

/// What one rank has received from the previous one, checked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RankReport {
    pub(super) rank: usize,
    /// Tensors and Nones.
    items: u64,
    /// Of payload.
    bytes: u64,
    elapsed_ns: u64,
    /// What bare sockets would have taken; None where there are none.
    limit_ns: Option<u64>,
    /// The time that each item took.
    latencies_ns: Vec<u64>,
}

impl RankReport {
    pub(super) fn new(rank: usize) -> Self {
        Self { rank, items: 0, bytes: 0, elapsed_ns: 0, limit_ns: None, latencies_ns: Vec::new() }
    }

    pub(super) fn add(&mut self, items: usize, bytes: u64, elapsed: Duration, latencies: &[Duration]) {
        self.items += items as u64;
        self.bytes += bytes;
        self.elapsed_ns += nanoseconds(elapsed);
        self.latencies_ns.extend(latencies.iter().copied().map(nanoseconds));
    }

    /// What bare sockets would have taken for the request that was added.
    pub(super) fn add_limit(&mut self, elapsed: Duration) {
        *self.limit_ns.get_or_insert(0) += nanoseconds(elapsed);
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What the ranks ran on; nothing on host memory.
pub(super) struct Devices<'a> {
    pub(super) placement: Option<&'a Placement>,
    pub(super) library: Option<&'a Library>,
}

/// Shows the table, or the JSON line.
pub(super) fn show(
    args: &DemoArgs,
    devices: Devices<'_>,
    ranks: &[RankReport],
    output: &Output,
) -> Result<(), Failure> {
    let summary = Summary::new(args, devices, ranks);
    output.result(Table(&summary), &summary)
}

/// The last line with `--json`.
#[derive(Serialize)]
struct Summary {
    /// Always true: a mismatch is a failure and has no summary.
    verified: bool,
    #[serde(flatten)]
    total: Row,
    ranks: usize,
    /// Null with `--input`.
    model: Option<String>,
    /// Of all requests of one rank; null with `--input`.
    tokens: Option<usize>,
    transport: String,
    wire: String,
    /// Of each rank.
    devices: Vec<String>,
    /// Its version; null on other transports.
    nccl: Option<String>,
    edges: Vec<Edge>,
}

#[derive(Serialize)]
struct Edge {
    from: usize,
    to: usize,
    #[serde(flatten)]
    row: Row,
}

#[derive(Serialize)]
struct Row {
    items: u64,
    bytes: u64,
    seconds: f64,
    #[serde(rename = "GBps")]
    gigabytes_per_second: f64,
    /// Of bare sockets; null in memory, by NCCL, and where no payload was moved.
    #[serde(rename = "limit_GBps")]
    limit_gigabytes_per_second: Option<f64>,
    /// Our share of it.
    ratio: Option<f64>,
    p50_us: f64,
    p99_us: f64,
}

impl Summary {
    fn new(args: &DemoArgs, devices: Devices<'_>, ranks: &[RankReport]) -> Self {
        let world_size = ranks.len();
        let edges = ranks.iter().map(|report| Edge {
            from: (report.rank + world_size - 1) % world_size,
            to: report.rank,
            row: Row::new(
                report.items,
                report.bytes,
                report.elapsed_ns,
                report.limit_ns,
                report.latencies_ns.clone(),
            ),
        });
        // All edges work at the same time, so the total lasts as long as the slowest.
        let total = Row::new(
            ranks.iter().map(|report| report.items).sum(),
            ranks.iter().map(|report| report.bytes).sum(),
            ranks.iter().map(|report| report.elapsed_ns).max().unwrap_or(0),
            ranks.iter().map(|report| report.limit_ns).max().flatten(),
            ranks.iter().flat_map(|report| report.latencies_ns.iter().copied()).collect(),
        );
        let model = args.workload.input.is_none().then(|| name_of(&args.workload.model));
        Self {
            verified: true,
            total,
            ranks: world_size,
            model,
            tokens: workload::tokens(&args.workload),
            transport: name_of(&args.transport.unwrap_or(match args.wire {
                _ if devices.placement.is_some() => DemoTransport::Nccl,
                Wire::Native => DemoTransport::Tcp,
                Wire::Vllm => DemoTransport::Store,
            })),
            wire: name_of(&args.wire),
            devices: (0..world_size)
                .map(|rank| devices.placement.map_or(Location::Cpu, |placement| placement.location(rank)))
                .map(|location| location.to_string())
                .collect(),
            nccl: devices.library.map(|library| library.version().to_string()),
            edges: edges.collect(),
        }
    }
}

impl Row {
    fn new(
        items: u64,
        bytes: u64,
        elapsed_ns: u64,
        limit_ns: Option<u64>,
        mut latencies_ns: Vec<u64>,
    ) -> Self {
        latencies_ns.sort_unstable();
        // Bytes in a nanosecond are gigabytes in a second.
        let speed = |nanoseconds: u64| bytes as f64 / nanoseconds.max(1) as f64;
        let gigabytes_per_second = speed(elapsed_ns);
        let limit = limit_ns.filter(|_| bytes > 0).map(speed);
        Self {
            items,
            bytes,
            seconds: elapsed_ns as f64 / 1e9,
            gigabytes_per_second,
            limit_gigabytes_per_second: limit,
            ratio: limit.map(|limit| gigabytes_per_second / limit),
            p50_us: percentile(&latencies_ns, 50) as f64 / 1e3,
            p99_us: percentile(&latencies_ns, 99) as f64 / 1e3,
        }
    }
}

/// The nearest-rank percentile of sorted values: the smallest that `percent` of them don't exceed.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

struct Table<'a>(&'a Summary);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { total, edges, transport, .. } = self.0;
        writeln!(
            f,
            "{:<9} {:>7} {:>11} {:>8} {:>7} {:>10} {:>9} {:>9}",
            "RANKS", "ITEMS", "BYTES", "SECONDS", "GB/S", "OF SOCKET", "P50 US", "P99 US"
        )?;
        let mut ranks = String::new();
        for Edge { from, to, row } in edges {
            ranks.clear();
            write!(ranks, "{from} to {to}")?;
            writeln!(f, "{ranks:<9} {row}")?;
        }
        writeln!(f, "{:<9} {total}", "all")?;
        if transport == &name_of(&DemoTransport::Memory) {
            writeln!(f, "in memory nothing is copied: the speed is that of handing over references")?;
        }
        if transport == &name_of(&DemoTransport::Nccl) {
            writeln!(f, "kvpipe bench --transport nccl has the speed of bare NCCL beside that of a pipe")?;
        }
        write!(f, "every dtype, shape, None and byte was as sent")
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { items, bytes, seconds, gigabytes_per_second, ratio, p50_us, p99_us, .. } = self;
        let share = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.0} %", 100.0 * ratio));
        let bytes = Size(*bytes).to_string();
        write!(
            f,
            "{items:>7} {bytes:>11} {seconds:>8.3} {gigabytes_per_second:>7.2} {share:>10} {p50_us:>9.1} {p99_us:>9.1}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!((percentile(&hundred, 50), percentile(&hundred, 99)), (50, 99));
        assert_eq!((percentile(&[7], 50), percentile(&[7], 99)), (7, 7));
        assert_eq!(percentile(&[], 50), 0);
    }

    #[test]
    fn gigabytes_are_decimal() {
        let row = Row::new(1, 2_000_000_000, 500_000_000, Some(250_000_000), vec![1500]);
        assert_eq!((row.gigabytes_per_second, row.seconds, row.p50_us), (4.0, 0.5, 1.5));
        assert_eq!((row.limit_gigabytes_per_second, row.ratio), (Some(8.0), Some(0.5)));
    }
}

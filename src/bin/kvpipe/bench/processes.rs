//! The parent of the two processes: starts them, and passes on what they find out.

use std::ffi::OsString;
use std::net::SocketAddr;

use super::Plan;
use super::peer::Event;
use super::report::{Peaks, Report};
use crate::args::{BenchRole, name_of};
use crate::children::Children;
use crate::failure::Failure;
use crate::output::Output;
use crate::serve::StopSignals;
use crate::units::ByteSize;

/// One pair of processes for the speed; then one for the memory, which must not have had anything to
/// do with bare sockets and their buffers.
pub(super) async fn run(
    plan: &Plan,
    report: &mut Report<'_>,
    output: &Output,
    stop: &mut StopSignals,
) -> Result<(), Failure> {
    pair(plan, plan.buffer_size, false, report, output, stop).await?;
    if plan.placement.is_some() {
        // It is the device's memory that counts there.
        return Ok(());
    }
    output.doing("peak memory");
    let buffer_size = ByteSize(plan.buffer_size.0.min(FILLED_BYTES_MAX));
    let peaks = pair(plan, buffer_size, true, report, output, stop).await?;
    let largest = plan.sizes.iter().map(|size| size.0).max().unwrap_or(0);
    report.peaks(&peaks, buffer_size, ByteSize(largest))
}

/// Filling more takes time and says the same.
const FILLED_BYTES_MAX: usize = 256 << 20;

async fn pair(
    plan: &Plan,
    buffer_size: ByteSize,
    memory: bool,
    report: &mut Report<'_>,
    output: &Output,
    stop: &mut StopSignals,
) -> Result<Peaks, Failure> {
    let mut children = Children::new(output)?;
    let outcome = tokio::select! {
        biased;
        peaks = follow(plan, buffer_size, memory, report, output, &mut children) => peaks,
        signal = stop.received() => Err(Failure::new(format!("stopped by {signal}"))),
    };
    children.end_all().await;
    outcome
}

async fn follow(
    plan: &Plan,
    buffer_size: ByteSize,
    memory: bool,
    report: &mut Report<'_>,
    output: &Output,
    children: &mut Children<Event>,
) -> Result<Peaks, Failure> {
    let arguments = |role, store| arguments(plan, buffer_size, memory, role, store);
    children.start(
        "the receiver".into(),
        arguments(BenchRole::Receive, None),
        plan.environment(BenchRole::Receive),
    )?;
    let mut peaks = Peaks::default();
    while let Some(event) = children.next().await? {
        match event {
            Event::Store(store) => children.start(
                "the sender".into(),
                arguments(BenchRole::Send, Some(store)),
                plan.environment(BenchRole::Send),
            )?,
            Event::Measuring(what) => output.doing(&what),
            Event::Measured(measured) => report.measured(measured)?,
            Event::Peak { sends: true, bytes } => peaks.sender = bytes,
            Event::Peak { sends: false, bytes } => peaks.receiver = bytes,
        }
    }
    Ok(peaks)
}

/// The command line of one of them.
fn arguments(
    plan: &Plan,
    buffer_size: ByteSize,
    memory: bool,
    role: BenchRole,
    store: Option<SocketAddr>,
) -> Vec<OsString> {
    let sizes: Vec<String> = plan.sizes.iter().map(|size| size.0.to_string()).collect();
    let mut line: Vec<OsString> = vec!["bench-peer".into()];
    let mut option = |name: &str, value: String| line.extend([name.into(), value.into()]);
    if let Some(placement) = &plan.placement {
        option("--device", placement.location(role.rank()).to_string());
    }
    option("--role", name_of(&role));
    option("--transport", name_of(&plan.transport));
    option("--sizes", sizes.join(","));
    option("--buffer-size", buffer_size.0.to_string());
    option("--rounds", plan.rounds.to_string());
    option("--seconds", plan.seconds.to_string());
    if let Some(store) = store {
        option("--store", store.to_string());
    }
    if let Some(path) = &plan.nccl {
        line.extend(["--nccl".into(), path.into()]);
    }
    if memory {
        line.push("--memory".into());
    }
    line
}

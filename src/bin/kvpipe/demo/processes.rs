//! Ranks as processes of their own: the parent that starts them, and what each of them does.
//!
//! Nobody guesses a free port. Rank 0 binds its store to port 0 and tells the parent which it got, on
//! its standard output; the parent starts the others with it. What a rank prints are [`Event`]s, one
//! JSON line each.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;

use kvpipe::config::Location;
use kvpipe::group::StatelessProcessGroup;
use kvpipe::net::TokioNet;
use kvpipe::transport::Ring;
use kvpipe::transport::nccl::{HandOut, NcclTransport};
use kvpipe::transport::store::StoreTransport;
use kvpipe::transport::tcp::TcpTransport;
use serde::{Deserialize, Serialize};

use super::bare::BareEdges;
use super::exchange::{self, Workloads};
use super::report::RankReport;
use crate::args::{DemoArgs, DemoRankArgs, Path, name_of};
use crate::children::Children;
use crate::endpoint::{self, DemoPlan, Way};
use crate::failure::Failure;
use crate::output::Output;
use crate::rendezvous::{Rendezvous, reachable};
use crate::serve::StopSignals;
use crate::vllm::VllmEdges;

/// What a rank tells its parent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Event {
    /// Rank 0's store listens here.
    Store(SocketAddr),
    /// So many bytes more were received and checked.
    Checked(u64),
    /// All is done.
    Done(RankReport),
}

/// Starts all ranks and waits for them. If one fails, or a signal comes, all are killed, and are gone
/// when this returns.
pub(super) async fn run(
    args: &DemoArgs,
    plan: &DemoPlan,
    path: Path,
    output: &Output,
    stop: &mut StopSignals,
) -> Result<Vec<RankReport>, Failure> {
    let mut ranks = Children::new(output)?;
    let outcome = tokio::select! {
        biased;
        reports = follow(args, plan, path, output, &mut ranks) => reports,
        signal = stop.received() => Err(Failure::new(format!("stopped by {signal}"))),
    };
    ranks.end_all().await;
    outcome
}

async fn follow(
    args: &DemoArgs,
    plan: &DemoPlan,
    path: Path,
    output: &Output,
    ranks: &mut Children<Event>,
) -> Result<Vec<RankReport>, Failure> {
    let start = |ranks: &mut Children<Event>, rank: u16, store| {
        let placement = plan.placement.as_ref();
        let environment = placement.map(|placement| placement.environment(usize::from(rank)));
        let environment = environment.unwrap_or_default();
        ranks.start(format!("rank {rank}"), arguments(args, plan, path, rank, store), environment)
    };
    start(ranks, 0, plan.store)?;
    let mut reports = Vec::new();
    let mut checked = 0;
    while let Some(event) = ranks.next().await? {
        match event {
            Event::Store(address) => {
                for rank in 1..plan.ranks {
                    start(ranks, rank, address)?;
                }
            }
            Event::Checked(bytes) => {
                checked += bytes;
                output.progress(checked, "moved and checked");
            }
            Event::Done(report) => reports.push(report),
        }
    }
    if reports.len() < usize::from(plan.ranks) {
        return Err(Failure::new(format!("only {} of {} ranks reported", reports.len(), plan.ranks)));
    }
    reports.sort_by_key(|report: &RankReport| report.rank);
    Ok(reports)
}

/// The command line of a rank.
fn arguments(args: &DemoArgs, plan: &DemoPlan, path: Path, rank: u16, store: SocketAddr) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec!["demo-rank".into()];
    let mut option = |name: &str, value: OsString| line.extend([name.into(), value]);
    option("--rank", rank.to_string().into());
    option("--world-size", plan.ranks.to_string().into());
    option("--timeout", plan.timeout.to_string().into());
    option("--path", name_of(&path).into());
    option("--store", store.to_string().into());
    match &args.workload.input {
        Some(path) => option("--input", path.into()),
        None => option("--model", name_of(&args.workload.model).into()),
    }
    if let Some(tokens) = args.workload.tokens {
        option("--tokens", tokens.to_string().into());
    }
    if let Some(bytes) = plan.pipe.buffer_size {
        option("--buffer-size", bytes.0.to_string().into());
    }
    if let Some(bytes) = plan.pipe.max_item_size {
        option("--max-item-size", bytes.0.to_string().into());
    }
    if let Some(path) = &plan.pipe.secret_file {
        option("--secret-file", path.into());
    }
    if let Some(placement) = &plan.placement {
        option("--device", placement.location(usize::from(rank)).to_string().into());
    }
    if let Some(path) = &args.device.nccl {
        option("--nccl", path.into());
    }
    if plan.pipe.checksum {
        line.push("--checksum".into());
    }
    line
}

/// A rank, as its own process.
pub(crate) async fn run_rank(args: DemoRankArgs) -> Result<ExitCode, Failure> {
    let ring = Ring::new(args.rank, args.world_size).map_err(|error| Failure::usage(error.to_string()))?;
    let output = Output::new(true);
    let rendezvous = Rendezvous::of_children(args.store, ring, args.timeout.0).await?;
    if let Some(address) = rendezvous.served_at() {
        tell_parent(&output, &Event::Store(reachable(address)))?;
    }
    let report = exchange_all(&args, ring, &rendezvous, &output).await?;
    tell_parent(&output, &Event::Done(report))?;
    rendezvous.leave(&output).await;
    Ok(ExitCode::SUCCESS)
}

async fn exchange_all(
    args: &DemoRankArgs,
    ring: Ring,
    rendezvous: &Rendezvous,
    output: &Output,
) -> Result<RankReport, Failure> {
    let timeout = args.timeout.0;
    let store = rendezvous.store();
    let group = if args.path.is_vllms() { "" } else { "demo" };
    let location = args.device.device.map_or(Location::Cpu, |device| device.location(ring.rank()));
    let control = endpoint::tcp_config(&args.pipe, group, timeout)?;
    let way = Way::new(args.path, control, &args.device, location, HandOut::OnDevice)?;
    let gpu = way.gpu();
    let workloads = Workloads::new(&args.workload, ring, gpu.map(|gpu| gpu.device))?;
    let limits = endpoint::pipe_config(&args.pipe, timeout);
    let bare = match args.path.by_nccl() {
        true => None,
        false => Some(BareEdges::connect(&store, ring, limits.budget_bytes, timeout).await?),
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (pipe, driver) = match way {
        Way::Tcp(config) => {
            let transport = TcpTransport::bind(TokioNet, store.clone(), ring, address, config).await?;
            exchange::pipe(transport, limits)
        }
        Way::Store(config) => exchange::pipe(StoreTransport::new(store.clone(), ring, config), limits),
        Way::Nccl(config) => {
            let transport = NcclTransport::bind(TokioNet, store.clone(), ring, address, config).await?;
            exchange::pipe(transport, limits)
        }
        Way::Vllm(config) => {
            let (rank, size) = (ring.rank(), ring.world_size());
            let group = StatelessProcessGroup::new(store.clone(), rank, size, config.group)?;
            match VllmEdges::meet(Arc::new(group), &config.payloads).await? {
                VllmEdges::Store(transport) => exchange::pipe(transport, limits),
                VllmEdges::Nccl(transport) => exchange::pipe(*transport, limits),
            }
        }
    };
    tokio::spawn(driver);
    exchange::run(&pipe, &store, ring, &workloads, bare, timeout, |bytes| {
        tell_parent(output, &Event::Checked(bytes))
    })
    .await
}

fn tell_parent(output: &Output, event: &Event) -> Result<(), Failure> {
    output.json(event)
}

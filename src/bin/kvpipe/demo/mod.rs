//! `kvpipe demo`: ranks that send each other a KV cache and check every byte.

mod bare;
mod exchange;
mod processes;
mod report;
mod workload;

use std::process::ExitCode;

use kvpipe::store::MemoryStore;
use kvpipe::transport::{Ring, memory};
use tokio::task::JoinSet;

pub(crate) use self::processes::run_rank;
use self::report::{Devices, RankReport};
use self::workload::Workload;
use crate::args::DemoArgs;
use crate::endpoint::{self, DemoPlan};
use crate::failure::Failure;
use crate::gpu::{self, Loaded};
use crate::output::Output;
use crate::serve::StopSignals;

/// Runs all ranks, then shows what was moved and how fast.
pub(crate) async fn run(args: DemoArgs) -> Result<ExitCode, Failure> {
    let plan = DemoPlan::new(&args).await?;
    let path = args.path()?;
    let library = match &plan.placement {
        Some(_) => Some(gpu::library(args.device.nccl.as_deref())?),
        None => None,
    };
    let first = Workload::new(&args.workload, 0)?;
    let output = Output::new(args.json).with_progress(Some(first.bytes() * u64::from(plan.ranks)));
    output.text(format_args!("each of {} ranks sends {}", plan.ranks, first.describe()))?;
    if let (Some(placement), Some(library)) = (&plan.placement, &library) {
        output.text(format_args!("{placement}\n{}", Loaded(library)))?;
    }
    drop(first);
    let mut stop = StopSignals::new()?;
    let reports = match path {
        Some(path) => processes::run(&args, &plan, path, &output, &mut stop).await,
        None => in_memory(&args, &plan, &mut stop).await,
    };
    output.finish_progress();
    let devices = Devices { placement: plan.placement.as_ref(), library: library.as_deref() };
    report::show(&args, devices, &reports?, &output)?;
    Ok(ExitCode::SUCCESS)
}

/// All ranks as tasks of this process.
async fn in_memory(
    args: &DemoArgs,
    plan: &DemoPlan,
    stop: &mut StopSignals,
) -> Result<Vec<RankReport>, Failure> {
    let world_size = usize::from(plan.ranks);
    let store = MemoryStore::new();
    let config = endpoint::pipe_config(&plan.pipe, plan.timeout.0);
    let mut ranks = JoinSet::new();
    for (rank, transport) in memory::ring(world_size).into_iter().enumerate() {
        let ring = Ring::new(rank, world_size)?;
        let (store, config, workload) = (store.clone(), config.clone(), args.workload.clone());
        let patience = plan.timeout.0;
        ranks.spawn(async move {
            let workloads = exchange::Workloads::new(&workload, ring, None)?;
            let (pipe, driver) = exchange::pipe(transport, config);
            tokio::spawn(driver);
            exchange::run(&pipe, &store, ring, &workloads, None, patience, |_| Ok(())).await
        });
    }
    let outcome = tokio::select! {
        biased;
        reports = all(&mut ranks) => reports,
        signal = stop.received() => Err(Failure::new(format!("stopped by {signal}"))),
    };
    ranks.shutdown().await;
    outcome
}

/// The ranks' reports, by rank; or the first failure.
async fn all(ranks: &mut JoinSet<Result<RankReport, Failure>>) -> Result<Vec<RankReport>, Failure> {
    let mut reports = Vec::new();
    while let Some(ended) = ranks.join_next().await {
        reports.push(
            ended.map_err(|error| Failure::new(format!("bug in kvpipe: a rank's task ended: {error}")))??,
        );
    }
    reports.sort_by_key(|report| report.rank);
    Ok(reports)
}

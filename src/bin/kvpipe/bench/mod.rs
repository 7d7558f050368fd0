//! `kvpipe bench`: throughput and latency by item size, beside the limit of the same run; and
//! [`collectives`], of which the same is asked.

pub(crate) mod collectives;
mod control;
mod items;
pub(crate) mod limit;
mod measurement;
mod memory;
mod peer;
mod plot;
mod processes;
mod raw;
mod receiver;
mod report;
mod sender;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use kvpipe::PipeConfig;
use kvpipe::nccl::Library;

pub(crate) use self::peer::run_peer;
use self::plot::PlotFile;
use self::report::Report;
use crate::args::{BenchArgs, BenchRole, BenchTransport, OtherBench, Path, Wire, WireTransport};
use crate::endpoint;
use crate::failure::Failure;
use crate::gpu::{self, Placement};
use crate::output::Output;
use crate::serve::StopSignals;
use crate::units::{ByteSize, Seconds};

/// Measures everything, and shows each figure once it is known.
pub(crate) async fn run(args: BenchArgs) -> Result<ExitCode, Failure> {
    if let Some(OtherBench::Collectives(args)) = args.other {
        return collectives::run(args).await;
    }
    let plan = Plan::new(&args)?;
    let output = Output::new(args.json).with_spinner();
    // Before minutes are spent on figures that can't be drawn.
    let plot = args.plot.as_deref().map(PlotFile::create).transpose()?;
    let mut stop = StopSignals::new()?;
    let mut report = Report::new(&plan, &output);
    report.begin()?;
    let outcome = match plan.transport {
        BenchTransport::Tcp | BenchTransport::Nccl => {
            processes::run(&plan, &mut report, &output, &mut stop).await
        }
        BenchTransport::Memory => memory::run(&plan, &mut report, &output, &mut stop).await,
    };
    output.finish_progress();
    outcome?;
    if let Some(plot) = plot {
        plot.draw(&plan, report.sizes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The arguments, once they fit together.
#[derive(Clone, Debug)]
struct Plan {
    sizes: Vec<ByteSize>,
    transport: BenchTransport,
    buffer_size: ByteSize,
    rounds: u16,
    seconds: Seconds,
    /// Which GPUs the processes have; None if they need none.
    placement: Option<Placement>,
    /// The library that they will load.
    library: Option<Arc<Library>>,
    /// Where it is, if that was said.
    nccl: Option<PathBuf>,
}

impl Plan {
    fn new(args: &BenchArgs) -> Result<Self, Failure> {
        let config = PipeConfig::default();
        if let Some(size) = args.sizes.iter().find(|size| size.0 > config.max_item_bytes) {
            let limit = ByteSize(config.max_item_bytes);
            return Err(Failure::usage(format!("items of {size} are over the limit of {limit}")));
        }
        let transport = transport(args)?;
        let (placement, library) = match transport {
            BenchTransport::Nccl => {
                let placement = Placement::of_ranks(2, args.device.device)?;
                (Some(placement), Some(gpu::library(args.device.nccl.as_deref())?))
            }
            BenchTransport::Tcp | BenchTransport::Memory => (None, None),
        };
        Ok(Self {
            sizes: args.sizes.clone(),
            transport,
            buffer_size: args.buffer_size.unwrap_or(ByteSize(config.budget_bytes)),
            rounds: args.rounds,
            seconds: args.seconds,
            placement,
            library,
            nccl: args.device.nccl.clone(),
        })
    }

    /// The variables of one of the processes.
    fn environment(&self, role: BenchRole) -> Vec<(&'static str, String)> {
        self.placement.as_ref().map_or_else(Vec::new, |placement| placement.environment(role.rank()))
    }

    fn pipe_config(&self) -> PipeConfig {
        PipeConfig::default().with_buffer_bytes(self.buffer_size.0)
    }
}

/// The one that is asked for, if it goes with the device.
fn transport(args: &BenchArgs) -> Result<BenchTransport, Failure> {
    let device = args.device.device;
    let path = match args.transport {
        Some(BenchTransport::Memory) => Path::in_memory(device).map(|()| None)?,
        Some(BenchTransport::Tcp) => Some(Path::new(Some(WireTransport::Tcp), Wire::Native, device)?),
        Some(BenchTransport::Nccl) => Some(Path::new(Some(WireTransport::Nccl), Wire::Native, device)?),
        None => Some(Path::new(None, Wire::Native, device)?),
    };
    endpoint::check_nccl(path, &args.device)?;
    Ok(match path {
        None => BenchTransport::Memory,
        Some(path) if path.by_nccl() => BenchTransport::Nccl,
        Some(_) => BenchTransport::Tcp,
    })
}

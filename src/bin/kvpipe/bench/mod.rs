//! `kvpipe bench`: throughput and latency by item size, beside the limit of the same run.

mod control;
mod items;
pub(crate) mod limit;
mod measurement;
mod memory;
mod peer;
mod plot;
mod processes;
mod receiver;
mod report;
mod sender;

use std::process::ExitCode;

use kvpipe::PipeConfig;

pub(crate) use self::peer::run_peer;
use self::plot::PlotFile;
use self::report::Report;
use crate::args::{BenchArgs, BenchTransport};
use crate::failure::Failure;
use crate::output::Output;
use crate::serve::StopSignals;
use crate::units::{ByteSize, Seconds};

/// Measures everything, and shows each figure once it is known.
pub(crate) async fn run(args: BenchArgs) -> Result<ExitCode, Failure> {
    let plan = Plan::new(&args)?;
    let output = Output::new(args.json).with_spinner();
    // Before minutes are spent on figures that can't be drawn.
    let plot = args.plot.as_deref().map(PlotFile::create).transpose()?;
    let mut stop = StopSignals::new()?;
    let mut report = Report::new(&plan, &output);
    report.begin()?;
    let outcome = match plan.transport {
        BenchTransport::Tcp => processes::run(&plan, &mut report, &output, &mut stop).await,
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
}

impl Plan {
    fn new(args: &BenchArgs) -> Result<Self, Failure> {
        let config = PipeConfig::default();
        if let Some(size) = args.sizes.iter().find(|size| size.0 > config.max_item_bytes) {
            let limit = ByteSize(config.max_item_bytes);
            return Err(Failure::usage(format!("items of {size} are over the limit of {limit}")));
        }
        Ok(Self {
            sizes: args.sizes.clone(),
            transport: args.transport,
            buffer_size: args.buffer_size.unwrap_or(ByteSize(config.budget_bytes)),
            rounds: args.rounds,
            seconds: args.seconds,
        })
    }

    fn pipe_config(&self) -> PipeConfig {
        PipeConfig::default().with_buffer_bytes(self.buffer_size.0)
    }
}

//! `kvpipe doctor`: what this machine has, what it lacks, what that costs and how to get it.

mod gpu;
mod host;
mod interfaces;
mod report;
mod screen;

use std::env;
use std::process::ExitCode;

use tokio::process::Command;

use self::report::{Job, Problem, Report, Subject};
use self::screen::Screen;
use crate::args::DoctorArgs;
use crate::failure::Failure;
use crate::output::Output;

/// Looks at everything. Succeeds if the default job can run, whatever else is missing.
pub(crate) async fn run(args: DoctorArgs) -> Result<ExitCode, Failure> {
    let mut problems = Vec::new();
    let report = Report {
        kvpipe: env!("CARGO_PKG_VERSION"),
        default_job: default_job(&mut problems).await?,
        nccl: gpu::nccl(&mut problems),
        cuda: gpu::cuda(&mut problems),
        memory: host::memory(&mut problems),
        interfaces: interfaces::all(&mut problems)?,
        limits: host::limits(&mut problems),
        problems,
    };
    Output::new(args.json).result(Screen(&report), &report)?;
    Ok(if report.default_job.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What has to work on any machine: it is the demo, but short.
const DEFAULT_JOB: &str = "demo --transport tcp --model tiny --timeout 20 --json";

/// Runs it as a user would.
async fn default_job(problems: &mut Vec<Problem>) -> Result<Job, Failure> {
    let program = env::current_exe().map_err(|error| Failure::io("finding this program", &error))?;
    let ran = Command::new(program).args(DEFAULT_JOB.split(' ')).kill_on_drop(true).output().await;
    let failed = match ran {
        Ok(ended) if ended.status.success() => None,
        Ok(ended) => {
            let said = String::from_utf8_lossy(&ended.stderr);
            let said = said.trim().trim_start_matches("kvpipe: error: ");
            Some(if said.is_empty() { ended.status.to_string() } else { said.to_owned() })
        }
        Err(error) => Some(format!("starting it: {error}")),
    };
    let ok = failed.is_none();
    problems.extend(failed.map(|what| Problem {
        subject: Subject::DefaultJob,
        state: "failed",
        what,
        costs: "two processes of this machine can't exchange a tensor over tcp, the least of what kvpipe does",
        remedy: "see what it says, and kvpipe demo --verbose",
    }));
    Ok(Job { command: format!("kvpipe {DEFAULT_JOB}"), ok })
}

//! Repeats the simulation of one seed.
//!
//! `kvpipe-sim --seed N [--scenario NAME] [--trace]` runs one scenario, or each of them, says what it
//! came to, and with `--trace` all that happened. The exit code is 1 if a promise was broken, and then
//! the last events are printed in any case; 2 if the command line makes no sense.

use std::process::ExitCode;

use kvpipe_sim::scenario::{Outcome, Scenario, run};

const USAGE: &str = "usage: kvpipe-sim --seed N [--scenario NAME] [--trace]";

/// Lines of the trace that are shown of a failure.
const LAST_EVENTS: usize = 40;

struct Args {
    seed: u64,
    scenarios: Vec<Scenario>,
    trace: bool,
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(wrong) => {
            let names = Scenario::ALL.map(Scenario::name).join(", ");
            eprintln!("{wrong}\n{USAGE}\nscenarios: {names}");
            return ExitCode::from(2);
        }
    };
    let mut code = ExitCode::SUCCESS;
    for scenario in args.scenarios {
        let outcome = run(scenario, args.seed);
        if !report(scenario, args.seed, &outcome, args.trace) {
            code = ExitCode::FAILURE;
        }
    }
    code
}

fn parse(args: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = args;
    let (mut seed, mut scenarios, mut trace) = (None, Scenario::ALL.to_vec(), false);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seed" => {
                let value = args.next().ok_or("--seed needs a number")?;
                seed = Some(value.parse().map_err(|_| format!("--seed {value}: not a number"))?);
            }
            "--scenario" => {
                let name = args.next().ok_or("--scenario needs a name")?;
                scenarios.retain(|scenario| scenario.name() == name);
                if scenarios.is_empty() {
                    return Err(format!("--scenario {name}: there is none of that name"));
                }
            }
            "--trace" => trace = true,
            other => return Err(format!("{other}: what is that?")),
        }
    }
    Ok(Args { seed: seed.ok_or("which seed?")?, scenarios, trace })
}

/// False if a promise was broken.
fn report(scenario: Scenario, seed: u64, outcome: &Outcome, whole_trace: bool) -> bool {
    let Outcome { judgement, trace, cuts_struck, connections, simulated } = outcome;
    let name = scenario.name();
    let shown = match (whole_trace, judgement) {
        (true, _) => trace.len(),
        (false, Err(_)) => LAST_EVENTS.min(trace.len()),
        (false, Ok(_)) => 0,
    };
    trace[trace.len() - shown..].iter().for_each(|line| println!("{line}"));
    match judgement {
        Ok(verdict) => {
            let (delivered, accepted) = (verdict.delivered, verdict.accepted);
            let seconds = simulated.as_secs_f64();
            println!(
                "seed {seed}, {name}: ok, {delivered} of {accepted} items delivered over {connections} \
                 connections, {cuts_struck} cuts struck, {seconds:.3} s simulated"
            );
        }
        Err(wrong) => wrong.iter().for_each(|wrong| println!("seed {seed}, {name}: FAILED: {wrong}")),
    }
    judgement.is_ok()
}

//! The same seed gives the same history, byte for byte: within a process, and in another one.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use kvpipe_sim::scenario::{Case, Scenario};

/// Seeds of each scenario that are compared; one that differs only now and then shows in one of them.
const SEEDS: std::ops::Range<u64> = 0..4;

fn runner(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvpipe-sim")).args(args).output().unwrap()
}

#[test]
fn a_seed_repeats_within_a_process() {
    for seed in SEEDS {
        for scenario in Scenario::ALL {
            let case = Case::new(scenario, seed);
            let [once, again] = [(); 2].map(|()| case.run().trace);
            let parted = once.iter().zip(&again).position(|(one, other)| one != other);
            let lines = parted.map(|at| (&once[at], &again[at]));
            assert_eq!(once, again, "{case}: they part at {lines:?}");
        }
    }
}

#[test]
fn a_seed_repeats_in_another_process() {
    for seed in SEEDS {
        for scenario in Scenario::ALL {
            let args = ["--trace", "--scenario", scenario.name(), "--seed", &seed.to_string()];
            let [once, again] = [(); 2].map(|()| runner(&args));
            assert!(once.status.success(), "{}", String::from_utf8_lossy(&once.stdout));
            assert!(once.stdout.len() > 1000, "{}", String::from_utf8_lossy(&once.stdout));
            assert!(once == again, "seed {seed} of {} differs from one process to another", scenario.name());
        }
    }
}

#[test]
fn two_seeds_differ() {
    assert_ne!(Case::new(Scenario::Pair, 1).run().trace, Case::new(Scenario::Pair, 2).run().trace);
}

#[test]
fn a_part_of_the_faults_is_another_run_of_the_same_world() {
    let case = Case::new(Scenario::Ring, 3);
    assert!(!case.setup().faults.faults.is_empty());
    let calm = Case { faults: Some([].into()), ..case.clone() };
    assert!(calm.setup().faults.faults.is_empty());
    assert!(calm.run().is_good());
    let few = Case { items: Some(1), ..case.clone() };
    assert!(few.run().totals.accepted < case.run().totals.accepted);
}

#[test]
fn a_batch_counts_what_it_met_and_tells_how_many_seeds_there_were() {
    let batch = runner(&["--seeds", "30", "--start", "100"]);
    let printed = String::from_utf8(batch.stdout).unwrap();
    assert!(batch.status.success(), "{printed}");
    assert!(printed.contains("30 seeds, ") && printed.contains("no promise was broken"), "{printed}");
    assert!(printed.contains("struck"), "{printed}");
}

#[test]
fn an_interrupted_batch_tells_what_it_has_found_so_far() {
    let mut batch = Command::new(env!("CARGO_BIN_EXE_kvpipe-sim"))
        .args(["--seeds", "1000000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Once it tells how far it is, it listens.
    let mut progress = BufReader::new(batch.stderr.take().unwrap());
    let mut line = String::new();
    progress.read_line(&mut line).unwrap();
    assert!(line.contains(" of 1000000 seeds"), "{line}");
    let interrupt = ["-INT", &batch.id().to_string()];
    assert!(Command::new("kill").args(interrupt).status().unwrap().success());
    let output = batch.wait_with_output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(130), "{printed}");
    for expected in ["streams, ", " of 1000000 seeds, ", "it was interrupted", "no promise was broken"] {
        assert!(printed.contains(expected), "{expected}: {printed}");
    }
}

#[test]
fn the_command_line_refuses_what_it_does_not_know() {
    let wrong: [(&[&str], &str); 12] = [
        (&[], "which seeds?"),
        (&["--seed", "x"], "not a number"),
        (&["--seed", "1", "--scenario", "x"], "there is none of that name"),
        (&["--seed", "1", "--fast"], "unknown option --fast"),
        (&["--seed"], "--seed needs a value"),
        (&["--seed", "1", "--seeds", "2"], "not both"),
        (&["--seeds", "2", "--trace"], "--trace needs --seed"),
        (&["--seed", "2", "--start", "1"], "--start needs --seeds"),
        (&["--seed", "1", "--faults", "1,x"], "not a number"),
        (&["--seed", "1", "--faults", "99"], "has"),
        (&["--seeds", "0"], "one at least"),
        (&["--seeds", "1", "--threads", "0"], "one at least"),
    ];
    for (args, why) in wrong {
        let output = runner(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(said.contains(why) && said.contains("--help"), "{args:?}: {said}");
    }
    let help = String::from_utf8(runner(&["--help"]).stdout).unwrap();
    assert!(help.lines().all(|line| line.len() <= 80), "{help}");
    assert_eq!(runner(&["--seed=3"]).stdout, runner(&["--seed", "3"]).stdout);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut simulation = Command::new(env!("CARGO_BIN_EXE_kvpipe-sim"))
        .args(["--seed", "7", "--trace"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(simulation.stdout.take());
    let output = simulation.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

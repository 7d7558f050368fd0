//! The same seed gives the same history, byte for byte: within a process, and in another one.

use std::process::Command;

use kvpipe_sim::scenario::{Scenario, run};

/// Seeds that are compared; one that differs only now and then shows in one of them.
const SEEDS: std::ops::Range<u64> = 0..5;

#[test]
fn a_seed_repeats_within_a_process() {
    for seed in SEEDS {
        for scenario in Scenario::ALL {
            let [once, again] = [(); 2].map(|()| run(scenario, seed).trace);
            let parted = once.iter().zip(&again).position(|(one, other)| one != other);
            let lines = parted.map(|at| (&once[at], &again[at]));
            assert_eq!(once, again, "seed {seed}, {}: they part at {lines:?}", scenario.name());
        }
    }
}

#[test]
fn a_seed_repeats_in_another_process() {
    for seed in SEEDS {
        let [once, again] = [(); 2].map(|()| {
            let mut simulation = Command::new(env!("CARGO_BIN_EXE_kvpipe-sim"));
            simulation.args(["--trace", "--seed", &seed.to_string()]).output().unwrap()
        });
        assert!(once.status.success(), "{}", String::from_utf8_lossy(&once.stdout));
        assert!(!once.stdout.is_empty());
        assert!(once == again, "seed {seed} differs from one process to another");
    }
}

#[test]
fn two_seeds_differ() {
    assert_ne!(run(Scenario::OneCut, 1).trace, run(Scenario::OneCut, 2).trace);
}

#[test]
fn the_command_line_refuses_what_it_does_not_know() {
    let wrong: [&[&str]; 4] =
        [&[], &["--seed", "x"], &["--seed", "1", "--scenario", "x"], &["--seed", "1", "--fast"]];
    for args in wrong {
        let simulation = Command::new(env!("CARGO_BIN_EXE_kvpipe-sim")).args(args).output().unwrap();
        assert_eq!(simulation.status.code(), Some(2), "{args:?}");
    }
}

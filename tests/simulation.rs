//! The simulation as a part of the ordinary tests: two ranks on a simulated network whose connection
//! is cut, for a list of seeds. What fails here is repeated by
//! `cargo run --manifest-path sim/Cargo.toml -- --seed N --scenario NAME --trace`.
#![cfg(not(loom))]

use kvpipe_sim::scenario::{Scenario, run};

/// sim/tests has more of them; these are run unoptimised.
const SEEDS: std::ops::Range<u64> = 0..12;

fn no_promise_is_broken(scenario: Scenario) {
    for seed in SEEDS {
        if let Err(wrong) = run(scenario, seed).judgement {
            panic!("--seed {seed} --scenario {}: {wrong:#?}", scenario.name());
        }
    }
}

#[test]
fn what_is_sent_over_a_simulated_network_arrives() {
    no_promise_is_broken(Scenario::Calm);
}

#[test]
fn a_simulated_cut_is_resumed_without_loss_or_duplicate() {
    no_promise_is_broken(Scenario::OneCut);
}

#[test]
fn two_simulated_cuts_are_resumed_without_loss_or_duplicate() {
    no_promise_is_broken(Scenario::TwoCuts);
}

#[test]
fn a_simulated_cut_does_not_spoil_a_close() {
    no_promise_is_broken(Scenario::CutWhileClosing);
}

#[test]
fn a_simulated_cut_without_resume_leaves_the_sender_informed() {
    no_promise_is_broken(Scenario::CutWithoutResume);
}

//! Each scenario over many seeds: no promise is broken, and the cuts do strike.

use kvpipe_sim::scenario::{Outcome, Scenario, run};

const SEEDS: u64 = 100;

/// The outcomes of all seeds, none of which broke a promise.
fn outcomes(scenario: Scenario) -> Vec<Outcome> {
    (0..SEEDS)
        .map(|seed| {
            let outcome = run(scenario, seed);
            if let Err(wrong) = &outcome.judgement {
                let name = scenario.name();
                panic!("--seed {seed} --scenario {name}: {wrong:#?}");
            }
            outcome
        })
        .collect()
}

/// How many of the runs were as they should be interesting.
fn count(outcomes: &[Outcome], interesting: impl Fn(&Outcome) -> bool) -> usize {
    outcomes.iter().filter(|outcome| interesting(outcome)).count()
}

#[test]
fn everything_arrives_where_nothing_goes_wrong() {
    let outcomes = outcomes(Scenario::Calm);
    assert_eq!(count(&outcomes, |outcome| outcome.connections == 1), outcomes.len());
}

#[test]
fn a_connection_that_is_cut_anywhere_is_resumed_without_loss_or_duplicate() {
    let outcomes = outcomes(Scenario::OneCut);
    let resumed = count(&outcomes, |outcome| outcome.cuts_struck == 1 && outcome.connections == 2);
    assert!(resumed > outcomes.len() / 2, "{resumed} of the seeds cut a connection that was resumed");
}

#[test]
fn a_connection_that_is_cut_twice_is_resumed_without_loss_or_duplicate() {
    let outcomes = outcomes(Scenario::TwoCuts);
    let twice = count(&outcomes, |outcome| outcome.cuts_struck == 2);
    assert!(twice > outcomes.len() / 3, "{twice} of the seeds cut twice");
}

#[test]
fn a_close_during_which_the_connection_is_cut_succeeds_and_all_is_delivered() {
    let outcomes = outcomes(Scenario::CutWhileClosing);
    let cut = count(&outcomes, |outcome| outcome.cuts_struck == 1);
    assert!(cut > outcomes.len() / 3, "{cut} of the seeds cut during the close");
}

#[test]
fn a_sender_that_may_not_resume_knows_what_is_undelivered_and_in_doubt() {
    let outcomes = outcomes(Scenario::CutWithoutResume);
    let failed =
        |outcome: &Outcome| outcome.judgement.as_ref().is_ok_and(|verdict| verdict.failure.is_some());
    let failed = count(&outcomes, failed);
    assert!(failed > outcomes.len() / 3, "in {failed} of the seeds the sender failed");
}

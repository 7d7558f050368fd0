//! Each scenario over many seeds: no promise is broken, and what is to go wrong does.

use std::collections::BTreeMap;

use kvpipe_sim::fault::Kind;
use kvpipe_sim::scenario::{Case, Scenario};
use kvpipe_sim::world::Report;

const SEEDS: u64 = 40;

/// The reports of all seeds, none of which broke a promise.
fn reports(scenario: Scenario) -> Vec<Report> {
    (0..SEEDS)
        .map(|seed| {
            let case = Case::new(scenario, seed);
            let report = case.run();
            assert!(report.is_good(), "{case}\n{report}");
            report
        })
        .collect()
}

/// How many faults of each kind struck.
fn struck(reports: &[Report]) -> BTreeMap<Kind, u64> {
    let mut sum = BTreeMap::new();
    for (kind, count) in reports.iter().flat_map(|report| &report.struck) {
        *sum.entry(*kind).or_default() += count;
    }
    sum
}

fn assert_struck(reports: &[Report], kinds: &[Kind]) {
    let struck = struck(reports);
    for kind in kinds {
        assert!(struck.get(kind).is_some_and(|count| *count > 0), "no {} struck: {struck:?}", kind.name());
    }
}

/// How often ends saw this error, or left in this way.
fn happened(reports: &[Report], what: &str) -> u64 {
    reports.iter().filter_map(|report| report.happened.get(what)).sum()
}

fn assert_all_delivered(reports: &[Report]) {
    for report in reports {
        assert_eq!(report.totals.accepted, report.totals.delivered, "{report}");
        assert!(report.all_succeeded(), "{report}");
    }
}

#[test]
fn everything_arrives_where_nothing_goes_wrong() {
    let reports = reports(Scenario::Calm);
    assert_all_delivered(&reports);
    assert!(struck(&reports).is_empty());
}

#[test]
fn a_pair_notices_nothing_of_resets_holds_and_slow_links() {
    let reports = reports(Scenario::Pair);
    assert_all_delivered(&reports);
    assert_struck(&reports, &[Kind::Reset, Kind::ResetAfter, Kind::Hold, Kind::Slow]);
}

#[test]
fn a_sender_that_may_not_resume_knows_what_is_undelivered_and_in_doubt() {
    let reports = reports(Scenario::NoResume);
    assert!(happened(&reports, "PeerGone") > 10, "{} ends saw it", happened(&reports, "PeerGone"));
}

#[test]
fn a_ring_notices_nothing_of_resets_holds_and_slow_links() {
    let reports = reports(Scenario::Ring);
    assert_struck(&reports, &[Kind::Reset, Kind::ResetAfter, Kind::Hold, Kind::Slow]);
}

#[test]
fn partitions_of_any_length_leave_everybody_informed() {
    let reports = reports(Scenario::Partitions);
    assert_struck(&reports, &[Kind::Partition, Kind::Isolation, Kind::OneWay, Kind::Hold]);
    assert!(happened(&reports, "PeerGone") > 0, "some were too long");
    assert!(reports.iter().any(Report::all_succeeded), "some were not");
}

#[test]
fn killed_ranks_leave_the_others_informed_and_come_back() {
    let reports = reports(Scenario::Crashes);
    assert_struck(&reports, &[Kind::Restart, Kind::Reboot, Kind::Kill, Kind::PowerLoss]);
    assert!(happened(&reports, "pipe opened again") > 0);
}

#[test]
fn edges_outlive_the_store() {
    let reports = reports(Scenario::StoreOutage);
    assert_struck(&reports, &[Kind::Restart, Kind::Reboot, Kind::Kill, Kind::PowerLoss]);
    assert!(reports.iter().any(|report| report.totals.delivered > 0 && report.all_succeeded()));
}

#[test]
fn pipes_over_the_store_notice_nothing_of_short_outages() {
    let reports = reports(Scenario::StoreWire);
    assert_struck(&reports, &[Kind::Reset, Kind::ResetAfter, Kind::Hold, Kind::Slow]);
}

#[test]
fn pipes_over_a_store_that_dies_leave_everybody_informed() {
    let reports = reports(Scenario::StoreWireFaults);
    assert_struck(&reports, &[Kind::Reset, Kind::Hold, Kind::OneWay, Kind::Kill]);
}

#[test]
fn clocks_that_jump_break_no_promise() {
    assert_struck(&reports(Scenario::Clocks), &[Kind::ClockJump]);
}

#[test]
fn whoever_leaves_leaves_the_other_informed() {
    let reports = reports(Scenario::Leavers);
    for what in [
        "leaves: abort",
        "leaves: drop everything",
        "leaves: stop receiving",
        "PeerAborted",
        "ReceiverClosed",
    ] {
        assert!(happened(&reports, what) > 0, "nothing of: {what}");
    }
}

#[test]
fn what_vllm_sends_arrives() {
    let reports = reports(Scenario::Vllm);
    assert_all_delivered(&reports);
    assert!(happened(&reports, "vLLM: a miss, five Nones") > 0);
    assert!(happened(&reports, "vLLM: a hit") > 0);
}

fn assert_computed(reports: &[Report]) {
    for operation in [
        "barrier",
        "all_reduce",
        "reduce",
        "broadcast",
        "all_gather",
        "all_gatherv",
        "reduce_scatter",
        "reduce_scatterv",
        "gather",
        "scatter",
        "all_to_all",
        "send",
    ] {
        assert!(happened(reports, operation) > 0, "no {operation} succeeded");
    }
}

#[test]
fn groups_compute_what_one_would_compute_alone_and_do_not_notice_short_delays() {
    let reports = reports(Scenario::Collective);
    assert_struck(&reports, &[Kind::Hold, Kind::Slow]);
    assert_computed(&reports);
    let failed: u64 = reports.iter().map(|report| report.operations[0]).sum();
    assert_eq!(failed, 0);
}

#[test]
fn all_members_learn_of_a_mistake_and_which_it_is() {
    let reports = reports(Scenario::CollectiveMistakes);
    assert_computed(&reports);
    for what in [
        "mistake: another call",
        "mistake: absence",
        "mistake: a dropped call",
        "mistake: leaving early",
        "group: PeerIncompatible",
        "group: PeerAborted",
        "group: PeerGone",
        "group: Timeout",
        "group: GroupBroken",
        "a group is formed again",
        "a call is refused",
    ] {
        assert!(happened(&reports, what) > 0, "nothing of: {what}");
    }
}

#[test]
fn groups_fail_of_resets_and_partitions_everywhere_or_nowhere() {
    let reports = reports(Scenario::CollectiveFaults);
    assert_struck(&reports, &[Kind::Reset, Kind::ResetAfter, Kind::Partition, Kind::Isolation, Kind::OneWay]);
    assert!(happened(&reports, "group: PeerGone") > 0, "some were too long");
    assert!(reports.iter().any(|report| report.operations[0] == 0 && report.operations[1] > 0));
}

#[test]
fn groups_fail_of_the_dead_and_form_again() {
    let reports = reports(Scenario::CollectiveCrashes);
    assert_struck(&reports, &[Kind::Restart, Kind::Reboot, Kind::Kill, Kind::PowerLoss, Kind::ClockJump]);
    assert!(happened(&reports, "a group is formed again") > 0);
}

#[test]
fn anything_at_once_breaks_no_promise() {
    assert!(struck(&reports(Scenario::Chaos)).len() > 8);
}

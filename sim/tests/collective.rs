//! Process groups in a world: what is found of them.

use std::time::Duration;

use kvpipe::Result;
use kvpipe::collective::ProcessGroupConfig;
use kvpipe_sim::fault::{Fault, FaultPlan, Place, Planned};
use kvpipe_sim::world::{Deed, Expectations, Member, Rank, Report, Tolerance, World};
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);

const TOLERANCE: Tolerance =
    Tolerance { over_store: false, silence: Duration::from_millis(500), resumes: false, group: false };

/// The one violation of a run.
fn violation(report: &Report) -> &str {
    assert_eq!(report.violations.len(), 1, "{report}");
    &report.violations[0]
}

async fn join(rank: &Rank) -> Result<Member> {
    let store = rank.store().await?;
    let members: Vec<_> = (0..rank.world_size()).collect();
    let config =
        ProcessGroupConfig { timeout: 5 * SECOND, heartbeat: SECOND, ..ProcessGroupConfig::default() };
    rank.join(&store, "g", &members, 0, config).await
}

/// Barriers for three seconds.
async fn meet_often(rank: Rank) -> Result<()> {
    let member = join(&rank).await?;
    for _ in 0..30 {
        if member.call("barrier", member.group().barrier()).await.is_err() {
            break;
        }
        sleep(SECOND / 10).await;
    }
    // How it ends, is judged.
    let _ = member.destroy().await;
    Ok(())
}

fn world(faults: Vec<Planned>) -> World {
    let faults = FaultPlan::new(faults);
    World::new(1, 3).faults(faults).expects(Expectations::Beyond(TOLERANCE)).leaves_nothing(true)
}

fn death() -> Vec<Planned> {
    vec![Planned { at: SECOND, fault: Fault::PowerLoss(Place::Rank(1), None) }]
}

#[test]
fn a_group_that_fails_of_a_death_is_right_to_do_so_and_without_one_it_is_found() {
    let report = world(death()).run(meet_often);
    assert!(report.is_good() && report.operations[0] > 0 && report.operations[1] > 0, "{report}");
    let report = world(death()).expects(Expectations::Nothing).run(meet_often);
    assert!(report.violations.iter().any(|found| found.contains("barrier failed without cause")), "{report}");
}

#[test]
fn a_death_that_is_not_noticed_in_time_is_found() {
    let limit = SECOND / 10;
    let report = world(death()).failures_known_within(limit).run(meet_often);
    assert!(violation(&report).contains("goes on"), "{report}");
    let report = world(death()).failures_known_within(4 * SECOND).run(meet_often);
    assert!(report.is_good(), "{report}");
}

#[test]
fn a_deed_explains_the_errors_that_it_is_said_to_cause_and_no_others() {
    let run = |deed: Deed| {
        world(Vec::new()).run(move |rank| {
            let deed = deed.clone();
            async move {
                let member = join(&rank).await?;
                if rank.number() == 2 {
                    member.does(deed);
                    return member.destroy().await;
                }
                let _ = member.call("barrier", member.group().barrier()).await;
                let _ = member.destroy().await;
                Ok(())
            }
        })
    };
    assert!(run(Deed::Leave).is_good());
    for other in [Deed::Drop, Deed::Absence, Deed::Mismatch(Vec::new())] {
        let report = run(other);
        assert!(violation(&report).contains("without cause"), "{report}");
    }
}

#[test]
fn a_task_and_a_socket_that_are_left_are_found() {
    let report = world(Vec::new()).run(|rank| async move {
        let address = rank.any_port();
        let listener =
            kvpipe::net::Net::bind(rank.net(), address, &kvpipe::net::SocketOptions::default()).await;
        if rank.number() == 1 {
            drop(tokio::spawn(async move {
                let _kept = listener;
                std::future::pending::<()>().await
            }));
        }
        Ok(())
    });
    assert!(violation(&report).contains("1 tasks and 1 sockets"), "{report}");
    assert!(world(Vec::new()).run(|_rank| async { Ok(()) }).is_good());
}

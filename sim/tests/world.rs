//! A world with software of one's own, and what it finds.

use std::future::pending;
use std::time::Duration;

use kvpipe::store::Store;
use kvpipe::{Error, Result};
use kvpipe_sim::fault::{Fault, FaultPlan, Kind, Place, Planned};
use kvpipe_sim::world::{Expectations, Outcome, Rank, Report, Tolerance, World};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

fn plan(faults: impl IntoIterator<Item = (Duration, Fault)>) -> FaultPlan {
    FaultPlan::new(faults.into_iter().map(|(at, fault)| Planned { at, fault }).collect())
}

/// The one violation of a run.
fn violation(report: &Report) -> &str {
    assert_eq!(report.violations.len(), 1, "{report}");
    &report.violations[0]
}

#[test]
fn a_rank_that_waits_for_ever_is_found_and_for_what() {
    let report = World::new(1, 2).patience(SECOND).run(|rank| async move {
        match rank.number() {
            0 => Ok(()),
            _ => rank.waits("a miracle", pending()).await,
        }
    });
    let found = violation(&report);
    assert!(found.contains("rank 1 in a miracle"), "{found}");
    assert!(matches!(report.results[..], [Outcome::Ended(Ok(())), Outcome::Running]), "{report}");
}

#[test]
fn what_the_software_does_not_expect_is_found() {
    let report = World::new(1, 2).run(|rank| async move {
        rank.expect(rank.number() == 0, || "one too many".into());
        Ok(())
    });
    assert!(violation(&report).contains("rank 1: one too many"), "{report}");
    let printed = report.to_string();
    assert!(printed.contains("FAILED: rank 1") && printed.contains("seed 1, 2 ranks"), "{printed}");
}

#[test]
fn a_rank_that_panics_is_found() {
    let report = World::new(1, 1).run(|_rank| async move { panic!("by design") });
    assert!(violation(&report).contains("rank 0: ") && violation(&report).contains("panicked"), "{report}");
}

#[test]
fn a_task_that_panics_and_that_nobody_waits_for_is_found() {
    let report = World::new(1, 2).run(|rank| async move {
        if rank.number() == 1 {
            drop(tokio::spawn(async { panic!("by design") }));
        }
        sleep(SECOND).await;
        Ok(())
    });
    let found = violation(&report);
    assert!(found.contains("by design") && found.contains("tests/world.rs"), "{found}");
    // The next world on this thread has nothing to do with it.
    assert!(World::new(1, 1).run(|_rank| async { Ok(()) }).is_good());
}

#[test]
fn an_error_of_the_software_without_a_cause_is_found() {
    let software = |_rank| async move { Err(Error::timeout("a reason", SECOND)) };
    let report = World::new(1, 1).expects(Expectations::Nothing).run(software);
    assert!(violation(&report).contains("without cause"), "{report}");
    let report = World::new(1, 1).run(software);
    assert!(report.is_good(), "anything may fail where nothing else is said: {report}");
    assert!(!report.all_succeeded());
}

#[test]
fn an_error_that_comes_where_no_fault_can_reach_or_before_one_has_begun_is_found() {
    let tolerance =
        Tolerance { over_store: false, silence: Duration::from_millis(500), resumes: true, group: false };
    // Rank 1 is cut off from the store for a second.
    let faults = || plan([(SECOND, Fault::Hold([Place::Rank(1), Place::Store], SECOND))]);
    let run = |who: usize, when: Duration| {
        World::new(1, 3).faults(faults()).expects(Expectations::Beyond(tolerance)).run(
            move |rank| async move {
                sleep(when).await;
                if rank.number() == who { Err(Error::timeout("a reason", SECOND)) } else { Ok(()) }
            },
        )
    };
    assert!(run(1, SECOND * 3).is_good());
    for (who, when) in [(2, SECOND * 3), (1, SECOND / 2)] {
        assert!(violation(&run(who, when)).contains("without cause"));
    }
}

#[test]
fn keys_that_are_left_are_found() {
    async fn leave(rank: Rank) -> Result<()> {
        rank.store().await?.set("left", "behind".into(), SECOND).await
    }
    let report = World::new(1, 1).leaves_no_keys(true).run(leave);
    assert!(violation(&report).contains("1 keys"), "{report}");
    assert!(World::new(1, 1).run(leave).is_good());
}

#[test]
fn a_barrier_that_is_left_early_is_found() {
    let report = World::new(1, 2).run(|rank| async move {
        sleep(SECOND * u32::from(rank.number() == 1)).await;
        rank.meets("a meeting", SECOND, async { Ok(()) }).await
    });
    assert!(violation(&report).contains("1 of 2 ranks were there"), "{report}");
}

#[test]
fn a_rank_that_is_killed_starts_again_and_one_that_is_killed_for_good_does_not() {
    let faults = plan([
        (SECOND, Fault::Kill(Place::Rank(0), Some(SECOND))),
        (SECOND, Fault::PowerLoss(Place::Rank(1), Some(SECOND))),
        (SECOND, Fault::Kill(Place::Rank(2), None)),
    ]);
    let report = World::new(1, 4).faults(faults).run(|rank| async move {
        rank.happened(&format!("rank {} starts", rank.number()));
        sleep(SECOND * 5).await;
        Ok(())
    });
    assert!(report.is_good(), "{report}");
    let starts = |rank: usize| report.happened[&format!("rank {rank} starts")];
    assert_eq!([0, 1, 2, 3].map(starts), [2, 2, 1, 1]);
    assert!(matches!(report.results[2], Outcome::Killed));
    let struck: Vec<_> = report.struck.into_iter().collect();
    assert_eq!(struck, [(Kind::Restart, 1), (Kind::Kill, 1), (Kind::Reboot, 1)]);
    assert!(report.simulated >= SECOND * 7, "{:?}", report.simulated);
}

#[test]
fn a_clock_that_jumps_is_ahead_and_the_others_are_not() {
    let faults = plan([(SECOND, Fault::ClockJump(Place::Rank(0), SECOND * 10))]);
    let report = World::new(1, 2).faults(faults).run(|rank| async move {
        let began = Instant::now();
        sleep(SECOND * 3).await;
        let passed = began.elapsed();
        match rank.number() {
            0 => rank.expect(passed > SECOND * 10, || format!("{passed:?} passed where the clock jumped")),
            _ => rank.expect(passed < SECOND * 4, || format!("{passed:?} passed elsewhere")),
        }
        Ok(())
    });
    assert!(report.is_good(), "{report}");
    assert!(report.simulated < SECOND * 4, "{:?}", report.simulated);
}

#[test]
fn a_store_that_restarts_is_empty() {
    let faults = plan([(SECOND, Fault::Kill(Place::Store, Some(SECOND)))]);
    let report = World::new(1, 1).faults(faults).run(|rank| async move {
        rank.store().await?.set("key", "value".into(), SECOND).await?;
        sleep(SECOND * 3).await;
        let keys = rank.store().await?.num_keys(SECOND).await?;
        rank.expect(keys == 0, || format!("{keys} keys"));
        Ok(())
    });
    assert!(report.is_good() && report.all_succeeded(), "{report}");
}

//! The simulation as a part of the ordinary tests: some seeds of each scenario, and each world that once
//! showed a bug. A seed that fails here is repeated by
//! `cargo run --release --manifest-path sim/Cargo.toml -- --scenario NAME --seed N --trace`.
#![cfg(not(loom))]

use kvpipe_sim::scenario::{Case, Scenario};

/// sim/tests has more of them, and the runner any number; these are run unoptimised.
const SEEDS: std::ops::Range<u64> = 1_000..1_008;

fn holds(case: &Case) {
    let report = case.run();
    assert!(report.is_good(), "{case}\n{}{report}", case.setup());
}

macro_rules! scenarios {
    ($($name:ident: $scenario:ident,)*) => {
        $(
            #[test]
            fn $name() {
                SEEDS.for_each(|seed| holds(&Case::new(Scenario::$scenario, seed)));
            }
        )*

        #[test]
        fn every_scenario_is_here() {
            assert_eq!([$(Scenario::$scenario),*], Scenario::ALL);
        }
    };
}

scenarios! {
    what_is_sent_over_a_calm_network_arrives: Calm,
    short_faults_are_not_noticed: Pair,
    a_reset_without_resume_leaves_the_sender_informed: NoResume,
    short_faults_are_not_noticed_in_a_ring: Ring,
    partitions_leave_everybody_informed: Partitions,
    killed_ranks_leave_the_others_informed: Crashes,
    edges_outlive_the_store: StoreOutage,
    short_faults_are_not_noticed_over_a_store: StoreWire,
    a_store_that_dies_leaves_everybody_informed: StoreWireFaults,
    clocks_that_jump_break_no_promise: Clocks,
    whoever_leaves_leaves_the_other_informed: Leavers,
    what_vllm_sends_arrives: Vllm,
    anything_at_once_breaks_no_promise: Chaos,
    groups_compute_what_one_would_compute_alone: Collective,
    all_members_learn_of_a_mistake: CollectiveMistakes,
    groups_fail_of_resets_and_partitions_everywhere: CollectiveFaults,
    groups_fail_of_the_dead_everywhere: CollectiveCrashes,
}

/// What once failed, as a world of its own: made of what was needed, and not of what a seed happened to draw.
mod once_failed {
    use std::time::Duration;

    use kvpipe::transport::store::{StoreConfig, StoreIncoming, StoreOutgoing};
    use kvpipe::transport::tcp::{TcpConfig, TcpIncoming, TcpOutgoing};
    use kvpipe::{Error, Item, PipeConfig, Result, Tensor};
    use kvpipe_sim::fault::{Fault, FaultPlan, Place, Planned};
    use kvpipe_sim::world::{Expectations, Rank, Tolerance, World};

    const SECOND: Duration = Duration::from_secs(1);

    fn item(bytes: usize, mark: u8) -> Result<Item> {
        Ok(Some(Tensor::from_vec([bytes], vec![mark; bytes])?))
    }

    /// Rank 0 sends a few items over the store and closes; rank 1 takes them.
    async fn send_over_the_store(rank: Rank, heartbeat: Duration) -> Result<()> {
        let (store, ring) = (rank.store().await?, rank.ring()?);
        let config = StoreConfig {
            connect_timeout: 5 * SECOND,
            heartbeat,
            reconnect_timeout: heartbeat * 2 / 3,
            ..rank.store_config()
        };
        if rank.number() == 0 {
            let outgoing = StoreOutgoing::new(store, ring, config);
            let sender = rank.open_sender("kv", outgoing, PipeConfig::default())?;
            for mark in 0..3 {
                sender.send(item(32, mark)?).await?;
            }
            return sender.close().await;
        }
        let receiver =
            rank.open_receiver("kv", StoreIncoming::new(store, ring, config), PipeConfig::default())?;
        while receiver.recv().await.is_ok() {}
        receiver.close().await;
        Ok(())
    }

    #[test]
    fn a_receiver_over_the_store_does_not_wait_for_a_sender_that_said_farewell_and_then_died() {
        // Between the two lies a request to the store, which is slow, so that the death of one world is there.
        let latency = [50, 60].map(Duration::from_millis);
        let slow = Fault::Slow([Place::Rank(0), Place::Store], latency, 2 * SECOND);
        for ms in (200..=1500).step_by(25) {
            let death = Fault::PowerLoss(Place::Rank(0), None);
            let faults = FaultPlan::new(vec![
                Planned { at: Duration::ZERO, fault: slow.clone() },
                Planned { at: Duration::from_millis(ms), fault: death },
            ]);
            let world = World::new(ms, 2).faults(faults).patience(10 * SECOND);
            let report = world.run(|rank| send_over_the_store(rank, SECOND));
            assert!(report.is_good(), "it died after {ms} ms\n{report}");
        }
    }

    #[test]
    fn a_receiver_on_a_slow_link_to_the_store_takes_its_key_away() {
        let latency = [350, 400].map(Duration::from_millis);
        let slow = Fault::Slow([Place::Store, Place::Rank(1)], latency, 30 * SECOND);
        let faults = FaultPlan::new(vec![Planned { at: Duration::ZERO, fault: slow }]);
        let world = World::new(1, 2).faults(faults).expects(Expectations::Nothing).leaves_no_keys(true);
        let report = world.run(|rank| send_over_the_store(rank, 3 * SECOND));
        assert!(report.is_good() && report.all_succeeded(), "{report}");
    }

    /// Rank 0 sends more than fits and aborts; rank 1 takes nothing until long after that.
    async fn abort_with_a_full_inbox(rank: Rank) -> Result<()> {
        let (store, ring, address) = (rank.store().await?, rank.ring()?, rank.any_port());
        let config = TcpConfig { heartbeat: SECOND, reconnect_timeout: SECOND, ..rank.tcp_config() };
        let pipe = PipeConfig { window_bytes: 4096, close_timeout: 30 * SECOND, ..PipeConfig::default() };
        let net = rank.net().clone();
        if rank.number() == 0 {
            let sender = rank.open_sender("kv", TcpOutgoing::new(net, store, ring, config), pipe)?;
            for mark in 0..20 {
                sender.send(item(1000, mark)?).await?;
            }
            tokio::time::sleep(SECOND).await;
            sender.abort("enough");
            rank.expect(sender.close().await.is_err(), || "the abort came to nothing".into());
            return Ok(());
        }
        let incoming = TcpIncoming::bind(net, &store, ring, address, config).await?;
        let receiver = rank.open_receiver("kv", incoming, pipe)?;
        tokio::time::sleep(5 * SECOND).await;
        let end = loop {
            if let Err(end) = receiver.recv().await {
                break end;
            }
        };
        rank.expect(matches!(end, Error::PeerAborted { .. }), || format!("the end was {end}"));
        Ok(())
    }

    #[test]
    fn an_abort_reaches_a_receiver_whose_inbox_is_full_for_seconds() {
        let tolerance = Tolerance { over_store: false, silence: SECOND / 2, resumes: true, group: false };
        let report = World::new(1, 2).expects(Expectations::Beyond(tolerance)).run(abort_with_a_full_inbox);
        assert!(report.is_good() && report.all_succeeded(), "{report}");
    }
}

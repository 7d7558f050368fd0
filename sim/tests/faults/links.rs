//! Links that lose, hold and delay, each one way.

use std::io::ErrorKind;
use std::time::Duration;

use kvpipe::net::{Net, SocketOptions, Stream};
use kvpipe_sim::net::{Conditions, Network, SimNet, SimStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{
    ADDRESS, CLIENT, LONG, SEEDS, SERVER, WINDOW_BYTES, assert_about, conditions, connect, echo, finish,
    ignore, network, round_trip, simulation,
};

/// Runs a client against an echo, for many seeds.
fn for_seeds<F: Future<Output = ()>>(visit: impl Fn(Network, SimNet) -> F + Copy + 'static) {
    for seed in SEEDS {
        let network = network(seed);
        let faults = network.clone();
        let mut sim = simulation(&network, echo, async move |net| visit(faults, net).await);
        finish(&network, &mut sim);
    }
}

#[test]
fn what_a_block_swallows_gets_through_at_the_next_attempt_after_it() {
    // The attempts are 200, 600, 1400, 3000 ms after the loss.
    for (blocked_ms, attempt_ms) in [(100, 200), (300, 600), (1000, 1400), (2999, 3000)] {
        for_seeds(move |network, net| async move {
            let (mut reader, mut writer) = connect(&net).await.split();
            round_trip(&mut reader, &mut writer).await;
            network.block(CLIENT, SERVER);
            let healing = async {
                sleep(Duration::from_millis(blocked_ms)).await;
                network.unblock(CLIENT, SERVER);
            };
            let (time, ()) = tokio::join!(round_trip(&mut reader, &mut writer), healing);
            assert_about(time, attempt_ms);
            assert_eq!(network.struck().lost, 1);
            assert_about(round_trip(&mut reader, &mut writer).await, 2);
        });
    }
}

#[test]
fn what_a_block_finds_under_way_is_lost_and_what_has_arrived_is_not() {
    for_seeds(|network, net| async move {
        let (mut reader, mut writer) = connect(&net).await.split();
        writer.write_u8(1).await.unwrap();
        sleep(LONG).await;
        network.block(SERVER, CLIENT);
        assert_eq!(reader.read_u8().await.unwrap(), 1);
        network.unblock(SERVER, CLIENT);
        // Nothing is there and back within a millisecond.
        writer.write_u8(2).await.unwrap();
        network.block(CLIENT, SERVER);
        assert!(timeout(LONG, reader.read_u8()).await.is_err());
        assert_eq!(network.struck().lost, 1);
        network.unblock(CLIENT, SERVER);
        assert_eq!(reader.read_u8().await.unwrap(), 2);
    });
}

#[test]
fn a_block_that_comes_back_before_the_next_attempt_makes_the_attempts_rarer() {
    for_seeds(|network, net| async move {
        let (mut reader, mut writer) = connect(&net).await.split();
        network.block(CLIENT, SERVER);
        let flapping = async {
            sleep(Duration::from_millis(650)).await;
            network.unblock(CLIENT, SERVER);
            sleep(Duration::from_millis(50)).await;
            network.block(CLIENT, SERVER);
            sleep(Duration::from_millis(1000)).await;
            network.unblock(CLIENT, SERVER);
        };
        let (time, ()) = tokio::join!(round_trip(&mut reader, &mut writer), flapping);
        assert_about(time, 3000);
    });
}

#[test]
fn a_block_of_one_way_lets_the_other_through_up_to_a_window() {
    for seed in SEEDS {
        let network = network(seed);
        let faults = network.clone();
        let serve = async |stream: SimStream| {
            let (mut reader, mut writer) = stream.split();
            let received = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await.unwrap();
            writer.write_u64(received).await.unwrap();
        };
        let visit = async move |net| {
            let (mut reader, mut writer) = connect(&net).await.split();
            faults.block(SERVER, CLIENT);
            let mut written = 0;
            while let Ok(part) = timeout(LONG, writer.write(&[0; 3000])).await {
                written += part.unwrap();
            }
            assert_eq!(written, WINDOW_BYTES, "it is read, but the writer does not hear of it");
            faults.unblock(SERVER, CLIENT);
            writer.write_all(&[0; 3000]).await.unwrap();
            writer.shutdown().await.unwrap();
            assert_eq!(reader.read_u64().await.unwrap(), WINDOW_BYTES as u64 + 3000);
        };
        finish(&network, &mut simulation(&network, serve, visit));
    }
}

#[test]
fn a_hold_loses_nothing_and_its_release_delivers_all_at_once_and_in_order() {
    for_seeds(|network, net| async move {
        let (mut reader, mut writer) = connect(&net).await.split();
        let sent: Vec<u8> = (0..200).collect();
        let (early, late) = sent.split_at(100);
        writer.write_all(early).await.unwrap();
        network.hold(CLIENT, SERVER);
        writer.write_all(late).await.unwrap();
        assert!(timeout(LONG, reader.read_u8()).await.is_err());
        network.release(CLIENT, SERVER);
        let released = Instant::now();
        let mut heard = vec![0; sent.len()];
        reader.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, sent);
        assert_about(released.elapsed(), 1);
        assert!(network.struck().held > 1, "what was under way, and what was sent then");
        assert_eq!(network.struck().lost, 0);
        assert_about(round_trip(&mut reader, &mut writer).await, 2);
    });
}

#[test]
fn after_healing_all_that_was_lost_or_held_is_there_soon() {
    for_seeds(|network, net| async move {
        let mut connections = [connect(&net).await.split(), connect(&net).await.split()];
        network.block(CLIENT, SERVER);
        connections[0].1.write_u8(1).await.unwrap();
        sleep(LONG).await;
        network.hold(SERVER, CLIENT);
        network.unblock(CLIENT, SERVER);
        connections[1].1.write_u8(1).await.unwrap();
        sleep(LONG).await;
        network.block(CLIENT, SERVER);
        connections[1].1.write_u8(2).await.unwrap();
        let connecting = connect(&net);
        network.cut_after(CLIENT, SERVER, 1);
        tokio::pin!(connecting);
        assert!(timeout(6 * LONG, &mut connecting).await.is_err());
        network.heal();
        let healed = Instant::now();
        assert_eq!(connections[0].0.read_u8().await.unwrap(), 1);
        assert_eq!(connections[1].0.read_u8().await.unwrap(), 1);
        assert_eq!(connections[1].0.read_u8().await.unwrap(), 2);
        let (mut reader, mut writer) = connecting.await.split();
        assert!(healed.elapsed() < Duration::from_millis(250), "{:?}", healed.elapsed());
        assert_about(round_trip(&mut reader, &mut writer).await, 2);
    });
}

#[test]
fn a_connect_that_is_never_answered_times_out_as_linuxs() {
    for_seeds(|network, net| async move {
        network.block(CLIENT, SERVER);
        let begun = Instant::now();
        let error = net.connect(ADDRESS, &SocketOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_about(begun.elapsed(), 127_000);
        assert_eq!(network.struck().connects_lost, 1);
    });
}

#[test]
fn a_connect_succeeds_at_its_next_attempt_after_a_block_of_either_way() {
    for way in [[CLIENT, SERVER], [SERVER, CLIENT]] {
        for_seeds(move |network, net| async move {
            let [from, to] = way;
            network.block(from, to);
            let begun = Instant::now();
            let healing = async {
                sleep(Duration::from_millis(1500)).await;
                network.unblock(from, to);
            };
            let (stream, ()) = tokio::join!(connect(&net), healing);
            // The attempts are 1 and 3 s after the first; the answer's are that long after it was sent.
            assert_about(begun.elapsed(), 3000);
            let (mut reader, mut writer) = stream.split();
            assert_about(round_trip(&mut reader, &mut writer).await, 2);
        });
    }
}

#[test]
fn a_refusal_takes_a_round_trip_and_one_that_is_lost_another_attempt() {
    for_seeds(|network, net| async move {
        let nobody = std::net::SocketAddr::new(SERVER, 1);
        for lost in [false, true] {
            let begun = Instant::now();
            let healing = async {
                if lost {
                    network.block(SERVER, CLIENT);
                    sleep(Duration::from_millis(1500)).await;
                    network.unblock(SERVER, CLIENT);
                }
            };
            let options = SocketOptions::default();
            let (refused, ()) = tokio::join!(net.connect(nobody, &options), healing);
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            assert_about(begun.elapsed(), if lost { 3000 } else { 2 });
        }
    });
}

#[test]
fn connects_that_are_given_up_are_not_accepted_and_take_nobodys_place() {
    for_seeds(|network, net| async move {
        network.block(SERVER, CLIENT);
        let mut connects = tokio::task::JoinSet::new();
        for _ in 0..1100 {
            let net = net.clone();
            connects.spawn(async move { timeout(LONG, connect(&net)).await.is_err() });
        }
        assert!(connects.join_all().await.into_iter().all(|given_up| given_up));
        network.unblock(SERVER, CLIENT);
        sleep(3 * LONG).await;
        let lines = network.trace().lines();
        assert!(!lines.iter().any(|line| line.contains("accepted")), "{lines:#?}");
        let begun = Instant::now();
        let (mut reader, mut writer) = connect(&net).await.split();
        assert_about(begun.elapsed(), 2);
        assert_about(round_trip(&mut reader, &mut writer).await, 2);
    });
}

#[test]
fn a_reset_that_is_lost_is_told_to_whoever_sends_again() {
    for seed in SEEDS {
        let network = network(seed);
        let faults = network.clone();
        let serve = async |stream: SimStream| {
            sleep(LONG).await;
            // With a byte unread.
            drop(stream);
        };
        let visit = async move |net| {
            let (mut reader, mut writer) = connect(&net).await.split();
            writer.write_u8(1).await.unwrap();
            faults.block(SERVER, CLIENT);
            sleep(2 * LONG).await;
            faults.unblock(SERVER, CLIENT);
            assert!(timeout(LONG, reader.read_u8()).await.is_err(), "it is not repeated");
            writer.write_u8(2).await.unwrap();
            let error = reader.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        };
        finish(&network, &mut simulation(&network, serve, visit));
    }
}

#[test]
fn data_that_nobody_takes_is_sent_until_the_reset_that_answers_it_comes_through() {
    for seed in SEEDS {
        let network = network(seed);
        let faults = network.clone();
        let serve = async |stream: SimStream| drop(stream);
        let visit = async move |net| {
            let (mut reader, mut writer) = connect(&net).await.split();
            assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0);
            faults.block(SERVER, CLIENT);
            writer.write_u8(1).await.unwrap();
            sleep(LONG).await;
            writer.write_u8(2).await.expect("the reset got lost");
            faults.unblock(SERVER, CLIENT);
            sleep(LONG).await;
            let error = writer.write_u8(3).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        };
        finish(&network, &mut simulation(&network, serve, visit));
    }
}

#[test]
fn a_cut_loses_what_is_under_way_and_leaves_what_has_arrived() {
    for_seeds(|network, net| async move {
        let (mut reader, mut writer) = connect(&net).await.split();
        writer.write_u8(1).await.unwrap();
        sleep(LONG).await;
        network.set_latency(SERVER, CLIENT, Some([LONG; 2]));
        writer.write_u8(2).await.unwrap();
        // It is echoed by then, and the echo is under way.
        sleep(LONG / 2).await;
        network.cut(SERVER, CLIENT);
        sleep(2 * LONG).await;
        assert_eq!(reader.read_u8().await.unwrap(), 1);
        assert_eq!(reader.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!((network.cuts_struck(), network.struck().cut), (1, 1));
        network.cut(SERVER, CLIENT);
        assert_eq!((network.cuts_struck(), network.struck().cut), (1, 1), "there is nothing left");
    });
}

#[test]
fn who_can_not_wait_to_be_accepted_tries_again() {
    let network = network(1);
    let mut sim = simulation(&network, ignore, async |net: SimNet| {
        // A listener that accepts nobody.
        let address = std::net::SocketAddr::new(CLIENT, 7000);
        let listener = net.bind(address, &SocketOptions::default()).await.unwrap();
        let begun = Instant::now();
        let mut waiting = Vec::new();
        for _ in 0..=1024 {
            waiting.push(net.connect(address, &SocketOptions::default()).await.unwrap());
        }
        let begun_last = Instant::now();
        let options = SocketOptions::default();
        let accepting = async {
            sleep(Duration::from_millis(500)).await;
            kvpipe::net::Listener::accept(&listener).await.unwrap()
        };
        let (last, _accepted) = tokio::join!(net.connect(address, &options), accepting);
        last.unwrap();
        assert!(begun_last.duration_since(begun) < LONG);
        assert_about(begun_last.elapsed(), 1000);
    });
    finish(&network, &mut sim);
}

#[test]
fn a_changed_latency_holds_for_one_way_until_it_is_taken_back() {
    for_seeds(|network, net| async move {
        let (mut reader, mut writer) = connect(&net).await.split();
        network.set_latency(SERVER, CLIENT, Some([Duration::from_millis(300); 2]));
        assert_about(round_trip(&mut reader, &mut writer).await, 301);
        assert_eq!(network.struck().slowed, 1);
        network.set_latency(SERVER, CLIENT, None);
        assert_about(round_trip(&mut reader, &mut writer).await, 2);
        assert_eq!(network.struck().slowed, 1);
    });
}

#[test]
fn a_latency_has_a_tail_where_it_is_asked_for() {
    for latency_tail in [false, true] {
        let network = Network::new(1, Conditions { latency_tail, ..conditions() });
        let mut sim = simulation(&network, echo, async move |net| {
            let (mut reader, mut writer) = connect(&net).await.split();
            let mut times = Vec::new();
            for _ in 0..1000 {
                times.push(round_trip(&mut reader, &mut writer).await);
            }
            times.sort();
            let usual_most = Duration::from_millis(14);
            assert!(times[500] <= usual_most, "{:?} is not usual", times[500]);
            let beyond = times.iter().filter(|&&time| time > 2 * usual_most).count();
            assert_eq!(beyond > 0, latency_tail, "{beyond} round trips took twice the usual most");
            assert!(times[999] <= Duration::from_millis(104), "ten times the most, both ways");
        });
        finish(&network, &mut sim);
    }
}

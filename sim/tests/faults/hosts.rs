//! Hosts that lose their power, and processes that are killed.

use std::io::ErrorKind;
use std::time::Duration;

use kvpipe::net::{Net, SocketOptions, Stream};
use kvpipe_sim::net::SimStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{
    ADDRESS, LONG, SEEDS, SERVER, assert_about, connect, echo, finish, network, round_trip, simulation, until,
};

/// When the server ends, and when it is back.
const DOWN: Duration = Duration::from_secs(5);
const UP: Duration = Duration::from_secs(30);

#[test]
fn a_host_without_power_says_nothing_and_is_a_stranger_when_it_is_back() {
    for seed in SEEDS {
        let network = network(seed);
        let mut sim = simulation(&network, echo, async |net| {
            let (mut reader, mut writer) = connect(&net).await.split();
            let (mut quiet, mut quiet_writer) = connect(&net).await.split();
            for (reader, writer) in [(&mut reader, &mut writer), (&mut quiet, &mut quiet_writer)] {
                round_trip(reader, writer).await;
            }
            assert!(timeout(LONG, reader.read_u8()).await.is_err(), "it says no goodbye");
            // It is sent again and again.
            writer.write_u8(1).await.unwrap();
            let begun = Instant::now();
            let (read, late) = tokio::join!(reader.read_u8(), connect(&net));
            assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert!(begun.elapsed() > UP - DOWN - LONG, "only once it is back");
            let (mut reader, mut writer) = late.split();
            assert_about(round_trip(&mut reader, &mut writer).await, 2);
            assert!(timeout(LONG, quiet.read_u8()).await.is_err(), "whoever does not send does not learn");
            quiet_writer.write_u8(1).await.unwrap();
            let begun = Instant::now();
            assert_eq!(quiet.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_about(begun.elapsed(), 2);
        });
        until(&network, &mut sim, DOWN);
        network.power_off(SERVER);
        sim.crash("server");
        until(&network, &mut sim, UP);
        network.power_on(SERVER);
        sim.bounce("server");
        finish(&network, &mut sim);
        let struck = network.struck();
        assert_eq!((struck.silenced, struck.forgotten), (2, 2));
        assert_eq!((struck.lost, struck.connects_lost), (1, 1));
    }
}

#[test]
fn a_connect_to_a_host_without_power_times_out() {
    let network = network(1);
    let mut sim = simulation(&network, echo, async |net| {
        sleep(DOWN).await;
        let begun = Instant::now();
        let error = net.connect(ADDRESS, &SocketOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_about(begun.elapsed(), 127_000);
    });
    until(&network, &mut sim, DOWN / 2);
    network.power_off(SERVER);
    sim.crash("server");
    finish(&network, &mut sim);
}

/// Reads one byte, and waits; on a task of its own, or on one of the runtime that turmoil drops first.
async fn read_one(stream: SimStream) {
    let (mut reader, writer) = stream.split();
    let reading = async move {
        let _writer = writer;
        reader.read_u8().await.unwrap();
        std::future::pending::<()>().await;
    };
    let _ = tokio::spawn(reading).await;
}

#[test]
fn the_system_of_a_killed_process_closes_its_connections() {
    for seed in SEEDS {
        let network = network(seed);
        let mut sim = simulation(&network, read_one, async |net| {
            let (mut read, mut writer) = connect(&net).await.split();
            let (mut unread, mut unread_writer) = connect(&net).await.split();
            writer.write_u8(1).await.unwrap();
            unread_writer.write_all(&[1, 2]).await.unwrap();
            let begun = Instant::now();
            assert_eq!(read.read(&mut [0; 8]).await.unwrap(), 0, "an end in order");
            let reset = unread.read(&mut [0; 8]).await;
            assert_eq!(reset.unwrap_err().kind(), ErrorKind::ConnectionReset, "not an end");
            assert!(begun.elapsed() < DOWN + LONG);
            let refused = net.connect(ADDRESS, &SocketOptions::default()).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "the host is there");
            sleep(UP).await;
            connect(&net).await;
        });
        until(&network, &mut sim, DOWN);
        sim.crash("server");
        until(&network, &mut sim, UP);
        sim.bounce("server");
        finish(&network, &mut sim);
        assert_eq!(network.struck(), kvpipe_sim::net::Struck::default());
    }
}

//! What SimNet adds to turmoil: windows in bytes, short reads and writes, cuts.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kvpipe::net::{Listener, Net, SocketOptions, Stream};
use kvpipe_sim::net::{Conditions, Network, SimNet, SimStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

const SEEDS: std::ops::Range<u64> = 0..20;

/// Simulated time that nothing here comes near.
const LIMIT: Duration = Duration::from_secs(600);

/// Simulated time in which whatever can move has moved.
const LONG: Duration = Duration::from_secs(10);

const WINDOW_BYTES: usize = 10_000;
const PORT: u16 = 7000;

/// turmoil gives addresses in this order.
const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 0, 1));
const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 0, 2));
const NOBODY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 0, 9));

fn network(seed: u64) -> Network {
    let latency = [Duration::from_millis(1), Duration::from_millis(5)];
    Network::new(
        seed,
        Conditions { window_bytes: WINDOW_BYTES, part_bytes_max: 4096, latency, latency_tail: false },
    )
}

/// Runs the two ends of one connection.
fn connected(
    network: &Network,
    serve: impl AsyncFnOnce(SimStream) + 'static,
    visit: impl AsyncFnOnce(SimStream) + 'static,
) {
    let mut sim = network.simulation(LIMIT);
    let [server, client] = ["server", "client"].map(|name| sim.lookup(name));
    assert_eq!([server, client], [SERVER, CLIENT]);
    let address = SocketAddr::new(server, PORT);
    let net = SimNet::new(network, "server", server);
    sim.client("server", async move {
        let listener = net.bind(address, &SocketOptions::default()).await?;
        serve(listener.accept().await?.0).await;
        Ok(())
    });
    let net = SimNet::new(network, "client", client);
    sim.client("client", async move {
        sleep(Duration::from_millis(1)).await;
        visit(net.connect(address, &SocketOptions::default()).await?).await;
        Ok(())
    });
    if let Err(error) = sim.run() {
        panic!("{error}\n{}", network.trace().lines().join("\n"));
    }
}

#[test]
fn a_writer_whose_peer_does_not_read_gets_no_further_than_the_window() {
    for seed in SEEDS {
        let serve = async |stream: SimStream| {
            sleep(2 * LONG).await;
            let mut received = Vec::new();
            stream.split().0.read_to_end(&mut received).await.unwrap();
            assert_eq!(received.len(), WINDOW_BYTES + 1, "what waited came, and what followed");
        };
        let visit = async |stream: SimStream| {
            let (_reader, mut writer) = stream.split();
            let mut written = 0;
            while let Ok(part) = timeout(LONG, writer.write(&[0; 3000])).await {
                written += part.unwrap();
            }
            assert_eq!(written, WINDOW_BYTES);
            writer.write_u8(1).await.unwrap();
        };
        connected(&network(seed), serve, visit);
    }
}

#[test]
fn reads_and_writes_are_short_now_and_then() {
    let serve = async |stream: SimStream| {
        let (mut reader, _writer) = stream.split();
        let mut reads = 0;
        while reader.read(&mut [0; 2000]).await.unwrap() > 0 {
            reads += 1;
        }
        assert!(reads > 300, "600,000 bytes in {reads} reads of at most 2000");
    };
    let visit = async |stream: SimStream| {
        let (_reader, mut writer) = stream.split();
        let (mut left, mut writes) = (600_000, 0);
        while left > 0 {
            left -= writer.write(&vec![0; left.min(2000)]).await.unwrap();
            writes += 1;
        }
        assert!(writes > 350, "600,000 bytes in {writes} writes of at most 2000");
    };
    connected(&network(1), serve, visit);
}

#[test]
fn a_cut_strikes_at_the_very_byte_and_both_ends_see_a_reset() {
    for seed in SEEDS {
        let bytes = 1 + seed as usize * 977;
        let network = network(seed);
        network.cut_after(CLIENT, SERVER, bytes);
        let serve = async move |stream: SimStream| {
            let mut received = Vec::new();
            let ended = stream.split().0.read_to_end(&mut received).await;
            assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(received.len(), bytes);
        };
        let visit = async |stream: SimStream| {
            let (mut reader, mut writer) = stream.split();
            let written = writer.write_all(&[0; 50_000]).await;
            assert_eq!(written.unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0, "it is told once");
        };
        connected(&network, serve, visit);
        assert_eq!(network.cuts_struck(), 1);
    }
}

#[test]
fn a_cut_between_other_hosts_changes_nothing() {
    let network = network(1);
    network.cut_after(SERVER, CLIENT, 1);
    let cutter = network.clone();
    let serve = async move |stream: SimStream| {
        let (mut reader, _writer) = stream.split();
        reader.read_u8().await.unwrap();
        cutter.cut(CLIENT, NOBODY);
        assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0);
    };
    let visit = async |stream: SimStream| {
        let (_reader, mut writer) = stream.split();
        writer.write_u8(1).await.unwrap();
        sleep(LONG).await;
    };
    connected(&network, serve, visit);
    assert_eq!(network.cuts_struck(), 0, "the other direction carried nothing");
}

#[test]
fn a_close_lets_a_writer_go_that_waits_for_room() {
    let serve = async |stream: SimStream| {
        sleep(LONG).await;
        drop(stream);
    };
    let visit = async |stream: SimStream| {
        let (_reader, mut writer) = stream.split();
        let error = writer.write_all(&[0; 2 * WINDOW_BYTES]).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    };
    connected(&network(1), serve, visit);
}

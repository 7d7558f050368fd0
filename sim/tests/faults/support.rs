//! A server that echoes, and a client that looks at the clock.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use kvpipe::net::{Listener, Net, SocketOptions, Stream};
use kvpipe_sim::net::{Conditions, Network, SimNet, SimStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use turmoil::Sim;

/// Simulated time that nothing here comes near.
const LIMIT: Duration = Duration::from_secs(600);

/// Simulated time in which whatever can move has moved.
pub(crate) const LONG: Duration = Duration::from_secs(10);

pub(crate) const SEEDS: std::ops::Range<u64> = 0..4;
pub(crate) const WINDOW_BYTES: usize = 10_000;
pub(crate) const LATENCY_MAX: Duration = Duration::from_millis(5);

/// turmoil gives addresses in this order.
pub(crate) const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 0, 1));
pub(crate) const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 0, 2));

/// Where the server listens.
pub(crate) const ADDRESS: SocketAddr = SocketAddr::new(SERVER, 7000);

pub(crate) fn conditions() -> Conditions {
    let latency = [Duration::from_millis(1), LATENCY_MAX];
    Conditions { window_bytes: WINDOW_BYTES, part_bytes_max: 4096, latency, latency_tail: false }
}

pub(crate) fn network(seed: u64) -> Network {
    Network::new(seed, conditions())
}

/// A simulation of the two, which is to be run.
pub(crate) fn simulation<S>(
    network: &Network,
    serve: impl Fn(SimStream) -> S + Clone + 'static,
    visit: impl AsyncFnOnce(SimNet) + 'static,
) -> Sim<'static>
where
    S: Future<Output = ()> + 'static,
{
    let mut sim = network.simulation(LIMIT);
    assert_eq!(["server", "client"].map(|name| sim.lookup(name)), [SERVER, CLIENT]);
    let net = SimNet::new(network, "server", SERVER);
    sim.host("server", move || {
        let (net, serve) = (net.clone(), serve.clone());
        async move {
            let listener = net.bind(ADDRESS, &SocketOptions::default()).await?;
            loop {
                tokio::task::spawn_local(serve(listener.accept().await?.0));
            }
        }
    });
    let net = SimNet::new(network, "client", CLIENT);
    sim.client("client", async move {
        // The server listens after its first step.
        tokio::time::sleep(Duration::from_millis(1)).await;
        visit(net).await;
        Ok(())
    });
    sim
}

/// Runs a simulation to its end.
pub(crate) fn finish(network: &Network, sim: &mut Sim<'_>) {
    while !step(network, sim) {}
}

/// Runs a simulation until that time.
pub(crate) fn until(network: &Network, sim: &mut Sim<'_>, time: Duration) {
    while sim.elapsed() < time {
        assert!(!step(network, sim), "the client has ended already");
    }
}

fn step(network: &Network, sim: &mut Sim<'_>) -> bool {
    match network.step(sim) {
        Ok(ended) => ended,
        Err(error) => panic!("{error}\n{}", network.trace().lines().join("\n")),
    }
}

/// Sends back whatever comes, and keeps a connection that fails or ends.
pub(crate) async fn echo(stream: SimStream) {
    let (mut reader, mut writer) = stream.split();
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
}

/// Keeps the connection, and does nothing.
pub(crate) async fn ignore(stream: SimStream) {
    let _kept = stream;
    std::future::pending().await
}

pub(crate) async fn connect(net: &SimNet) -> SimStream {
    net.connect(ADDRESS, &SocketOptions::default()).await.unwrap()
}

/// How long a byte takes there and back.
pub(crate) async fn round_trip(
    reader: &mut (impl AsyncReadExt + Unpin),
    writer: &mut (impl AsyncWriteExt + Unpin),
) -> Duration {
    let begun = Instant::now();
    writer.write_u8(7).await.unwrap();
    assert_eq!(reader.read_u8().await.unwrap(), 7);
    begun.elapsed()
}

/// The time lies between these many milliseconds, and what two ways and the ticks of two hosts add.
#[track_caller]
pub(crate) fn assert_about(time: Duration, milliseconds: u64) {
    let least = Duration::from_millis(milliseconds);
    let most = least + 2 * LATENCY_MAX + Duration::from_millis(4);
    assert!((least..=most).contains(&time), "{time:?}, not about {least:?}");
}

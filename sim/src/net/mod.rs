//! [`SimNet`]: kvpipe's [`Net`] within a turmoil simulation.
//!
//! turmoil gives hosts, their runtimes, names, simulated time and crashes. The bytes are carried here,
//! because its TCP is not true where kvpipe must stand the truth (the numbers are those of turmoil 0.7.2):
//!
//! | TCP | turmoil | here |
//! |---|---|---|
//! | a window in bytes | counts writes, of any size | [`Conditions::window_bytes`] for each direction |
//! | reads and writes may be short | a write is taken whole | any part, drawn from the seed, or none yet |
//! | what is lost is sent again | never | after 200 ms, 400 ms more, and so on: [`Network::block`] |
//! | a cable has two ways, which fail apart | for partitions | every fault of a link is one-way |
//! | a connect is repeated, and fails after 127 s | refused at once in a partition; waits for ever for a dead host | repeated after 1 s, 2 s more, and so on |
//! | 1,024 may wait to be accepted; who comes then tries again | more panic | as TCP |
//! | who connects may write, close or go before it is accepted | a panic if it has gone | as TCP |
//! | closing with bytes unread resets | yes | yes |
//! | a reset loses what is on its way; what has come is read first, then it is told once | told every time | as Linux; [`Network::cut`] resets both ends |
//! | the halves share the connection until both are dropped | dropping the reader resets it | as TCP |
//! | a killed process's system says goodbye, a host without power does not, and is a stranger when it is back | goodbye | [`Network::power_off`], [`Network::power_on`] |
//! | a listener on a host's address | only on all addresses, or loopback | any of its own |
//!
//! Simpler than TCP: a way that is blocked loses acknowledgements of bytes read only, data that is lost
//! is not sent again any sooner because later data came through, what was lost is repeated for ever
//! (Linux gives up after 15 minutes), and socket options change nothing.

mod conditions;
mod connection;
mod fabric;
mod flow;
mod handshake;
mod medium;
mod network;
mod stream;

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};

use kvpipe::net::{Listener, Net, SocketOptions, Stream};

use self::connection::End;
use self::stream::Alarm;

pub use self::conditions::{Conditions, Struck};
pub use self::network::Network;
pub use self::stream::{SimReader, SimStream, SimWriter};

/// The network as one host sees it.
#[derive(Clone, Debug)]
pub struct SimNet {
    network: Network,
    host: Host,
}

#[derive(Clone, Debug)]
struct Host {
    name: std::sync::Arc<str>,
    ip: IpAddr,
}

impl SimNet {
    /// For the simulated host of that name and address, which is on the network from now on.
    #[must_use]
    pub fn new(network: &Network, name: &str, ip: IpAddr) -> Self {
        network.with(|fabric, now| fabric.join(ip, now));
        Self { network: network.clone(), host: Host { name: name.into(), ip } }
    }

    /// The host's own address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.host.ip
    }

    /// In simulated time.
    pub(crate) fn now(&self) -> std::time::Duration {
        self.network.trace().now()
    }

    pub(crate) fn note(&self, event: impl std::fmt::Display) {
        self.network.trace().note(&self.host.name, event);
    }
}

impl Net for SimNet {
    type Stream = SimStream;
    type Listener = SimListener;

    async fn connect(&self, address: SocketAddr, _: &SocketOptions) -> io::Result<SimStream> {
        let id = self.network.with(|fabric, now| fabric.connect(self.host.ip, address, now))?;
        let mut connecting = Connecting { network: &self.network, id: Some(id) };
        connecting.finish().await.inspect_err(|error| {
            self.note(format_args!("connecting to {address}: {}", error.kind()));
        })?;
        let stream = SimStream::new(&self.network, id, End::Connector);
        self.note(format_args!("connected {} to {address}", Stream::local_addr(&stream)?));
        Ok(stream)
    }

    async fn bind(&self, address: SocketAddr, _: &SocketOptions) -> io::Result<SimListener> {
        let (own, unspecified) = (address.ip() == self.host.ip, address.ip().is_unspecified());
        let foreign = !own && !unspecified && !address.ip().is_loopback();
        if foreign || address.is_ipv4() != self.host.ip.is_ipv4() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let (id, local_addr) = self.network.with(|fabric, _| fabric.bind(self.host.ip, address))?;
        self.note(format_args!("listens on {local_addr}"));
        Ok(SimListener { id, local_addr, net: self.clone() })
    }

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if host == "localhost" {
            return Ok(vec![(std::net::Ipv4Addr::LOCALHOST, port).into()]);
        }
        // Not `turmoil::lookup`, which gives an address to every name that it does not know.
        Ok(turmoil::net::lookup_host((host, port)).await?.collect())
    }
}

/// A connection that is being made. Whoever drops it gives up.
struct Connecting<'a> {
    network: &'a Network,
    id: Option<u64>,
}

impl Connecting<'_> {
    async fn finish(&mut self) -> io::Result<()> {
        let Some(id) = self.id else { return Ok(()) };
        let (network, mut alarm) = (self.network, Alarm::default());
        let connected = poll_fn(|context| {
            alarm
                .poll(context, |waker| network.with(|fabric, now| (fabric.poll_connect(id, now, waker), now)))
        });
        let connected = connected.await;
        self.id = None;
        connected
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.network.with(|fabric, _| fabric.abandon(id));
        }
    }
}

/// A listening socket of a simulated host.
#[derive(Debug)]
pub struct SimListener {
    id: u64,
    local_addr: SocketAddr,
    net: SimNet,
}

impl Listener for SimListener {
    type Stream = SimStream;

    async fn accept(&self) -> io::Result<(SimStream, SocketAddr)> {
        let (network, mut alarm) = (&self.net.network, Alarm::default());
        let accepted = poll_fn(|context| {
            alarm.poll(context, |waker| {
                network.with(|fabric, now| (fabric.poll_accept(self.id, now, waker), now))
            })
        });
        let stream = SimStream::new(network, accepted.await, End::Listener);
        let origin = Stream::peer_addr(&stream)?;
        self.net.note(format_args!("accepted {origin} on {}", self.local_addr));
        Ok((stream, origin))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local_addr)
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.net.network.with(|fabric, now| fabric.unbind(self.id, now));
    }
}

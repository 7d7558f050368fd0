//! [`SimNet`]: kvpipe's [`Net`] within a turmoil simulation.
//!
//! turmoil gives hosts, names, ports, latency and simulated time. Its connections differ from TCP's
//! in what kvpipe must be able to stand, so a layer of our own lies over them (the numbers are those
//! of turmoil 0.7.2):
//!
//! | TCP | turmoil | here |
//! |---|---|---|
//! | a window in bytes | counts writes, of any size | [`Conditions::window_bytes`] for each direction |
//! | reads and writes may be short | a write is taken whole | any part, drawn from the seed, or none yet |
//! | a reset loses what is on its way, for both ends | no such thing | [`Network::cut`], [`Network::cut_after`] |
//! | the halves of a connection share it until both are dropped | dropping the reader resets it | shared |
//! | a listener on a host's address | only on all addresses, or loopback | on the host's own |
//!
//! Left as it is in turmoil: a host whose software has ended is off the network, so a connect to it
//! hangs (let it wait for the others); one to a host that is cut off by `turmoil::partition` is refused
//! at once instead; and segments that a partition dropped are never sent again. Socket options change
//! nothing.

mod connection;
mod network;
mod stream;

use std::io;
use std::net::{IpAddr, SocketAddr};

use kvpipe::net::{Listener, Net, SocketOptions};
use turmoil::net::{TcpListener, TcpStream};

pub use self::network::{Conditions, Network};
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
    /// For the simulated host of that name and address.
    #[must_use]
    pub fn new(network: &Network, name: &str, ip: IpAddr) -> Self {
        Self { network: network.clone(), host: Host { name: name.into(), ip } }
    }

    /// The host's own address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.host.ip
    }

    pub(crate) fn note(&self, event: impl std::fmt::Display) {
        self.network.trace().note(&self.host.name, event);
    }
}

impl Net for SimNet {
    type Stream = SimStream;
    type Listener = SimListener;

    async fn connect(&self, address: SocketAddr, _: &SocketOptions) -> io::Result<SimStream> {
        let stream = TcpStream::connect(address).await.inspect_err(|error| {
            self.note(format_args!("connecting to {address}: {}", error.kind()));
        })?;
        let ends = [stream.local_addr()?, stream.peer_addr()?];
        self.note(format_args!("connected {} to {address}", ends[0]));
        let connection = self.network.connection(self.host.ip, ends);
        Ok(SimStream::connector(stream, connection))
    }

    async fn bind(&self, address: SocketAddr, _: &SocketOptions) -> io::Result<SimListener> {
        let (own, unspecified) = (address.ip() == self.host.ip, address.ip().is_unspecified());
        let foreign = !own && !unspecified && !address.ip().is_loopback();
        if foreign || address.is_ipv4() != self.host.ip.is_ipv4() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let everywhere = match self.host.ip {
            IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        };
        let ip = if own { everywhere } else { address.ip() };
        let listener = TcpListener::bind(SocketAddr::new(ip, address.port())).await?;
        let local_addr = SocketAddr::new(address.ip(), listener.local_addr()?.port());
        self.note(format_args!("listens on {local_addr}"));
        Ok(SimListener { listener, local_addr, net: self.clone() })
    }

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if host == "localhost" {
            return Ok(vec![(std::net::Ipv4Addr::LOCALHOST, port).into()]);
        }
        // Not `turmoil::lookup`, which gives an address to every name that it does not know.
        Ok(turmoil::net::lookup_host((host, port)).await?.collect())
    }
}

/// A listening socket of a simulated host.
pub struct SimListener {
    listener: TcpListener,
    local_addr: SocketAddr,
    net: SimNet,
}

impl Listener for SimListener {
    type Stream = SimStream;

    async fn accept(&self) -> io::Result<(SimStream, SocketAddr)> {
        let (stream, origin) = self.listener.accept().await?;
        let ends = [origin, stream.local_addr()?];
        self.net.note(format_args!("accepted {origin} on {}", self.local_addr));
        let connector = if origin.ip().is_loopback() { self.net.host.ip } else { origin.ip() };
        let connection = self.net.network.connection(connector, ends);
        Ok((SimStream::listener(stream, connection), origin))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local_addr)
    }
}

impl std::fmt::Debug for SimListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimListener").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

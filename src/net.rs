//! The only place that opens sockets.
//!
//! Production code is generic over [`Net`]; [`TokioNet`] is the real one, and a simulation puts its
//! own in its place, without a `cfg` in between.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, tcp};

/// A network: something that connects, listens and resolves names.
pub trait Net: Clone + Send + Sync + 'static {
    /// A connection.
    type Stream: Stream;
    /// A listening socket.
    type Listener: Listener<Stream = Self::Stream>;

    /// Connects to `address`. The caller sets the deadline.
    ///
    /// # Errors
    /// Whatever the network answers.
    fn connect(
        &self,
        address: SocketAddr,
        options: &SocketOptions,
    ) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Listens on exactly `address`; port 0 chooses a free one.
    ///
    /// # Errors
    /// Whatever the network answers, such as `AddrInUse`.
    fn bind(
        &self,
        address: SocketAddr,
        options: &SocketOptions,
    ) -> impl Future<Output = io::Result<Self::Listener>> + Send;

    /// The addresses of a host name, in the order to try them.
    ///
    /// # Errors
    /// Whatever the resolver answers.
    fn resolve(&self, host: &str, port: u16) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send;
}

/// A listening socket of a [`Net`].
pub trait Listener: Send + Sync + 'static {
    /// What it accepts.
    type Stream: Stream;

    /// The next connection, and where it comes from. Cancel safe.
    ///
    /// # Errors
    /// Whatever the network answers. Errors of a single connection are to be expected: try again.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;

    /// The address it is bound to.
    ///
    /// # Errors
    /// Whatever the network answers.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// A connection of a [`Net`].
///
/// The halves are used by one task each. Dropping both closes the connection.
pub trait Stream: Send + 'static {
    /// The receiving half.
    type Reader: AsyncRead + Send + Sync + Unpin + 'static;
    /// The sending half. Shutting it down ends our direction only.
    type Writer: AsyncWrite + Send + Sync + Unpin + 'static;

    /// The two halves.
    fn split(self) -> (Self::Reader, Self::Writer);

    /// Our end.
    ///
    /// # Errors
    /// Whatever the network answers.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// The other end.
    ///
    /// # Errors
    /// Whatever the network answers.
    fn peer_addr(&self) -> io::Result<SocketAddr>;
}

/// What to set on a socket. The default leaves buffer sizes to the system, which tunes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketOptions {
    /// `SO_SNDBUF` in bytes.
    pub send_buffer_bytes: Option<usize>,
    /// `SO_RCVBUF` in bytes.
    pub receive_buffer_bytes: Option<usize>,
    /// Idle time until the system itself probes the peer (`SO_KEEPALIVE`, `TCP_KEEPIDLE`).
    pub keepalive: Option<Duration>,
    /// How long sent bytes may stay unacknowledged by the peer's host (`TCP_USER_TIMEOUT`, Linux).
    pub user_timeout: Option<Duration>,
}

/// The operating system's network, through tokio.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokioNet;

impl Net for TokioNet {
    type Stream = TcpStream;
    type Listener = TcpListener;

    async fn connect(&self, address: SocketAddr, options: &SocketOptions) -> io::Result<TcpStream> {
        let socket = socket_for(address)?;
        options.apply(SockRef::from(&socket))?;
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn bind(&self, address: SocketAddr, options: &SocketOptions) -> io::Result<TcpListener> {
        let socket = socket_for(address)?;
        if address.is_ipv6() {
            // Exactly the given address: `::` does not mean 0.0.0.0 as well.
            SockRef::from(&socket).set_only_v6(true)?;
        }
        // A restarted server may take its port back while old connections are in TIME_WAIT.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        // Accepted sockets inherit these.
        options.apply(SockRef::from(&socket))?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    }

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

fn socket_for(address: SocketAddr) -> io::Result<TcpSocket> {
    match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
}

impl SocketOptions {
    fn apply(&self, socket: SockRef<'_>) -> io::Result<()> {
        if let Some(bytes) = self.send_buffer_bytes {
            socket.set_send_buffer_size(bytes)?;
        }
        if let Some(bytes) = self.receive_buffer_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(idle) = self.keepalive {
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))?;
        }
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(self.user_timeout)?;
        Ok(())
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, address) = Self::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok((stream, address))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }
}

impl Stream for TcpStream {
    type Reader = tcp::OwnedReadHalf;
    type Writer = tcp::OwnedWriteHalf;

    fn split(self) -> (Self::Reader, Self::Writer) {
        self.into_split()
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }

    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Self::peer_addr(self)
    }
}

//! Bare sockets around a ring, for limits.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use kvpipe::store::Store;
use kvpipe::transport::Ring;
use tokio::net::{self, TcpListener};
use tokio::time::timeout;

use crate::failure::Failure;

/// Std sockets, which block: one to the next rank, and one from the previous one.
pub(crate) struct Edges {
    pub(crate) next: TcpStream,
    pub(crate) previous: TcpStream,
}

impl Edges {
    /// Connects to the next rank, and is connected to by the previous one. They meet in a store, under
    /// a name of which there is one.
    pub(crate) async fn connect(
        store: &impl Store,
        name: &str,
        ring: Ring,
        patience: Duration,
    ) -> Result<Self, Failure> {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await;
        let listener = listener.map_err(|error| Failure::io("listening for a bare socket", &error))?;
        let address =
            listener.local_addr().map_err(|error| Failure::io("reading the address bound", &error))?;
        let key = |rank| format!("{name}/{rank}/bare");
        store.set(&key(ring.rank()), address.to_string().into(), patience).await?;
        let next = store.get(&key(ring.next()), patience).await?;
        let next = std::str::from_utf8(&next).ok().and_then(|text| text.parse::<SocketAddr>().ok());
        let next = next.ok_or_else(|| Failure::new("bug in kvpipe: a bare socket without an address"))?;
        let outgoing = net::TcpStream::connect(next).await;
        let outgoing = outgoing
            .map_err(|error| Failure::io(format!("connecting to rank {} at {next}", ring.next()), &error))?;
        let accepted = timeout(patience, listener.accept()).await.map_err(|_| {
            let (previous, waited) = (ring.previous(), patience.as_secs_f64());
            Failure::new(format!("rank {previous} did not connect a bare socket within {waited} s"))
        })?;
        let (incoming, _) = accepted.map_err(|error| Failure::io("accepting a bare socket", &error))?;
        let blocking = |stream| blocking(stream).map_err(|error| Failure::io("a bare socket", &error));
        Ok(Self { next: blocking(outgoing)?, previous: blocking(incoming)? })
    }
}

/// A std socket that blocks.
pub(crate) fn blocking(stream: net::TcpStream) -> io::Result<TcpStream> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

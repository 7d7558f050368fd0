//! Finding the server, and connecting to it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::entropy::Entropy;
use crate::error::{Error, Result};
use crate::net::{Net, SocketOptions};
use crate::store::Limits;
use crate::store::tcp::connection::{Connection, Failure, within};
use crate::store::tcp::stock::Stock;

/// How to connect.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectOptions {
    /// How long to try until the server is there. 300 s, as PyTorch.
    pub timeout: Duration,
    /// What is refused before it is sent, and the longest value that is taken from the server. Set the
    /// server's: it refuses what is over its own limits by closing the connection.
    pub limits: Limits,
    /// For every connection.
    pub socket: SocketOptions,
    /// For the nonces of PING and the jitter of the backoff.
    pub entropy: Entropy,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(300),
            limits: Limits::default(),
            socket: SocketOptions::default(),
            entropy: Entropy::system(),
        }
    }
}

impl ConnectOptions {
    pub(super) fn nonce(&self) -> Result<u32> {
        self.entropy.bytes().map(u32::from_le_bytes)
    }
}

/// One address is tried for so long before the next is: it may swallow packets.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(5);

const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);

/// The first address of the server that answers, trying again with backoff until one does.
pub(super) async fn connect<N: Net>(
    net: &N,
    server: &Server,
    options: &ConnectOptions,
    stock: &Arc<Stock>,
) -> Result<(SocketAddr, Connection<N::Stream>)> {
    let mut last_failure = None;
    let trying = async {
        let mut backoff = FIRST_BACKOFF;
        loop {
            match try_addresses(net, server, options, stock).await {
                Ok(connected) => return Result::<_, Error>::Ok(connected),
                Err(failure) => last_failure = Some(failure),
            }
            tokio::time::sleep(jittered(backoff, options.entropy.next_u64()?)).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    };
    tokio::time::timeout(options.timeout, trying).await.unwrap_or_else(|_elapsed| {
        let why = last_failure.unwrap_or_else(|| "no answer".into());
        Err(Error::timeout(format!("the store at {server} to answer ({why})"), options.timeout))
    })
}

pub(super) async fn open<N: Net>(
    net: &N,
    address: SocketAddr,
    options: &ConnectOptions,
    stock: &Arc<Stock>,
) -> Result<Connection<N::Stream>, Failure> {
    let nonce = options.nonce().map_err(|error| Failure::Broken(std::io::Error::other(error)))?;
    let stream = net.connect(address, &options.socket).await?;
    Connection::open(stream, nonce, options.limits.clone(), Arc::clone(stock)).await
}

/// The first address that answers, or why the last one did not.
async fn try_addresses<N: Net>(
    net: &N,
    server: &Server,
    options: &ConnectOptions,
    stock: &Arc<Stock>,
) -> Result<(SocketAddr, Connection<N::Stream>), String> {
    let addresses = net.resolve(&server.host, server.port).await;
    let addresses = addresses.map_err(|error| format!("resolving {:?}: {error}", server.host))?;
    let mut last_failure = format!("{:?} has no address", server.host);
    for address in addresses {
        match within(Instant::now() + ATTEMPT_WITHIN, open(net, address, options, stock)).await {
            Ok(connection) => return Ok((address, connection)),
            Err(failure) => last_failure = format!("connecting to {address}: {}", failure.into_io()),
        }
    }
    Err(last_failure)
}

/// Half of `backoff` to all of it, so that ranks that start together don't knock together.
fn jittered(backoff: Duration, random: u64) -> Duration {
    let fraction = (random >> 32) as f64 / f64::from(u32::MAX);
    backoff.mul_f64(0.5 + fraction / 2.0)
}

/// Where the server is, as the caller said.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_is_jittered_between_half_and_whole() {
        let second = Duration::from_secs(1);
        assert_eq!(jittered(second, 0), second / 2);
        assert_eq!(jittered(second, u64::MAX), second);
    }

    #[test]
    fn a_server_is_named_as_the_caller_did_and_an_ipv6_address_in_brackets() {
        let named = |host: &str| Server { host: host.into(), port: 7 }.to_string();
        assert_eq!(named("node-1"), "node-1:7");
        assert_eq!(named("::1"), "[::1]:7");
    }
}

//! The client of a TCPStore server, kvpipe's or PyTorch's.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::connection::{Connection, Failure, within};
use crate::entropy::Entropy;
use crate::error::{Error, Result};
use crate::net::{Net, SocketOptions};
use crate::store::{Keys, Limits, Store};
use crate::sync::Mutex;

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

/// A store that a TCPStore server keeps. Clones share their connections.
///
/// # Connections
/// Each operation has a connection to itself while it runs, so that a `get` that waits blocks nobody;
/// then the connection stands by for the next operation. An operation that fails or is dropped takes
/// its connection with it, and the server forgets its wait.
///
/// # When a connection breaks
/// An idle connection that the server has closed is noticed before it is used, and replaced. If one
/// breaks in use, `get`, `check` and `wait` are repeated once on a new connection, since they change
/// nothing. `set`, `add` and `delete` are never repeated once a byte may have been sent: an addition
/// would count twice, a repeated `set` could bring back what a reader has consumed and deleted, and a
/// repeated `delete` would deny what the first did. A new connection goes to the address that
/// [`connect`](Self::connect) found, and is tried once: a server that is gone is an error at once and
/// not at the timeout.
///
/// # Differences from PyTorch's client
/// Every reply has a deadline, not only those of WAIT. `set` returns once the server holds the value:
/// SET has no reply, so a PING goes with it. A server that closes the connection on GET, because the key
/// was deleted after WAIT had seen it, leads to another WAIT (PyTorch's libuv server answers with an
/// empty value instead, which can't be told from one that was stored). A `get` or `wait` whose timeout has passed
/// tells the server so by CANCEL_WAIT and returns up to 1 s late if that is not answered.
pub struct TcpStore<N: Net> {
    shared: Arc<Shared<N>>,
}

impl<N: Net> Clone for TcpStore<N> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<N: Net> fmt::Debug for TcpStore<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { server, address, local_addr, .. } = &*self.shared;
        let mut debug = f.debug_struct("TcpStore");
        debug.field("server", server).field("address", address).field("local_addr", local_addr);
        debug.finish_non_exhaustive()
    }
}

struct Shared<N: Net> {
    net: N,
    server: Server,
    /// Which of the server's addresses answered.
    address: SocketAddr,
    local_addr: SocketAddr,
    options: ConnectOptions,
    idle: Mutex<Vec<Connection<N::Stream>>>,
    joined: AtomicBool,
}

/// Connections that stand by; one more is closed.
const IDLE_CONNECTIONS: usize = 8;

/// The counter of workers. It is the one key without a `/` in front (torch, `TCPStore.cpp`).
const JOINED_KEY: Bytes = Bytes::from_static(b"init/");

/// Between two looks at the counter of workers, as PyTorch.
const JOINED_POLL: Duration = Duration::from_millis(10);

/// One address is tried for so long before the next is: it may swallow packets.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(5);

const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);

impl<N: Net> TcpStore<N> {
    /// Connects to the server at `host`, a name or an address, trying again with backoff until it is
    /// there: ranks may start before the one that serves the store. All addresses of a name are tried.
    ///
    /// # Errors
    /// [`Error::Timeout`] with the server's host and port and with why the last attempt failed.
    ///
    /// # Cancel safety
    /// Dropped early, nothing is left connected.
    pub async fn connect(net: N, host: &str, port: u16, options: ConnectOptions) -> Result<Self> {
        let server = Server { host: host.into(), port };
        let mut last_failure = None;
        let trying = async {
            let mut backoff = FIRST_BACKOFF;
            loop {
                match try_addresses(&net, &server, &options).await {
                    Ok(connected) => return Result::<_, Error>::Ok(connected),
                    Err(failure) => last_failure = Some(failure),
                }
                tokio::time::sleep(jittered(backoff, options.entropy.next_u64()?)).await;
                backoff = (backoff * 2).min(LONGEST_BACKOFF);
            }
        };
        let Ok(outcome) = tokio::time::timeout(options.timeout, trying).await else {
            let why = last_failure.unwrap_or_else(|| "no answer".into());
            return Err(Error::timeout(format!("the store at {server} to answer ({why})"), options.timeout));
        };
        let (address, connection) = outcome?;
        let local_addr = connection.local_addr();
        let (idle, joined) = (Mutex::new(vec![connection]), AtomicBool::new(false));
        Ok(Self { shared: Arc::new(Shared { net, server, address, local_addr, options, idle, joined }) })
    }

    /// Our end of the first connection to the server: an address of this host that the server's network
    /// can reach.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.local_addr
    }

    /// The server's address.
    #[must_use]
    pub fn server_addr(&self) -> SocketAddr {
        self.shared.address
    }

    /// Counts this worker in, as PyTorch's clients do right after connecting; gives how many have
    /// joined. Once for a store and its clones.
    ///
    /// # Errors
    /// [`Error::Misuse`] the second time, also if the first failed: it may have counted. Otherwise as
    /// [`Store::add`].
    ///
    /// # Cancel safety
    /// Dropped early, the worker may or may not be counted.
    pub async fn join(&self, timeout: Duration) -> Result<i64> {
        if self.shared.joined.swap(true, Ordering::Relaxed) {
            return Err(Error::Misuse(format!(
                "this store has joined at {} already, and joining twice counts twice",
                self.shared.server
            )));
        }
        let call = Call { doing: "joining with", keys: &["init/"], timeout };
        self.add_raw(JOINED_KEY, 1, timeout).await.map_err(|failure| self.error(&call, failure))
    }

    /// Waits until `world_size` workers have joined, this one among them. In PyTorch and vLLM only the
    /// rank that serves the store waits.
    ///
    /// # Errors
    /// [`Error::Timeout`] with how many have joined. Otherwise as [`Store::get`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait_for_workers(&self, world_size: usize, timeout: Duration) -> Result<()> {
        let mut joined = 0;
        let call = Call { doing: "waiting for workers by", keys: &["init/"], timeout };
        let counting = async {
            loop {
                // Nothing else bounds it: the timeout is around the whole.
                let text = self.get_raw(JOINED_KEY, Duration::MAX).await;
                let text = text.map_err(|failure| self.error(&call, failure))?;
                joined = parse_count(&text, &self.shared.server)?;
                if joined >= world_size {
                    return Ok(());
                }
                tokio::time::sleep(JOINED_POLL).await;
            }
        };
        tokio::time::timeout(timeout, counting).await.unwrap_or_else(|_elapsed| {
            let server = &self.shared.server;
            let awaited = format!("all workers: {joined} of {world_size} have joined the store at {server}");
            Err(Error::timeout(awaited, timeout))
        })
    }

    async fn add_raw(&self, key: Bytes, delta: i64, timeout: Duration) -> Result<i64, Failure> {
        within(deadline(timeout), async {
            let mut connection = self.take_connection().await?;
            let sum = connection.add(key, delta).await?;
            self.give_back(connection);
            Ok(sum)
        })
        .await
    }

    async fn get_raw(&self, key: Bytes, timeout: Duration) -> Result<Bytes, Failure> {
        let deadline = deadline(timeout);
        repeated_once(|| async {
            let connection = self.wait_once(vec![key.clone()], deadline).await?;
            within(deadline, async {
                let mut connection = connection;
                let value = connection.get(key.clone()).await?;
                self.give_back(connection);
                Ok(value)
            })
            .await
        })
        .await
    }

    /// The connection on which the wait was answered.
    async fn wait_once(&self, keys: Vec<Bytes>, deadline: Instant) -> Result<Connection<N::Stream>, Failure> {
        let mut connection = within(deadline, self.take_connection()).await?;
        if connection.wait(keys, deadline).await? {
            return Ok(connection);
        }
        self.give_back(connection);
        Err(Failure::Late)
    }

    /// A connection that nobody else has.
    async fn take_connection(&self) -> Result<Connection<N::Stream>, Failure> {
        loop {
            // A statement of its own: the lock is not held while the connection is looked at.
            let idle = self.shared.idle.lock().pop();
            match idle {
                None => return self.shared.open().await,
                Some(mut connection) => {
                    if connection.is_idle().await {
                        return Ok(connection);
                    }
                }
            }
        }
    }

    /// After complete exchanges only.
    fn give_back(&self, connection: Connection<N::Stream>) {
        let mut idle = self.shared.idle.lock();
        if idle.len() < IDLE_CONNECTIONS {
            idle.push(connection);
        }
    }

    /// A user's key as it is on the wire.
    fn wire_key(&self, key: &str) -> Result<Bytes> {
        let key = wire_key(key);
        self.shared.options.limits.check_key(&key)?;
        Ok(key)
    }

    fn wire_keys(&self, keys: &[&str]) -> Result<Vec<Bytes>> {
        let keys: Vec<Bytes> = keys.iter().map(|key| wire_key(key)).collect();
        self.shared.options.limits.check_keys(&keys)?;
        Ok(keys)
    }

    fn error(&self, call: &Call<'_>, failure: Failure) -> Error {
        let server = &self.shared.server;
        match failure {
            Failure::Late => Error::timeout(format!("the store at {server}, {call}"), call.timeout),
            other => Error::io(format!("{call} in the store at {server}"), other.into_io()),
        }
    }
}

/// Cancel safety, timeouts and errors as the trait says; see [`TcpStore`] for broken connections.
impl<N: Net> Store for TcpStore<N> {
    async fn set(&self, key: &str, value: Bytes, timeout: Duration) -> Result<()> {
        let wire_key = self.wire_key(key)?;
        self.shared.options.limits.check_value(key, &value)?;
        let nonce = self.shared.options.nonce()?;
        let setting = within(deadline(timeout), async {
            let mut connection = self.take_connection().await?;
            connection.set(wire_key, value, nonce).await?;
            self.give_back(connection);
            Ok(())
        });
        setting
            .await
            .map_err(|failure| self.error(&Call { doing: "setting", keys: &[key], timeout }, failure))
    }

    async fn get(&self, key: &str, timeout: Duration) -> Result<Bytes> {
        let getting = self.get_raw(self.wire_key(key)?, timeout).await;
        getting.map_err(|failure| self.error(&Call { doing: "getting", keys: &[key], timeout }, failure))
    }

    async fn add(&self, key: &str, delta: i64, timeout: Duration) -> Result<i64> {
        let adding = self.add_raw(self.wire_key(key)?, delta, timeout).await;
        adding.map_err(|failure| self.error(&Call { doing: "adding to", keys: &[key], timeout }, failure))
    }

    async fn check(&self, keys: &[&str], timeout: Duration) -> Result<bool> {
        let wire_keys = self.wire_keys(keys)?;
        let once = || async {
            let mut connection = self.take_connection().await?;
            let ready = connection.check(wire_keys.clone()).await?;
            self.give_back(connection);
            Ok(ready)
        };
        let checking = within(deadline(timeout), repeated_once(once)).await;
        checking.map_err(|failure| self.error(&Call { doing: "checking", keys, timeout }, failure))
    }

    async fn wait(&self, keys: &[&str], timeout: Duration) -> Result<()> {
        let (wire_keys, deadline) = (self.wire_keys(keys)?, deadline(timeout));
        let waiting = repeated_once(|| self.wait_once(wire_keys.clone(), deadline)).await;
        match waiting {
            Ok(connection) => {
                self.give_back(connection);
                Ok(())
            }
            Err(failure) => Err(self.error(&Call { doing: "waiting for", keys, timeout }, failure)),
        }
    }

    async fn delete(&self, key: &str, timeout: Duration) -> Result<bool> {
        let wire_key = self.wire_key(key)?;
        let deleting = within(deadline(timeout), async {
            let mut connection = self.take_connection().await?;
            let deleted = connection.delete(wire_key).await?;
            self.give_back(connection);
            Ok(deleted)
        });
        deleting
            .await
            .map_err(|failure| self.error(&Call { doing: "deleting", keys: &[key], timeout }, failure))
    }
}

impl<N: Net> Shared<N> {
    async fn open(&self) -> Result<Connection<N::Stream>, Failure> {
        open(&self.net, self.address, &self.options).await
    }
}

impl ConnectOptions {
    fn nonce(&self) -> Result<u32> {
        self.entropy.bytes().map(u32::from_le_bytes)
    }
}

async fn open<N: Net>(
    net: &N,
    address: SocketAddr,
    options: &ConnectOptions,
) -> Result<Connection<N::Stream>, Failure> {
    let nonce = options.nonce().map_err(|error| Failure::Broken(std::io::Error::other(error)))?;
    let stream = net.connect(address, &options.socket).await?;
    Connection::open(stream, nonce, options.limits.clone()).await
}

/// The first address that answers, or why the last one did not.
async fn try_addresses<N: Net>(
    net: &N,
    server: &Server,
    options: &ConnectOptions,
) -> Result<(SocketAddr, Connection<N::Stream>), String> {
    let addresses = net.resolve(&server.host, server.port).await;
    let addresses = addresses.map_err(|error| format!("resolving {:?}: {error}", server.host))?;
    let mut last_failure = format!("{:?} has no address", server.host);
    for address in addresses {
        match within(Instant::now() + ATTEMPT_WITHIN, open(net, address, options)).await {
            Ok(connection) => return Ok((address, connection)),
            Err(failure) => last_failure = format!("connecting to {address}: {}", failure.into_io()),
        }
    }
    Err(last_failure)
}

/// For what changes nothing: once more if a connection broke under it.
async fn repeated_once<T, F>(exchange: impl Fn() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    match exchange().await {
        Err(Failure::Broken(error)) => {
            tracing::debug!(%error, "a connection to the store broke, trying another");
            exchange().await
        }
        other => other,
    }
}

/// PyTorch's clients put a `/` in front of every key of a user.
fn wire_key(key: &str) -> Bytes {
    Bytes::from(["/", key].concat())
}

fn deadline(timeout: Duration) -> Instant {
    /// What no caller lives to see, and every clock can add.
    const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    Instant::now() + timeout.min(FOR_EVER)
}

/// Half of `backoff` to all of it, so that ranks that start together don't knock together.
fn jittered(backoff: Duration, random: u64) -> Duration {
    let fraction = (random >> 32) as f64 / f64::from(u32::MAX);
    backoff.mul_f64(0.5 + fraction / 2.0)
}

fn parse_count(text: &[u8], server: &Server) -> Result<usize> {
    let count = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    count.ok_or_else(|| {
        let text = String::from_utf8_lossy(text);
        let wrong = format!("the counter of workers, key \"init/\", is {text:?} and not a count");
        Error::io(
            format!("reading the store at {server}"),
            std::io::Error::new(std::io::ErrorKind::InvalidData, wrong),
        )
    })
}

/// Where the server is, as the caller said.
#[derive(Debug)]
struct Server {
    host: String,
    port: u16,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// An operation, as its errors say it.
struct Call<'a> {
    /// Such as `getting`.
    doing: &'static str,
    keys: &'a [&'a str],
    timeout: Duration,
}

impl fmt::Display for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.doing, Keys(self.keys))
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

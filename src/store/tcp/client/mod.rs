//! The client of a TCPStore server, kvpipe's or PyTorch's.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use self::dial::Server;
use self::exchange::Call;
use super::connection::Connection;
use super::protocol::Request;
use super::stock::Stock;
use crate::error::{Error, Result};
use crate::net::Net;
use crate::sync::Mutex;

mod answer;
mod dial;
mod exchange;
mod operations;

pub use self::dial::ConnectOptions;

/// A store that a TCPStore server keeps. Clones share their connections.
///
/// # Connections
/// Each operation has a connection to itself while it runs, so that a `get` that waits blocks nobody;
/// then the connection stands by for the next operation. An operation that fails or is dropped takes
/// its connection with it, and the server forgets its wait.
///
/// # When a connection breaks
/// An idle connection that the server has closed is noticed before it is used, and replaced. If one
/// breaks in use, what changes nothing is repeated once on a new connection: `get`, `multi_get`,
/// `check`, `wait`, `num_keys`, `list_keys`, `queue_len`, and of `queue_pop` the waiting. Nothing else
/// is ever repeated once a byte may have been sent: an addition, an arrival or a pushed value would
/// count twice, a repeated `set` could bring back what a reader has consumed and deleted, and a
/// repeated `delete` would deny what the first did. A new connection goes to the address that
/// [`connect`](Self::connect) found, and is tried once: a server that is gone is an error at once and
/// not at the timeout.
///
/// # Differences from PyTorch's client
/// Every reply has a deadline, not only those of WAIT. `set`, `append`, `multi_set` and `queue_push`
/// return once the server has carried them out: their requests have no reply, so a PING goes with each
/// in the same write. A server that closes the connection on GET, because the key was deleted after
/// WAIT had seen it, leads to another WAIT (PyTorch's libuv server answers with an empty value instead,
/// which can't be told from one that was stored). What waits in vain until its timeout has passed tells
/// the server so by CANCEL_WAIT and returns up to 1 s late if that is not answered; if the keys come, or
/// the others, just then, it is a timeout nevertheless. On PyTorch's classic server, where no queue ever
/// has anything, `queue_pop` waits until its timeout.
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
    stock: Arc<Stock>,
    idle: Mutex<Vec<Connection<N::Stream>>>,
    joined: AtomicBool,
}

/// The counter of workers. It is the one key without a `/` in front (torch, `TCPStore.cpp`).
const JOINED_KEY: Bytes = Bytes::from_static(b"init/");

/// Between two looks at the counter of workers, as PyTorch.
const JOINED_POLL: Duration = Duration::from_millis(10);

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
        let stock = Arc::default();
        let (address, connection) = dial::connect(&net, &server, &options, &stock).await?;
        let local_addr = connection.local_addr();
        let (idle, joined) = (Mutex::new(vec![connection]), AtomicBool::new(false));
        Ok(Self {
            shared: Arc::new(Shared { net, server, address, local_addr, options, stock, idle, joined }),
        })
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
    /// [`Store::add`](crate::store::Store::add).
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
        self.ask(&call, &Request::Add { key: JOINED_KEY, delta: 1 }, answer::number).await
    }

    /// Waits until `world_size` workers have joined, this one among them. In PyTorch and vLLM only the
    /// rank that serves the store waits.
    ///
    /// # Errors
    /// [`Error::Timeout`] with how many have joined. Otherwise as [`Store::get`](crate::store::Store::get).
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait_for_workers(&self, world_size: usize, timeout: Duration) -> Result<()> {
        let mut joined = 0;
        let call = Call { doing: "waiting for workers by", keys: &["init/"], timeout: Duration::MAX };
        let get = Request::Get { key: JOINED_KEY };
        let counting = async {
            loop {
                // Nothing else bounds it: the timeout is around the whole.
                let text = self.ask_once_there(&call, vec![JOINED_KEY], &get, answer::value).await?;
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
}

fn parse_count(text: &[u8], server: &Server) -> Result<usize> {
    let count = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    count.ok_or_else(|| {
        let text = String::from_utf8_lossy(&text[..text.len().min(64)]);
        let wrong = format!("the counter of workers, key \"init/\", is {text:?} and not a count");
        Error::io(
            format!("reading the store at {server}"),
            std::io::Error::new(std::io::ErrorKind::InvalidData, wrong),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_is_none_is_quoted_in_part() {
        let server = Server { host: "store".into(), port: 1 };
        assert_eq!(parse_count(b"12", &server).unwrap(), 12);
        let error = parse_count(&[b'x'; 5000], &server).unwrap_err().to_string();
        assert!(error.contains("is \"xxx") && error.len() < 300, "{error}");
    }
}

//! How an operation is carried out: a connection, a deadline, perhaps a second try, and its errors.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Shared, TcpStore, answer, dial};
use crate::error::{Error, Result};
use crate::net::Net;
use crate::store::Keys;
use crate::store::tcp::connection::{Answer, Connection, Failure, within};
use crate::store::tcp::protocol::Request;

/// Connections that stand by; one more is closed.
const IDLE_CONNECTIONS: usize = 8;

/// An operation, as its errors say it.
pub(super) struct Call<'a> {
    /// Such as `getting`.
    pub(super) doing: &'static str,
    pub(super) keys: &'a [&'a str],
    pub(super) timeout: Duration,
}

impl fmt::Display for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.doing, Keys(self.keys))
    }
}

impl<N: Net> TcpStore<N> {
    /// Sends a request that has a reply, and reads it.
    pub(super) async fn ask<T>(&self, call: &Call<'_>, request: &Request, answer: Answer<T>) -> Result<T> {
        let once = || async {
            let mut connection = self.take_connection().await?;
            let answer = connection.ask(request, answer).await?;
            self.give_back(connection);
            Ok(answer)
        };
        let asking =
            async { if request.changes_nothing() { repeated_once(once).await } else { once().await } };
        within(call.deadline(), asking).await.map_err(|failure| self.error(call, failure))
    }

    /// Sends a request that has no reply, and makes sure that it was carried out.
    pub(super) async fn tell(&self, call: &Call<'_>, request: &Request) -> Result<()> {
        let nonce = self.shared.options.nonce()?;
        let telling = async {
            let mut connection = self.take_connection().await?;
            connection.tell(request, nonce).await?;
            self.give_back(connection);
            Ok(())
        };
        within(call.deadline(), telling).await.map_err(|failure| self.error(call, failure))
    }

    /// Sends a WAIT or BARRIER, and waits.
    pub(super) async fn wait_for(&self, call: &Call<'_>, request: &Request) -> Result<()> {
        let deadline = call.deadline();
        let once = || self.wait_once(request, deadline);
        let waited = if request.changes_nothing() { repeated_once(once).await } else { once().await };
        waited.map(|connection| self.give_back(connection)).map_err(|failure| self.error(call, failure))
    }

    /// Waits for `keys`, and sends a request that needs them.
    pub(super) async fn ask_once_there<T>(
        &self,
        call: &Call<'_>,
        keys: Vec<Bytes>,
        request: &Request,
        answer: Answer<T>,
    ) -> Result<T> {
        let deadline = call.deadline();
        let wait = Request::Wait { keys };
        let once = || async {
            let mut connection = self.wait_once(&wait, deadline).await?;
            let answer = within(deadline, connection.ask(request, answer)).await?;
            self.give_back(connection);
            Ok(answer)
        };
        repeated_once(once).await.map_err(|failure| self.error(call, failure))
    }

    /// Waits for a queue and takes a value out of it, however often another is faster.
    pub(super) async fn pop_once_there(&self, call: &Call<'_>, key: Bytes) -> Result<Bytes> {
        let deadline = call.deadline();
        let (wait, pop) = (Request::Wait { keys: vec![key.clone()] }, Request::QueuePop { key });
        let popping = async {
            loop {
                let mut connection = repeated_once(|| self.wait_once(&wait, deadline)).await?;
                let value = within(deadline, connection.ask(&pop, answer::popped)).await?;
                self.give_back(connection);
                if let Some(value) = value {
                    return Ok(value);
                }
            }
        };
        popping.await.map_err(|failure| self.error(call, failure))
    }

    /// The connection on which the wait was answered.
    async fn wait_once(&self, wait: &Request, deadline: Instant) -> Result<Connection<N::Stream>, Failure> {
        let mut connection = within(deadline, self.take_connection()).await?;
        if connection.wait(wait, deadline).await? {
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
                None => {
                    let Shared { net, address, options, stock, .. } = &*self.shared;
                    return dial::open(net, *address, options, stock).await;
                }
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

    fn error(&self, call: &Call<'_>, failure: Failure) -> Error {
        let server = &self.shared.server;
        match failure {
            Failure::Late => Error::timeout(format!("the store at {server}, {call}"), call.timeout),
            other => Error::io(format!("{call} in the store at {server}"), other.into_io()),
        }
    }
}

impl Call<'_> {
    fn deadline(&self) -> Instant {
        /// What no caller lives to see, and every clock can add.
        const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
        Instant::now() + self.timeout.min(FOR_EVER)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_timeout_outlives_its_caller() {
        let call = Call { doing: "waiting for", keys: &["k"], timeout: Duration::MAX };
        let century = Duration::from_secs(100 * 365 * 24 * 3600);
        assert!(call.deadline() - Instant::now() > century / 4);
    }
}

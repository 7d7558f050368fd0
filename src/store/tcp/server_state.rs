//! The server as a state machine: requests in, replies out, no I/O and no clock.
//!
//! The semantics are TCPStore's (torch 2.5 to 2.15). Where PyTorch's two servers differ from each
//! other, or are lax, this is the choice:
//!
//! - **First request.** It must be VALIDATE with the right magic, and a second VALIDATE ends the
//!   connection, as with the classic server. (libuv's executes a parked first request later.) VALIDATE
//!   may come in pieces.
//! - **GET of a missing key** closes the connection, as the classic server does, which is the one that
//!   vLLM uses. libuv's answers with an empty value, which a client can't tell from a stored one; a
//!   client that has waited for the key and lost it to a DELETE_KEY must not read that as data.
//! - **A second WAIT while one is pending** closes the connection. PyTorch's servers overwrite the first
//!   one's counter and answer one of the two; no client of theirs does it, and nobody could tell which
//!   was answered.
//! - **ADD** refuses a value that is not a plain decimal, and a sum that overflows.
//! - **A reply to a request comes before a wake-up** that the same request caused on its own connection.
//!
//! Everything refused closes the connection of the client that asked for it, since the protocol has no
//! error reply, and leaves the stored values and every other client as they were.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::protocol::{MAGIC, Reply, Request};
use crate::store::keyspace::{Keyspace, WaiterId, text};
use crate::store::{Limits, Refusal};

/// One connection of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(WaiterId);

/// Why a client's connection is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// It began with something else than VALIDATE.
    #[error("the first request is not VALIDATE")]
    NotValidated,
    /// VALIDATE with another magic number.
    #[error("VALIDATE carries {0:#010x}, not {MAGIC:#010x}")]
    WrongMagic(u32),
    /// VALIDATE once more.
    #[error("a second VALIDATE")]
    ValidatedTwice,
    /// WAIT while another WAIT is pending.
    #[error("a second WAIT while one is pending")]
    WaitsTwice,
    /// GET of a key that is not there.
    #[error("GET of key {0:?}, which is not there")]
    NoSuchKey(String),
    /// The store does not take it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The client is not, or no more, connected; its connection is closed already.
    #[error("the client is not connected")]
    NotConnected,
}

/// The server's whole state.
#[derive(Debug)]
pub struct ServerState {
    keyspace: Keyspace,
    clients: BTreeMap<ClientId, Stage>,
    next_client: u64,
    clients_limit: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connected,
    Validated,
}

impl ServerState {
    /// A server without keys and clients.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            keyspace: Keyspace::new(limits),
            clients: BTreeMap::new(),
            next_client: 0,
            clients_limit: limits.clients,
        }
    }

    /// A new connection; `None` if there are [`Limits::clients`] already.
    pub fn connect(&mut self) -> Option<ClientId> {
        if self.clients.len() >= self.clients_limit {
            return None;
        }
        let client = ClientId(self.next_client);
        self.next_client += 1;
        self.clients.insert(client, Stage::Connected);
        Some(client)
    }

    /// A connection has ended. Its pending WAIT is forgotten; what it stored stays.
    pub fn disconnect(&mut self, client: ClientId) {
        self.keyspace.cancel(client.0);
        self.clients.remove(&client);
    }

    /// How many clients are connected.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// How many clients have a WAIT pending.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.keyspace.waiting()
    }

    /// Handles the next request of `client` and appends to `replies` what goes to whom, in the order in
    /// which it must be sent to each.
    ///
    /// # Errors
    /// A [`Violation`]: close the client's connection and call [`disconnect`](Self::disconnect).
    /// Nothing was changed and nothing is to be sent, but earlier replies still are.
    pub fn handle(
        &mut self,
        client: ClientId,
        request: Request,
        replies: &mut Vec<(ClientId, Reply)>,
    ) -> Result<(), Violation> {
        self.admit(client, &request)?;
        let mut satisfied = Vec::new();
        let reply = match request {
            Request::Validate { .. } => None,
            Request::Ping { nonce } => Some(Reply::Pong(nonce)),
            Request::Set { key, value } => {
                satisfied = self.keyspace.set(key, value)?;
                None
            }
            Request::Get { key } => Some(Reply::Value(self.value(&key)?)),
            Request::Add { key, delta } => {
                let (sum, woken) = self.keyspace.add(key, delta)?;
                satisfied = woken;
                Some(Reply::Number(sum))
            }
            Request::Check { keys } => {
                Some(if self.keyspace.has_all(&keys) { Reply::Ready } else { Reply::NotReady })
            }
            Request::Wait { keys } => {
                if self.keyspace.is_waiting(client.0) {
                    return Err(Violation::WaitsTwice);
                }
                self.keyspace.wait(client.0, keys).then_some(Reply::StopWaiting)
            }
            Request::CancelWait => {
                self.keyspace.cancel(client.0);
                Some(Reply::WaitCanceled)
            }
            Request::DeleteKey { key } => Some(Reply::Number(self.keyspace.delete(&key).into())),
        };
        replies.extend(reply.map(|reply| (client, reply)));
        replies.extend(satisfied.into_iter().map(|waiter| (ClientId(waiter), Reply::StopWaiting)));
        Ok(())
    }

    fn admit(&mut self, client: ClientId, request: &Request) -> Result<(), Violation> {
        let stage = self.clients.get_mut(&client).ok_or(Violation::NotConnected)?;
        match (*stage, request) {
            (Stage::Connected, Request::Validate { magic: MAGIC }) => *stage = Stage::Validated,
            (Stage::Connected, Request::Validate { magic }) => return Err(Violation::WrongMagic(*magic)),
            (Stage::Connected, _) => return Err(Violation::NotValidated),
            (Stage::Validated, Request::Validate { .. }) => return Err(Violation::ValidatedTwice),
            (Stage::Validated, _) => {}
        }
        Ok(())
    }

    fn value(&self, key: &Bytes) -> Result<Bytes, Violation> {
        self.keyspace.get(key).cloned().ok_or_else(|| Violation::NoSuchKey(text(key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server with named clients; `ask` gives all replies, `A` before the colon is to whom.
    struct Server {
        state: ServerState,
        clients: Vec<ClientId>,
    }

    impl Server {
        fn with_clients(count: usize) -> Self {
            let mut state = ServerState::new(&Limits::default());
            let clients: Vec<_> = (0..count).map(|_| state.connect().unwrap()).collect();
            let mut server = Self { state, clients };
            for client in 0..count {
                assert_eq!(server.ask(client, Request::Validate { magic: MAGIC }), Ok(vec![]));
            }
            server
        }

        fn ask(&mut self, client: usize, request: Request) -> Result<Vec<(usize, Reply)>, Violation> {
            let mut replies = Vec::new();
            self.state.handle(self.clients[client], request, &mut replies)?;
            let index = |id| self.clients.iter().position(|client| *client == id).unwrap();
            Ok(replies.into_iter().map(|(id, reply)| (index(id), reply)).collect())
        }
    }

    fn set(key: &'static str) -> Request {
        Request::Set { key: key.into(), value: "v".into() }
    }

    fn wait(keys: &[&'static str]) -> Request {
        Request::Wait { keys: keys.iter().map(|key| Bytes::from(*key)).collect() }
    }

    #[test]
    fn set_and_add_wake_whoever_waits() {
        let mut server = Server::with_clients(3);
        assert_eq!(server.ask(0, wait(&["a"])), Ok(vec![]));
        assert_eq!(server.ask(1, wait(&["a", "n"])), Ok(vec![]));
        assert_eq!(server.ask(2, set("a")), Ok(vec![(0, Reply::StopWaiting)]));
        let add = Request::Add { key: "n".into(), delta: 2 };
        assert_eq!(server.ask(2, add), Ok(vec![(2, Reply::Number(2)), (1, Reply::StopWaiting)]));
        assert_eq!(server.ask(2, set("a")), Ok(vec![]));
    }

    #[test]
    fn a_reply_comes_before_the_wake_up_that_the_request_caused_on_its_own_connection() {
        let mut server = Server::with_clients(1);
        assert_eq!(server.ask(0, wait(&["n"])), Ok(vec![]));
        let add = Request::Add { key: "n".into(), delta: 1 };
        assert_eq!(server.ask(0, add), Ok(vec![(0, Reply::Number(1)), (0, Reply::StopWaiting)]));
    }

    #[test]
    fn a_waiting_client_may_ask_other_things_but_not_wait_twice() {
        let mut server = Server::with_clients(1);
        assert_eq!(server.ask(0, wait(&["a"])), Ok(vec![]));
        assert_eq!(server.ask(0, Request::Ping { nonce: 7 }), Ok(vec![(0, Reply::Pong(7))]));
        assert_eq!(server.ask(0, wait(&["b"])), Err(Violation::WaitsTwice));
    }

    #[test]
    fn cancel_wait_is_always_answered_and_a_new_wait_may_follow() {
        let mut server = Server::with_clients(2);
        assert_eq!(server.ask(0, Request::CancelWait), Ok(vec![(0, Reply::WaitCanceled)]));
        assert_eq!(server.ask(0, wait(&["a"])), Ok(vec![]));
        assert_eq!(server.ask(0, Request::CancelWait), Ok(vec![(0, Reply::WaitCanceled)]));
        assert_eq!(server.ask(1, set("a")), Ok(vec![]));
        assert_eq!(server.ask(0, wait(&["a"])), Ok(vec![(0, Reply::StopWaiting)]));
    }

    #[test]
    fn a_client_that_has_left_is_woken_no_more() {
        let mut server = Server::with_clients(2);
        assert_eq!(server.ask(0, wait(&["a"])), Ok(vec![]));
        server.state.disconnect(server.clients[0]);
        assert_eq!((server.state.clients(), server.state.waiting()), (1, 0));
        assert_eq!(server.ask(1, set("a")), Ok(vec![]));
        assert_eq!(server.ask(0, set("a")), Err(Violation::NotConnected));
    }

    #[test]
    fn nothing_works_before_validate_and_validate_works_once() {
        let mut server = Server::with_clients(1);
        server.clients.push(server.state.connect().unwrap());
        assert_eq!(server.ask(1, Request::Ping { nonce: 1 }), Err(Violation::NotValidated));
        assert_eq!(server.ask(1, Request::Validate { magic: 1 }), Err(Violation::WrongMagic(1)));
        assert_eq!(server.ask(1, set("a")), Err(Violation::NotValidated));
        assert_eq!(server.ask(0, Request::Validate { magic: MAGIC }), Err(Violation::ValidatedTwice));
        assert_eq!(server.ask(0, Request::Check { keys: vec!["a".into()] }), Ok(vec![(0, Reply::NotReady)]));
    }

    #[test]
    fn a_missing_key_is_refused_and_an_empty_value_is_not() {
        let mut server = Server::with_clients(1);
        let get = || Request::Get { key: "a".into() };
        assert_eq!(server.ask(0, get()), Err(Violation::NoSuchKey("a".into())));
        assert_eq!(server.ask(0, Request::Set { key: "a".into(), value: Bytes::new() }), Ok(vec![]));
        assert_eq!(server.ask(0, get()), Ok(vec![(0, Reply::Value(Bytes::new()))]));
    }

    #[test]
    fn one_client_over_the_limit_is_turned_away_until_another_leaves() {
        let limits = Limits { clients: 1, ..Limits::default() };
        let mut state = ServerState::new(&limits);
        let first = state.connect().unwrap();
        assert_eq!(state.connect(), None);
        state.disconnect(first);
        assert!(state.connect().is_some());
    }
}

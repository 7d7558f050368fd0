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
//!   MULTI_GET does the same if any of its keys is missing.
//! - **A second WAIT or BARRIER while one is pending** closes the connection. PyTorch's servers overwrite
//!   the first one's counter and answer one of the two; no client of theirs does it, and nobody could
//!   tell which was answered.
//! - **ADD** refuses a value that is not a plain decimal, and a sum that overflows; BARRIER likewise.
//! - **COMPARE_SET** wakes who waits for the key if it stored something, and nobody if it did not.
//!   (libuv's wakes always, so that a GET follows that finds nothing; the classic one never, so that a
//!   key appears for which somebody waits on for ever.)
//! - **MULTI_SET** stores everything or, where that is over a limit, nothing. (libuv's may store the
//!   beginning of a request whose end never comes.)
//! - **Queues** are libuv's; the classic server has none. Each has its key's name in a space of its own,
//!   where DELETE_KEY, GETNUMKEYS and LIST_KEYS do not look, but WAIT and CHECK do while it has
//!   something. One pushed value wakes all who wait for the queue; those who come too late find it
//!   empty, and wait again.
//! - **BARRIER** counts under its key, which thereby exists. Who is cancelled or leaves stays counted.
//!   Whoever finds the world size reached frees all who are parked at the key, whatever size they gave.
//! - **LIST_KEYS** lists in the order of the keys' bytes; PyTorch's servers in that of a hash table.
//! - **A reply to a request comes before a wake-up** that the same request caused on its own connection.
//!
//! Everything refused closes the connection of the client that asked for it, since the protocol has no
//! error reply, and leaves the stored values and every other client as they were.

use std::collections::BTreeMap;
use std::slice;

use bytes::Bytes;

use super::protocol::{MAGIC, Reply, Request};
use crate::store::keyspace::{Keyspace, text};
use crate::store::waits::{WaiterId, cost_of_all};
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
    /// WAIT or BARRIER while another one is pending.
    #[error("a second WAIT or BARRIER while one is pending")]
    WaitsTwice,
    /// GET or MULTI_GET of a key that is not there.
    #[error("GET of key {0:?}, which is not there")]
    NoSuchKey(String),
    /// The unfinished requests of all clients are over [`Limits::unfinished_bytes`] together.
    #[error("all clients' unfinished requests would hold {bytes} bytes, over the limit of {limit}")]
    TooMuchUnfinished {
        /// What they would hold with this client's.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
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
    clients: BTreeMap<ClientId, Client>,
    next_client: u64,
    /// Of requests that have not come whole, of all clients.
    unfinished_bytes: usize,
    clients_limit: usize,
    unfinished_bytes_limit: usize,
}

#[derive(Debug)]
struct Client {
    stage: Stage,
    unfinished_bytes: usize,
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
            unfinished_bytes: 0,
            clients_limit: limits.clients,
            unfinished_bytes_limit: limits.unfinished_bytes,
        }
    }

    /// A new connection; `None` if there are [`Limits::clients`] already.
    pub fn connect(&mut self) -> Option<ClientId> {
        if self.clients.len() >= self.clients_limit {
            return None;
        }
        let client = ClientId(self.next_client);
        self.next_client += 1;
        self.clients.insert(client, Client { stage: Stage::Connected, unfinished_bytes: 0 });
        Some(client)
    }

    /// A connection has ended. Its pending WAIT is forgotten; what it stored stays.
    pub fn disconnect(&mut self, client: ClientId) {
        self.keyspace.cancel(client.0);
        if let Some(client) = self.clients.remove(&client) {
            self.unfinished_bytes -= client.unfinished_bytes;
        }
    }

    /// How many clients are connected.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// How many clients have a WAIT or BARRIER pending.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.keyspace.waiting()
    }

    /// How many keys have a value.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.keyspace.keys().len()
    }

    /// How many values all queues have together.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.keyspace.queued()
    }

    /// What the keys and values take, queued ones included, as [`Limits::stored_bytes`] counts it.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        self.keyspace.stored_bytes()
    }

    /// What the clients' requests take that have not come whole or wait, as
    /// [`Limits::unfinished_bytes`] counts it.
    #[must_use]
    pub fn unfinished_bytes(&self) -> usize {
        self.unfinished_bytes + self.keyspace.waiting_bytes()
    }

    /// Who holds most of [`unfinished_bytes`](Self::unfinished_bytes) with a request that has not come whole,
    /// and how much.
    #[must_use]
    pub fn largest_unfinished(&self) -> Option<(ClientId, usize)> {
        let held = self.clients.iter().map(|(id, client)| (*id, client.unfinished_bytes));
        held.max_by_key(|(_, bytes)| *bytes).filter(|(_, bytes)| *bytes > 0)
    }

    /// The request that `client` has begun takes so much memory now, in place of what it took before.
    /// A request that is [handled](Self::handle) takes none any more.
    ///
    /// # Errors
    /// [`Violation::TooMuchUnfinished`] as for [`handle`](Self::handle); [`Violation::NotValidated`] for a
    /// client that has not sent VALIDATE, which takes none: a stranger gets no memory.
    pub fn hold(&mut self, client: ClientId, bytes: usize) -> Result<(), Violation> {
        let Client { stage, unfinished_bytes: held } =
            self.clients.get_mut(&client).ok_or(Violation::NotConnected)?;
        if *stage == Stage::Connected && bytes > 0 {
            return Err(Violation::NotValidated);
        }
        let others_bytes = self.unfinished_bytes - *held;
        let all_bytes = others_bytes + self.keyspace.waiting_bytes() + bytes;
        // What takes nothing, or less than it did, must not fail because others take much.
        if bytes > *held && all_bytes > self.unfinished_bytes_limit {
            return Err(Violation::TooMuchUnfinished {
                bytes: all_bytes,
                limit: self.unfinished_bytes_limit,
            });
        }
        *held = bytes;
        self.unfinished_bytes = others_bytes + bytes;
        Ok(())
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
        let (reply, satisfied) = self.carry_out(client, request)?;
        replies.extend(reply.map(|reply| (client, reply)));
        replies.extend(satisfied.into_iter().map(|waiter| (ClientId(waiter), Reply::StopWaiting)));
        Ok(())
    }

    fn admit(&mut self, client: ClientId, request: &Request) -> Result<(), Violation> {
        let stage = &mut self.clients.get_mut(&client).ok_or(Violation::NotConnected)?.stage;
        match (*stage, request) {
            (Stage::Connected, Request::Validate { magic: MAGIC }) => *stage = Stage::Validated,
            (Stage::Connected, Request::Validate { magic }) => return Err(Violation::WrongMagic(*magic)),
            (Stage::Connected, _) => return Err(Violation::NotValidated),
            (Stage::Validated, Request::Validate { .. }) => return Err(Violation::ValidatedTwice),
            (Stage::Validated, Request::Wait { .. } | Request::Barrier { .. })
                if self.keyspace.is_waiting(client.0) =>
            {
                return Err(Violation::WaitsTwice);
            }
            (Stage::Validated, _) => {}
        }
        // What is waited for is held until the answer.
        let keys = match request {
            Request::Wait { keys } => &keys[..],
            Request::Barrier { key, .. } => slice::from_ref(key),
            _ => &[],
        };
        self.hold(client, cost_of_all(keys))?;
        self.hold(client, 0)
    }

    /// What `client` gets for its request, and whose waits that has ended.
    fn carry_out(
        &mut self,
        client: ClientId,
        request: Request,
    ) -> Result<(Option<Reply>, Vec<WaiterId>), Violation> {
        let keyspace = &mut self.keyspace;
        let nobody = Vec::new();
        Ok(match request {
            Request::Validate { .. } => (None, nobody),
            Request::Ping { nonce } => (Some(Reply::Pong(nonce)), nobody),
            Request::Set { key, value } => (None, keyspace.set(key, value)?),
            Request::Append { key, value } => (None, keyspace.append(key, value)?),
            Request::MultiSet { pairs } => (None, keyspace.multi_set(pairs.into_iter().collect())?),
            Request::QueuePush { key, value } => (None, keyspace.push(key, value)?),
            Request::Add { key, delta } => {
                let (sum, satisfied) = keyspace.add(key, delta)?;
                (Some(Reply::Number(sum)), satisfied)
            }
            Request::CompareSet { key, expected, desired } => {
                let (value, satisfied) = keyspace.compare_set(key, expected, desired)?;
                (Some(Reply::Value(value)), satisfied)
            }
            Request::Wait { keys } => (keyspace.wait(client.0, keys).then_some(Reply::StopWaiting), nobody),
            Request::Barrier { key, world_size } => {
                let (passed, satisfied) = keyspace.barrier(client.0, key, world_size)?;
                (passed.then_some(Reply::StopWaiting), satisfied)
            }
            Request::CancelWait => {
                keyspace.cancel(client.0);
                (Some(Reply::WaitCanceled), nobody)
            }
            Request::DeleteKey { key } => (Some(Reply::Number(keyspace.delete(&key).into())), nobody),
            Request::QueuePop { key } => (Some(popped(keyspace.pop(&key))), nobody),
            Request::Get { key } => (Some(Reply::Value(self.value(&key)?)), nobody),
            Request::MultiGet { keys } => {
                let values: Result<_, Violation> = keys.iter().map(|key| self.value(key)).collect();
                (Some(Reply::Values(values?)), nobody)
            }
            Request::Check { keys } => {
                (Some(if keyspace.has_all(&keys) { Reply::Ready } else { Reply::NotReady }), nobody)
            }
            Request::NumKeys => (Some(Reply::Number(keyspace.keys().len() as i64)), nobody),
            Request::ListKeys => (Some(Reply::Keys(keyspace.keys().cloned().collect())), nobody),
            Request::QueueLen { key } => (Some(Reply::Number(keyspace.queue_len(&key) as i64)), nobody),
        })
    }

    fn value(&self, key: &Bytes) -> Result<Bytes, Violation> {
        self.keyspace.get(key).cloned().ok_or_else(|| Violation::NoSuchKey(text(key)))
    }
}

fn popped(first: Option<(usize, Bytes)>) -> Reply {
    match first {
        Some((length, value)) => Reply::Popped { length: length as u64, value },
        None => Reply::QueueEmpty,
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
        assert_eq!(server.state.hold(server.clients[1], 1), Err(Violation::NotValidated));
        assert_eq!(server.state.hold(server.clients[1], 0), Ok(()));
        assert_eq!(server.state.hold(server.clients[0], 1), Ok(()));
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

    fn barrier(world_size: i64) -> Request {
        Request::Barrier { key: "b".into(), world_size }
    }

    #[test]
    fn the_last_arrival_at_a_barrier_is_answered_before_those_it_frees() {
        let mut server = Server::with_clients(3);
        assert_eq!(server.ask(2, barrier(3)), Ok(vec![]));
        assert_eq!(server.ask(0, barrier(3)), Ok(vec![]));
        let freed = [1, 0, 2].map(|client| (client, Reply::StopWaiting));
        assert_eq!(server.ask(1, barrier(3)), Ok(freed.to_vec()));
    }

    #[test]
    fn a_cancelled_arrival_stays_counted_and_is_not_answered_again() {
        let mut server = Server::with_clients(2);
        assert_eq!(server.ask(0, barrier(2)), Ok(vec![]));
        assert_eq!(server.ask(0, Request::CancelWait), Ok(vec![(0, Reply::WaitCanceled)]));
        assert_eq!(server.ask(1, barrier(2)), Ok(vec![(1, Reply::StopWaiting)]));
    }

    #[test]
    fn a_wait_and_a_barrier_at_once_are_one_too_many_and_the_second_is_not_counted() {
        let mut server = Server::with_clients(2);
        assert_eq!(server.ask(0, wait(&["a"])), Ok(vec![]));
        assert_eq!(server.ask(0, barrier(1)), Err(Violation::WaitsTwice));
        assert_eq!(server.ask(1, barrier(1)), Ok(vec![(1, Reply::StopWaiting)]));
        let get = Request::Get { key: "b".into() };
        assert_eq!(server.ask(1, get), Ok(vec![(1, Reply::Value("1".into()))]));
    }

    #[test]
    fn a_pushed_value_wakes_all_and_the_slower_ones_find_nothing() {
        let mut server = Server::with_clients(3);
        assert_eq!(server.ask(0, wait(&["q"])), Ok(vec![]));
        assert_eq!(server.ask(1, wait(&["q"])), Ok(vec![]));
        let push = Request::QueuePush { key: "q".into(), value: "v".into() };
        assert_eq!(server.ask(2, push), Ok(vec![(0, Reply::StopWaiting), (1, Reply::StopWaiting)]));
        let pop = || Request::QueuePop { key: "q".into() };
        assert_eq!(server.ask(1, pop()), Ok(vec![(1, Reply::Popped { length: 1, value: "v".into() })]));
        assert_eq!(server.ask(0, pop()), Ok(vec![(0, Reply::QueueEmpty)]));
    }

    #[test]
    fn unfinished_requests_and_waits_of_all_clients_are_bounded_together() {
        let mut server = Server::with_clients(4);
        server.state.unfinished_bytes_limit = 2000;
        let [one, two, three] = [0, 1, 2].map(|client| server.clients[client]);
        assert_eq!(server.state.hold(one, 1000), Ok(()));
        assert_eq!(server.ask(2, wait(&["a"])), Ok(vec![]));
        let parked = server.state.unfinished_bytes() - 1000;
        assert!(parked > 1, "a wait costs more than its key");
        let over = Violation::TooMuchUnfinished { bytes: 2001, limit: 2000 };
        assert_eq!(server.state.hold(two, 1001 - parked), Err(over));
        assert_eq!(server.state.hold(two, 1000 - parked), Ok(()));
        // Nobody else may wait now, but whoever holds something may finish it.
        assert!(matches!(server.ask(3, wait(&["b"])), Err(Violation::TooMuchUnfinished { .. })));
        assert!(matches!(server.ask(3, barrier(2)), Err(Violation::TooMuchUnfinished { .. })));
        assert_eq!(server.ask(0, set("a")), Ok(vec![(2, Reply::StopWaiting)]));
        server.state.disconnect(two);
        assert_eq!(server.state.unfinished_bytes(), 0);
        assert_eq!(server.state.hold(three, 2000), Ok(()));
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

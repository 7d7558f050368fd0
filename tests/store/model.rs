//! What the server's state machine must do, said once more in the simplest way: maps, a list of waits,
//! and a look at everything after each step.
//!
//! [`Pair`] takes both through the same steps and fails where they differ: a wake-up that is lost, that
//! nobody waits for or that comes too often, a reply to somebody else, a limit that does not hold,
//! something left behind. The fuzz targets `store_request` and `store_state` use it as well.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use kvpipe::store::tcp::protocol::{MAGIC, Reply, Request};
use kvpipe::store::tcp::server_state::{ClientId, ServerState, Violation};
use kvpipe::store::{Limits, Refusal};

/// What happens to a server. Clients are named by small numbers, again and again.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A client connects and introduces itself, if it is not connected.
    Connect(usize),
    /// It connects, and asks for something at once.
    Stranger(usize),
    /// It leaves, if it is there.
    Leave(usize),
    /// It has sent so many bytes of a request.
    Begin(usize, usize),
    /// It has sent a request, if it is there.
    Ask(usize, Request),
}

/// The state machine and its model.
pub(crate) struct Pair {
    server: ServerState,
    model: Model,
    limits: Limits,
    ids: BTreeMap<usize, ClientId>,
}

/// Everything, with nothing to make it fast.
#[derive(Clone, Default)]
struct Model {
    values: BTreeMap<Bytes, Bytes>,
    queues: BTreeMap<Bytes, VecDeque<Bytes>>,
    waits: BTreeMap<usize, Wait>,
    unfinished: BTreeMap<usize, usize>,
}

#[derive(Clone)]
enum Wait {
    Keys(BTreeSet<Bytes>),
    Barrier(Bytes),
}

/// An appended value may cost an eighth more than its length.
const SLACK_PART: usize = 8;

/// The most that a key in a list costs beside its bytes.
const LISTED_KEY_BYTES_MAX: usize = 256;

/// The request can't be carried out, whatever the limits.
struct Refused;

impl Pair {
    pub(crate) fn new(limits: Limits) -> Self {
        let server = ServerState::new(&limits);
        Self { server, model: Model::default(), limits, ids: BTreeMap::new() }
    }

    /// False for who has left, or was made to.
    pub(crate) fn is_connected(&self, client: usize) -> bool {
        self.ids.contains_key(&client)
    }

    /// # Panics
    /// If the two do not agree.
    pub(crate) fn step(&mut self, step: Step) {
        match step {
            Step::Connect(client) => {
                if self.connect(client) {
                    let (id, validate) = (self.ids[&client], Request::Validate { magic: MAGIC });
                    let mut replies = Vec::new();
                    assert_eq!(self.server.handle(id, validate, &mut replies), Ok(()));
                    assert!(replies.is_empty(), "VALIDATE has no reply");
                }
            }
            Step::Stranger(client) => {
                if self.connect(client) {
                    let violation = self.server.handle(self.ids[&client], Request::NumKeys, &mut Vec::new());
                    assert_eq!(violation, Err(Violation::NotValidated));
                    self.leave(client);
                }
            }
            Step::Leave(client) => self.leave(client),
            Step::Begin(client, bytes) => self.begin(client, bytes),
            Step::Ask(client, request) if self.is_connected(client) => self.ask(client, request),
            Step::Ask(..) => {}
        }
        self.compare();
    }

    /// Everybody leaves.
    ///
    /// # Panics
    /// If somebody left something behind.
    pub(crate) fn finish(mut self) {
        while let Some((&client, _)) = self.ids.first_key_value() {
            self.leave(client);
            self.compare();
        }
        assert_eq!((self.server.clients(), self.server.waiting(), self.server.unfinished_bytes()), (0, 0, 0));
    }

    fn connect(&mut self, client: usize) -> bool {
        if self.is_connected(client) {
            return false;
        }
        let id = self.server.connect();
        assert_eq!(id.is_some(), self.ids.len() < self.limits.clients);
        self.ids.extend(id.map(|id| (client, id)));
        id.is_some()
    }

    fn leave(&mut self, client: usize) {
        if let Some(id) = self.ids.remove(&client) {
            self.server.disconnect(id);
            self.model.waits.remove(&client);
            self.model.unfinished.remove(&client);
        }
    }

    fn begin(&mut self, client: usize, bytes: usize) {
        let Some(&id) = self.ids.get(&client) else { return };
        let before = self.model.unfinished.get(&client).copied().unwrap_or(0);
        let held = self.server.hold(id, bytes);
        let mut after = self.model.clone();
        after.unfinished.insert(client, bytes);
        let [least, most] = after.unfinished_bytes();
        match held {
            Ok(()) => {
                assert!(least <= self.limits.unfinished_bytes || bytes <= before);
                self.model = after;
            }
            Err(violation) => {
                assert!(matches!(violation, Violation::TooMuchUnfinished { .. }), "{violation}");
                assert!(most > self.limits.unfinished_bytes && bytes > before);
                self.leave(client);
            }
        }
    }

    fn ask(&mut self, client: usize, request: Request) {
        let mut replies = Vec::new();
        let handled = self.server.handle(self.ids[&client], request.clone(), &mut replies);
        let mut after = self.model.clone();
        let expected = after.carry_out(client, &request, &self.limits);
        let fits = after.fits(&self.model, &self.limits);
        match (handled, expected) {
            (Ok(()), Ok(reply)) => {
                assert!(fits != Some(false), "{request:?} is over a limit");
                let expected = after.replies(client, reply);
                assert_eq!(self.named(replies), expected, "{request:?}");
                self.model = after;
            }
            (Err(_), Err(Refused)) => self.leave(client),
            (Err(violation), Ok(_)) => {
                let of_limit = matches!(
                    violation,
                    Violation::TooMuchUnfinished { .. }
                        | Violation::Refused(Refusal::KeysFull { .. } | Refusal::BytesFull { .. })
                );
                assert!(of_limit && fits != Some(true), "{request:?}: {violation}");
                self.leave(client);
            }
            (Ok(()), Err(Refused)) => panic!("{request:?} was carried out"),
        }
    }

    /// Replies by client, the asking one's first, then the wake-ups in the order of the clients.
    fn named(&self, replies: Vec<(ClientId, Reply)>) -> Vec<(usize, Reply)> {
        let name = |id| self.ids.iter().find(|(_, other)| **other == id).map(|(client, _)| *client);
        let mut named: Vec<(usize, Reply)> = replies
            .into_iter()
            .map(|(id, reply)| (name(id).expect("a reply to somebody who has left"), reply))
            .collect();
        let own = usize::from(named.first().is_some_and(|(_, reply)| *reply != Reply::StopWaiting));
        named[own..].sort_by_key(|(client, _)| *client);
        named
    }

    fn compare(&self) {
        let model = &self.model;
        assert_eq!(self.server.clients(), self.ids.len());
        assert_eq!(self.server.waiting(), model.waits.len());
        assert_eq!(self.server.keys(), model.values.len());
        assert_eq!(self.server.queued(), model.queued());
        let [least, most] = model.stored_bytes();
        assert!((least..=most).contains(&self.server.stored_bytes()), "stored bytes");
        let [least, most] = model.unfinished_bytes();
        assert!((least..=most).contains(&self.server.unfinished_bytes()), "unfinished bytes");
        assert!(self.server.stored_bytes() <= self.limits.stored_bytes);
        assert!(model.values.len() + model.queued() <= self.limits.stored_keys);
    }
}

impl Model {
    fn has(&self, key: &Bytes) -> bool {
        self.values.contains_key(key) || self.queues.contains_key(key)
    }

    fn queued(&self) -> usize {
        self.queues.values().map(VecDeque::len).sum()
    }

    /// At least, and at most.
    fn stored_bytes(&self) -> [usize; 2] {
        let values: usize = self.values.iter().map(|(key, value)| key.len() + value.len()).sum();
        let queues: usize = self.queues.iter().map(|(key, queue)| key.len() + total(queue)).sum();
        let slack: usize = self.values.values().map(|value| value.len() / SLACK_PART).sum();
        [values + queues, values + queues + slack]
    }

    /// At least, and at most.
    fn unfinished_bytes(&self) -> [usize; 2] {
        let begun: usize = self.unfinished.values().sum();
        let keys: Vec<&Bytes> = self
            .waits
            .values()
            .flat_map(|wait| match wait {
                Wait::Keys(keys) => keys.iter().collect::<Vec<_>>(),
                Wait::Barrier(key) => vec![key],
            })
            .collect();
        let least = begun + keys.iter().map(|key| key.len()).sum::<usize>();
        [least, least + keys.len() * LISTED_KEY_BYTES_MAX]
    }

    /// Whether the store may become so: certainly, certainly not, or depending on what appended values
    /// and lists cost.
    fn fits(&self, before: &Self, limits: &Limits) -> Option<bool> {
        let entries = |model: &Self| model.values.len() + model.queued();
        let [least, most] = self.stored_bytes();
        let most = most + before.stored_bytes()[1] - before.stored_bytes()[0];
        let [waiting_least, waiting_most] = self.unfinished_bytes();
        let grows = entries(self) > entries(before);
        if (grows && entries(self) > limits.stored_keys)
            || least > limits.stored_bytes
            || waiting_least > limits.unfinished_bytes
        {
            return Some(false);
        }
        // A WAIT is held against the limit with all its keys, also those that are there.
        (most <= limits.stored_bytes && waiting_most + 8 * LISTED_KEY_BYTES_MAX <= limits.unfinished_bytes)
            .then_some(true)
    }

    /// Changes the model; gives the reply, if there is one at once.
    fn carry_out(
        &mut self,
        client: usize,
        request: &Request,
        limits: &Limits,
    ) -> Result<Option<Reply>, Refused> {
        self.unfinished.remove(&client);
        let value = |model: &Self, key: &Bytes| model.values.get(key).cloned().ok_or(Refused);
        Ok(match request {
            // The second one, whatever its magic.
            Request::Validate { .. } => return Err(Refused),
            Request::Ping { nonce } => Some(Reply::Pong(*nonce)),
            Request::Set { key, value } => {
                self.values.insert(key.clone(), value.clone());
                None
            }
            Request::Append { key, value } => {
                let old = self.values.get(key).cloned().unwrap_or_default();
                let new = [&old[..], value].concat();
                if new.len() > limits.value_bytes {
                    return Err(Refused);
                }
                self.values.insert(key.clone(), new.into());
                None
            }
            Request::MultiSet { pairs } => {
                self.values.extend(pairs.iter().cloned());
                None
            }
            Request::CompareSet { key, expected, desired } => {
                let there = self.values.get(key).cloned();
                let answer = match there {
                    None if expected.is_empty() => desired,
                    Some(value) if value == *expected => desired,
                    None => return Ok(Some(Reply::Value(expected.clone()))),
                    Some(other) => return Ok(Some(Reply::Value(other))),
                };
                self.values.insert(key.clone(), answer.clone());
                Some(Reply::Value(answer.clone()))
            }
            Request::Add { key, delta } => Some(Reply::Number(self.add(key, *delta)?)),
            Request::QueuePush { key, value } => {
                self.queues.entry(key.clone()).or_default().push_back(value.clone());
                None
            }
            Request::QueuePop { key } => Some(self.pop(key)),
            Request::QueueLen { key } => {
                Some(Reply::Number(self.queues.get(key).map_or(0, VecDeque::len) as i64))
            }
            Request::Get { key } => Some(Reply::Value(value(self, key)?)),
            Request::MultiGet { keys } => {
                let values: Result<_, Refused> = keys.iter().map(|key| value(self, key)).collect();
                Some(Reply::Values(values?))
            }
            Request::Check { keys } => {
                Some(if keys.iter().all(|key| self.has(key)) { Reply::Ready } else { Reply::NotReady })
            }
            Request::NumKeys => Some(Reply::Number(self.values.len() as i64)),
            Request::ListKeys => Some(Reply::Keys(self.values.keys().cloned().collect())),
            Request::DeleteKey { key } => Some(Reply::Number(self.values.remove(key).is_some().into())),
            Request::CancelWait => {
                self.waits.remove(&client);
                Some(Reply::WaitCanceled)
            }
            Request::Wait { .. } | Request::Barrier { .. } if self.waits.contains_key(&client) => {
                return Err(Refused);
            }
            Request::Wait { keys } => {
                self.waits.insert(client, Wait::Keys(keys.iter().cloned().collect()));
                None
            }
            Request::Barrier { key, world_size } => {
                self.waits.insert(client, Wait::Barrier(key.clone()));
                let arrived = self.add(key, 1)?;
                (arrived >= *world_size).then_some(Reply::StopWaiting)
            }
            _ => return Err(Refused),
        })
    }

    /// The reply, and who is woken as things are now. The only look at keys that waits have.
    fn replies(&mut self, client: usize, reply: Option<Reply>) -> Vec<(usize, Reply)> {
        let opened = match (self.waits.get(&client), &reply) {
            (Some(Wait::Barrier(key)), Some(Reply::StopWaiting)) => Some(key.clone()),
            _ => None,
        };
        let there: BTreeSet<Bytes> = self.values.keys().chain(self.queues.keys()).cloned().collect();
        let mut woken = Vec::new();
        self.waits.retain(|waiter, wait| {
            let ends = match wait {
                Wait::Keys(keys) => {
                    keys.retain(|key| !there.contains(key));
                    keys.is_empty()
                }
                Wait::Barrier(key) => opened.as_ref() == Some(key),
            };
            if ends {
                woken.push((*waiter, Reply::StopWaiting));
            }
            !ends
        });
        let own = reply.filter(|reply| *reply != Reply::StopWaiting).map(|reply| (client, reply));
        own.into_iter().chain(woken).collect()
    }

    fn add(&mut self, key: &Bytes, delta: i64) -> Result<i64, Refused> {
        let text = self.values.get(key).map_or("0".into(), |value| String::from_utf8_lossy(value));
        let sum = text.parse::<i64>().ok().and_then(|value| value.checked_add(delta)).ok_or(Refused)?;
        self.values.insert(key.clone(), sum.to_string().into());
        Ok(sum)
    }

    fn pop(&mut self, key: &Bytes) -> Reply {
        let Some(queue) = self.queues.get_mut(key) else { return Reply::QueueEmpty };
        let length = queue.len() as u64;
        let value = queue.pop_front().expect("no queue is empty");
        if queue.is_empty() {
            self.queues.remove(key);
        }
        Reply::Popped { length, value }
    }
}

fn total(values: &VecDeque<Bytes>) -> usize {
    values.iter().map(Bytes::len).sum()
}

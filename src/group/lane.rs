//! What a group has under way: places in order, and changes to the store that are carried through.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::store::Store;

/// The objects of one sender, as this rank sends or receives them. Calls take turns, in order.
#[derive(Default)]
pub(super) struct Lane {
    /// The number of the next object.
    pub(super) next: u64,
    /// Received and found good, and not handed out yet, because the store does not know of it yet.
    pub(super) received: Option<Bytes>,
    pub(super) errands: Errands,
}

impl Lane {
    /// Takes the next place for an object, which it keeps however the call goes on.
    pub(super) fn post(&mut self, key: String, value: Bytes) {
        self.errands.push(Errand::Set { key, value });
        self.next += 1;
    }

    /// Carries through what is posted. An object that the store refuses has no place any more.
    pub(super) async fn settle<S: Store + Clone>(&mut self, store: &S) -> Result<()> {
        let settled = self.errands.finish(store).await;
        if let Err(Error::Misuse(_)) = settled {
            self.next -= 1;
        }
        settled
    }
}

/// Changes to a store, one after the other.
///
/// Dropping [`finish`](Self::finish) drops none of them: the one in flight is kept with its connection,
/// and the next call goes on where that one was. So nothing that a caller gives up on is ever half
/// done for good, or done twice.
#[derive(Default)]
pub(super) struct Errands {
    waiting: VecDeque<Errand>,
    /// The first of `waiting`.
    running: Option<Running>,
}

/// What else is to be done once an errand is done.
type Running = Pin<Box<dyn Future<Output = Result<Vec<Errand>>> + Send>>;

#[derive(Clone)]
pub(super) enum Errand {
    Set {
        key: String,
        value: Bytes,
    },
    Wait {
        keys: Vec<String>,
    },
    Delete {
        key: String,
    },
    /// Counts one reader of `key`; the last of `readers` deletes it.
    CountReader {
        key: String,
        readers: i64,
    },
}

/// The caller's timeout is around the whole.
pub(super) const UNBOUNDED: Duration = Duration::MAX;

impl Errands {
    pub(super) fn push(&mut self, errand: Errand) {
        self.waiting.push_back(errand);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn extend(&mut self, errands: impl IntoIterator<Item = Errand>) {
        self.waiting.extend(errands);
    }

    /// Until none is left, or one fails. That one is tried again by the next call, unless that could do
    /// harm or is in vain.
    pub(super) async fn finish<S: Store + Clone>(&mut self, store: &S) -> Result<()> {
        while let Some(errand) = self.waiting.front() {
            let running = self.running.get_or_insert_with(|| Box::pin(errand.clone().run(store.clone())));
            let outcome = running.await;
            self.running = None;
            match outcome {
                Ok(more) => {
                    self.waiting.pop_front();
                    more.into_iter().rev().for_each(|errand| self.waiting.push_front(errand));
                }
                Err(error) => {
                    if !errand.may_be_repeated_after(&error) {
                        self.waiting.pop_front();
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

impl Errand {
    async fn run<S: Store>(self, store: S) -> Result<Vec<Self>> {
        match self {
            Self::Set { key, value } => store.set(&key, value, UNBOUNDED).await?,
            Self::Wait { keys } => {
                let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                store.wait(&keys, UNBOUNDED).await?;
            }
            Self::Delete { key } => {
                // That it was gone already is as well: an earlier attempt got through.
                store.delete(&key, UNBOUNDED).await?;
            }
            Self::CountReader { key, readers } => {
                let counter = format!("{key}/read");
                if store.add(&counter, 1, UNBOUNDED).await? >= readers {
                    return Ok(vec![Self::Delete { key }, Self::Delete { key: counter }]);
                }
            }
        }
        Ok(Vec::new())
    }

    fn may_be_repeated_after(&self, error: &Error) -> bool {
        match (self, error) {
            // Counted twice, it would be deleted before everybody has read it.
            (Self::CountReader { .. }, _) => false,
            // The store refused it, and will again.
            (_, Error::Misuse(_)) => false,
            _ => true,
        }
    }
}

/// What it would do next.
impl fmt::Display for Errands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.waiting.front() {
            None => f.write_str("nothing"),
            Some(Errand::Wait { keys }) => match &keys[..] {
                [first, .., last] => write!(f, "all of keys {first:?} to {last:?}"),
                keys => write!(f, "key {:?}", keys.concat()),
            },
            Some(Errand::Set { key, .. } | Errand::Delete { key } | Errand::CountReader { key, .. }) => {
                write!(f, "the store to change key {key:?}")
            }
        }
    }
}

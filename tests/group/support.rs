//! Groups, and a store that is watched and tripped up, for the tests beside.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use kvpipe::group::{GroupConfig, StatelessProcessGroup, WireMode};
use kvpipe::store::{Limits, MemoryStore, Store};
use kvpipe::wire::Object;
use kvpipe::{Error, Result};

/// Far beyond what anything here takes; reached only by a defect.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) type Group = StatelessProcessGroup<Watched>;

pub(crate) fn config(wire: WireMode) -> GroupConfig {
    GroupConfig { wire, ..GroupConfig::default() }
}

/// All ranks of a group over one store.
pub(crate) fn groups<S: Store + Clone>(
    store: &S,
    wire: WireMode,
    world_size: usize,
) -> Vec<StatelessProcessGroup<S>> {
    let rank = |rank| StatelessProcessGroup::new(store.clone(), rank, world_size, config(wire)).unwrap();
    (0..world_size).map(rank).collect()
}

pub(crate) fn pair<S: Store + Clone>(store: &S, wire: WireMode) -> [StatelessProcessGroup<S>; 2] {
    groups(store, wire, 2).try_into().unwrap()
}

pub(crate) fn text(text: impl Into<String>) -> Object {
    Object::Text(text.into())
}

/// Runs the same on every rank at once, and gives what each returned.
pub(crate) async fn on_every<'a, S, F: Future>(
    groups: &'a [StatelessProcessGroup<S>],
    run: impl Fn(&'a StatelessProcessGroup<S>) -> F,
) -> Vec<F::Output> {
    all_of(groups.iter().map(|group| Box::pin(run(group)))).await
}

/// Runs all at once.
pub(crate) async fn all_of<F: Future>(futures: impl IntoIterator<Item = Pin<Box<F>>>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.into_iter().map(|future| (future, None)).collect();
    poll_fn(|context| {
        for (future, output) in &mut running {
            if output.is_none()
                && let Poll::Ready(ready) = future.as_mut().poll(context)
            {
                *output = Some(ready);
            }
        }
        if running.iter().all(|(_, output)| output.is_some()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}

/// Polls a future so many times, and drops it; what it gave if it was ready.
pub(crate) async fn dropped_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = Box::pin(future);
    for _ in 0..polls {
        if let Some(output) = poll_once(&mut future).await {
            return Some(output);
        }
        // What it waits for gets its turn.
        tokio::task::yield_now().await;
    }
    None
}

/// Polls a future once.
pub(crate) async fn poll_once<F: Future>(future: &mut Pin<Box<F>>) -> Option<F::Output> {
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// One operation of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Set(String, Bytes),
    Get(String),
    Add(String),
    Check(Vec<String>),
    Wait(Vec<String>),
    Delete(String),
}

/// A store in memory that records operations, and in which any can fail or be dropped halfway.
#[derive(Clone, Default)]
pub(crate) struct Watched {
    inner: MemoryStore,
    watch: Arc<Mutex<Watch>>,
}

#[derive(Default)]
struct Watch {
    ops: Vec<Op>,
    yields: bool,
    breaks: Option<(usize, Break)>,
}

/// How the connection to a store breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    BeforeItTakesEffect,
    AfterItTookEffect,
}

impl Watched {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Takes values of so many bytes at most.
    pub(crate) fn small(value_bytes: usize) -> Self {
        let mut limits = Limits::default();
        limits.value_bytes = value_bytes;
        Self { inner: MemoryStore::with_limits(limits), ..Self::default() }
    }

    /// Every operation can be dropped before it takes effect, and after.
    pub(crate) fn yielding() -> Self {
        let store = Self::new();
        store.watch().yields = true;
        store
    }

    pub(crate) fn ops(&self) -> Vec<Op> {
        self.watch().ops.clone()
    }

    /// What is in the store, in order.
    pub(crate) fn keys(&self) -> Vec<String> {
        let listing = pin!(self.inner.list_keys(LONG));
        let Poll::Ready(keys) = listing.poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("a store in memory answers at once")
        };
        let mut keys = keys.unwrap();
        keys.sort();
        keys
    }

    /// The operation after the next `more` ones fails.
    pub(crate) fn break_after(&self, more: usize, how: Break) {
        self.watch().breaks = Some((more, how));
    }

    /// No operation fails any more; whether one was still to fail.
    pub(crate) fn break_no_more(&self) -> bool {
        self.watch().breaks.take().is_some()
    }

    /// Whether an operation is still to fail.
    pub(crate) fn breaks(&self) -> bool {
        self.watch().breaks.is_some()
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap()
    }

    async fn run<T>(&self, op: Op, inner: impl Future<Output = Result<T>>) -> Result<T> {
        self.maybe_yield().await;
        let broken = {
            let mut watch = self.watch();
            watch.ops.push(op);
            let broken = watch.breaks.take_if(|(more, _)| *more == 0).map(|(_, how)| how);
            if let Some((more, _)) = &mut watch.breaks {
                *more -= 1;
            }
            broken
        };
        let reset = || Err(Error::io("a test", std::io::ErrorKind::ConnectionReset.into()));
        if broken == Some(Break::BeforeItTakesEffect) {
            return reset();
        }
        let output = inner.await?;
        self.maybe_yield().await;
        if broken == Some(Break::AfterItTookEffect) { reset() } else { Ok(output) }
    }

    async fn maybe_yield(&self) {
        let yields = self.watch().yields;
        if yields {
            tokio::task::yield_now().await;
        }
    }
}

fn owned(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

impl Store for Watched {
    delegate!(inner: append compare_set multi_get multi_set num_keys list_keys queue_push queue_pop
        try_queue_pop queue_len barrier);

    async fn set(&self, key: &str, value: Bytes, timeout: Duration) -> Result<()> {
        self.run(Op::Set(key.into(), value.clone()), self.inner.set(key, value, timeout)).await
    }

    async fn get(&self, key: &str, timeout: Duration) -> Result<Bytes> {
        self.run(Op::Get(key.into()), self.inner.get(key, timeout)).await
    }

    async fn add(&self, key: &str, delta: i64, timeout: Duration) -> Result<i64> {
        self.run(Op::Add(key.into()), self.inner.add(key, delta, timeout)).await
    }

    async fn check(&self, keys: &[&str], timeout: Duration) -> Result<bool> {
        self.run(Op::Check(owned(keys)), self.inner.check(keys, timeout)).await
    }

    async fn wait(&self, keys: &[&str], timeout: Duration) -> Result<()> {
        self.run(Op::Wait(owned(keys)), self.inner.wait(keys, timeout)).await
    }

    async fn delete(&self, key: &str, timeout: Duration) -> Result<bool> {
        self.run(Op::Delete(key.into()), self.inner.delete(key, timeout)).await
    }
}

//! The thread that polls events. It sleeps while none is pending.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::Event;
use super::oneshot::{Giver, oneshot};
use crate::error::{Error, Result};

/// Rounds in which the thread only lets others run: short copies end within them.
const EAGER_ROUNDS: u32 = 16;

/// How much longer each round takes than the one before, and the longest there is. A wait is noticed
/// late by a fraction of what it took, and an event that pends for hours costs next to nothing.
const ROUND_GROWTH: Duration = Duration::from_micros(2);
const ROUND_MAX: Duration = Duration::from_millis(1);

/// Waits for an event.
pub(super) fn completion(event: &Event) -> Result<impl Future<Output = Result<()>> + Send + use<>> {
    let (giver, taker) = oneshot();
    POLLER.watch(Watched { event: event.clone(), then: Then::Tell(giver) }).map_err(|(error, _)| error)?;
    let lost = || Err(Error::Bug("the thread that polls events has ended".into()));
    Ok(async move { taker.take().await.unwrap_or_else(lost) })
}

/// Drops `held` once an event is complete, or has failed.
pub(super) fn drop_after(event: Event, held: Box<dyn Any + Send>) {
    if let Err((error, watched)) = POLLER.watch(Watched { event, then: Then::Drop(held) }) {
        tracing::error!(%error, "no thread to wait for what a stream uses, which is leaked");
        mem::forget(watched);
    }
}

struct Watched {
    event: Event,
    then: Then,
}

enum Then {
    Tell(Giver<Result<()>>),
    /// Whatever it is.
    Drop(Box<dyn Any + Send>),
}

static POLLER: Poller =
    Poller { state: Mutex::new(State { arrivals: Vec::new(), is_running: false }), arrived: Condvar::new() };

struct Poller {
    state: Mutex<State>,
    arrived: Condvar,
}

struct State {
    /// To be watched, and not yet with the thread.
    arrivals: Vec<Watched>,
    is_running: bool,
}

impl Poller {
    fn watch(&'static self, watched: Watched) -> Result<(), (Error, Watched)> {
        let mut state = self.lock();
        if !state.is_running {
            let thread = thread::Builder::new().name("kvpipe-events".into());
            if let Err(error) = thread.spawn(move || self.run()) {
                return Err((Error::io("starting a thread to poll events", error), watched));
            }
            state.is_running = true;
        }
        state.arrivals.push(watched);
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    fn run(&self) {
        let mut pending = Vec::new();
        let mut idle_rounds = 0_u32;
        loop {
            let arrivals = self.arrivals(pending.is_empty(), idle_rounds);
            let before = pending.len() + arrivals.len();
            let has_news = !arrivals.is_empty();
            pending.extend(arrivals);
            pending = pending.into_iter().filter_map(Watched::poll_safely).collect();
            let has_moved = has_news || pending.len() < before;
            idle_rounds = if has_moved { 0 } else { idle_rounds.saturating_add(1) };
        }
    }

    /// What there is to watch besides, after a pause that anything new cuts short.
    fn arrivals(&self, is_idle: bool, idle_rounds: u32) -> Vec<Watched> {
        let mut state = self.lock();
        if is_idle {
            while state.arrivals.is_empty() {
                state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        } else if let Some(rounds) = idle_rounds.checked_sub(EAGER_ROUNDS) {
            let pause = ROUND_GROWTH.saturating_mul(rounds).min(ROUND_MAX);
            let waited = self.arrived.wait_timeout(state, pause);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        } else {
            drop(state);
            thread::yield_now();
            state = self.lock();
        }
        mem::take(&mut state.arrivals)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    /// Polls it once; None when it needs no more of it. What it calls and drops may be the user's, and may
    /// panic: a device, a waker, what a stream has used. Other events are not to suffer from it.
    fn poll_safely(self) -> Option<Self> {
        catch_unwind(AssertUnwindSafe(|| self.poll())).unwrap_or_else(|_| {
            tracing::error!("polling an event, or what a stream has used, panicked");
            None
        })
    }

    fn poll(self) -> Option<Self> {
        if matches!(&self.then, Then::Tell(giver) if giver.is_abandoned()) {
            return None;
        }
        let outcome = match self.event.is_complete() {
            Ok(false) => return Some(self),
            Ok(true) => Ok(()),
            Err(error) => Err(error),
        };
        match self.then {
            Then::Tell(giver) => giver.give(outcome),
            Then::Drop(held) => {
                if let Err(error) = outcome {
                    tracing::warn!(%error, "work on a device has failed, and nobody waited for it");
                }
                drop(held);
            }
        }
        None
    }
}

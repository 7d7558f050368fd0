//! One value from one of this module's threads to whoever awaits it.

use std::future::poll_fn;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// The two ends of a value that is given once.
pub(super) fn oneshot<T>() -> (Giver<T>, Taker<T>) {
    let shared = Arc::new(Mutex::new(State::Awaited(None)));
    (Giver(Arc::clone(&shared)), Taker(shared))
}

enum State<T> {
    Awaited(Option<Waker>),
    Given(T),
    /// Taken, or never given.
    Over,
}

/// Where the value comes from.
pub(super) struct Giver<T>(Arc<Mutex<State<T>>>);

impl<T> Giver<T> {
    pub(super) fn give(self, value: T) {
        self.turn(State::Given(value));
    }

    /// Whether nobody waits any more.
    pub(super) fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    fn turn(&self, next: State<T>) {
        let before = {
            let mut state = lock(&self.0);
            match *state {
                State::Awaited(_) => mem::replace(&mut *state, next),
                State::Given(_) | State::Over => return,
            }
        };
        if let State::Awaited(Some(waker)) = before {
            waker.wake();
        }
    }
}

/// A value that is lost to a panic is an end for its taker, and not a wait for ever.
impl<T> Drop for Giver<T> {
    fn drop(&mut self) {
        self.turn(State::Over);
    }
}

/// Where the value arrives.
pub(super) struct Taker<T>(Arc<Mutex<State<T>>>);

impl<T> Taker<T> {
    /// The value, or None if it is never given.
    pub(super) async fn take(self) -> Option<T> {
        poll_fn(|context| {
            let mut state = lock(&self.0);
            match mem::replace(&mut *state, State::Over) {
                State::Given(value) => Poll::Ready(Some(value)),
                State::Over => Poll::Ready(None),
                State::Awaited(_) => {
                    *state = State::Awaited(Some(context.waker().clone()));
                    Poll::Pending
                }
            }
        })
        .await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

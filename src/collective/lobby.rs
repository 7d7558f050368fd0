//! What an operation and the group's keeper share: connections that have come in, and why the group
//! has failed, if it has.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::error::Error;
use crate::sync::Mutex;

/// Connections that nobody has taken yet, and the group's fate.
#[derive(Debug)]
pub(super) struct Lobby<C> {
    state: Mutex<State<C>>,
}

#[derive(Debug)]
struct State<C> {
    arrivals: VecDeque<C>,
    /// Set once.
    failure: Option<Arc<Error>>,
    /// The operation that is under way.
    operation: Option<Waker>,
    keeper: Option<Waker>,
}

impl<C> Lobby<C> {
    pub(super) fn new() -> Self {
        let state = State { arrivals: VecDeque::new(), failure: None, operation: None, keeper: None };
        Self { state: Mutex::new(state) }
    }

    /// Leaves a connection for the operation that is under way, or the next one.
    pub(super) fn admit(&self, connection: C) {
        let mut state = self.state.lock();
        state.arrivals.push_back(connection);
        let waker = state.operation.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// The next connection that was left, if there is one.
    pub(super) fn take(&self) -> Option<C> {
        self.state.lock().arrivals.pop_front()
    }

    /// The next connection, for the operation that is under way; it fails as soon as the group does.
    pub(super) fn poll_operation(&self, cx: &Context<'_>) -> Poll<Result<C, Arc<Error>>> {
        let mut state = self.state.lock();
        if let Some(failure) = &state.failure {
            return Poll::Ready(Err(Arc::clone(failure)));
        }
        if let Some(connection) = state.arrivals.pop_front() {
            return Poll::Ready(Ok(connection));
        }
        let former = refresh(&mut state.operation, cx);
        drop(state);
        // A waker's drop may run anything.
        drop(former);
        Poll::Pending
    }

    /// Ends the group, unless something else has. Whoever waits for it learns of it.
    pub(super) fn fail(&self, cause: Error) {
        let mut state = self.state.lock();
        if state.failure.is_some() {
            return;
        }
        state.failure = Some(Arc::new(cause));
        let wakers = [state.operation.take(), state.keeper.take()];
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Why the group has failed, if it has.
    pub(super) fn failure(&self) -> Option<Arc<Error>> {
        self.state.lock().failure.clone()
    }

    /// The same, for the keeper, which is woken when it fails.
    pub(super) fn poll_failure(&self, cx: &Context<'_>) -> Poll<Arc<Error>> {
        let mut state = self.state.lock();
        if let Some(failure) = &state.failure {
            return Poll::Ready(Arc::clone(failure));
        }
        let former = refresh(&mut state.keeper, cx);
        drop(state);
        drop(former);
        Poll::Pending
    }
}

/// Keeps the waker of whoever polls, and gives back the one before.
fn refresh(place: &mut Option<Waker>, cx: &Context<'_>) -> Option<Waker> {
    match place {
        Some(waker) if waker.will_wake(cx.waker()) => None,
        _ => place.replace(cx.waker().clone()),
    }
}

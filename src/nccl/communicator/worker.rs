//! The one thread that makes a communicator's calls, and the one that ends it.
//!
//! NCCL allows one call at a time on a communicator, and with `blocking = 0` the next only once the last
//! is no longer in progress. A call may also never return. So calls are made by a thread of their own,
//! in turn; whoever awaits one awaits the failure of the communicator as well, and leaves then.
//!
//! | state | on | becomes | and |
//! |---|---|---|---|
//! | forming | the call of initialisation has ended well | live | |
//! | live | a call that NCCL refuses, an asynchronous error, a deadline, a word from outside | failed | every waiter gets the error; abort, on a thread of its own |
//! | forming | the same | failed | abort, once NCCL has given the handle |
//! | live | the last owner is gone | gone | finalize, poll, destroy |
//! | failed | the last owner is gone | gone | nothing: abort has freed it, or never will |
//!
//! Abort goes ahead while a call is stuck, since that is what it is for; but not while one is merely
//! being made, which would free the communicator under it.

use std::any::Any;
use std::ffi::c_int;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar};
use std::thread::{self, Thread};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::nccl::{Config, Library, Progress, RawComm};
use crate::sync::Mutex;
use crate::wire::UniqueId;

/// What the thread is asked to do. Each has a caller that waits for it, so they need no bound.
pub(super) type Command = Box<dyn FnOnce(&Worker) + Send>;

/// How often a communicator without a call is asked whether it is well.
const WATCH_PERIOD: Duration = Duration::from_millis(100);

/// The longest pause between two looks at a call in progress.
const POLL_PAUSE_MAX: Duration = Duration::from_millis(1);

/// Looks at a call in progress without a pause.
const EAGER_POLLS: u32 = 100;

/// How long abort waits for a call to return, which should do so at once, but may register gigabytes or load
/// code first. Nobody waits for it: whoever did has been told.
const CALL_PATIENCE: Duration = Duration::from_secs(5);

/// How long a communicator that nobody owns any more may take to finish its work.
const TEARDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// What the threads of a communicator and its owner have in common.
pub(super) struct Shared {
    /// For messages: `rank 0 of 2`.
    pub(super) name: String,
    pub(super) library: Arc<Library>,
    pub(super) device: Arc<dyn Device>,
    state: Mutex<State>,
    /// A call has returned.
    returned: Condvar,
    failure: watch::Sender<Option<Error>>,
    /// Whether abort has returned.
    aborted: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    /// Until somebody takes it to free it.
    handle: Option<RawComm>,
    /// Whether the worker is inside NCCL.
    calling: bool,
    worker: Option<Thread>,
    /// Nobody waits for anything any more.
    orphaned: bool,
    /// Memory that calls which went wrong may still use, until NCCL has let go of the device.
    lost: Vec<Box<dyn Any + Send>>,
    /// It has, by an abort that succeeded.
    freed: bool,
}

impl Shared {
    pub(super) fn new(name: String, library: Arc<Library>, device: Arc<dyn Device>) -> Self {
        let (state, returned) = (Mutex::new(State::default()), Condvar::new());
        let (failure, aborted) = (watch::Sender::new(None), watch::Sender::new(false));
        Self { name, library, device, state, returned, failure, aborted }
    }

    /// Why the communicator is of no use any more.
    pub(super) fn failure(&self) -> Option<Error> {
        self.failure.borrow().clone()
    }

    /// Waits for the failure. Cancel safe.
    pub(super) async fn failed(&self) -> Error {
        let mut failure = self.failure.subscribe();
        match failure.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(error)) => error.clone(),
            _ => Error::Bug("a communicator went before its owner".into()),
        }
    }

    /// Waits until abort has returned. Cancel safe.
    pub(super) async fn aborted(&self) {
        let mut aborted = self.aborted.subscribe();
        // The sender is ours.
        let _ = aborted.wait_for(|aborted| *aborted).await;
    }

    /// Ends the communicator: everybody who waits gets `error`, unless it has failed before, and a
    /// thread of its own aborts it.
    pub(super) fn fail(self: &Arc<Self>, error: Error) {
        let first = self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert(error);
            first
        });
        if !first {
            return;
        }
        if let Some(worker) = &self.state.lock().worker {
            worker.unpark();
        }
        let shared = Arc::clone(self);
        let abort = thread::Builder::new().name("kvpipe-nccl-abort".into()).spawn(move || shared.abort());
        if let Err(error) = abort {
            // What the device still does for it goes on until the process ends.
            tracing::error!(communicator = self.name, %error, "no thread to abort a communicator");
        }
    }

    fn abort(&self) {
        let state = self.state.lock();
        let (mut state, _) = self
            .returned
            .wait_timeout_while(state, CALL_PATIENCE, |state| state.calling)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let (handle, calling) = (state.handle.take(), state.calling);
        drop(state);
        match handle {
            Some(handle) => self.abort_handle(handle),
            // NCCL does not return from forming it; should it ever, the worker aborts it.
            None if calling => {}
            None => {
                self.aborted.send_replace(true);
            }
        }
    }

    fn abort_handle(&self, handle: RawComm) {
        // SAFETY: the handle was taken out of the state, so nobody else frees it or begins a call with
        // it; one that is stuck in a call is what abort is for.
        let aborted = self.device.make_current().and_then(|()| unsafe { self.library.comm_abort(handle) });
        match aborted {
            Ok(_) => {
                let lost = {
                    let mut state = self.state.lock();
                    state.freed = true;
                    std::mem::take(&mut state.lost)
                };
                // Not under the lock: its owners are the user's.
                drop(lost);
            }
            Err(error) => tracing::warn!(communicator = self.name, %error, "aborting a communicator"),
        }
        self.aborted.send_replace(true);
    }

    /// The owner is gone: a call may still take a while, but not for ever.
    pub(super) fn orphan(&self) {
        let mut state = self.state.lock();
        state.orphaned = true;
        if let Some(worker) = &state.worker {
            worker.unpark();
        }
    }

    /// Keeps memory that NCCL may still use.
    pub(super) fn lose(&self, memory: Box<dyn Any + Send>) {
        let mut state = self.state.lock();
        if !state.freed {
            state.lost.push(memory);
            return;
        }
        drop(state);
        drop(memory);
    }

    /// Begins a call, unless the communicator has failed.
    fn enter(&self) -> Result<Option<RawComm>> {
        let mut state = self.state.lock();
        if let Some(error) = self.failure() {
            return Err(error);
        }
        state.calling = true;
        Ok(state.handle)
    }

    fn leave(&self) {
        self.state.lock().calling = false;
        self.returned.notify_all();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // NCCL has not let go of it, and will not any more.
        std::mem::forget(std::mem::take(&mut self.state.lock().lost));
    }
}

/// The thread's own view.
pub(super) struct Worker {
    shared: Arc<Shared>,
}

impl Worker {
    /// Forms the communicator, does what it is told until nobody is left who could, and tears it down.
    pub(super) fn run(
        shared: Arc<Shared>,
        [rank, world_size]: [c_int; 2],
        id: &UniqueId,
        commands: &Receiver<Command>,
    ) {
        shared.state.lock().worker = Some(thread::current());
        let worker = Self { shared };
        if let Err(error) = worker.form([rank, world_size], id) {
            worker.shared.fail(error);
        }
        let mut watched = Instant::now();
        loop {
            match commands.recv_timeout(WATCH_PERIOD) {
                Ok(command) => command(&worker),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            // Also among commands that never cease.
            if watched.elapsed() >= WATCH_PERIOD {
                worker.watch();
                watched = Instant::now();
            }
        }
        worker.tear_down();
    }

    fn form(&self, [rank, world_size]: [c_int; 2], id: &UniqueId) -> Result<()> {
        let Shared { library, device, .. } = &*self.shared;
        device.make_current()?;
        self.shared.enter()?;
        // SAFETY: the device is current on this thread.
        let made = unsafe { library.comm_init_rank_config(world_size, id, rank, Config::NONBLOCKING) };
        let mut state = self.shared.state.lock();
        state.calling = false;
        state.handle = made.as_ref().ok().map(|(handle, _)| *handle);
        let failure = self.shared.failure();
        // Given up meanwhile, by somebody who found nothing to abort.
        let orphan = failure.as_ref().and_then(|_| state.handle.take());
        drop(state);
        self.shared.returned.notify_all();
        if let Some(orphan) = orphan {
            self.shared.abort_handle(orphan);
        }
        match (failure, made?) {
            (Some(error), _) => Err(error),
            (None, (_, Progress::Done)) => Ok(()),
            (None, (_, Progress::InProgress)) => self.settle(),
        }
    }

    /// Makes one call, and waits until NCCL has ended it. An error is the end of the communicator.
    pub(super) fn call(&self, call: impl FnOnce(&Library, RawComm) -> Result<Progress>) -> Result<()> {
        let outcome = self.once(call).and_then(|progress| match progress {
            Progress::Done => Ok(()),
            Progress::InProgress => self.settle(),
        });
        match outcome {
            // Nothing was asked of NCCL.
            Err(error @ (Error::Unsupported { .. } | Error::Misuse(_))) => Err(error),
            Err(error) => {
                self.shared.fail(error.clone());
                Err(self.shared.failure().unwrap_or(error))
            }
            Ok(()) => Ok(()),
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    fn once<T>(&self, call: impl FnOnce(&Library, RawComm) -> Result<T>) -> Result<T> {
        let Some(handle) = self.shared.enter()? else {
            self.shared.leave();
            return Err(Error::Bug("a communicator without a handle was called".into()));
        };
        let outcome = call(&self.shared.library, handle);
        self.shared.leave();
        outcome
    }

    /// Waits until the call in progress has ended. Whoever waits for it has a deadline, and ends the
    /// communicator then; where nobody waits any more, we have one.
    fn settle(&self) -> Result<()> {
        let mut polls = 0;
        let mut deadline = None;
        loop {
            if self.progress()? == Progress::Done {
                return Ok(());
            }
            if self.shared.state.lock().orphaned {
                let now = Instant::now();
                if now >= *deadline.get_or_insert(now + TEARDOWN_PATIENCE) {
                    let awaited = format!("{} to finish its last call", self.shared.name);
                    return Err(Error::timeout(awaited, TEARDOWN_PATIENCE));
                }
            }
            polls += 1;
            match polls < EAGER_POLLS {
                true => thread::yield_now(),
                // Ends early when the communicator fails.
                false => thread::park_timeout(POLL_PAUSE_MAX.min(Duration::from_micros(polls.into()))),
            }
        }
    }

    /// Whether the last call is still in progress; the error that has befallen the communicator since.
    fn progress(&self) -> Result<Progress> {
        self.once(|library, handle| {
            // SAFETY: the handle is live: nobody frees it while a call is being made.
            let state = unsafe { library.comm_get_async_error(handle)? };
            library.check("ncclCommGetAsyncError", state)
        })
    }

    fn watch(&self) {
        if self.shared.failure().is_none()
            && let Err(error) = self.progress()
        {
            self.shared.fail(error);
        }
    }

    /// Finalize, poll, destroy: what was enqueued is finished. Abort if that takes too long.
    fn tear_down(&self) {
        let finalized = self.finalize();
        match finalized {
            Ok(()) => {
                let Some(handle) = self.shared.state.lock().handle.take() else { return };
                // SAFETY: nobody else has the handle any more, and no call is in progress.
                if let Err(error) = unsafe { self.shared.library.comm_destroy(handle) } {
                    tracing::warn!(communicator = self.shared.name, %error, "destroying a communicator");
                }
            }
            Err(error) => self.shared.fail(error),
        }
    }

    fn finalize(&self) -> Result<()> {
        // SAFETY: the handle is live, and no call is in progress.
        match self.once(|library, handle| unsafe { library.comm_finalize(handle) })? {
            Progress::Done => Ok(()),
            Progress::InProgress => self.settle(),
        }
    }
}

//! A thread for the driver's calls that may wait: allocating and freeing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::oneshot::oneshot;
use crate::error::{Error, Result};

type Chore = Box<dyn FnOnce() + Send>;

/// The way to the thread, once there is one. It lives as long as the process.
static THREAD: Mutex<Option<Sender<Chore>>> = Mutex::new(None);

/// Does `chore` on the thread, after those that were given before.
///
/// # Cancel safety
/// Dropped early it leaves the chore to be done, and the outcome is dropped.
pub(super) async fn run<T: Send + 'static>(chore: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (giver, taker) = oneshot();
    later(move || giver.give(chore()));
    taker.take().await.unwrap_or_else(|| Err(Error::Bug("a chore of a device has panicked".into())))
}

/// Does `chore` on the thread some time. Where there can't be a thread, here and now.
pub(super) fn later(chore: impl FnOnce() + Send + 'static) {
    let mut thread = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
    if thread.is_none() {
        let (sender, receiver) = channel();
        match thread::Builder::new().name("kvpipe-memory".into()).spawn(move || work(&receiver)) {
            Ok(_) => *thread = Some(sender),
            Err(error) => tracing::warn!(%error, "no thread for device memory, which may wait here now"),
        }
    }
    let chore: Chore = Box::new(chore);
    let unsent = match &*thread {
        Some(thread) => thread.send(chore).err().map(|unsent| unsent.0),
        None => Some(chore),
    };
    drop(thread);
    if let Some(chore) = unsent {
        chore();
    }
}

fn work(chores: &Receiver<Chore>) {
    for chore in chores {
        // What a chore drops may be the user's, and panic. The others are not to suffer from it.
        if catch_unwind(AssertUnwindSafe(chore)).is_err() {
            tracing::error!("a chore of a device has panicked");
        }
    }
}

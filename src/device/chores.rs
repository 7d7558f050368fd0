//! A thread for each device, for the driver's calls that may wait: allocating and freeing.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::oneshot::oneshot;
use super::{Device, Location};
use crate::error::{Error, Result};

type Chore = Box<dyn FnOnce() + Send>;

/// The ways to the threads that there are. They live as long as the process.
static THREADS: Mutex<BTreeMap<Location, Sender<Chore>>> = Mutex::new(BTreeMap::new());

/// Does `chore` on the device's thread, after those that were given before.
///
/// # Cancel safety
/// Dropped early it leaves the chore to be done, and the outcome is dropped.
pub(super) async fn run<T: Send + 'static>(
    device: &Arc<dyn Device>,
    chore: impl FnOnce(&Arc<dyn Device>) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (giver, taker) = oneshot();
    later(device, move |device| giver.give(chore(device)));
    taker.take().await.unwrap_or_else(|| Err(Error::Bug("a chore of a device has panicked".into())))
}

/// Does `chore` on the device's thread some time. Where there can't be a thread, here and now.
pub(super) fn later(device: &Arc<dyn Device>, chore: impl FnOnce(&Arc<dyn Device>) + Send + 'static) {
    let (location, device) = (device.location(), Arc::clone(device));
    let chore: Chore = Box::new(move || chore(&device));
    let mut threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Entry::Vacant(missing) = threads.entry(location) {
        let (sender, receiver) = channel();
        match thread::Builder::new().name("kvpipe-memory".into()).spawn(move || work(&receiver)) {
            Ok(_) => {
                missing.insert(sender);
            }
            Err(error) => tracing::warn!(%error, "no thread for device memory, which may wait here now"),
        }
    }
    let unsent = match threads.get(&location) {
        Some(thread) => thread.send(chore).err().map(|unsent| unsent.0),
        None => Some(chore),
    };
    drop(threads);
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

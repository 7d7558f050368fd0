//! Room for one value between two futures of a task.

use tokio::sync::Notify;

use crate::sync::Mutex;

/// A place for one value, which one future fills and another empties.
#[derive(Debug)]
pub(super) struct Slot<T> {
    value: Mutex<Option<T>>,
    filled: Notify,
    emptied: Notify,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { value: Mutex::new(None), filled: Notify::new(), emptied: Notify::new() }
    }
}

impl<T> Slot<T> {
    /// Waits until the slot is empty. Cancel safe.
    pub(super) async fn room(&self) {
        while self.value.lock().is_some() {
            self.emptied.notified().await;
        }
    }

    /// Fills the slot, which is [empty](Self::room).
    pub(super) fn fill(&self, value: T) {
        let old = self.value.lock().replace(value);
        debug_assert!(old.is_none(), "the slot is filled");
        self.filled.notify_one();
    }

    /// Waits until the slot is filled, and empties it. Cancel safe.
    pub(super) async fn take(&self) -> T {
        loop {
            // A statement of its own: the lock is not held while waiting.
            let value = self.value.lock().take();
            if let Some(value) = value {
                self.emptied.notify_one();
                return value;
            }
            self.filled.notified().await;
        }
    }
}

//! A value whose changes tasks wait for.

use tokio::sync::Notify;

use crate::sync::Mutex;

/// A small value that many tasks may wait on. They are woken in the order in which they began to wait;
/// tokio's `watch` draws lots, by which no simulation could be repeated.
#[derive(Debug)]
pub(super) struct Watched<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Copy> Watched<T> {
    pub(super) fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Notify::new() }
    }

    pub(super) fn value(&self) -> T {
        *self.value.lock()
    }

    pub(super) fn set(&self, value: T) {
        *self.value.lock() = value;
        self.changed.notify_waiters();
    }

    /// Until the value is as wanted. A value that was so and has changed again may be missed. Cancel
    /// safe.
    pub(super) async fn wait_for(&self, wanted: impl Fn(T) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed, so look only now.
            changed.as_mut().enable();
            if wanted(self.value()) {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn tasks_are_woken_in_the_order_in_which_they_began_to_wait() {
        // So few that the runtime polls all of them before this test goes on.
        const TASKS: usize = 20;
        let watched = Arc::new(Watched::new(0));
        let (sender, mut woken) = tokio::sync::mpsc::unbounded_channel();
        for task in 0..TASKS {
            let (watched, sender) = (Arc::clone(&watched), sender.clone());
            tokio::spawn(async move {
                watched.wait_for(|value| value == 2).await;
                sender.send(task).unwrap();
            });
        }
        tokio::task::yield_now().await;
        watched.set(1);
        tokio::task::yield_now().await;
        assert!(woken.try_recv().is_err(), "nobody wants a 1");
        watched.set(2);
        for task in 0..TASKS {
            assert_eq!(woken.recv().await, Some(task));
        }
    }

    #[tokio::test]
    async fn what_is_so_already_is_not_waited_for() {
        Watched::new(7).wait_for(|value| value == 7).await;
    }
}

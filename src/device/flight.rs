//! What a stream still uses.

use std::fmt;

use super::{Event, poller};
use crate::error::{Error, Result};

/// Work that a stream still does, and what it uses.
///
/// Dropping it early hands event and memory to the thread that polls events, which drops the memory
/// once the event is complete, or has failed. So a future that is cancelled never frees memory under a
/// copy.
#[must_use = "what is in flight is of no use until it is done"]
pub struct InFlight<T: Send + 'static> {
    event: Event,
    held: Option<T>,
}

impl<T: Send + 'static> InFlight<T> {
    /// Keeps `held` until `event` is complete.
    pub fn new(event: Event, held: T) -> Self {
        Self { event, held: Some(held) }
    }

    /// What is waited for.
    #[must_use]
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Waits for the event, and gives back what was held.
    ///
    /// # Errors
    /// As [`Event::completed`].
    ///
    /// # Cancel safety
    /// What is held is lost to the caller then, and dropped once the event is complete.
    pub async fn done(mut self) -> Result<T> {
        self.event.completed().await?;
        self.held.take().ok_or_else(|| Error::Bug("what was in flight is gone".into()))
    }
}

impl<T: Send + 'static> Drop for InFlight<T> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            poller::drop_after(self.event.clone(), Box::new(held));
        }
    }
}

impl<T: Send + 'static> fmt::Debug for InFlight<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFlight").field("event", &self.event).finish_non_exhaustive()
    }
}

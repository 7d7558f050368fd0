//! When to speak, when to listen, how long to wait, and when to try again.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::{Outbox, session};

/// How long an end that gave up waits for the other to notice.
pub(crate) const GOODBYE: Duration = Duration::from_secs(1);

/// Ticks at which we listen for a peer whose silence we bear for `limit`.
pub(crate) fn listening(limit: Duration) -> Interval {
    ticker(limit / session::TICKS)
}

/// Ticks at which we speak to a peer that bears our silence for `limit`, which it chose: not more
/// often than a hundred times a second.
pub(crate) fn speaking(limit: Duration) -> Interval {
    ticker((limit / session::TICKS).max(Duration::from_millis(10)))
}

/// The first tick comes after a period, and after a delay the next one does, too.
pub(crate) fn ticker(period: Duration) -> Interval {
    // An interval of zero would panic.
    let period = period.max(Duration::from_millis(1));
    let mut ticker = interval_at(after(period), period);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

/// The end of a wait; a wait beyond all measure ends in thirty years.
pub(crate) fn after(limit: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
    Instant::now() + limit.min(FAR)
}

pub(crate) fn silent_for(heartbeat: Duration) -> String {
    format!("it was silent for {} s", heartbeat.as_secs_f64())
}

/// Lets a close wait for as long as we are connecting.
pub(super) async fn showing_progress<T>(items: &Outbox, connecting: impl Future<Output = T>) -> T {
    let mut ticker = ticker(PROGRESS_PERIOD);
    let mut connecting = pin!(connecting);
    loop {
        tokio::select! {
            biased;
            connected = &mut connecting => return connected,
            _ = ticker.tick() => items.progress(),
        }
    }
}

/// How often a close is told that we are still connecting.
const PROGRESS_PERIOD: Duration = Duration::from_millis(50);

/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Pauses between attempts: doubling, with jitter.
#[derive(Debug)]
pub(crate) struct Backoff {
    pause: Duration,
    pause_max: Duration,
}

impl Backoff {
    const PAUSE_MIN: Duration = Duration::from_millis(10);

    pub(crate) fn patient() -> Self {
        Self { pause: Self::PAUSE_MIN, pause_max: PAUSE_MAX }
    }

    /// For a connection that broke: the first attempt comes at once, and there are several in
    /// `limit`.
    pub(crate) fn at_once(limit: Duration) -> Self {
        Self { pause: Duration::ZERO, pause_max: PAUSE_MAX.min(limit / 8) }
    }

    pub(crate) fn next(&mut self, random: u64) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).clamp(Self::PAUSE_MIN.min(self.pause_max), self.pause_max);
        // Half of it, and a random part of the other half.
        pause / 2 + pause.mul_f64(random as f64 / u64::MAX as f64) / 2
    }
}

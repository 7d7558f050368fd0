//! When silence is death.

/// Ticks in one heartbeat limit.
pub(crate) const TICKS: u32 = 9;

/// Whole ticks of silence after which the peer is given up. One less than there are would do if timers
/// were exact; one more than that is left for their lateness, which adds up.
const SILENT_TICKS_MAX: u32 = TICKS - 2;

/// How long the peer has been silent, in ticks of a ninth of the heartbeat limit rather than by a
/// clock, so that a process that was itself stopped does not take its peer for dead: however long it
/// was, that is one tick, and then it reads what has come meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    heard: bool,
    ticks: u32,
}

impl Silence {
    /// A byte came.
    pub(crate) fn hear(&mut self) {
        self.heard = true;
    }

    /// A ninth of the limit has passed while we were reading. True if the peer is to be given up: its
    /// last byte came seven to eight ticks ago, which is within the limit.
    #[must_use]
    pub(crate) fn tick(&mut self) -> bool {
        self.ticks = if std::mem::take(&mut self.heard) { 0 } else { self.ticks + 1 };
        self.ticks >= SILENT_TICKS_MAX
    }

    /// We have not been reading, so the peer may have been kept from speaking: counts anew.
    pub(crate) fn excuse(&mut self) {
        self.ticks = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_given_up_after_seven_whole_ticks_of_silence() {
        let mut silence = Silence::default();
        silence.hear();
        // The first tick after a byte says nothing: the byte may have come just before it.
        assert!(!silence.tick());
        for _ in 1..7 {
            assert!(!silence.tick());
        }
        assert!(silence.tick());
        silence.hear();
        assert!(!silence.tick(), "a byte makes good for all of it");
    }

    #[test]
    fn a_peer_that_was_kept_from_speaking_gets_the_whole_limit_again() {
        let mut silence = Silence::default();
        for _ in 0..SILENT_TICKS_MAX - 1 {
            assert!(!silence.tick());
        }
        silence.excuse();
        assert!(!silence.tick());
    }
}

//! kvpipe's own protocol over a store.
//!
//! # Keys
//!
//! | key, under `kvpipe/GROUP/edge/FROM-TO/` | who sets it | what it is |
//! |---|---|---|
//! | `receiver` | receiver | its [`Hello`](crate::wire::handshake::Hello), until a sender has come |
//! | `RUN/sender` | sender | its Hello; the first to set it is the peer |
//! | `RUN/alive/sender`, `RUN/alive/receiver` | each its own | a counter that goes up; u64::MAX says farewell |
//! | `RUN/data/N` | sender | message N of one stream of frames and payloads |
//! | `RUN/data/consumed` | receiver | how many of them it has consumed |
//! | `RUN/reply/N` | receiver | a count of consumed messages, and replies |
//! | `RUN/reply/consumed` | sender | how many of them it has consumed |
//!
//! RUN is the receiver's session in hexadecimal digits, so that no run ever meets the keys of another.
//! A message is deleted by its reader. Whoever says the last word has said farewell before, and writes
//! nothing more; who reads it deletes all other keys. When one end dies, the other does, as far as it
//! knows them. `RUN/sender` is there for as long as both live: if it is missing, the store has begun anew.
//!
//! An abort is a frame like any other, behind what was sent. Only in the middle of a payload there is no
//! place for a frame; then the reason stands behind the farewell, and what was not yet read is lost, and
//! in doubt.
//!
//! # Bounds
//!
//! At most `window_bytes` of messages are handed over and not reported as consumed; since a report goes
//! out before the keys are deleted, the store may hold twice as much. The receiver holds the messages
//! that it has fetched, at most five chunks, besides its inbox. An abort goes out beyond the window.
//!
//! # Outages
//!
//! See [`Patient`](patient::Patient).

#[cfg(fuzzing)]
pub(in crate::transport) mod fuzzing;
mod incoming;
mod keys;
mod meeting;
mod message;
mod outgoing;
mod patient;
mod pulse;
mod slot;

use std::pin::Pin;

use tokio::time::timeout;

pub(super) use self::incoming::run as receive;
pub(super) use self::outgoing::run as send;
use self::pulse::Pulse;
use super::super::timing::GOODBYE;
use crate::error::Error;
use crate::store::Store;

/// Messages on their way to the store, or from it, at a time.
const LANES: usize = 2;

/// Reports that the sender has not read yet.
const REPLIES_MAX: u64 = 32;

/// Which lane a message takes.
fn lane(number: u64) -> usize {
    (number % LANES as u64) as usize
}

/// Lets the heartbeat write for the last time, if the store still takes it.
async fn fall_silent<S: Store>(pulse: &Pulse<'_, S>, mut speaking: Pin<&mut impl Future<Output = Error>>) {
    let silent = async {
        tokio::select! {
            biased;
            () = pulse.leave() => {}
            // It could not write, and has left.
            _failure = &mut speaking => {}
        }
    };
    if timeout(GOODBYE, silent).await.is_err() {
        tracing::debug!("the last heartbeat did not reach the store");
    }
}

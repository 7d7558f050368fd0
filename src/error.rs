//! One public [`Error`], sorted by who is at fault.
//!
//! | at fault | variants | what to do |
//! |---|---|---|
//! | the peer broke the protocol | [`PeerMisbehaved`](Error::PeerMisbehaved) | report it; the link is dead |
//! | the peers don't fit together | [`PeerIncompatible`](Error::PeerIncompatible) | make the named settings equal |
//! | the peer is gone | [`PeerGone`](Error::PeerGone), [`PeerRestarted`](Error::PeerRestarted), [`PeerAborted`](Error::PeerAborted) | open a new pipe; see `undelivered` |
//! | a peer, earlier | [`GroupBroken`](Error::GroupBroken) | form a new group, with the ranks that are left |
//! | nobody | [`Closed`](Error::Closed), [`ReceiverClosed`](Error::ReceiverClosed) | stop |
//! | time | [`Timeout`](Error::Timeout) | the message says what was awaited, and for how long |
//! | the caller | [`Misuse`](Error::Misuse), [`TooLarge`](Error::TooLarge), [`Full`](Error::Full), [`Empty`](Error::Empty) | change the call |
//! | the environment | [`Io`](Error::Io), [`Unavailable`](Error::Unavailable), [`Unsupported`](Error::Unsupported), [`Cuda`](Error::Cuda), [`Nccl`](Error::Nccl) | see the source, or the code in the library's manual |
//! | kvpipe | [`Bug`](Error::Bug) | report it |
//!
//! Every error is `Clone`, because one failure is told to everybody who waits on a pipe.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Everything that can go wrong, by who is at fault.
///
/// Messages are one lower-case line without a final stop, and complete: the system's answer is quoted
/// in it, and is the [`source`](std::error::Error::source) as well, for programs that look at its kind.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer sent what the protocol does not allow. The link is closed.
    #[error("{link}: the peer broke the protocol: {violation}")]
    PeerMisbehaved {
        /// Between whom.
        link: Link,
        /// What it did.
        violation: String,
    },

    /// Both ends are healthy, but are not set up to talk to each other.
    #[error("{link}: the peer does not fit: {mismatch}")]
    PeerIncompatible {
        /// Between whom.
        link: Link,
        /// Which setting differs, and both values.
        mismatch: String,
    },

    /// The connection broke, or the peer was silent for longer than the heartbeat limit.
    #[error("{link}: the peer is gone: {reason}")]
    PeerGone {
        /// Between whom.
        link: Link,
        /// How we know, and during which item.
        reason: String,
    },

    /// A new process answered in the peer's place; what the old one held is lost.
    #[error("{link}: the peer has restarted, its session is not the one this pipe began with")]
    PeerRestarted {
        /// Between whom.
        link: Link,
    },

    /// The peer ended its direction without a graceful close, and said why.
    #[error("{link}: the peer aborted: {reason}")]
    PeerAborted {
        /// Between whom.
        link: Link,
        /// In the peer's words.
        reason: String,
    },

    /// The receiving user closed or dropped its end before it had taken everything.
    #[error("{link}: the receiver closed after taking {taken} items")]
    ReceiverClosed {
        /// Between whom.
        link: Link,
        /// How many items, counted from the first of the pipe, the receiving user took.
        taken: u64,
    },

    /// The pipe was closed gracefully: by this side (for `send`), or by the peer, after its last
    /// item (for `recv`).
    #[error("the pipe is closed")]
    Closed,

    /// The process group failed in an earlier operation, or was left; every later one fails.
    #[error("the process group is broken: {cause}")]
    GroupBroken {
        /// Why.
        #[source]
        cause: Arc<Self>,
    },

    /// A deadline passed.
    #[error("timed out after {} waiting for {awaited}", Seconds(*after))]
    Timeout {
        /// What was awaited, from whom.
        awaited: String,
        /// For how long.
        after: Duration,
    },

    /// `try_send`: the budget has no room now, or others wait for it.
    #[error("the pipe is full")]
    Full,

    /// `try_recv`: no item is here now.
    #[error("the pipe is empty")]
    Empty,

    /// The item is larger than the pipe's `max_item_bytes`.
    #[error("an item of {bytes} bytes is over the limit of {limit} bytes (max_item_bytes)")]
    TooLarge {
        /// The item's payload.
        bytes: u64,
        /// The limit.
        limit: u64,
    },

    /// The caller asked for something that can't be, whatever the peer does.
    #[error("{0}")]
    Misuse(String),

    /// The operating system refused.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, to what.
        doing: String,
        /// The system's answer.
        source: Arc<io::Error>,
    },

    /// A library, device or feature that the call needs is not on this machine.
    #[error("{what} is not available: {reason}")]
    Unavailable {
        /// What is missing.
        what: String,
        /// What was tried, and why each attempt failed.
        reason: String,
    },

    /// The library that was loaded is too old to have this function.
    #[error("the NCCL library that is loaded has no {symbol}, which came with NCCL {needs_version}")]
    Unsupported {
        /// The function, such as `ncclMemAlloc`.
        symbol: &'static str,
        /// The first version that has it, such as `2.19`.
        needs_version: &'static str,
    },

    /// The CUDA driver refused.
    #[error("{call}: {text} (CUDA code {code})")]
    Cuda {
        /// The function, such as `cuMemAlloc`.
        call: &'static str,
        /// The driver's `CUresult`.
        code: i32,
        /// What the driver says to that code.
        text: String,
    },

    /// NCCL refused.
    #[error("{call}: {text} (NCCL code {code}){}", Detail(detail))]
    Nccl {
        /// The function, such as `ncclSend`.
        call: &'static str,
        /// NCCL's `ncclResult_t`.
        code: i32,
        /// What NCCL says to that code.
        text: String,
        /// What NCCL said last, and which rank or peer it was about; empty if there is nothing to say.
        detail: String,
    },

    /// A state that kvpipe holds to be impossible. Please report it.
    #[error("bug in kvpipe: {0}")]
    Bug(String),
}

/// A result with kvpipe's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An I/O error together with what was being done, such as `"binding 127.0.0.1:4000"`.
    pub fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Io { doing: doing.into(), source: Arc::new(source) }
    }

    /// A passed deadline.
    pub fn timeout(awaited: impl Into<String>, after: Duration) -> Self {
        Self::Timeout { awaited: awaited.into(), after }
    }

    /// True for a graceful end, which is not a failure: [`Error::Closed`].
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed)
    }
}

/// The two ranks of an edge, as errors name them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// This process's rank.
    pub local_rank: usize,
    /// The other end's rank.
    pub peer_rank: usize,
    /// Where the other end was last seen; empty where it has no address.
    pub peer_address: Arc<str>,
}

impl Link {
    /// An edge to a peer that has no address, or none yet.
    #[must_use]
    pub fn new(local_rank: usize, peer_rank: usize) -> Self {
        Self { local_rank, peer_rank, peer_address: Arc::from("") }
    }

    /// The same edge, with the peer's address.
    #[must_use]
    pub fn at(mut self, address: impl fmt::Display) -> Self {
        self.peer_address = Arc::from(address.to_string());
        self
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} to rank {}", self.local_rank, self.peer_rank)?;
        if !self.peer_address.is_empty() {
            write!(f, " at {}", self.peer_address)?;
        }
        Ok(())
    }
}

/// A duration as a person says it: `300 s`, `0.25 s`.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0.as_secs_f64())
    }
}

/// Behind a colon; nothing if it is empty.
struct Detail<'a>(&'a str);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => Ok(()),
            text => write!(f, ": {text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_ranks_addresses_and_durations() {
        let link = Link::new(0, 1).at("127.0.0.1:4000");
        let gone = Error::PeerGone { link, reason: "connection reset during item 7".into() };
        assert_eq!(
            gone.to_string(),
            "rank 0 to rank 1 at 127.0.0.1:4000: the peer is gone: connection reset during item 7"
        );
        let late = Error::timeout("rank 1 to publish its address", Duration::from_millis(1500));
        assert_eq!(late.to_string(), "timed out after 1.5 s waiting for rank 1 to publish its address");
    }
}

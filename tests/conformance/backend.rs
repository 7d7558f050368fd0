//! The transports that run the suite.

use std::time::Duration;

use kvpipe::transport::Transport;
use kvpipe::transport::memory::{self, MemoryTransport, Script};

pub(crate) type OutOf<B> = <<B as Backend>::Transport as Transport>::Out;
pub(crate) type InOf<B> = <<B as Backend>::Transport as Transport>::In;

/// A way to connect two ranks.
pub(crate) trait Backend {
    type Transport: Transport;

    /// Rank 0 and rank 1, each connected to the other in both directions.
    async fn pair(&self) -> (Self::Transport, Self::Transport);

    /// One direction only, from rank 0 to rank 1.
    async fn edge(&self) -> (OutOf<Self>, InOf<Self>);

    /// How long a peer may be silent. For a wire without a clock, what the others have.
    fn heartbeat_limit(&self) -> Duration {
        Duration::from_millis(500)
    }
}

/// Two ends in one process.
pub(crate) struct Memory;

impl Backend for Memory {
    type Transport = MemoryTransport;

    async fn pair(&self) -> (MemoryTransport, MemoryTransport) {
        memory::pair()
    }

    async fn edge(&self) -> (OutOf<Self>, InOf<Self>) {
        memory::edge(Script::new())
    }
}

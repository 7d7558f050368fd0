//! How a pipe is set up; and reading vLLM's `--kv-transfer-config`.

mod endpoint;
mod fields;
mod kv_transfer;

use std::time::Duration;

pub use endpoint::Endpoint;
pub use kv_transfer::{BufferDevice, KvRole, KvTransferConfig};

pub use crate::device::Location;

/// The limits of a pipe. Both ends have their own; only `max_item_bytes` must be equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipeConfig {
    /// Payload bytes that the sending side holds at most: queued and unacknowledged. An item larger
    /// than the whole budget is taken when nothing else is held. vLLM's `kv_buffer_size`.
    pub budget_bytes: usize,
    /// Payload bytes that the receiving side holds at most: arriving, and not yet taken by the user.
    /// An item larger than the whole window is received when nothing else is held.
    pub window_bytes: usize,
    /// The largest payload of one item, in bytes: refused when sending, and when receiving before
    /// anything is allocated.
    pub max_item_bytes: usize,
    /// Items held at most per direction, whatever their size.
    pub max_items: usize,
    /// How long a close waits without any progress, and how long a dropped pipe tries to tell its
    /// peer.
    pub close_timeout: Duration,
}

/// vLLM's default `kv_buffer_size`.
const DEFAULT_BUFFER_BYTES: usize = 1_000_000_000;

impl Default for PipeConfig {
    fn default() -> Self {
        Self {
            budget_bytes: DEFAULT_BUFFER_BYTES,
            window_bytes: DEFAULT_BUFFER_BYTES,
            max_item_bytes: 4 << 30,
            max_items: 65_536,
            close_timeout: Duration::from_secs(30),
        }
    }
}

impl PipeConfig {
    /// The same limits with `bytes` both as the sending budget and as the receiving window.
    #[must_use]
    pub fn with_buffer_bytes(mut self, bytes: usize) -> Self {
        self.budget_bytes = bytes;
        self.window_bytes = bytes;
        self
    }
}

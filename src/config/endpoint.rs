//! One pipe's view of a kv-transfer-config.

use std::time::Duration;

use super::{Location, PipeConfig};
use crate::error::{Error, Result};

/// What one pipe needs to know of a [`KvTransferConfig`](super::KvTransferConfig): who it is, where the others are, and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endpoint {
    /// The host of rank 0's store.
    pub store_host: String,
    /// Its port, with the offset. 0 for rank 0 only: any free one.
    pub store_port: u16,
    /// How long the store is waited for, and each value in it.
    pub store_timeout: Duration,
    /// Our rank.
    pub rank: usize,
    /// How many ranks there are.
    pub world_size: usize,
    /// Where our tensors live.
    pub device: Location,
    /// The limits of the pipe.
    pub pipe: PipeConfig,
}

impl Endpoint {
    /// Where rank 0's store is, as `host:port`, with brackets around an IPv6 address.
    #[must_use]
    pub fn store_address(&self) -> String {
        match self.store_host.contains(':') {
            true => format!("[{}]:{}", self.store_host, self.store_port),
            false => format!("{}:{}", self.store_host, self.store_port),
        }
    }

    /// Refuses a group that is not a pair, the only one in which vLLM's own wire works.
    ///
    /// # Errors
    /// [`Error::Misuse`] with the size.
    pub fn ensure_pair(&self) -> Result<()> {
        match self.world_size {
            2 => Ok(()),
            size => Err(Error::Misuse(format!(
                "kv_parallel_size {size} is not 2, and vLLM's own pipe is between two ranks"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::KvTransferConfig;

    #[test]
    fn vllms_wire_is_for_pairs_only() {
        for size in [1, 3] {
            let config =
                KvTransferConfig::from_json(&format!(r#"{{"kv_rank": 0, "kv_parallel_size": {size}}}"#));
            let error = config.unwrap().endpoint(0, 0).unwrap().ensure_pair().unwrap_err().to_string();
            assert!(error.starts_with(&format!("kv_parallel_size {size} is not 2")), "{error}");
        }
    }
}

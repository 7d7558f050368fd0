//! How a pipe is set up; and reading vLLM's `--kv-transfer-config`.

use std::time::Duration;

use serde::Deserialize;

use crate::error::{Error, Result};

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

impl Default for PipeConfig {
    fn default() -> Self {
        Self {
            budget_bytes: KvTransferConfig::DEFAULT_BUFFER_BYTES,
            window_bytes: KvTransferConfig::DEFAULT_BUFFER_BYTES,
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

/// The fields of vLLM's `KVTransferConfig` (0.9 to 0.12) that a pipe needs; others are ignored, as
/// they configure connectors that have no counterpart here.
///
/// ```
/// use kvpipe::config::{KvRole, KvTransferConfig};
///
/// let json = r#"{"kv_connector": "PyNcclConnector", "kv_role": "kv_producer",
///                "kv_rank": 0, "kv_parallel_size": 2, "kv_buffer_size": 5e9}"#;
/// let config = KvTransferConfig::from_json(json)?;
/// assert_eq!(config.kv_role, Some(KvRole::Producer));
/// assert_eq!(config.pipe_config()?.budget_bytes, 5_000_000_000);
/// assert_eq!(config.store_address(), "127.0.0.1:14579");
/// # Ok::<(), kvpipe::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct KvTransferConfig {
    /// Whether this instance produces KV caches, consumes them, or both.
    pub kv_role: Option<KvRole>,
    /// This instance's rank: 0 prefill, 1 decode.
    pub kv_rank: Option<usize>,
    /// The number of instances.
    pub kv_parallel_size: usize,
    /// Where tensors live: `"cuda"` means the GPU, anything else the host.
    pub kv_buffer_device: String,
    /// The byte budget, a float in vLLM.
    pub kv_buffer_size: f64,
    /// The host of rank 0's store.
    pub kv_ip: String,
    /// The port of rank 0's store.
    pub kv_port: u16,
    /// Further settings by name; `store_timeout` (seconds) is the one that pipes read.
    pub kv_connector_extra_config: serde_json::Map<String, serde_json::Value>,
}

/// Which side of a transfer an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum KvRole {
    /// Prefill: sends KV caches.
    #[serde(rename = "kv_producer")]
    Producer,
    /// Decode: receives KV caches.
    #[serde(rename = "kv_consumer")]
    Consumer,
    /// Both.
    #[serde(rename = "kv_both")]
    Both,
}

impl Default for KvTransferConfig {
    /// vLLM's own defaults.
    fn default() -> Self {
        Self {
            kv_role: None,
            kv_rank: None,
            kv_parallel_size: 1,
            kv_buffer_device: "cuda".into(),
            kv_buffer_size: Self::DEFAULT_BUFFER_BYTES as f64,
            kv_ip: "127.0.0.1".into(),
            kv_port: 14_579,
            kv_connector_extra_config: serde_json::Map::new(),
        }
    }
}

impl KvTransferConfig {
    /// vLLM's default `kv_buffer_size`.
    const DEFAULT_BUFFER_BYTES: usize = 1_000_000_000;
    /// vLLM's default `store_timeout`.
    const DEFAULT_STORE_TIMEOUT: Duration = Duration::from_secs(300);

    /// Reads the JSON text that vLLM takes as `--kv-transfer-config`.
    ///
    /// # Errors
    /// [`Error::Misuse`] that names the field, if the text is not such a configuration or
    /// contradicts itself.
    pub fn from_json(json: &str) -> Result<Self> {
        let config: Self =
            serde_json::from_str(json).map_err(|error| misuse(format_args!("not valid: {error}")))?;
        if let Some(rank) = config.kv_rank
            && rank >= config.kv_parallel_size
        {
            let size = config.kv_parallel_size;
            return Err(misuse(format_args!("kv_rank {rank} is beyond kv_parallel_size {size}")));
        }
        config.pipe_config()?;
        config.store_timeout()?;
        Ok(config)
    }

    /// The limits for a pipe: `kv_buffer_size` bounds both directions.
    ///
    /// # Errors
    /// [`Error::Misuse`] if `kv_buffer_size` is not a number of bytes.
    pub fn pipe_config(&self) -> Result<PipeConfig> {
        let bytes = self.kv_buffer_size;
        // Above 2^53 a float is no longer exact to the byte, and no machine has that much.
        if !(1.0..=9_007_199_254_740_992.0).contains(&bytes) {
            return Err(misuse(format_args!(
                "kv_buffer_size {bytes} is not a number of bytes from 1 to 2^53"
            )));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
        let bytes = bytes as usize;
        Ok(PipeConfig::default().with_buffer_bytes(bytes))
    }

    /// Where rank 0's store is, as `host:port`.
    #[must_use]
    pub fn store_address(&self) -> String {
        match self.kv_ip.contains(':') {
            true => format!("[{}]:{}", self.kv_ip, self.kv_port),
            false => format!("{}:{}", self.kv_ip, self.kv_port),
        }
    }

    /// `store_timeout` of the extra configuration, 300 seconds by default.
    ///
    /// # Errors
    /// [`Error::Misuse`] if it is not a positive number of seconds.
    pub fn store_timeout(&self) -> Result<Duration> {
        let Some(value) = self.kv_connector_extra_config.get("store_timeout") else {
            return Ok(Self::DEFAULT_STORE_TIMEOUT);
        };
        value
            .as_f64()
            .filter(|seconds| *seconds > 0.0)
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .ok_or_else(|| misuse(format_args!("store_timeout {value} is not a positive number of seconds")))
    }
}

fn misuse(what: std::fmt::Arguments<'_>) -> Error {
    Error::Misuse(format!("kv-transfer-config: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_object_is_vllms_defaults() {
        let config = KvTransferConfig::from_json("{}").unwrap();
        assert_eq!(config, KvTransferConfig::default());
        assert_eq!(config.store_timeout().unwrap(), Duration::from_secs(300));
    }

    #[test]
    fn unknown_fields_are_ignored_and_an_ipv6_host_is_bracketed() {
        let config = KvTransferConfig::from_json(r#"{"engine_id": "x", "kv_ip": "::1"}"#).unwrap();
        assert_eq!(config.store_address(), "[::1]:14579");
    }

    #[test]
    fn contradictions_are_refused_by_name() {
        for (json, names) in [
            (r#"{"kv_rank": 2, "kv_parallel_size": 2}"#, "kv_rank 2"),
            (r#"{"kv_buffer_size": -1}"#, "kv_buffer_size -1"),
            (r#"{"kv_buffer_size": 1e300}"#, "kv_buffer_size"),
            (r#"{"kv_role": "kv_nobody"}"#, "kv_nobody"),
            (r#"{"kv_port": 99999}"#, "99999"),
            (r#"{"kv_connector_extra_config": {"store_timeout": "soon"}}"#, "store_timeout"),
            ("{", "not valid"),
        ] {
            let error = KvTransferConfig::from_json(json).unwrap_err().to_string();
            assert!(error.contains(names), "{json}: {error}");
        }
    }
}

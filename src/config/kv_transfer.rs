//! vLLM's `--kv-transfer-config`: what its pipes read of it, and what they make of it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use super::fields::{Fields, bytes, count, port, text};
use super::{DEFAULT_BUFFER_BYTES, Endpoint, Location, PipeConfig};
use crate::error::{Error, Result};

/// vLLM's `KVTransferConfig` (0.9 to 0.12), as far as a pipe has a use for it.
///
/// | field | default | values |
/// |---|---|---|
/// | `kv_connector` | null | any name; kvpipe has no connectors, but no role without one |
/// | `kv_role` | null | `"kv_producer"`, `"kv_consumer"`, `"kv_both"`; required beside `kv_connector` |
/// | `kv_rank` | null | below `kv_parallel_size`; 0 prefill, 1 decode; a pipe needs one |
/// | `kv_parallel_size` | 1 | from 1; vLLM's own wire needs [2](Endpoint::ensure_pair) |
/// | `kv_ip` | `"127.0.0.1"` | the host of rank 0's store |
/// | `kv_port` | 14579 | its port, to which a pipe adds its [offset](Self::endpoint) |
/// | `kv_buffer_device` | `"cuda"` | `"cuda"`, `"cpu"`, as in vLLM; `"cuda:1"` besides |
/// | `kv_buffer_size` | 1e9 | bytes, from 1 to 2^53, rounded down: both budget and window of a pipe |
/// | `kv_connector_extra_config` | `{}` | `store_timeout`: seconds, above 0, at most a year; 300 if absent |
///
/// Other fields, such as `engine_id`, and other extra settings are ignored, whatever they are: they
/// configure what has no counterpart here. All else that is not in the table is an error that names the
/// field. So is a device of another name, for which vLLM silently takes the host (also for `"cuda:1"`,
/// which here is that GPU); and a number in a string, which vLLM converts.
///
/// ```
/// use kvpipe::config::{KvTransferConfig, Location};
///
/// let json = r#"{"kv_connector": "PyNcclConnector", "kv_role": "kv_producer",
///                "kv_rank": 0, "kv_parallel_size": 2, "kv_buffer_size": 5e9}"#;
/// let config = KvTransferConfig::from_json(json)?;
/// assert!(config.is_kv_producer() && !config.is_kv_consumer());
///
/// let endpoint = config.endpoint(3, 1)?;
/// assert_eq!(endpoint.store_address(), "127.0.0.1:14580");
/// assert_eq!((endpoint.rank, endpoint.world_size), (0, 2));
/// assert_eq!(endpoint.device, Location::Cuda(3));
/// assert_eq!(endpoint.pipe.budget_bytes, 5_000_000_000);
/// # Ok::<(), kvpipe::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct KvTransferConfig {
    /// The connector's name. Without one, the instance takes part in no transfer.
    pub kv_connector: Option<String>,
    /// Whether this instance produces KV caches, consumes them, or both.
    pub kv_role: Option<KvRole>,
    /// This instance's rank.
    pub kv_rank: Option<usize>,
    /// The number of instances.
    pub kv_parallel_size: usize,
    /// The host of rank 0's store: a name or an address, without brackets.
    pub kv_ip: String,
    /// The port of rank 0's store, before an offset.
    pub kv_port: u16,
    /// Where tensors live.
    pub kv_buffer_device: BufferDevice,
    /// The byte budget.
    pub kv_buffer_size: usize,
    /// `store_timeout` of `kv_connector_extra_config`.
    pub store_timeout: Duration,
}

/// Which side of a transfer an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvRole {
    /// Prefill: sends KV caches.
    Producer,
    /// Decode: receives KV caches.
    Consumer,
    /// Both.
    Both,
}

/// The kind of memory that holds tensors: `kv_buffer_device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferDevice {
    /// `"cuda"`: the GPU that belongs to the process, by its local rank.
    Cuda,
    /// `"cuda:1"`: the GPU of this index.
    CudaIndex(usize),
    /// `"cpu"`: host memory.
    Cpu,
}

impl BufferDevice {
    /// The memory that is meant, where `local_rank` is the index of the process's GPU on its machine.
    #[must_use]
    pub fn location(self, local_rank: usize) -> Location {
        match self {
            Self::Cuda => Location::Cuda(local_rank),
            Self::CudaIndex(index) => Location::Cuda(index),
            Self::Cpu => Location::Cpu,
        }
    }
}

/// As the configuration has it.
impl fmt::Display for BufferDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cuda => f.write_str("cuda"),
            Self::CudaIndex(index) => write!(f, "cuda:{index}"),
            Self::Cpu => f.write_str("cpu"),
        }
    }
}

impl FromStr for BufferDevice {
    type Err = Error;

    /// As the configuration has it.
    ///
    /// # Errors
    /// [`Error::Misuse`] that quotes any other text.
    fn from_str(text: &str) -> Result<Self> {
        // As torch reads it: a number, without a sign or zeros before it.
        let index =
            text.strip_prefix("cuda:").filter(|index| *index == "0" || !index.starts_with(['0', '+']));
        match (text, index.and_then(|index| index.parse().ok())) {
            ("cuda", _) => Ok(Self::Cuda),
            ("cpu", _) => Ok(Self::Cpu),
            (_, Some(index)) => Ok(Self::CudaIndex(index)),
            _ => Err(Error::Misuse(format!("{text:?} is not one of {DEVICES}"))),
        }
    }
}

/// What a device may be called.
const DEVICES: &str = "\"cuda\", \"cuda:N\" and \"cpu\"";

impl Default for KvTransferConfig {
    /// vLLM's own defaults.
    fn default() -> Self {
        Self {
            kv_connector: None,
            kv_role: None,
            kv_rank: None,
            kv_parallel_size: 1,
            kv_ip: "127.0.0.1".into(),
            kv_port: 14_579,
            kv_buffer_device: BufferDevice::Cuda,
            kv_buffer_size: DEFAULT_BUFFER_BYTES,
            store_timeout: Duration::from_secs(300),
        }
    }
}

impl KvTransferConfig {
    /// Reads the JSON text that vLLM takes as `--kv-transfer-config`.
    ///
    /// # Errors
    /// [`Error::Misuse`] that names the field, if the text is not such a configuration or
    /// contradicts itself.
    pub fn from_json(json: &str) -> Result<Self> {
        Self::read(json).map_err(|what| Error::Misuse(format!("kv-transfer-config: {what}")))
    }

    fn read(json: &str) -> Result<Self, String> {
        let Value::Object(object) =
            serde_json::from_str(json).map_err(|error| format!("not JSON: {error}"))?
        else {
            return Err("not a JSON object".into());
        };
        let (fields, default) = (Fields { object: &object, within: "" }, Self::default());
        let config = Self {
            kv_connector: fields.nullable("kv_connector", "a name", text)?,
            kv_role: fields.nullable("kv_role", ROLES, role)?,
            kv_rank: fields.nullable("kv_rank", "a rank, from 0", count)?,
            kv_parallel_size: fields
                .get("kv_parallel_size", "a number of instances, from 1", |value| {
                    count(value).filter(|size| *size > 0)
                })?
                .unwrap_or(default.kv_parallel_size),
            kv_ip: fields.get("kv_ip", "a host", text)?.unwrap_or(default.kv_ip),
            kv_port: fields.get("kv_port", "a port from 0 to 65535", port)?.unwrap_or(default.kv_port),
            kv_buffer_device: fields
                .get("kv_buffer_device", &format!("one of {DEVICES}"), device)?
                .unwrap_or(default.kv_buffer_device),
            kv_buffer_size: fields
                .get("kv_buffer_size", "a number of bytes from 1 to 2^53", bytes)?
                .unwrap_or(default.kv_buffer_size),
            store_timeout: store_timeout(&fields)?.unwrap_or(default.store_timeout),
        };
        if config.kv_connector.is_some() && config.kv_role.is_none() {
            return Err(format!("kv_role is missing, which kv_connector asks for: {ROLES}"));
        }
        if let Some(rank) = config.kv_rank
            && rank >= config.kv_parallel_size
        {
            return Err(format!("kv_rank {rank} is beyond kv_parallel_size {}", config.kv_parallel_size));
        }
        Ok(config)
    }

    /// Whether the instance takes part in transfers at all.
    #[must_use]
    pub fn is_kv_transfer_instance(&self) -> bool {
        self.kv_connector.is_some() && self.kv_role.is_some()
    }

    /// Whether the instance sends KV caches.
    #[must_use]
    pub fn is_kv_producer(&self) -> bool {
        self.is_kv_transfer_instance() && matches!(self.kv_role, Some(KvRole::Producer | KvRole::Both))
    }

    /// Whether the instance receives KV caches.
    #[must_use]
    pub fn is_kv_consumer(&self) -> bool {
        self.is_kv_transfer_instance() && matches!(self.kv_role, Some(KvRole::Consumer | KvRole::Both))
    }

    /// One pipe of this instance. `local_rank` is the index of its GPU on this machine, for which
    /// `"cuda"` stands. `port_offset` is added to `kv_port`, so that each pipe has a store of its own:
    /// in vLLM 0 for a single pipe; tensor-parallel worker r has 2r for its data and 2r + 1 for its
    /// signals.
    ///
    /// # Errors
    /// [`Error::Misuse`] if `kv_rank` is missing or beyond `kv_parallel_size`, and if there is no such
    /// port: it is above 65535, or 0 where it must be known.
    pub fn endpoint(&self, local_rank: usize, port_offset: u16) -> Result<Endpoint> {
        let Some(rank) = self.kv_rank else {
            return Err(Error::Misuse("kv_rank is missing: a pipe must know its rank".into()));
        };
        let (world_size, port) = (self.kv_parallel_size, self.kv_port);
        if rank >= world_size {
            return Err(Error::Misuse(format!("rank {rank} is beyond the world size {world_size}")));
        }
        let Some(store_port) = port.checked_add(port_offset) else {
            return Err(Error::Misuse(format!("kv_port {port} with offset {port_offset} is above 65535")));
        };
        let endpoint = Endpoint {
            store_host: self.kv_ip.clone(),
            store_port,
            store_timeout: self.store_timeout,
            rank,
            world_size,
            device: self.kv_buffer_device.location(local_rank),
            pipe: PipeConfig::default().with_buffer_bytes(self.kv_buffer_size),
        };
        // Any free port is for rank 0 to choose, and can't be so far from another one.
        if port == 0 && (rank > 0 || port_offset > 0) {
            let address = endpoint.store_address();
            return Err(Error::Misuse(format!("the store can't be at {address}: port 0 is none")));
        }
        Ok(endpoint)
    }
}

const ROLES: &str = "one of \"kv_producer\", \"kv_consumer\" and \"kv_both\"";

/// Longer is a slip, and far longer overflows clocks.
const YEAR_SECONDS: f64 = 365.0 * 86_400.0;

fn store_timeout(fields: &Fields<'_>) -> Result<Option<Duration>, String> {
    let extra = fields.get("kv_connector_extra_config", "an object", |value| value.as_object().cloned())?;
    let extra = extra.unwrap_or_default();
    let fields = Fields { object: &extra, within: "kv_connector_extra_config." };
    fields.get("store_timeout", "a number of seconds above 0 and of at most a year", |value| {
        let seconds = value.as_f64().filter(|seconds| *seconds <= YEAR_SECONDS)?;
        // Less than a nanosecond is none.
        Duration::try_from_secs_f64(seconds).ok().filter(|timeout| !timeout.is_zero())
    })
}

fn role(value: &Value) -> Option<KvRole> {
    match value.as_str()? {
        "kv_producer" => Some(KvRole::Producer),
        "kv_consumer" => Some(KvRole::Consumer),
        "kv_both" => Some(KvRole::Both),
        _ => None,
    }
}

fn device(value: &Value) -> Option<BufferDevice> {
    value.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> KvTransferConfig {
        KvTransferConfig::from_json(json).unwrap()
    }

    fn refusal(json: &str) -> String {
        let error = KvTransferConfig::from_json(json).expect_err(json);
        assert!(matches!(error, Error::Misuse(_)), "{error:?}");
        error.to_string()
    }

    #[test]
    fn an_empty_object_is_vllms_defaults() {
        let config = read("{}");
        assert_eq!(config, KvTransferConfig::default());
        assert_eq!((config.kv_rank, config.kv_parallel_size), (None, 1));
        assert_eq!((config.kv_ip.as_str(), config.kv_port), ("127.0.0.1", 14_579));
        assert_eq!((config.kv_buffer_device, config.kv_buffer_size), (BufferDevice::Cuda, 1_000_000_000));
        assert_eq!(config.store_timeout, Duration::from_secs(300));
    }

    #[test]
    fn every_field_is_read() {
        let config = read(
            r#"{"kv_connector": "P2pNcclConnector", "kv_role": "kv_consumer", "kv_rank": 1,
                "kv_parallel_size": 2, "kv_ip": "10.0.0.1", "kv_port": 4000, "kv_buffer_device": "cpu",
                "kv_buffer_size": 2.5e9, "kv_connector_extra_config": {"store_timeout": 1.5}}"#,
        );
        let expected = KvTransferConfig {
            kv_connector: Some("P2pNcclConnector".into()),
            kv_role: Some(KvRole::Consumer),
            kv_rank: Some(1),
            kv_parallel_size: 2,
            kv_ip: "10.0.0.1".into(),
            kv_port: 4000,
            kv_buffer_device: BufferDevice::Cpu,
            kv_buffer_size: 2_500_000_000,
            store_timeout: Duration::from_millis(1500),
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn nulls_where_vllm_has_them_and_unknown_fields_change_nothing() {
        for json in [
            r#"{"kv_connector": null, "kv_role": null, "kv_rank": null}"#,
            r#"{"engine_id": 7, "kv_load_failure_policy": "fail", "enable_permute_local_kv": false}"#,
            r#"{"kv_connector_extra_config": {"proxy_ip": "10.0.0.9", "send_type": null}}"#,
        ] {
            assert_eq!(read(json), KvTransferConfig::default(), "{json}");
        }
    }

    #[test]
    fn numbers_at_their_limits_are_taken() {
        assert_eq!(read(r#"{"kv_port": 65535}"#).kv_port, 65_535);
        assert_eq!(read(r#"{"kv_port": 0}"#).kv_port, 0);
        assert_eq!(read(r#"{"kv_buffer_size": 1}"#).kv_buffer_size, 1);
        assert_eq!(read(r#"{"kv_buffer_size": 1.99}"#).kv_buffer_size, 1);
        assert_eq!(read(r#"{"kv_buffer_size": 9007199254740992}"#).kv_buffer_size, 1 << 53);
        let timeout = read(r#"{"kv_connector_extra_config": {"store_timeout": 31536000}}"#).store_timeout;
        assert_eq!(timeout, Duration::from_secs(31_536_000));
    }

    #[test]
    fn a_bad_value_is_refused_by_name_and_quoted() {
        let role = "one of \"kv_producer\", \"kv_consumer\" and \"kv_both\"";
        let (size, bytes) = ("a number of instances, from 1", "a number of bytes from 1 to 2^53");
        let (device, port) = ("one of \"cuda\", \"cuda:N\" and \"cpu\"", "a port from 0 to 65535");
        for (name, values, expected) in [
            ("kv_connector", &["7", "[]", "true", "\"\""][..], "a name"),
            ("kv_role", &["\"kv_nobody\"", "\"producer\"", "1", "\"\""], role),
            ("kv_rank", &["-1", "0.5", "\"0\"", "true", "[0]", "18446744073709551616"], "a rank, from 0"),
            ("kv_parallel_size", &["0", "-2", "2.5", "\"2\"", "null"], size),
            ("kv_ip", &["7", "\"\"", "null", "[\"::1\"]"], "a host"),
            ("kv_port", &["65536", "-1", "80.5", "\"14579\"", "null"], port),
            (
                "kv_buffer_device",
                &[
                    "\"cuda:\"",
                    "\"cuda:-1\"",
                    "\"cuda:+1\"",
                    "\"cuda:01\"",
                    "\"cuda: 1\"",
                    "\"cuda:99999999999999999999\"",
                    "\"CUDA\"",
                    "\"gpu\"",
                    "\"xpu\"",
                    "\"\"",
                    "0",
                    "null",
                ],
                device,
            ),
            ("kv_buffer_size", &["0", "0.5", "-1", "1e300", "9007199254740994", "\"1e9\"", "null"], bytes),
            ("kv_connector_extra_config", &["7", "[]", "\"{}\"", "null"], "an object"),
        ] {
            for value in values {
                let said = refusal(&format!("{{{name:?}: {value}}}"));
                let shown: Value = serde_json::from_str(value).unwrap();
                assert_eq!(said, format!("kv-transfer-config: {name} {shown} is not {expected}"));
            }
        }
    }

    #[test]
    fn a_bad_store_timeout_is_refused_by_name_and_quoted() {
        for value in ["0", "-1", "1e-12", "31536001", "1e300", "\"soon\"", "null", "true"] {
            let said = refusal(&format!(r#"{{"kv_connector_extra_config": {{"store_timeout": {value}}}}}"#));
            assert!(
                said.starts_with("kv-transfer-config: kv_connector_extra_config.store_timeout "),
                "{said}"
            );
            assert!(said.ends_with(" is not a number of seconds above 0 and of at most a year"), "{said}");
        }
    }

    #[test]
    fn contradictions_and_what_is_no_object_are_refused() {
        for (json, what) in [
            (r#"{"kv_rank": 2, "kv_parallel_size": 2}"#, "kv_rank 2 is beyond kv_parallel_size 2"),
            (r#"{"kv_rank": 1}"#, "kv_rank 1 is beyond kv_parallel_size 1"),
            (r#"{"kv_connector": "PyNcclConnector"}"#, "kv_role is missing, which kv_connector asks for"),
            ("[]", "not a JSON object"),
            ("null", "not a JSON object"),
            ("", "not JSON: "),
            ("{'kv_rank': 0}", "not JSON: "),
            (r#"{"kv_buffer_size": NaN}"#, "not JSON: "),
            ("{} {}", "not JSON: "),
        ] {
            let said = refusal(json);
            assert!(said.starts_with(&format!("kv-transfer-config: {what}")), "{json}: {said}");
        }
    }

    #[test]
    fn a_role_counts_only_beside_a_connector() {
        let is = |json: &str| {
            let config = read(json);
            [config.is_kv_transfer_instance(), config.is_kv_producer(), config.is_kv_consumer()]
        };
        assert_eq!(is(r#"{"kv_connector": "X", "kv_role": "kv_producer"}"#), [true, true, false]);
        assert_eq!(is(r#"{"kv_connector": "X", "kv_role": "kv_consumer"}"#), [true, false, true]);
        assert_eq!(is(r#"{"kv_connector": "X", "kv_role": "kv_both"}"#), [true, true, true]);
        assert_eq!(is(r#"{"kv_role": "kv_both"}"#), [false; 3]);
        assert_eq!(is("{}"), [false; 3]);
    }

    #[test]
    fn an_endpoint_has_the_offset_port_the_device_and_the_limits() {
        let config = read(
            r#"{"kv_rank": 1, "kv_parallel_size": 2, "kv_ip": "::1", "kv_port": 65530,
                "kv_buffer_size": 5000, "kv_connector_extra_config": {"store_timeout": 7}}"#,
        );
        let endpoint = config.endpoint(3, 5).unwrap();
        assert_eq!(endpoint.store_address(), "[::1]:65535");
        assert_eq!((endpoint.rank, endpoint.world_size), (1, 2));
        assert_eq!(endpoint.store_timeout, Duration::from_secs(7));
        assert_eq!(endpoint.device.to_string(), "cuda:3");
        assert_eq!((endpoint.pipe.budget_bytes, endpoint.pipe.window_bytes), (5000, 5000));
        endpoint.ensure_pair().unwrap();
    }

    #[test]
    fn cuda_is_the_process_own_gpu_unless_it_has_an_index() {
        for (name, location) in [
            ("cuda", Location::Cuda(3)),
            ("cuda:0", Location::Cuda(0)),
            ("cuda:12", Location::Cuda(12)),
            ("cpu", Location::Cpu),
        ] {
            let config = read(&format!(r#"{{"kv_rank": 0, "kv_buffer_device": "{name}"}}"#));
            assert_eq!(config.endpoint(3, 0).unwrap().device, location);
        }
    }

    fn endpoint_refusal(json: &str, port_offset: u16) -> String {
        read(json).endpoint(0, port_offset).unwrap_err().to_string()
    }

    #[test]
    fn an_endpoint_needs_a_rank_and_a_port() {
        assert_eq!(endpoint_refusal("{}", 0), "kv_rank is missing: a pipe must know its rank");
        let pair = |port: u16, rank: usize| {
            format!(r#"{{"kv_rank": {rank}, "kv_parallel_size": 2, "kv_port": {port}}}"#)
        };
        assert_eq!(endpoint_refusal(&pair(65_535, 0), 1), "kv_port 65535 with offset 1 is above 65535");
        let none = "the store can't be at 127.0.0.1:0: port 0 is none";
        assert_eq!(endpoint_refusal(&pair(0, 1), 0), none);
        assert!(endpoint_refusal(&pair(0, 0), 2).contains("port 0 is none"));
        // Rank 0 may choose.
        assert_eq!(read(&pair(0, 0)).endpoint(0, 0).unwrap().store_port, 0);
        let mut config = read(&pair(1, 0));
        config.kv_parallel_size = 0;
        let error = config.endpoint(0, 0).unwrap_err();
        assert_eq!(error.to_string(), "rank 0 is beyond the world size 0");
    }
}

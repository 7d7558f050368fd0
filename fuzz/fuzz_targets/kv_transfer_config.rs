//! vLLM's `--kv-transfer-config`, and the pipes that it describes.

#![no_main]

use kvpipe::config::KvTransferConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &str| {
    let Ok(config) = KvTransferConfig::from_json(json) else { return };
    assert!(config.kv_rank.is_none_or(|rank| rank < config.kv_parallel_size));
    assert!(config.kv_connector.is_none() || config.kv_role.is_some());
    assert!(config.kv_buffer_size > 0 && !config.kv_ip.is_empty() && !config.store_timeout.is_zero());
    for offset in [0, 1, u16::MAX] {
        let endpoint = config.endpoint(0, offset);
        let port = config.kv_port.checked_add(offset);
        assert!(config.kv_rank.is_some() && port.is_some() || endpoint.is_err());
        if let Ok(endpoint) = endpoint {
            assert_eq!((Some(endpoint.rank), Some(endpoint.store_port)), (config.kv_rank, port));
            assert_eq!(endpoint.pipe.budget_bytes, config.kv_buffer_size);
            assert!(endpoint.store_address().contains(&config.kv_ip));
        }
    }
});

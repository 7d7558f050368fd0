//! vLLM's wire for GPUs, with kvpipe at both ends.

use std::sync::Arc;
use std::time::Duration;

use kvpipe::group::{GroupConfig, StatelessProcessGroup, WireMode};
use kvpipe::store::MemoryStore;
use kvpipe::transport::nccl::{NcclConfig, VllmNcclTransport};
use kvpipe::{Error, Pipe, PipeConfig};

use crate::ranks::{config, failure, receive, tensor};

async fn pair(config: NcclConfig) -> (Pipe, Pipe) {
    let store = MemoryStore::new();
    let end = async |rank| {
        let config_of_group = GroupConfig { wire: WireMode::Vllm, ..GroupConfig::default() };
        let group = StatelessProcessGroup::new(store.clone(), rank, 2, config_of_group).unwrap();
        let transport = VllmNcclTransport::meet(Arc::new(group), config.clone()).await.unwrap();
        Pipe::spawn(transport, PipeConfig::default()).unwrap()
    };
    tokio::join!(end(0), end(1))
}

on_fakes!(a_request_and_its_answer_as_vllm_sends_them, "", async || {
    let (prefill, decode) = pair(config()).await;
    // A lookup: a request that wants anything, and no region of interest; then the caches.
    decode.send(None).await.unwrap();
    assert_eq!(receive(&prefill).await.unwrap(), None);
    for mark in 0..4 {
        prefill.send(Some(tensor(100_000, mark))).await.unwrap();
        prefill.send(None).await.unwrap();
    }
    for mark in 0..4 {
        assert_eq!(receive(&decode).await.unwrap().unwrap(), tensor(100_000, mark));
        assert_eq!(receive(&decode).await.unwrap(), None);
    }
});

on_fakes!(a_payload_that_does_not_come_ends_at_the_deadline, "rank=0,async_error=1:6", async || {
    // The first all-reduce goes through.
    let mut config = config();
    config.transfer_timeout = Duration::from_millis(500);
    let (prefill, decode) = pair(config).await;
    prefill.send(Some(tensor(10, 0))).await.unwrap();
    let error = failure(&decode).await;
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    // The communicator is of both directions: the one at rest has ended, too.
    let idle = failure(&prefill).await;
    assert!(matches!(idle, Error::Timeout { .. } | Error::Nccl { .. }), "{idle}");
});

on_fakes!(a_group_on_another_wire_is_refused, "", async || {
    let group = StatelessProcessGroup::new(MemoryStore::new(), 0, 2, GroupConfig::default()).unwrap();
    let refused = VllmNcclTransport::meet(Arc::new(group), config()).await.map(drop).unwrap_err();
    assert_eq!(refused.to_string(), "vllm's pipe needs a group on vllm's wire");
});

//! Groups whose ranks are tasks of this process.

use std::time::Duration;

use kvpipe::Error;
use kvpipe::collective::{ProcessGroup, ProcessGroupConfig};
use kvpipe::net::TokioNet;
use kvpipe::store::MemoryStore;

/// Far beyond what anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn config() -> ProcessGroupConfig {
    ProcessGroupConfig { timeout: PATIENCE, heartbeat: PATIENCE, ..ProcessGroupConfig::default() }
}

/// All ranks of a group.
pub(crate) async fn group(size: usize, config: &ProcessGroupConfig) -> Vec<ProcessGroup> {
    group_in(&MemoryStore::new(), size, config).await
}

/// All ranks of a group that meet in `store`.
pub(crate) async fn group_in(
    store: &MemoryStore,
    size: usize,
    config: &ProcessGroupConfig,
) -> Vec<ProcessGroup> {
    each((0..size).collect(), |rank| {
        let (store, config) = (store.clone(), config.clone());
        async move { ProcessGroup::from_store(TokioNet, &store, rank, size, config).await.unwrap() }
    })
    .await
}

/// Does something at all ranks at the same time; the results by rank.
pub(crate) async fn each<G, F, T>(ranks: Vec<G>, what: impl Fn(G) -> F) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let tasks: Vec<_> = ranks.into_iter().map(|rank| tokio::spawn(what(rank))).collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.unwrap());
    }
    results
}

/// Why the group has failed, whether the call has found it out or came after that: a rank that calls
/// nothing just then may hear of it before its next call.
pub(crate) fn cause(error: Error) -> Error {
    match error {
        Error::GroupBroken { cause } => (*cause).clone(),
        other => other,
    }
}

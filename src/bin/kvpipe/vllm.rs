//! A rank among vLLM's: how it joins their group, and leaves it.

use std::sync::Arc;
use std::time::Duration;

use kvpipe::Error;
use kvpipe::group::StatelessProcessGroup;
use kvpipe::net::TokioNet;
use kvpipe::store::Limits;
use kvpipe::store::tcp::{ConnectOptions, TcpStore};
use kvpipe::transport::nccl::{NcclConfig, VllmNcclTransport};
use kvpipe::transport::store::VllmTransport;

use crate::endpoint::{Place, VllmConfig, VllmPayloads};
use crate::failure::Failure;
use crate::output::Output;
use crate::serve;

/// A rank that has joined, and the store where it is ours.
pub(crate) struct VllmRank {
    group: Arc<StatelessProcessGroup<TcpStore<TokioNet>>>,
    payloads: VllmPayloads,
    timeout: Duration,
    serves: bool,
}

/// Both edges of a rank.
pub(crate) enum VllmEdges {
    Store(VllmTransport<TcpStore<TokioNet>>),
    Nccl(Box<VllmNcclTransport<TcpStore<TokioNet>>>),
}

impl VllmEdges {
    /// Meets the others in their barrier; and in a communicator, if there is to be one.
    pub(crate) async fn meet(
        group: Arc<StatelessProcessGroup<TcpStore<TokioNet>>>,
        payloads: &VllmPayloads,
    ) -> Result<Self, Failure> {
        Ok(match payloads {
            VllmPayloads::Store(pool) => Self::Store(VllmTransport::meet(group, pool.clone()).await?),
            VllmPayloads::Nccl(config) => {
                let config = NcclConfig::clone(config);
                Self::Nccl(Box::new(VllmNcclTransport::meet(group, config).await?))
            }
        })
    }
}

impl VllmRank {
    /// As vLLM's pipe begins: the store, everybody counted in by rank 0.
    pub(crate) async fn join(place: &Place, config: VllmConfig, output: &Output) -> Result<Self, Failure> {
        let VllmConfig { group: config, payloads } = config;
        let (rank, world_size, timeout) = (place.ring.rank(), place.ring.world_size(), place.timeout);
        let serves = place.serves_store();
        let group = if serves {
            let address = serve::resolve(&place.store, place.allow_remote).await?;
            let server = serve::bind(address, Limits::default()).await?;
            output.note(format_args!("rank 0 serves the store at {}", server.local_addr()));
            StatelessProcessGroup::serve(TokioNet, server, world_size, config).await?
        } else {
            let mut options = ConnectOptions::default();
            options.timeout = timeout;
            let store = TcpStore::connect(TokioNet, &place.store.host, place.store.port, options).await?;
            let joined = store.join(timeout).await?;
            if usize::try_from(joined).is_ok_and(|joined| joined > world_size) {
                return Err(Failure::new(format!(
                    "the store at {} has been used before: we are number {joined} to join, of {world_size} ranks",
                    place.store
                ))
                .detail("on vllm's wire the objects of an earlier run can't be told from those of this one")
                .hint("give each run a store of its own"));
            }
            if rank == 0 {
                store.wait_for_workers(world_size, timeout).await?;
            }
            StatelessProcessGroup::new(store, rank, world_size, config)?
        };
        Ok(Self { group: Arc::new(group), payloads, timeout, serves })
    }

    /// Meets the others.
    pub(crate) async fn edges(&self) -> Result<VllmEdges, Failure> {
        VllmEdges::meet(Arc::clone(&self.group), &self.payloads).await
    }

    /// Stays until the others have left, if the store is ours. To be called when the pipe is gone, on
    /// success and on failure alike, after the user was told of it.
    pub(crate) async fn leave(self, output: &Output) {
        let Self { group, timeout, serves, .. } = self;
        let Some(group) = Arc::into_inner(group) else {
            output.note(format_args!("bug in kvpipe: the pipe still uses the group that is to be left"));
            return;
        };
        if serves {
            output.note(format_args!(
                "serving the store until the others have left, for up to {} s",
                timeout.as_secs_f64()
            ));
        }
        match group.close(timeout).await {
            Ok(()) => {}
            Err(error @ Error::Timeout { .. }) => output.note(format_args!("the store stops: {error}")),
            // We have what we came for; the rank that serves the store may have left before us.
            Err(error) => tracing::debug!(%error, "leaving the group"),
        }
    }
}

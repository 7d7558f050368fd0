//! Forming a group, and leaving it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
#[cfg(unix)]
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::config::{Backend, ProcessGroupConfig};
use super::host::{Host, Members};
use super::memory::{Input, Memory};
#[cfg(unix)]
use super::nccl::Nccl;
use super::plan::Planner;
use super::request::Request;
use crate::error::{Error, Result};
use crate::group::{GroupConfig, StatelessProcessGroup};
use crate::net::{Net, TokioNet};
use crate::store::Store;
use crate::tensor::{DType, Shape, TensorMut};
use crate::transport::Ring;
use crate::transport::timing::after;
use crate::wire::collective::Call;

/// A rank among others that compute together. See the [module](super) for the rules.
///
/// It needs a tokio runtime with time and I/O, on which a task of its own keeps the connections alive.
/// Dropping it leaves the group, without waiting for anybody; but a runtime, or a process, that ends right
/// after that takes with it what other ranks have not received yet, so await [`destroy`](Self::destroy)
/// before.
pub struct ProcessGroup<N: Net = TokioNet> {
    pub(super) members: Members,
    pub(super) config: ProcessGroupConfig,
    pub(super) planner: Planner,
    pub(super) host: Host<N>,
    #[cfg(unix)]
    nccl: Option<Nccl>,
}

impl ProcessGroup {
    /// Meets the other ranks at `host:port`, where rank 0 serves a store until all are there. vLLM's
    /// `stateless_init_torch_distributed_process_group(host, port, rank, world_size, backend)`.
    ///
    /// # Errors
    /// As [`stateless_init_with`](Self::stateless_init_with).
    ///
    /// # Cancel safety
    /// As there.
    pub async fn stateless_init(
        host: &str,
        port: u16,
        rank: usize,
        world_size: usize,
        backend: Backend,
    ) -> Result<Self> {
        let config = ProcessGroupConfig { backend, ..ProcessGroupConfig::default() };
        Self::stateless_init_with(TokioNet, host, port, rank, world_size, config).await
    }
}

impl<N: Net> ProcessGroup<N> {
    /// [`stateless_init`](ProcessGroup::stateless_init) with a configuration. Returns once all ranks are
    /// there; the store is not needed any more then, and its port is free again.
    ///
    /// # Errors
    /// [`Error::Misuse`] if there is no such rank, or if others can't connect to `host:port`; otherwise as
    /// [`from_store`](Self::from_store).
    ///
    /// # Cancel safety
    /// Dropped early there is no group; the other ranks wait until their deadline.
    pub async fn stateless_init_with(
        net: N,
        host: &str,
        port: u16,
        rank: usize,
        world_size: usize,
        mut config: ProcessGroupConfig,
    ) -> Result<Self> {
        let deadline = after(config.timeout);
        let limit = config.timeout;
        let meeting = GroupConfig {
            timeout: limit,
            entropy: config.entropy.clone(),
            name: config.name.clone(),
            ..GroupConfig::default()
        };
        let meeting =
            StatelessProcessGroup::create(net.clone(), host, port, rank, world_size, meeting).await?;
        // The way to the store is the way to the others.
        let local = SocketAddr::new(meeting.store().local_addr().ip(), 0);
        config.address = config.address.or(Some(local));
        let mut group = Self::form(net, meeting.store(), rank, world_size, config, deadline).await?;
        // Nobody needs the store any more once all have come through here.
        group.config.timeout = left(deadline);
        group.barrier().await?;
        group.config.timeout = limit;
        meeting.close(left(deadline)).await?;
        Ok(group)
    }

    /// Meets the other ranks in a store that all of them have. With several groups in one store, each has
    /// a name or a [`PrefixStore`](crate::store::PrefixStore) of its own. The store is only needed for
    /// this; vLLM's `init_gloo_process_group(backend, prefix_store, …)`.
    ///
    /// # Errors
    /// [`Error::Misuse`] if there is no such rank; [`Error::Timeout`], which says who is missing;
    /// [`Error::PeerIncompatible`] for a rank that is set up differently; [`Error::Io`] if the address can't
    /// be bound; [`Error::Unavailable`] without the library that NCCL needs; [`Error::Nccl`]; and as the
    /// store.
    ///
    /// # Cancel safety
    /// Dropped early there is no group; the other ranks wait until their deadline.
    pub async fn from_store(
        net: N,
        store: &impl Store,
        rank: usize,
        world_size: usize,
        config: ProcessGroupConfig,
    ) -> Result<Self> {
        let deadline = after(config.timeout);
        Self::form(net, store, rank, world_size, config, deadline).await
    }

    async fn form(
        net: N,
        store: &impl Store,
        rank: usize,
        world_size: usize,
        config: ProcessGroupConfig,
        deadline: Instant,
    ) -> Result<Self> {
        Ring::new(rank, world_size)?;
        let members = Members { rank, size: world_size };
        let address = config.address.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
        let host = Host::form(net, store, members, address, config.tcp(), deadline).await?;
        let planner = Planner::new(rank, world_size, Default::default());
        #[cfg(unix)]
        let nccl = match &config.backend {
            Backend::Host => None,
            Backend::Nccl { device, library } => {
                let own = (Arc::clone(device), library.clone());
                Some(Nccl::form(&host, members, &planner, own, config.timeout, deadline).await?)
            }
        };
        Ok(Self {
            members,
            config,
            planner,
            host,
            #[cfg(unix)]
            nccl,
        })
    }

    /// This rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.members.rank
    }

    /// How many ranks there are.
    #[must_use]
    pub fn size(&self) -> usize {
        self.members.size
    }

    /// The limit of each operation.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.config.timeout
    }

    /// What carries its tensors.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        &self.config.backend
    }

    /// Why it is broken, if it is.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.host.failure().map(|cause| (*cause).clone())
    }

    /// Leaves the group, and tells the others: vLLM's
    /// `stateless_destroy_torch_distributed_process_group`. A rank that still wants something of us then
    /// gets [`Error::PeerGone`], so it is for all ranks to call once they are done. Waits for the others
    /// for two seconds at most; on NCCL, before that, for what it still does for them, for as long.
    ///
    /// # Errors
    /// The failure of the group, if it had failed: [`Error::GroupBroken`].
    ///
    /// # Cancel safety
    /// Dropped early the group is left all the same.
    pub async fn destroy(self) -> Result<()> {
        let failure = self.host.failure();
        #[cfg(unix)]
        if let Some(nccl) = self.nccl {
            nccl.leave(failure.as_deref()).await;
        }
        self.host.leave().await;
        failure.map_or(Ok(()), |cause| Err(Error::GroupBroken { cause }))
    }
}

impl<N: Net> ProcessGroup<N> {
    /// Memory for a result for which the caller gives none.
    pub(super) async fn output(
        &self,
        dtype: DType,
        shape: impl TryInto<Shape, Error: Into<Error>>,
    ) -> Result<TensorMut> {
        #[cfg(unix)]
        if let Some(nccl) = &self.nccl {
            return nccl.output(dtype, shape.try_into().map_err(Into::into)?, self.config.timeout).await;
        }
        TensorMut::in_pool(&self.config.pool, dtype, shape)
    }

    /// Carries out a call, and gives its output back.
    pub(super) async fn carry_out(&self, request: Request<'_>) -> Result<Option<TensorMut>> {
        let checked = request.check(self.members)?;
        #[cfg(unix)]
        if let Some(nccl) = &self.nccl {
            return nccl.carry_out(&self.host, &self.planner, request, &checked, self.config.timeout).await;
        }
        let Request { operation, input, mut output } = request;
        let program = checked.program(&operation, &self.planner, self.members)?;
        let input = match input {
            Some(tensor) => Input::Apart(tensor.bytes()?),
            None => Input::Within { at: checked.input_at(&operation, self.members.rank) },
        };
        let filled: &mut [u8] = match &mut output {
            Some(output) => output.bytes_mut()?,
            None => &mut [],
        };
        let mut scratch = self.config.pool.take(program.scratch_bytes)?;
        let memory = Memory::new(input, filled, &mut scratch);
        let call = Call::new(&checked.words);
        self.host.run(checked.parties, &call, &program, memory, self.config.timeout).await?;
        Ok(output)
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

impl<N: Net> fmt::Debug for ProcessGroup<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { members: Members { rank, size }, config, .. } = self;
        f.debug_struct("ProcessGroup")
            .field("rank", rank)
            .field("size", size)
            .field("backend", &config.backend.to_string())
            .field("name", &config.name.as_str())
            .field("failure", &self.failure())
            .finish_non_exhaustive()
    }
}

//! Groups whose rank 0 serves the store.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

use super::{GroupConfig, StatelessProcessGroup, WireMode, in_time};
use crate::error::{Error, Result};
use crate::net::Net;
use crate::store::tcp::{ConnectOptions, TcpStore, TcpStoreServer};

impl<N: Net> StatelessProcessGroup<TcpStore<N>> {
    /// Meets the others at `host:port`, a name or an address: rank 0 serves the store there, on exactly
    /// that address (the first of a name's that is this machine's), and the others connect, before or after.
    ///
    /// Returns once all ranks are there; on vLLM's wire, only rank 0 waits for them.
    ///
    /// # Errors
    /// [`Error::Misuse`] if there is no such rank, or if others can't connect to `host:port`.
    /// [`Error::Timeout`] with how many are there. [`Error::Io`] if the address can't be bound.
    ///
    /// # Cancel safety
    /// Dropped early, nothing listens or is connected; but the rank may count as there, so that all must
    /// begin again.
    pub async fn create(
        net: N,
        host: &str,
        port: u16,
        rank: usize,
        world_size: usize,
        config: GroupConfig,
    ) -> Result<Self> {
        check_reachable(host, port)?;
        config.check(rank, world_size)?;
        let began = Instant::now();
        let mut server = None;
        if rank == 0 {
            let binding = tokio::time::timeout(config.timeout, bind(&net, host, port, &config)).await;
            server = Some(in_time(binding, config.timeout, || format!("the addresses of {host:?}"))?);
        }
        Self::meet(net, (host, port), (rank, world_size), server, config, began).await
    }

    /// Rank 0 of [`create`](Self::create), with a server that listens already, such as on a port that
    /// was free.
    ///
    /// # Errors
    /// As `create`.
    ///
    /// # Cancel safety
    /// As `create`.
    pub async fn serve(
        net: N,
        server: TcpStoreServer,
        world_size: usize,
        config: GroupConfig,
    ) -> Result<Self> {
        config.check(0, world_size)?;
        let address = server.local_addr();
        let host = address.ip().to_string();
        let place = (host.as_str(), address.port());
        Self::meet(net, place, (0, world_size), Some(server), config, Instant::now()).await
    }

    /// The store's address, as this rank reaches it.
    #[must_use]
    pub fn server_addr(&self) -> SocketAddr {
        self.store.server_addr()
    }

    /// Leaves the group: carries to the store what earlier calls left, and where this rank serves the
    /// store, waits until the others have left, and stops it. Dropping a group that serves the store
    /// stops it at once, under those that still need it.
    ///
    /// Drop clones of [`store`](Self::store) first: they count as somebody who has not left.
    ///
    /// # Errors
    /// [`Error::Timeout`] with how many connections were left; the store has stopped all the same.
    /// Otherwise as the store.
    ///
    /// # Cancel safety
    /// Dropped early, the group is dropped.
    pub async fn close(self, timeout: Duration) -> Result<()> {
        let began = Instant::now();
        let settled = tokio::time::timeout(timeout, self.settle_all()).await;
        let settled = in_time(settled, timeout, || "the store to take what is on its way".into());
        let Self { store, lanes, barrier, server, .. } = self;
        // With their connections.
        drop((store, lanes, barrier));
        let Some(server) = server else { return settled };
        let idle = server.wait_until_idle(timeout.saturating_sub(began.elapsed())).await;
        server.shutdown().await;
        settled.and(idle)
    }

    async fn meet(
        net: N,
        (host, port): (&str, u16),
        (rank, world_size): (usize, usize),
        server: Option<TcpStoreServer>,
        config: GroupConfig,
        began: Instant,
    ) -> Result<Self> {
        let left = || config.timeout.saturating_sub(began.elapsed());
        let options = ConnectOptions {
            timeout: left(),
            limits: config.limits.clone(),
            entropy: config.entropy.clone(),
            ..ConnectOptions::default()
        };
        let meeting = async {
            let store = TcpStore::connect(net, host, port, options).await?;
            store.join(left()).await?;
            if rank == 0 || config.wire == WireMode::Native {
                store.wait_for_workers(world_size, left()).await?;
            }
            Ok(store)
        };
        let store = meeting.await.map_err(|error| match error {
            // Not only what was left of it.
            Error::Timeout { awaited, .. } => Error::timeout(awaited, config.timeout),
            other => other,
        })?;
        let mut group = Self::new(store, rank, world_size, config)?;
        group.server = server;
        Ok(group)
    }
}

/// Refuses what would only show as a timeout at the other ranks.
fn check_reachable(host: &str, port: u16) -> Result<()> {
    if host.parse().is_ok_and(|address: IpAddr| address.to_canonical().is_unspecified()) {
        return Err(Error::Misuse(format!(
            "other ranks can't connect to {host}: give an address of rank 0 that they reach"
        )));
    }
    if port == 0 {
        return Err(Error::Misuse("all ranks must know the store's port, so it can't be 0".into()));
    }
    Ok(())
}

/// The first address of `host` that is one of this machine's, of whatever family. It must be free: the
/// others would find whoever has it, and not us.
async fn bind<N: Net>(net: &N, host: &str, port: u16, config: &GroupConfig) -> Result<TcpStoreServer> {
    let resolving = |error| Error::io(format!("resolving {host:?}"), error);
    let addresses = net.resolve(host, port).await.map_err(resolving)?;
    let mut last_failure = None;
    for address in addresses {
        check_reachable(&address.ip().to_string(), port)?;
        match TcpStoreServer::bind(net, address, config.limits.clone()).await {
            Err(Error::Io { doing, source }) if source.kind() == io::ErrorKind::AddrNotAvailable => {
                last_failure = Some(Error::Io { doing, source });
            }
            bound => return bound,
        }
    }
    Err(last_failure.unwrap_or_else(|| resolving(io::ErrorKind::NotFound.into())))
}

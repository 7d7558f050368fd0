//! How a rank joins the store, and leaves it so that the rank that serves it may end.
//!
//! Each rank, when it is finished, sets a key of its own. A rank that serves the store waits for the
//! keys of all others, or until its timeout: a rank that died without leaving can't be told from one
//! that is still to come, and that one must find the store.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use kvpipe::Error;
use kvpipe::net::TokioNet;
use kvpipe::store::tcp::{ConnectOptions, TcpStore, TcpStoreServer};
use kvpipe::store::{Limits, Store};
use kvpipe::transport::Ring;

use crate::endpoint::Place;
use crate::failure::Failure;
use crate::output::Output;
use crate::serve;
use crate::vllm::VllmRank;

/// A rank's connection to the store, and the server where it is ours.
pub(crate) struct Rendezvous {
    store: TcpStore<TokioNet>,
    server: Option<TcpStoreServer>,
    /// Whether rank 0 serves the store and so waits for us.
    awaited: bool,
    rank: usize,
    world_size: usize,
    timeout: Duration,
}

/// A rank that is to leave in the way in which it came.
pub(crate) enum Membership {
    Native(Rendezvous),
    Vllm(VllmRank),
}

impl Membership {
    pub(crate) async fn leave(self, output: &Output) {
        match self {
            Self::Native(rendezvous) => rendezvous.leave(output).await,
            Self::Vllm(rank) => rank.leave(output).await,
        }
    }
}

/// So long the others are waited for without a word.
const QUIET: Duration = Duration::from_secs(1);

/// A rank that leaves tells the store, which may be gone by then.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

impl Rendezvous {
    /// Serves the store, if it is ours to serve, and connects to it.
    pub(crate) async fn join(place: &Place, output: &Output) -> Result<Self, Failure> {
        let (rank, world_size, timeout) = (place.ring.rank(), place.ring.world_size(), place.timeout);
        let store = &place.store;
        if place.serves_store() {
            let address = serve::resolve(store, place.allow_remote).await?;
            let server = serve::bind(address, Limits::default()).await?;
            output.note(format_args!("rank 0 serves the store at {}", server.local_addr()));
            return Self::with_server(server, world_size, timeout).await;
        }
        let mut rendezvous = Self::connect(&store.host, store.port, rank, world_size, timeout).await?;
        rendezvous.awaited = !place.external_store;
        Ok(rendezvous)
    }

    /// Of processes that have one parent: rank 0 serves the store.
    pub(crate) async fn of_children(
        address: SocketAddr,
        ring: Ring,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        if ring.rank() == 0 {
            let server = serve::bind(address, Limits::default()).await?;
            return Self::with_server(server, ring.world_size(), timeout).await;
        }
        let host = address.ip().to_string();
        Self::connect(&host, address.port(), ring.rank(), ring.world_size(), timeout).await
    }

    /// Rank 0, with a store that it serves.
    pub(crate) async fn with_server(
        server: TcpStoreServer,
        world_size: usize,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let address = reachable(server.local_addr());
        let mut rendezvous =
            Self::connect(&address.ip().to_string(), address.port(), 0, world_size, timeout).await?;
        rendezvous.server = Some(server);
        Ok(rendezvous)
    }

    /// A rank that uses the store of rank 0.
    pub(crate) async fn connect(
        host: &str,
        port: u16,
        rank: usize,
        world_size: usize,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let mut options = ConnectOptions::default();
        options.timeout = timeout;
        let store = TcpStore::connect(TokioNet, host, port, options).await?;
        Ok(Self { store, server: None, awaited: true, rank, world_size, timeout })
    }

    /// The store.
    pub(crate) fn store(&self) -> TcpStore<TokioNet> {
        self.store.clone()
    }

    /// An address of this machine that the store's network can reach.
    pub(crate) fn local_ip(&self) -> IpAddr {
        self.store.local_addr().ip()
    }

    /// Where the store that we serve listens.
    pub(crate) fn served_at(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(TcpStoreServer::local_addr)
    }

    /// Says that we are finished; if the store is ours, waits until the others are, too. To be called
    /// on success and on failure alike, after the user was told of it.
    pub(crate) async fn leave(self, output: &Output) {
        let Some(server) = self.server else {
            if !self.awaited {
                return;
            }
            let left = self.store.set(&left_key(self.rank), Bytes::new(), LEAVE_WITHIN).await;
            if let Err(error) = left {
                // We have what we came for; the rank that serves the store had enough of waiting.
                tracing::debug!(%error, "the store does not know that this rank has left");
            }
            return;
        };
        await_others(&self.store, self.world_size, self.timeout, output).await;
        drop(self.store);
        server.shutdown().await;
    }
}

async fn await_others(store: &impl Store, world_size: usize, timeout: Duration, output: &Output) {
    let keys: Vec<String> = (1..world_size).map(left_key).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let mut left = store.wait(&keys, QUIET.min(timeout)).await;
    let rest = timeout.saturating_sub(QUIET);
    if matches!(left, Err(Error::Timeout { .. })) && !rest.is_zero() {
        let missing = missing(store, world_size).await;
        output.note(format_args!(
            "serving the store for up to {} s until {missing} has finished with it",
            timeout.as_secs_f64()
        ));
        left = store.wait(&keys, rest).await;
    }
    match left {
        Ok(()) => {}
        Err(Error::Timeout { .. }) => {
            let missing = missing(store, world_size).await;
            output.note(format_args!("the store stops without {missing} after {} s", timeout.as_secs_f64()));
        }
        Err(error) => output.note(format_args!("the store stops: {error}")),
    }
}

/// Which ranks have not left yet: `rank 1 and 2 more`.
async fn missing(store: &impl Store, world_size: usize) -> String {
    let mut first = None;
    let mut more = 0;
    for rank in 1..world_size {
        // Whom we can't ask about counts as missing; this is a note, and no decision hangs on it.
        if store.check(&[&left_key(rank)], LEAVE_WITHIN).await.unwrap_or(false) {
            continue;
        }
        match first {
            None => first = Some(rank),
            Some(_) => more += 1,
        }
    }
    match (first, more) {
        (None, _) => "nobody".into(),
        (Some(rank), 0) => format!("rank {rank}"),
        (Some(rank), more) => format!("rank {rank} and {more} more"),
    }
}

fn left_key(rank: usize) -> String {
    format!("kvpipe/left/{rank}")
}

/// Where a server that listens on every address is reached from its own machine.
pub(crate) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

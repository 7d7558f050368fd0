//! How the pipes of a workload are set up.

use std::fmt;
use std::time::Duration;

use kvpipe::store::tcp::TcpStore;
use kvpipe::tensor::BufferPool;
use kvpipe::transport::store::{StoreConfig, StoreIncoming, StoreOutgoing};
use kvpipe::transport::tcp::{GroupName, Secret, TcpConfig, TcpIncoming, TcpOutgoing};
use kvpipe::{PipeConfig, Result};

use crate::draws::Draws;
use crate::net::SimNet;
use crate::world::{Rank, ReceivingEnd, SendingEnd};

/// How the pipes of a workload are set up, equal on all ranks.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Over what.
    pub wire: Wire,
    /// Limits of the pipes.
    pub pipe: PipeConfig,
    /// The silence after which a peer counts as dead.
    pub heartbeat: Duration,
    /// How long a broken connection is resumed.
    pub reconnect: Duration,
    /// Whether frames have a checksum.
    pub checksum: bool,
    /// Whether the ranks know a secret.
    pub secret: bool,
}

/// Over what items go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// [`kvpipe::transport::tcp`].
    Tcp,
    /// [`kvpipe::transport::store`].
    Store,
}

/// How long the two ranks of an edge look for each other. One of them may have been killed.
pub const EDGE_MEETS_WITHIN: Duration = Duration::from_secs(10);

impl Settings {
    /// Settings drawn from a seed. Limits in time are short, so that a run is.
    #[must_use]
    pub fn drawn(draws: &Draws, wire: Wire) -> Self {
        let pipe = PipeConfig {
            budget_bytes: 1 << draws.between(10..=19),
            window_bytes: 1 << draws.between(10..=19),
            max_item_bytes: 1 << 20,
            max_items: if draws.one_in(4) { draws.bytes(1..=4) } else { 65_536 },
            close_timeout: Duration::from_millis(draws.between(4000..=6000)),
        };
        let reconnect = Duration::from_millis(draws.between(1500..=2500));
        // Over a store a peer that looks for the store is silent.
        let silent = if wire == Wire::Store { reconnect } else { Duration::ZERO };
        Self {
            wire,
            pipe,
            heartbeat: silent + Duration::from_millis(draws.between(1000..=2000)),
            reconnect,
            checksum: draws.one_in(2),
            secret: draws.one_in(3),
        }
    }

    /// The longest silence that must not end an edge.
    #[must_use]
    pub fn bearable(&self) -> Duration {
        self.heartbeat.min(self.reconnect) / 2
    }

    /// A rank's pipe of that name: the ends it has.
    pub(super) async fn open(
        &self,
        rank: &Rank,
        store: &TcpStore<SimNet>,
        name: &str,
        [sends, receives]: [bool; 2],
    ) -> Result<(Option<SendingEnd>, Option<ReceivingEnd>)> {
        let (ring, pipe) = (rank.ring()?, self.pipe.clone());
        match self.wire {
            Wire::Tcp => {
                let config = self.tcp(rank, name)?;
                let outgoing = || TcpOutgoing::new(rank.net().clone(), store.clone(), ring, config.clone());
                if !receives {
                    return Ok((sends.then(|| rank.open_sender(name, outgoing(), pipe)).transpose()?, None));
                }
                let (net, address) = (rank.net().clone(), rank.any_port());
                let binding = TcpIncoming::bind(net, store, ring, address, config.clone());
                let incoming = rank.waits_within("publishing an address", EDGE_MEETS_WITHIN, binding).await?;
                both(rank, name, sends.then(outgoing), incoming, pipe)
            }
            Wire::Store => {
                let config = self.store(rank, name)?;
                let outgoing = || StoreOutgoing::new(store.clone(), ring, config.clone());
                if !receives {
                    return Ok((sends.then(|| rank.open_sender(name, outgoing(), pipe)).transpose()?, None));
                }
                let incoming = StoreIncoming::new(store.clone(), ring, config.clone());
                both(rank, name, sends.then(outgoing), incoming, pipe)
            }
        }
    }

    fn tcp(&self, rank: &Rank, name: &str) -> Result<TcpConfig> {
        let secret = if self.secret { Some(Secret::new("a secret of all ranks")?) } else { None };
        Ok(TcpConfig {
            group: GroupName::new(name)?,
            connect_timeout: EDGE_MEETS_WITHIN,
            heartbeat: self.heartbeat,
            reconnect_timeout: self.reconnect,
            checksum: self.checksum,
            secret,
            pool: BufferPool::new(POOL_BYTES),
            ..rank.tcp_config()
        })
    }

    fn store(&self, rank: &Rank, name: &str) -> Result<StoreConfig> {
        Ok(StoreConfig {
            group: GroupName::new(name)?,
            connect_timeout: EDGE_MEETS_WITHIN,
            heartbeat: self.heartbeat,
            reconnect_timeout: self.reconnect,
            chunk_bytes: 32 << 10,
            window_bytes: 128 << 10,
            pool: BufferPool::new(POOL_BYTES),
            ..rank.store_config()
        })
    }
}

const POOL_BYTES: usize = 4 << 20;

fn both(
    rank: &Rank,
    name: &str,
    outgoing: Option<impl kvpipe::transport::Outgoing>,
    incoming: impl kvpipe::transport::Incoming,
    config: PipeConfig,
) -> Result<(Option<SendingEnd>, Option<ReceivingEnd>)> {
    Ok(match outgoing {
        None => (None, Some(rank.open_receiver(name, incoming, config)?)),
        Some(outgoing) => {
            let (sender, receiver) = rank.open(name, outgoing, incoming, config)?;
            (Some(sender), Some(receiver))
        }
    })
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wire, pipe, heartbeat, reconnect, checksum, secret } = self;
        let PipeConfig { budget_bytes, window_bytes, max_items, close_timeout, .. } = pipe;
        writeln!(
            f,
            "  over {}, budget {budget_bytes} bytes, window {window_bytes} bytes, at most {max_items} items,\n  \
             limits: heartbeat {heartbeat:?}, reconnect {reconnect:?}, close {close_timeout:?}{}{}",
            match wire {
                Wire::Tcp => "tcp",
                Wire::Store => "the store",
            },
            if *checksum { ", checksums" } else { "" },
            if *secret { ", a secret" } else { "" },
        )
    }
}

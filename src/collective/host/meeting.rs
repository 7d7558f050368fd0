//! How the ranks of a group find each other: through a store, once.
//!
//! | key, behind `kvpipe/collective/NAME/` | value |
//! |---|---|
//! | `RANK/runs` | how many groups of this name the rank has formed |
//! | `RUN/RANK` | the rank's address and session, its heartbeat limit in milliseconds, and the world size it knows |
//! | `RUN/read` | how many ranks have read all of those; the last deletes them |
//!
//! Runs are counted by each rank for itself. So after a run that did not come about, all ranks begin again, or
//! take another name.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::{Members, Whereabouts};
use crate::error::{Error, Link, Result};
use crate::store::Store;
use crate::wire::handshake::SessionId;
use crate::wire::text::GroupName;

/// A rank that looks for the others.
pub(super) struct Meeting<'a, S> {
    store: &'a S,
    prefix: String,
    name: &'a GroupName,
    members: Members,
    limit: Duration,
    deadline: Instant,
}

impl<'a, S: Store> Meeting<'a, S> {
    /// One that ends, successfully or not, by the deadline, which is that of `limit`.
    pub(super) async fn begin(
        store: &'a S,
        name: &'a GroupName,
        members: Members,
        (limit, deadline): (Duration, Instant),
    ) -> Result<Self> {
        let group = format!("kvpipe/collective/{name}");
        let left = deadline.saturating_duration_since(Instant::now());
        let run = store.add(&format!("{group}/{}/runs", members.rank), 1, left).await?;
        Ok(Self { store, prefix: format!("{group}/{run}"), name, members, limit, deadline })
    }

    /// Publishes where we are, and waits for every other rank to do the same.
    pub(super) async fn meet(&self, own: &Whereabouts) -> Result<Vec<Whereabouts>> {
        let Members { rank, size } = self.members;
        self.store.set(&self.key(rank), encode(own, size), self.left()).await?;
        let met = self.read_all(own).await;
        if let Err(Error::Timeout { .. }) = met {
            // Whoever comes now is not to find us there; who is there and differs, is.
            let gone = self.store.delete(&self.key(rank), CLEANING_UP).await;
            gone.map_or_else(|error| tracing::debug!(%error, "an address stays in the store"), drop);
        }
        met
    }

    async fn read_all(&self, own: &Whereabouts) -> Result<Vec<Whereabouts>> {
        let Members { rank, size } = self.members;
        let mut ranks = Vec::new();
        for peer in 0..size {
            if peer == rank {
                ranks.push(own.clone());
                continue;
            }
            let key = self.key(peer);
            // The store says that the time is over a little after it is.
            let value = match timeout_at(self.deadline, self.store.get(&key, self.left())).await {
                Ok(Err(Error::Timeout { .. })) | Err(_) => {
                    let name = self.name.as_str();
                    let awaited =
                        format!("rank {peer} of {size} to join the group {name:?} (store key {key:?})");
                    return Err(Error::timeout(awaited, self.limit));
                }
                Ok(value) => value?,
            };
            ranks.push(decode(&value, Link::new(rank, peer), size)?);
        }
        Ok(ranks)
    }

    /// Leaves nothing behind, once all have read all.
    pub(super) async fn clean_up(&self) -> Result<()> {
        let read = format!("{}/read", self.prefix);
        let size = self.members.size;
        if self.store.add(&read, 1, self.left()).await? == size as i64 {
            for rank in 0..size {
                self.store.delete(&self.key(rank), self.left()).await?;
            }
            self.store.delete(&read, self.left()).await?;
        }
        Ok(())
    }

    fn key(&self, rank: usize) -> String {
        format!("{}/{rank}", self.prefix)
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// For taking back what was published, when the time is over.
const CLEANING_UP: Duration = Duration::from_secs(1);

fn encode(Whereabouts { address, session, heartbeat }: &Whereabouts, size: usize) -> Bytes {
    let (session, heartbeat) = (u128::from_be_bytes(*session), heartbeat.as_millis());
    format!("{address} {session:032x} {heartbeat} {size}").into()
}

fn decode(value: &[u8], link: Link, size: usize) -> Result<Whereabouts> {
    let shown = String::from_utf8_lossy(&value[..value.len().min(100)]).into_owned();
    let mut words = str::from_utf8(value).unwrap_or_default().split(' ');
    let address = words.next().and_then(|word| word.parse::<SocketAddr>().ok());
    let session = words.next().and_then(|word| u128::from_str_radix(word, 16).ok());
    let heartbeat = words.next().and_then(|word| word.parse::<u64>().ok());
    let its_size = words.next().and_then(|word| word.parse::<usize>().ok());
    let (Some(address), Some(session), Some(heartbeat), Some(its_size), None) =
        (address, session, heartbeat, its_size, words.next())
    else {
        let violation =
            format!("it published {shown:?}, which is no address, session, heartbeat and world size");
        return Err(Error::PeerMisbehaved { link, violation });
    };
    if its_size != size {
        let mismatch = format!("the group has {size} ranks here, and {its_size} there");
        return Err(Error::PeerIncompatible { link, mismatch });
    }
    let (session, heartbeat): (SessionId, _) = (session.to_be_bytes(), Duration::from_millis(heartbeat));
    Ok(Whereabouts { address, session, heartbeat })
}

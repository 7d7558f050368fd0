//! How the ranks of a group find each other: through a store, once.
//!
//! | key, behind `kvpipe/collective/NAME/` | value |
//! |---|---|
//! | `RANK/runs` | how many groups of this name the rank has formed |
//! | `RUN/RANK` | the rank's address and session, and the world size it knows |
//! | `RUN/read` | how many ranks have read all of those; the last deletes them |

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::{Members, Whereabouts};
use crate::error::{Error, Link, Result};
use crate::store::Store;
use crate::transport::timing::after;
use crate::wire::handshake::SessionId;
use crate::wire::text::GroupName;

/// Publishes where we are, and waits for every other rank to do the same.
pub(super) async fn meet(
    store: &impl Store,
    name: &GroupName,
    members: Members,
    own: Whereabouts,
    limit: Duration,
) -> Result<Vec<Whereabouts>> {
    let deadline = after(limit);
    let left = || deadline.saturating_duration_since(Instant::now());
    let Members { rank, size } = members;
    let prefix = format!("kvpipe/collective/{name}");
    let run = store.add(&format!("{prefix}/{rank}/runs"), 1, left()).await?;
    let key = |rank: usize| format!("{prefix}/{run}/{rank}");
    store.set(&key(rank), encode(&own, size), left()).await?;
    let mut ranks = Vec::new();
    for peer in 0..size {
        if peer == rank {
            ranks.push(own.clone());
            continue;
        }
        // The store says that the time is over a little after it is.
        let value = match timeout_at(deadline, store.get(&key(peer), left())).await {
            Ok(Err(Error::Timeout { .. })) | Err(_) => {
                let awaited = format!("rank {peer} of {size} to join the group {:?}", name.as_str());
                return Err(Error::timeout(format!("{awaited} (store key {:?})", key(peer)), limit));
            }
            Ok(value) => value?,
        };
        ranks.push(decode(&value, Link::new(rank, peer), size)?);
    }
    let read = format!("{prefix}/{run}/read");
    if store.add(&read, 1, left()).await? == size as i64 {
        for rank in 0..size {
            store.delete(&key(rank), left()).await?;
        }
        store.delete(&read, left()).await?;
    }
    Ok(ranks)
}

fn encode(Whereabouts { address, session }: &Whereabouts, size: usize) -> Bytes {
    format!("{address} {:032x} {size}", u128::from_be_bytes(*session)).into()
}

fn decode(value: &[u8], link: Link, size: usize) -> Result<Whereabouts> {
    let shown = String::from_utf8_lossy(&value[..value.len().min(80)]).into_owned();
    let mut words = str::from_utf8(value).unwrap_or_default().split(' ');
    let address = words.next().and_then(|word| word.parse::<SocketAddr>().ok());
    let session = words.next().and_then(|word| u128::from_str_radix(word, 16).ok());
    let its_size = words.next().and_then(|word| word.parse::<usize>().ok());
    let (Some(address), Some(session), Some(its_size), None) = (address, session, its_size, words.next())
    else {
        let violation = format!("it published {shown:?}, which is no address, session and world size");
        return Err(Error::PeerMisbehaved { link, violation });
    };
    if its_size != size {
        let mismatch = format!("the group has {size} ranks here, and {its_size} there");
        return Err(Error::PeerIncompatible { link, mismatch });
    }
    let session: SessionId = session.to_be_bytes();
    Ok(Whereabouts { address, session })
}

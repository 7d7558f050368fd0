//! [`StatelessProcessGroup`]: ranks that exchange small objects and wait for each other through a
//! [`Store`], without any other state than counters.
//!
//! It is vLLM's class of that name (`vllm/distributed/utils.py`), in two wire modes. All ranks of a
//! group use the same one.
//!
//! | | [`Native`](WireMode::Native) | [`Vllm`](WireMode::Vllm) |
//! |---|---|---|
//! | the `n`th object from `src` to `dst` | `kvpipe/NAME/send/SRC/DST/N` | `send_to/DST/N` |
//! | the `n`th object from `src` to all | `kvpipe/NAME/broadcast/SRC/N`, and `…/N/read`, which counts its readers | `broadcast_from/SRC/N` |
//! | values | [`Object::encode`] | pickles |
//! | deleted | once read, a broadcast by the last of its readers | by the sender, an hour after it was sent; once read, if [`deletes_received`](GroupConfig::deletes_received) says so |
//! | the `n`th barrier | `kvpipe/NAME/barrier/N/…`: `arrived/RANK`, `go`, `left/RANK` | a broadcast of rank 0 with an id, `arrival_ID_RANK`, `departure_ID_RANK` |
//! | several groups in one store | by their names | each needs a [`PrefixStore`](crate::store::PrefixStore) |
//!
//! # vLLM's wire
//!
//! The keys, counters and values of vLLM 0.9 to 0.33; the barrier of 0.8.5 and before was another, and
//! is not spoken. What vLLM's format can't do is refused rather than corrupted: `send_to/DST/N` does
//! not say who sent it, so two senders to one rank overwrite each other, and their receiver takes what
//! one sent for what the other did. Groups of two and rings are fine. In larger groups,
//! - `recv_obj` from a second rank is refused;
//! - `send_obj` to a rank is refused if somebody else has taken the place of the object already. That
//!   is looked up before each object (one CHECK), and finds a second sender whose key is there; two
//!   that set the same key at the same time are not found out.
//!
//! Objects expire there an hour after they were sent, read or not, since the receiver deletes nothing.
//! The hour is tokio's, so steps of the wall clock do not matter. It is looked at whenever the rank
//! sends, and by [`expire_data`](StatelessProcessGroup::expire_data).
//!
//! # Calls that fail or are dropped
//!
//! A group begins anew with all of its ranks: one that starts again alone counts from 0, and the others
//! don't.
//!
//! A timeout is one bound over everything that a call does. Whatever way a call ends, the group goes on
//! being usable, and nothing is lost or out of place:
//!
//! - A receive (also of a broadcast) that fails or is dropped has received nothing; the next one gets the
//!   same object. An idle receive that times out is no failure of anything, just call it again.
//! - A send keeps its place in the order from the moment it has one. If it times out, fails or is
//!   dropped, the object may be on its way, and the next send to the same rank completes it first, as
//!   does [`close`](StatelessProcessGroup::close); sending it again makes a second one. Only an object
//!   that is refused ([`Error::Misuse`]) is not sent.
//! - A barrier or an `all_gather_obj` that fails or is dropped goes on where it was when it is called
//!   again. Other ranks see one.
//!
//! If the connection to the store breaks during a change, the change may be made twice, or, for the
//! count of a broadcast's readers, perhaps not at all: nothing is lost, but a key may be left behind.
//!
//! # How many operations of the store
//!
//! | | native, `N` ranks together | `vllm` |
//! |---|---|---|
//! | an object to one rank | 3 | 2 (3 in groups of more than two), later 1 |
//! | a broadcast | `2N + 1` (3 for two ranks) | `N`, later 1 |
//! | `all_gather_obj` | `N` broadcasts | `N` broadcasts |
//! | a barrier | `5N - 1` | `6N + 2` |
//!
//! The most that one rank does in a barrier is `N + 3` (vLLM: `2N + 6`), by rank 0, which cleans up.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use self::barrier::Barrier;
use self::keys::{Keys, Route};
use self::lane::Lane;
use crate::entropy::Entropy;
use crate::error::{Error, Result};
use crate::store::tcp::TcpStoreServer;
use crate::store::{Limits, Store};
use crate::sync::Mutex;
use crate::wire::Object;
pub use crate::wire::WireMode;
use crate::wire::pickle::{self, PickledTensor};
pub use crate::wire::text::GroupName;

mod barrier;
mod exchange;
mod keys;
mod lane;
mod tcp;

/// How a group talks. The wire mode and the name must be equal at all ranks.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// Whose keys and values.
    pub wire: WireMode,
    /// Keeps groups in one store apart. vLLM's wire has no names: there it must be empty.
    pub name: GroupName,
    /// Of every call that has no timeout of its own; 300 s, vLLM's `store_timeout`. vLLM's barrier says
    /// 30 s, but waits for as long as this all the same.
    pub timeout: Duration,
    /// How long an object that was sent is kept on vLLM's wire. 3600 s.
    pub expiration: Duration,
    /// Whether an object that another rank sent to this one is deleted once it is read on vLLM's wire,
    /// too. vLLM's own ranks don't, so that their store keeps an hour of traffic; but nobody reads it
    /// again, and the sender does not mind. Off by default: the store sees a DELETE_KEY that vLLM would
    /// not send.
    pub deletes_received: bool,
    /// Of the store that [`create`](StatelessProcessGroup::create) serves or connects to, and of what
    /// is decoded.
    pub limits: Limits,
    /// For the ids of vLLM's barriers.
    pub entropy: Entropy,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            wire: WireMode::default(),
            name: GroupName::default(),
            timeout: Duration::from_secs(300),
            expiration: Duration::from_secs(3600),
            deletes_received: false,
            limits: Limits::default(),
            entropy: Entropy::system(),
        }
    }
}

impl GroupConfig {
    /// Whether a rank may be in such a group.
    fn check(&self, rank: usize, world_size: usize) -> Result<()> {
        check_rank(rank, world_size)?;
        if self.wire == WireMode::Vllm && self.name != GroupName::default() {
            return Err(Error::Misuse(format!(
                "vllm's wire has no group names, so the group {:?} needs a store or a prefix of its own instead",
                self.name.as_str()
            )));
        }
        Ok(())
    }
}

/// A rank among others, all of which reach the same store.
///
/// A process may be in any number of groups, and groups may overlap. All methods take `&self`: calls
/// that concern the same peer take turns, in the order in which they were made, and all others run side
/// by side. To be used within a tokio runtime with time.
///
/// ```
/// use kvpipe::group::{GroupConfig, StatelessProcessGroup};
/// use kvpipe::store::MemoryStore;
/// use kvpipe::wire::Object;
///
/// # #[tokio::main] async fn main() -> kvpipe::Result<()> {
/// let store = MemoryStore::new();
/// let rank = |rank| StatelessProcessGroup::new(store.clone(), rank, 2, GroupConfig::default());
/// let (zero, one) = (rank(0)?, rank(1)?);
/// zero.send_obj(&Object::Text("hello".into()), 1).await?;
/// assert_eq!(one.recv_obj(0).await?, Object::Text("hello".into()));
/// tokio::try_join!(zero.barrier(), one.barrier())?;
/// # Ok(())
/// # }
/// ```
pub struct StatelessProcessGroup<S> {
    store: S,
    rank: usize,
    world_size: usize,
    config: GroupConfig,
    keys: Keys,
    lanes: Mutex<BTreeMap<Route, Arc<AsyncMutex<Lane>>>>,
    barrier: AsyncMutex<Barrier>,
    /// What an unfinished `all_gather_obj` has so far, by rank.
    gathered: AsyncMutex<Vec<Option<Object>>>,
    /// On vLLM's wire: what was sent, and when.
    sent: Mutex<VecDeque<(String, Instant)>>,
    /// On vLLM's wire, where one can't tell: the only rank that we receive from.
    only_source: Mutex<Option<usize>>,
    /// What the others need, where this rank serves it.
    server: Option<TcpStoreServer>,
}

impl<S: Store + Clone> StatelessProcessGroup<S> {
    /// Rank `rank` of `world_size`, over a store that all of them have. Nothing is sent: it does not
    /// wait for anybody.
    ///
    /// # Errors
    /// [`Error::Misuse`] if there is no such rank, or if a group on vLLM's wire has a name.
    pub fn new(store: S, rank: usize, world_size: usize, config: GroupConfig) -> Result<Self> {
        config.check(rank, world_size)?;
        Ok(Self {
            store,
            rank,
            world_size,
            keys: Keys { wire: config.wire, name: config.name.clone() },
            config,
            lanes: Mutex::new(BTreeMap::new()),
            barrier: AsyncMutex::default(),
            gathered: AsyncMutex::default(),
            sent: Mutex::new(VecDeque::new()),
            only_source: Mutex::new(None),
            server: None,
        })
    }

    /// This rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// Whose keys and values it uses.
    #[must_use]
    pub fn wire(&self) -> WireMode {
        self.config.wire
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Sends an object to rank `dst`. It returns once the store has it.
    ///
    /// # Errors
    /// [`Error::Misuse`] for a rank that is not another one of the group, for an object that the wire
    /// or the store does not take, and on vLLM's wire if another rank sends to `dst` as well. Otherwise
    /// as the store.
    ///
    /// # Cancel safety
    /// Dropped early, the object is not sent, or keeps its place and goes out before the next one to
    /// the same rank.
    pub async fn send_obj(&self, object: &Object, dst: usize) -> Result<()> {
        self.send_obj_timeout(object, dst, self.config.timeout).await
    }

    /// [`send_obj`](Self::send_obj) with a timeout.
    ///
    /// # Errors
    /// As `send_obj`.
    ///
    /// # Cancel safety
    /// As `send_obj`.
    pub async fn send_obj_timeout(&self, object: &Object, dst: usize, timeout: Duration) -> Result<()> {
        self.check_peer("send to", dst)?;
        let value = self.encode(object)?;
        let route = Route::Direct { src: self.rank, dst };
        let awaited = || self.awaited(route, "the store to take an object");
        within(timeout, awaited, self.post(route, value, |_key| ())).await
    }

    /// The next object from rank `src`.
    ///
    /// # Errors
    /// [`Error::Misuse`] for a rank that is not another one of the group, and on vLLM's wire for a
    /// second rank to receive from. [`Error::PeerMisbehaved`] and [`Error::PeerIncompatible`] for what is
    /// no object, which stays where it is. Otherwise as the store.
    ///
    /// # Cancel safety
    /// Cancel safe: dropped early, the object is for the next call.
    pub async fn recv_obj(&self, src: usize) -> Result<Object> {
        self.recv_obj_timeout(src, self.config.timeout).await
    }

    /// [`recv_obj`](Self::recv_obj) with a timeout.
    ///
    /// # Errors
    /// As `recv_obj`.
    ///
    /// # Cancel safety
    /// As `recv_obj`.
    pub async fn recv_obj_timeout(&self, src: usize, timeout: Duration) -> Result<Object> {
        self.check_peer("receive from", src)?;
        self.check_only_source(src)?;
        let route = Route::Direct { src, dst: self.rank };
        let awaited = || self.awaited(route, &format!("rank {src} to send an object"));
        within(timeout, awaited, self.take(route)).await
    }

    /// The next object from rank `src`, which must be a tensor on vLLM's wire, of at most `tensor_bytes`;
    /// left in its pickle, so that the caller can say where it goes.
    pub(crate) async fn recv_pickled_tensor(&self, src: usize, tensor_bytes: usize) -> Result<PickledTensor> {
        self.check_peer("receive from", src)?;
        self.check_only_source(src)?;
        let limits = pickle::Limits { tensor_bytes, ..pickle::Limits::default() };
        let route = Route::Direct { src, dst: self.rank };
        self.take_as(route, |value| pickle::decode_tensor(value, &limits)).await
    }

    /// Gives the object of rank `src` to all ranks; every rank must call it, `src` with the object. Rank
    /// `src` returns once the store has it, the others once they have read it.
    ///
    /// # Errors
    /// [`Error::Misuse`] if `src` is no rank, or is this one and has no object. Otherwise as
    /// [`send_obj`](Self::send_obj) and [`recv_obj`](Self::recv_obj).
    ///
    /// # Cancel safety
    /// At `src` as `send_obj`, at the others cancel safe.
    pub async fn broadcast_obj(&self, object: Option<&Object>, src: usize) -> Result<Object> {
        self.broadcast_obj_timeout(object, src, self.config.timeout).await
    }

    /// [`broadcast_obj`](Self::broadcast_obj) with a timeout.
    ///
    /// # Errors
    /// As `broadcast_obj`.
    ///
    /// # Cancel safety
    /// As `broadcast_obj`.
    pub async fn broadcast_obj_timeout(
        &self,
        object: Option<&Object>,
        src: usize,
        timeout: Duration,
    ) -> Result<Object> {
        check_rank(src, self.world_size)?;
        let route = Route::Broadcast { src };
        if src != self.rank {
            let awaited = || self.awaited(route, &format!("rank {src} to broadcast an object"));
            return within(timeout, awaited, self.take(route)).await;
        }
        let object = object
            .ok_or_else(|| Error::Misuse(format!("rank {src} broadcasts, and so must give the object")))?;
        let value = self.encode(object)?;
        let awaited = || self.awaited(route, "the store to take an object");
        within(timeout, awaited, self.post(route, value, |_key| ())).await?;
        Ok(object.clone())
    }

    /// The objects of all ranks, by rank; every rank must call it.
    ///
    /// # Errors
    /// As [`broadcast_obj`](Self::broadcast_obj).
    ///
    /// # Cancel safety
    /// Dropped early, the next call goes on where this one was, with the object that this one has sent
    /// already. Call it again before any other broadcast.
    pub async fn all_gather_obj(&self, object: &Object) -> Result<Vec<Object>> {
        self.all_gather_obj_timeout(object, self.config.timeout).await
    }

    /// [`all_gather_obj`](Self::all_gather_obj) with a timeout.
    ///
    /// # Errors
    /// As `all_gather_obj`.
    ///
    /// # Cancel safety
    /// As `all_gather_obj`.
    pub async fn all_gather_obj_timeout(&self, object: &Object, timeout: Duration) -> Result<Vec<Object>> {
        let value = self.encode(object)?;
        let mut missing = None;
        let gathering = async {
            let mut gathered = self.gathered.lock().await;
            gathered.resize(self.world_size, None);
            for src in self.gathering_order() {
                missing = Some(src);
                if src == self.rank {
                    self.gather_own(&mut gathered[src], object, value.clone()).await?;
                } else if gathered[src].is_none() {
                    gathered[src] = Some(self.take(Route::Broadcast { src }).await?);
                }
            }
            Ok(std::mem::take(&mut *gathered).into_iter().flatten().collect())
        };
        let outcome = tokio::time::timeout(timeout, gathering).await;
        in_time(outcome, timeout, || match missing {
            Some(src) => format!("the object of rank {src}, to gather those of {} ranks", self.world_size),
            None => "another call to gather objects".into(),
        })
    }

    /// Waits until all ranks have called it. Nothing stays behind in the store, and rank 0, which may
    /// serve it, returns only after all others have what they need.
    ///
    /// # Errors
    /// [`Error::Timeout`] says what was still missing. [`Error::PeerMisbehaved`] on vLLM's wire if rank 0
    /// announces something else. Otherwise as the store.
    ///
    /// # Cancel safety
    /// Dropped early, the next call goes on with the same barrier.
    pub async fn barrier(&self) -> Result<()> {
        self.barrier_timeout(self.config.timeout).await
    }

    /// [`barrier`](Self::barrier) with a timeout.
    ///
    /// # Errors
    /// As `barrier`.
    ///
    /// # Cancel safety
    /// As `barrier`.
    pub async fn barrier_timeout(&self, timeout: Duration) -> Result<()> {
        let outcome = tokio::time::timeout(timeout, self.pass_barrier()).await;
        in_time(outcome, timeout, || self.barrier_awaits())
    }

    /// Deletes what this rank sent on vLLM's wire longer ago than the configured expiration; gives how
    /// many objects. On kvpipe's own wire, where nothing expires, it does nothing.
    ///
    /// # Errors
    /// As the store.
    ///
    /// # Cancel safety
    /// Cancel safe: what is left is deleted later.
    pub async fn expire_data(&self) -> Result<usize> {
        self.expire_data_timeout(self.config.timeout).await
    }

    /// [`expire_data`](Self::expire_data) with a timeout.
    ///
    /// # Errors
    /// As `expire_data`.
    ///
    /// # Cancel safety
    /// As `expire_data`.
    pub async fn expire_data_timeout(&self, timeout: Duration) -> Result<usize> {
        within(timeout, || "the store to delete what has expired".into(), self.expire()).await
    }
}

/// Without objects, which may be large.
impl<S> fmt::Debug for StatelessProcessGroup<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, world_size, config, .. } = self;
        let mut debug = f.debug_struct("StatelessProcessGroup");
        debug.field("rank", rank).field("world_size", world_size).field("config", config);
        debug.finish_non_exhaustive()
    }
}

fn check_rank(rank: usize, world_size: usize) -> Result<()> {
    if rank < world_size {
        return Ok(());
    }
    Err(Error::Misuse(format!("rank {rank} is beyond the world size {world_size}")))
}

/// One bound over everything that `call` does.
async fn within<T>(
    timeout: Duration,
    awaited: impl FnOnce() -> String,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    in_time(tokio::time::timeout(timeout, call).await, timeout, awaited)
}

/// Timeouts of the store within are ours, too.
fn in_time<T, E>(
    outcome: Result<Result<T>, E>,
    timeout: Duration,
    awaited: impl FnOnce() -> String,
) -> Result<T> {
    match outcome {
        Ok(Err(Error::Timeout { .. })) | Err(_) => Err(Error::timeout(awaited(), timeout)),
        Ok(outcome) => outcome,
    }
}

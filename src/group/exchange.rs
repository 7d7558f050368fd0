//! Objects on their way: places, values, what vLLM's wire refuses and lets expire.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use super::keys::Route;
use super::lane::{Errand, Lane, UNBOUNDED};
use super::{StatelessProcessGroup, WireMode, check_rank};
use crate::error::{Error, Link, Result};
use crate::store::Store;
use crate::wire::{DecodeError, Object, pickle};

impl<S: Store + Clone> StatelessProcessGroup<S> {
    /// Deletes what is too old, oldest first; gives how many objects.
    pub(super) async fn expire(&self) -> Result<usize> {
        let mut expired = 0;
        loop {
            let oldest = self.sent.lock().front().cloned();
            let Some((key, since)) = oldest else { return Ok(expired) };
            if since.elapsed() <= self.config.expiration {
                return Ok(expired);
            }
            self.store.delete(&key, UNBOUNDED).await?;
            // Another call may have been as fast.
            let mut sent = self.sent.lock();
            if sent.front().is_some_and(|(front, _)| *front == key) {
                sent.pop_front();
                expired += 1;
            }
        }
    }

    /// Gives an object its place on a route, which it keeps, and carries it to the store. `posted` is
    /// called with its key when it has one.
    pub(super) async fn post(
        &self,
        route: Route,
        value: Bytes,
        posted: impl FnOnce(&str) + Send,
    ) -> Result<()> {
        self.expire().await?;
        let lane = self.lane(route);
        let mut lane = lane.lock().await;
        lane.settle(&self.store).await?;
        let key = self.keys.object(route, lane.next);
        if self.config.wire == WireMode::Vllm {
            self.check_only_sender(route, &key).await?;
            self.sent.lock().push_back((key.clone(), Instant::now()));
        }
        posted(&key);
        lane.post(key.clone(), value);
        let taken = lane.settle(&self.store).await;
        if let Err(Error::Misuse(_)) = taken {
            // The next object gets this key, and its own hour.
            self.sent.lock().retain(|(sent, _)| *sent != key);
        }
        taken
    }

    /// Carries to the store what earlier calls have left on a route.
    pub(super) async fn settle(&self, route: Route) -> Result<()> {
        self.lane(route).lock().await.settle(&self.store).await
    }

    /// Carries to the store what earlier calls have left, except waits for others.
    pub(super) async fn settle_all(&self) -> Result<()> {
        let lanes: Vec<_> = self.lanes.lock().values().cloned().collect();
        for lane in lanes {
            lane.lock().await.errands.finish(&self.store).await?;
        }
        Ok(())
    }

    /// The next object on a route to this rank.
    pub(super) async fn take(&self, route: Route) -> Result<Object> {
        self.take_as(route, |value| self.decode(value)).await
    }

    /// The next value on a route to this rank, once `decode` has found it good.
    pub(super) async fn take_as<T>(
        &self,
        route: Route,
        decode: impl Fn(&Bytes) -> Result<T, DecodeError>,
    ) -> Result<T> {
        let (Route::Direct { src, .. } | Route::Broadcast { src }) = route;
        let decode = |value| decode(value).map_err(|error| error.into_error(Link::new(self.rank, src)));
        let lane = self.lane(route);
        let mut lane = lane.lock().await;
        let decoded;
        if let Some(value) = &lane.received {
            decoded = decode(value)?;
        } else {
            let key = self.keys.object(route, lane.next);
            let value = self.store.get(&key, UNBOUNDED).await?;
            decoded = decode(&value)?;
            lane.received = Some(value);
            if self.is_deleted_once_read(route) {
                lane.errands.push(match route {
                    // With one reader, there is nobody to count.
                    Route::Broadcast { .. } if self.world_size > 2 => {
                        Errand::CountReader { key, readers: self.world_size as i64 - 1 }
                    }
                    _ => Errand::Delete { key },
                });
            }
        }
        lane.errands.finish(&self.store).await?;
        lane.next += 1;
        lane.received = None;
        Ok(decoded)
    }

    fn is_deleted_once_read(&self, route: Route) -> bool {
        match self.config.wire {
            WireMode::Native => true,
            WireMode::Vllm => self.config.deletes_received && matches!(route, Route::Direct { .. }),
        }
    }

    fn lane(&self, route: Route) -> Arc<AsyncMutex<Lane>> {
        Arc::clone(self.lanes.lock().entry(route).or_default())
    }

    /// What a call on a route was waiting for, once it has ended: for its turn, for the store to change
    /// something, or else for `what`.
    pub(super) fn awaited(&self, route: Route, what: &str) -> String {
        match self.lane(route).try_lock() {
            Err(_) => format!("an earlier call to end, and then for {what}"),
            Ok(lane) if lane.errands.is_empty() => {
                format!("{what} (key {:?})", self.keys.object(route, lane.next))
            }
            Ok(lane) => lane.errands.to_string(),
        }
    }

    pub(super) fn encode(&self, object: &Object) -> Result<Bytes> {
        match self.config.wire {
            WireMode::Native => object.encode(),
            WireMode::Vllm => pickle::encode(object),
        }
    }

    fn decode(&self, value: &Bytes) -> Result<Object, DecodeError> {
        match self.config.wire {
            WireMode::Native => Object::decode(value),
            WireMode::Vllm => {
                let mut limits = pickle::Limits::default();
                // A view may claim to be larger than what came.
                limits.tensor_bytes = self.config.limits.value_bytes;
                pickle::decode(value, &limits)
            }
        }
    }

    pub(super) fn check_peer(&self, doing: &str, peer: usize) -> Result<()> {
        check_rank(peer, self.world_size)?;
        if peer == self.rank {
            return Err(Error::Misuse(format!("rank {peer} can't {doing} itself")));
        }
        Ok(())
    }

    /// The key says to whom and not from whom, so what two ranks send is mixed up.
    pub(super) fn check_only_source(&self, src: usize) -> Result<()> {
        if self.config.wire == WireMode::Native {
            return Ok(());
        }
        let only = *self.only_source.lock().get_or_insert(src);
        if only == src {
            return Ok(());
        }
        let rank = self.rank;
        Err(Error::Misuse(format!(
            "rank {rank} receives from rank {only}, and so can't from rank {src}: \
             vllm's keys (send_to/{rank}/..) don't say who sent"
        )))
    }

    /// As above; between two, there is nobody else.
    async fn check_only_sender(&self, route: Route, key: &str) -> Result<()> {
        let Route::Direct { dst, .. } = route else { return Ok(()) };
        if self.world_size == 2 || !self.store.check(&[key], UNBOUNDED).await? {
            return Ok(());
        }
        Err(Error::Misuse(format!(
            "rank {} can't send to rank {dst}, to which another rank has sent: key {key:?} is there \
             already, and vllm's keys don't say who sent",
            self.rank
        )))
    }

    /// vLLM's own order lets every rank wait for all before it; on our own wire nobody needs to.
    pub(super) fn gathering_order(&self) -> impl Iterator<Item = usize> + use<S> {
        let first = (self.config.wire == WireMode::Native).then_some(self.rank);
        first.into_iter().chain((0..self.world_size).filter(move |src| Some(*src) != first))
    }

    pub(super) async fn gather_own(
        &self,
        own: &mut Option<Object>,
        object: &Object,
        value: Bytes,
    ) -> Result<()> {
        let route = Route::Broadcast { src: self.rank };
        if own.is_some() {
            return self.settle(route).await;
        }
        let posted = self.post(route, value, |_key| *own = Some(object.clone())).await;
        if let Err(Error::Misuse(_)) = posted {
            *own = None;
        }
        posted
    }
}

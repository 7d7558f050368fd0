//! Waiting for each other.

use super::keys::{Keys, Route};
use super::lane::Errands;
use super::{StatelessProcessGroup, WireMode};
use crate::entropy::Entropy;
use crate::error::{Error, Link, Result};
use crate::store::Store;
use crate::wire::Object;

/// The barrier that this rank is in, or the next one.
#[derive(Default)]
pub(super) struct Barrier {
    /// How many it has passed.
    passed: u64,
    begun: bool,
    steps: Errands,
}

/// vLLM's ids are 44 bytes long.
const ID_BYTES_MAX: usize = 64;

impl<S: Store + Clone> StatelessProcessGroup<S> {
    /// Goes through the current barrier.
    pub(super) async fn pass_barrier(&self) -> Result<()> {
        let mut barrier = self.barrier.lock().await;
        match self.config.wire {
            WireMode::Native => self.begin_native(&mut barrier),
            WireMode::Vllm if self.rank == 0 => self.announce(&mut barrier).await?,
            WireMode::Vllm => self.learn(&mut barrier).await?,
        }
        barrier.steps.finish(&self.store).await?;
        barrier.passed += 1;
        barrier.begun = false;
        Ok(())
    }

    fn begin_native(&self, barrier: &mut Barrier) {
        if !barrier.begun && self.world_size > 1 {
            let steps = self.keys.native_barrier(barrier.passed, self.rank, self.world_size);
            barrier.steps.extend(steps);
        }
        barrier.begun = true;
    }

    /// Rank 0 chooses the id.
    async fn announce(&self, barrier: &mut Barrier) -> Result<()> {
        let route = Route::Broadcast { src: 0 };
        if barrier.begun {
            // Dropped while it was on its way.
            return self.settle(route).await;
        }
        let id = format!("barrier_{}", uuid4(&self.config.entropy)?);
        let value = self.encode(&Object::Text(id.clone()))?;
        let announced = self.post(route, value, |key| {
            barrier.steps.extend(Keys::vllm_barrier(&id, Some(key), 0, self.world_size));
            barrier.begun = true;
        });
        let announced = announced.await;
        if let Err(Error::Misuse(_)) = announced {
            (barrier.begun, barrier.steps) = (false, Errands::default());
        }
        announced
    }

    /// The others learn the id from rank 0.
    async fn learn(&self, barrier: &mut Barrier) -> Result<()> {
        if barrier.begun {
            return Ok(());
        }
        let id = match self.take(Route::Broadcast { src: 0 }).await? {
            Object::Text(id) if id.starts_with("barrier_") && id.len() <= ID_BYTES_MAX => id,
            other => {
                let link = Link::new(self.rank, 0);
                let violation = format!("{} instead of the id of a barrier", other.kind());
                return Err(Error::PeerMisbehaved { link, violation });
            }
        };
        barrier.steps.extend(Keys::vllm_barrier(&id, None, self.rank, self.world_size));
        barrier.begun = true;
        Ok(())
    }

    /// What a call that has ended was waiting for.
    pub(super) fn barrier_awaits(&self) -> String {
        let (rank, world_size) = (self.rank, self.world_size);
        let Ok(barrier) = self.barrier.try_lock() else {
            return format!("another call of rank {rank} to pass the barrier");
        };
        let passed = barrier.passed;
        match barrier.begun {
            true => format!("{} in barrier {passed} of {world_size} ranks, as rank {rank}", barrier.steps),
            false => format!("rank 0 to announce barrier {passed} of {world_size} ranks, as rank {rank}"),
        }
    }
}

/// A random UUID as text (RFC 9562, version 4).
fn uuid4(entropy: &Entropy) -> Result<String> {
    let random = u128::from_be_bytes(entropy.bytes()?);
    let version_and_variant = (random & !(0xF << 76 | 0x3 << 62)) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{version_and_variant:032x}");
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    Ok(parts.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_its_version_and_variant_whatever_the_bytes() {
        for seed in 0..50 {
            let uuid = uuid4(&Entropy::seeded(seed)).unwrap();
            let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
            assert_eq!(lengths, [8, 4, 4, 4, 12]);
            assert_eq!(&uuid[14..15], "4", "{uuid}");
            assert!("89ab".contains(&uuid[19..20]), "{uuid}");
        }
    }
}

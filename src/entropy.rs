//! Where random bytes come from: the operating system, or a seed.
//!
//! Production code takes its session ids, nonces and back-off jitter from an [`Entropy`] that it is
//! given, so that a simulation can repeat a run exactly.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};

/// A source of random bytes.
#[derive(Clone, Debug, Default)]
pub struct Entropy(Source);

#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    System,
    Seeded(Arc<Mutex<u64>>),
}

impl Entropy {
    /// The operating system's generator, fit for secrets.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A reproducible stream, for simulations and tests only: anybody who knows the seed knows the
    /// bytes. Clones share one stream.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Source::Seeded(Arc::new(Mutex::new(seed))))
    }

    /// `N` random bytes.
    ///
    /// # Errors
    /// [`Error::Io`] if the operating system has no randomness to give.
    pub fn bytes<const N: usize>(&self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        match &self.0 {
            Source::System => getrandom::fill(&mut bytes)
                .map_err(|error| Error::io("reading the system's random generator", error.into()))?,
            Source::Seeded(state) => {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                for chunk in bytes.chunks_mut(8) {
                    chunk.copy_from_slice(&splitmix64(&mut state).to_le_bytes()[..chunk.len()]);
                }
            }
        }
        Ok(bytes)
    }

    /// A random integer.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes).
    pub fn next_u64(&self) -> Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }
}

/// Steele, Lea and Flood's SplitMix64 step (OOPSLA 2014): full period, any seed.
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_two_seeds_differ() {
        let draw = |seed| Entropy::seeded(seed).bytes::<13>().unwrap();
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        // The published first output of SplitMix64 for state 0.
        assert_eq!(Entropy::seeded(0).next_u64().unwrap(), 0xE220_A839_7B1D_CDAF);
    }

    #[test]
    fn the_system_gives_different_bytes_each_time() {
        let system = Entropy::system();
        assert_ne!(system.bytes::<16>().unwrap(), system.bytes::<16>().unwrap());
    }
}

//! Decisions drawn from a seed.

use std::ops::RangeInclusive;

use kvpipe::entropy::Entropy;

/// A stream of decisions, the same for the same seed. Clones share it.
#[derive(Clone, Debug)]
pub struct Draws {
    seed: u64,
    entropy: Entropy,
}

impl Draws {
    /// The stream of `seed` that belongs to `purpose`: what one part of a simulation draws does not
    /// depend on how much another part drew before.
    #[must_use]
    pub fn new(seed: u64, purpose: &str) -> Self {
        let named = purpose.bytes().fold(seed, |mixed, byte| mix(mixed, u64::from(byte)));
        Self { seed: named, entropy: Entropy::seeded(named) }
    }

    /// The stream of a part of this purpose, whatever was drawn from this one before.
    #[must_use]
    pub fn fork(&self, part: &str) -> Self {
        Self::new(self.seed, part)
    }

    /// The same stream as random bytes, for production code.
    #[must_use]
    pub fn entropy(&self) -> Entropy {
        self.entropy.clone()
    }

    /// One of them; none of none.
    #[must_use]
    pub fn pick<'a, T>(&self, among: &'a [T]) -> Option<&'a T> {
        among.get(self.bytes(0..=among.len().checked_sub(1)?))
    }

    /// A number of the range.
    #[must_use]
    pub fn between(&self, range: RangeInclusive<u64>) -> u64 {
        let (least, most) = range.into_inner();
        // Slightly uneven for huge ranges, which nobody here can notice.
        match most.saturating_sub(least).checked_add(1) {
            Some(choices) => least + self.any() % choices,
            None => self.any(),
        }
    }

    /// A number of bytes of the range.
    #[must_use]
    pub fn bytes(&self, range: RangeInclusive<usize>) -> usize {
        let (least, most) = range.into_inner();
        // It lies within the range, which is of usize.
        usize::try_from(self.between(least as u64..=most as u64)).unwrap_or(most)
    }

    /// True once in `times` draws on average.
    #[must_use]
    pub fn one_in(&self, times: u64) -> bool {
        self.any().is_multiple_of(times)
    }

    fn any(&self) -> u64 {
        // A seeded source has no way to fail.
        self.entropy.next_u64().unwrap_or_default()
    }
}

/// Folds a value into a digest in which the order counts.
pub(crate) fn mix(digest: u64, value: u64) -> u64 {
    // FNV-1a's prime (Fowler, Noll, Vo), by words.
    (digest ^ value).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23)
}

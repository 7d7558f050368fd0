//! What is sent in a simulation.

use std::cell::Cell;

use kvpipe::{Error, Item, Tensor};

use crate::draws::{Draws, mix};

/// A stream of items, the same for the same name: none, empty, small, large enough to be sent from where
/// they lie, and large enough to be sent in pieces. No two with a payload of a word or more are equal, of
/// this stream or of another.
#[derive(Debug)]
pub struct Items {
    stream: u64,
    number: Cell<u64>,
    draws: Draws,
    sizes: Sizes,
}

/// How large items are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The largest payload, in bytes.
    pub bytes_max: usize,
    /// How many items of one stream have more than [`LARGE_BYTES`]: they take most of the time.
    pub large_items_max: u64,
}

/// What counts as large.
pub const LARGE_BYTES: usize = 64 << 10;

impl Items {
    /// The stream of that name of a seed.
    #[must_use]
    pub fn new(seed: u64, name: &str, sizes: Sizes) -> Self {
        let draws = Draws::new(seed, &format!("items of {name}"));
        Self { stream: draws.between(0..=u64::MAX), number: Cell::new(0), draws, sizes }
    }

    /// A tensor by which the stream can be told from any other.
    ///
    /// # Errors
    /// As [`Tensor::from_vec`].
    pub fn first(&self) -> Result<Item, Error> {
        self.tensor(32)
    }

    /// The next item.
    ///
    /// # Errors
    /// As [`Tensor::from_vec`].
    pub fn next(&self) -> Result<Item, Error> {
        let bytes = match self.draws.between(0..=9) {
            0..=2 => return Ok(None),
            3 => 0,
            4..=6 => self.draws.bytes(1..=200),
            7 => self.draws.bytes(4000..=16 << 10),
            // Around the size up to which a payload is copied next to its header.
            8 => (16 << 10) - 1 + self.draws.bytes(0..=2),
            _ if self.number.get().is_multiple_of(7)
                && self.number.get() / 7 < self.sizes.large_items_max =>
            {
                self.draws.bytes(LARGE_BYTES..=self.sizes.bytes_max.max(LARGE_BYTES))
            }
            _ => self.draws.bytes(20_000..=40_000),
        };
        self.tensor(bytes.min(self.sizes.bytes_max))
    }

    fn tensor(&self, bytes: usize) -> Result<Item, Error> {
        let number = self.number.replace(self.number.get() + 1);
        Ok(Some(Tensor::from_vec([bytes], content(mix(self.stream, number), bytes))?))
    }
}

/// Words of which no two are equal, in one item or in two: who it is, and where the word lies.
fn content(item: u64, bytes: usize) -> Vec<u8> {
    let mut content = Vec::with_capacity(bytes + size_of::<u64>());
    let mut word = item;
    while content.len() < bytes {
        content.extend_from_slice(&word.to_le_bytes());
        word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    }
    content.truncate(bytes);
    content
}

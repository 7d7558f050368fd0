//! What is sent in a simulation.

use kvpipe::{Error, Item, Tensor};

use crate::draws::Draws;

/// How many items have a payload of more than a quarter of a mebibyte: they take most of the time.
const LARGE_ITEMS_MAX: usize = 2;

/// So many items: none, empty, small, large enough to be sent from where they lie, and large enough to
/// be sent in pieces. No two with a payload are equal, up to 256.
///
/// # Errors
/// As [`Tensor::from_vec`].
pub fn items(draws: &Draws, count: usize) -> Result<Vec<Item>, Error> {
    let mut large_items = 0;
    (0..count as u64)
        .map(|number| {
            let bytes = match draws.between(0..=9) {
                0..=2 => return Ok(None),
                3 => 0,
                4..=6 => draws.bytes(1..=200),
                7 => draws.bytes(4000..=16 << 10),
                // Around the size up to which a payload is copied next to its header.
                8 => (16 << 10) - 1 + draws.bytes(0..=2),
                _ if large_items < LARGE_ITEMS_MAX => {
                    large_items += 1;
                    (256 << 10) + draws.bytes(0..=200_000)
                }
                _ => draws.bytes(20_000..=40_000),
            };
            Ok(Some(Tensor::from_vec([bytes], content(number, bytes))?))
        })
        .collect()
}

/// Words of which no two are equal, in one item or in two: the number, and where the word lies.
fn content(number: u64, bytes: usize) -> Vec<u8> {
    let mut content = Vec::with_capacity(bytes + size_of::<u64>());
    let mut at = 0;
    while content.len() < bytes {
        content.extend_from_slice(&(at << 32 | number).to_le_bytes());
        at += 1;
    }
    content.truncate(bytes);
    content
}

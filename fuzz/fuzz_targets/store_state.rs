//! Requests of several clients, which come and go, carried out by the server's state and by its model.
//!
//! The input is a list of actions. Of an action's first byte the lowest two bits name a client and the
//! next two say what it does:
//!
//! | | action | what follows |
//! |---|---|---|
//! | 0 | it has sent a part of a request, of which the upper four bits say how much it takes | |
//! | 1 | it sends a request | opcode, key, length and a number byte, see [`request`] |
//! | 2 | it connects; with upper bits of 0 it does not introduce itself | |
//! | 3 | it leaves | |

#![no_main]

use bytes::Bytes;
use kvpipe::store::Limits;
use kvpipe::store::tcp::protocol::{MAGIC, Request};
use libfuzzer_sys::fuzz_target;

#[path = "../../tests/store/model.rs"]
mod model;

use model::{Pair, Step};

const CLIENTS: usize = 4;

/// The limit is for twelve of them.
const UNFINISHED_STEP_BYTES: usize = 500;

fuzz_target!(|bytes: &[u8]| {
    let mut pair = Pair::new(limits());
    for client in 0..CLIENTS - 1 {
        pair.step(Step::Connect(client));
    }
    let mut input = bytes;
    while let Some(first) = take(&mut input) {
        let (client, upper) = (usize::from(first) % CLIENTS, usize::from(first >> 4));
        pair.step(match first >> 2 & 3 {
            0 => Step::Begin(client, upper * UNFINISHED_STEP_BYTES),
            1 => match request(&mut input) {
                Some(request) => Step::Ask(client, request),
                None => break,
            },
            2 if upper == 0 => Step::Stranger(client),
            2 => Step::Connect(client),
            _ => Step::Leave(client),
        });
    }
    pair.finish();
});

/// So small that they are reached, though not by a single value: the parser has seen to that.
fn limits() -> Limits {
    let mut limits = Limits::default();
    (limits.clients, limits.value_bytes) = (CLIENTS - 1, u8::MAX.into());
    (limits.stored_keys, limits.stored_bytes, limits.unfinished_bytes) = (8, 500, 6000);
    limits
}

/// A well-formed request, most of them about the same few keys.
fn request(input: &mut &[u8]) -> Option<Request> {
    let [opcode, names, length, number] = [take(input)?, take(input)?, take(input)?, take(input)?];
    let key = |shift: u8| Bytes::copy_from_slice(&[b'a' + (names >> shift & 3)]);
    let keys: Vec<Bytes> = (0..number & 7).map(|index| key(index % 4 * 2)).collect();
    // A number, or what is none.
    let value = match length {
        0..4 => Bytes::from(length.to_string()),
        _ => Bytes::from(vec![number; usize::from(length)]),
    };
    let small = i64::from(number.cast_signed());
    Some(match opcode % 19 {
        0 => Request::Ping { nonce: number.into() },
        1 => Request::Set { key: key(0), value },
        2 => Request::CompareSet { key: key(0), expected: value, desired: keys.concat().into() },
        3 => Request::Get { key: key(0) },
        4 => Request::Add { key: key(0), delta: if length == 255 { i64::MAX } else { small } },
        5 => Request::Check { keys },
        6 => Request::Wait { keys },
        7 => Request::NumKeys,
        8 => Request::DeleteKey { key: key(0) },
        9 => Request::Append { key: key(0), value },
        10 => Request::MultiGet { keys },
        11 => Request::MultiSet { pairs: keys.into_iter().map(|key| (key, value.clone())).collect() },
        12 => Request::CancelWait,
        13 => Request::Barrier { key: key(0), world_size: small % 5 },
        14 => Request::QueuePush { key: key(0), value },
        15 => Request::QueuePop { key: key(0) },
        16 => Request::QueueLen { key: key(0) },
        17 => Request::ListKeys,
        _ => Request::Validate { magic: if number == 0 { MAGIC } else { number.into() } },
    })
}

fn take(input: &mut &[u8]) -> Option<u8> {
    let (first, rest) = input.split_first()?;
    *input = rest;
    Some(*first)
}

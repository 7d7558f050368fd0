//! What several clients send to a store, cut at arbitrary points, carried out by the server's state and
//! by its model.
//!
//! The input is a list of actions. Of an action's first byte the lowest two bits name a client and the
//! next two say what it does:
//!
//! | | action | what follows |
//! |---|---|---|
//! | 0 | it sends raw bytes, in pieces of 1 + the upper four bits | a length byte, so many bytes |
//! | 1 | it sends a request | opcode, key, length and a number byte, see [`request`] |
//! | 2 | it connects; with upper bits of 0 it does not introduce itself | |
//! | 3 | it leaves | |

#![no_main]

use bytes::{Bytes, BytesMut};
use kvpipe::store::Limits;
use kvpipe::store::tcp::protocol::{Request, RequestParser};
use libfuzzer_sys::fuzz_target;

#[path = "../../tests/store/model.rs"]
mod model;

use model::{Pair, Step};

const CLIENTS: usize = 4;

fuzz_target!(|bytes: &[u8]| {
    let limits = limits();
    let mut pair = Pair::new(limits.clone());
    let mut clients: [Client; CLIENTS] = std::array::from_fn(|_| Client::new(&limits));
    for client in 0..CLIENTS - 1 {
        pair.step(Step::Connect(client));
    }
    let mut input = bytes;
    while let Some(first) = take(&mut input) {
        let name = usize::from(first) % CLIENTS;
        if !pair.is_connected(name) {
            clients[name] = Client::new(&limits);
        }
        match first >> 2 & 3 {
            0 => {
                let length = usize::from(take(&mut input).unwrap_or(0)).min(input.len());
                let (sent, rest) = input.split_at(length);
                input = rest;
                clients[name].send(&mut pair, name, sent, usize::from(first >> 4) + 1);
            }
            1 => {
                let Some(request) = request(&mut input) else { break };
                let mut encoded = BytesMut::new();
                request.encode(&mut encoded);
                clients[name].send(&mut pair, name, &encoded, usize::from(first >> 4) * 7 + 1);
            }
            2 if first >> 4 == 0 => pair.step(Step::Stranger(name)),
            2 => pair.step(Step::Connect(name)),
            _ => pair.step(Step::Leave(name)),
        }
    }
    pair.finish();
});

/// So small that they are reached.
fn limits() -> Limits {
    let mut limits = Limits::default();
    (limits.clients, limits.key_bytes, limits.value_bytes, limits.key_list_bytes) =
        (CLIENTS - 1, 16, 200, 40);
    (limits.keys_per_request, limits.stored_keys, limits.stored_bytes) = (6, 8, 500);
    limits.unfinished_bytes = 6000;
    limits
}

/// One connection's unfinished request.
struct Client {
    parser: RequestParser,
    sent: Vec<u8>,
}

impl Client {
    fn new(limits: &Limits) -> Self {
        Self { parser: RequestParser::new(limits.clone()), sent: Vec::new() }
    }

    fn send(&mut self, pair: &mut Pair, name: usize, bytes: &[u8], step: usize) {
        for mut piece in bytes.chunks(step) {
            while pair.is_connected(name) {
                let before = piece;
                let parsed = self.parser.parse(&mut piece);
                self.sent.extend_from_slice(&before[..before.len() - piece.len()]);
                match parsed {
                    Err(_) => pair.step(Step::Leave(name)),
                    Ok(None) => {
                        assert!(piece.is_empty(), "bytes left behind");
                        pair.step(Step::Begin(name, self.parser.held_bytes()));
                        break;
                    }
                    Ok(Some(request)) => {
                        let mut encoded = BytesMut::new();
                        request.encode(&mut encoded);
                        assert_eq!(encoded, self.sent, "accepted bytes that are not the encoding");
                        self.sent.clear();
                        pair.step(Step::Ask(name, request));
                    }
                }
            }
        }
    }
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
    Some(match opcode % 18 {
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
        _ => Request::ListKeys,
    })
}

fn take(input: &mut &[u8]) -> Option<u8> {
    let (first, rest) = input.split_first()?;
    *input = rest;
    Some(*first)
}

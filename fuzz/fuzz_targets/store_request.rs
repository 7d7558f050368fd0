//! What a client sends to a store, cut at arbitrary points, and carried out by the server's state and by
//! its model.
//!
//! The first byte says how many bytes come at a time.

#![no_main]

use bytes::BytesMut;
use kvpipe::store::Limits;
use kvpipe::store::tcp::protocol::RequestParser;
use libfuzzer_sys::fuzz_target;

#[expect(dead_code, reason = "what several clients do is for the target `store_state`")]
#[path = "../../tests/store/model.rs"]
mod model;

use model::{Pair, Step};

/// The only one.
const CLIENT: usize = 0;

fuzz_target!(|bytes: &[u8]| {
    let Some((step, stream)) = bytes.split_first() else { return };
    let limits = limits();
    let mut pair = Pair::new(limits.clone());
    pair.step(Step::Connect(CLIENT));
    let mut parser = RequestParser::new(limits);
    let mut sent = Vec::new();
    for mut piece in stream.chunks(usize::from(*step) + 1) {
        while pair.is_connected(CLIENT) {
            let before = piece;
            let parsed = parser.parse(&mut piece);
            sent.extend_from_slice(&before[..before.len() - piece.len()]);
            match parsed {
                Err(_) => pair.step(Step::Leave(CLIENT)),
                Ok(None) => {
                    assert!(piece.is_empty(), "bytes left behind");
                    pair.step(Step::Begin(CLIENT, parser.held_bytes()));
                    break;
                }
                Ok(Some(request)) => {
                    let mut encoded = BytesMut::new();
                    request.encode(&mut encoded);
                    assert_eq!(encoded, sent, "accepted bytes that are not the encoding");
                    sent.clear();
                    pair.step(Step::Ask(CLIENT, request));
                }
            }
        }
    }
    pair.finish();
});

/// So small that they are reached.
fn limits() -> Limits {
    let mut limits = Limits::default();
    (limits.key_bytes, limits.value_bytes, limits.key_list_bytes) = (16, 200, 40);
    (limits.keys_per_request, limits.stored_keys, limits.stored_bytes) = (6, 8, 500);
    limits.unfinished_bytes = 6000;
    limits
}

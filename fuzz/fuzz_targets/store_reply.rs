//! What a server answers: one reply of each kind, cut at arbitrary points.
//!
//! The first byte says which reply is expected, the second how many bytes come at a time.

#![no_main]

use bytes::BytesMut;
use kvpipe::store::Limits;
use kvpipe::store::tcp::protocol::{Expected, ReplyParser};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let &[kind, step, ref stream @ ..] = bytes else { return };
    let kinds = [
        Expected::Pong,
        Expected::Value,
        Expected::Number,
        Expected::Readiness,
        Expected::Wait,
        Expected::Popped,
        Expected::Keys,
        Expected::Values(0),
        Expected::Values(1),
        Expected::Values(3),
    ];
    let mut parser = ReplyParser::new(kinds[usize::from(kind) % kinds.len()], &Limits::default());
    let mut read = 0;
    for mut part in stream.chunks(usize::from(step).max(1)) {
        let before = part.len();
        let parsed = parser.parse(&mut part);
        read += before - part.len();
        let Ok(parsed) = parsed else { return };
        if let Some(reply) = parsed {
            let mut encoded = BytesMut::new();
            reply.encode(&mut encoded);
            assert_eq!(&encoded, &stream[..read], "accepted bytes that are not the encoding");
            return;
        }
        assert!(part.is_empty(), "bytes left behind");
    }
});

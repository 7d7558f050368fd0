//! What clients send to a store: requests cut at arbitrary points, carried out by the server's state.
//!
//! The first byte says how many bytes come at a time.

#![no_main]

use bytes::BytesMut;
use kvpipe::store::Limits;
use kvpipe::store::tcp::protocol::RequestParser;
use kvpipe::store::tcp::server_state::ServerState;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&step, stream)) = bytes.split_first() else { return };
    let limits = Limits::default();
    let mut parser = RequestParser::new(limits.clone());
    let mut state = ServerState::new(&limits);
    let client = state.connect().expect("the first client");

    let mut replies = Vec::new();
    let mut encoded = BytesMut::new();
    let mut read = 0;
    'stream: for mut part in stream.chunks(usize::from(step).max(1)) {
        loop {
            let before = part.len();
            let parsed = parser.parse(&mut part);
            read += before - part.len();
            let Ok(parsed) = parsed else { break 'stream };
            let Some(request) = parsed else { break };
            encoded.clear();
            request.encode(&mut encoded);
            assert!(stream[..read].ends_with(&encoded), "accepted bytes that are not the encoding");
            if state.handle(client, request, &mut replies).is_err() {
                break 'stream;
            }
            assert!(replies.drain(..).all(|(receiver, _)| receiver == client), "an answer to nobody");
        }
        assert!(part.is_empty(), "bytes left behind");
    }
    state.disconnect(client);
    assert_eq!((state.clients(), state.waiting()), (0, 0), "a client that left left something behind");
});

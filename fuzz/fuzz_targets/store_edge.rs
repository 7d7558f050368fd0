//! What the two ends of an edge over a store find in it: a Hello, a report, a heartbeat, and messages,
//! of which the first byte says how long they are.

#![no_main]

use bytes::Bytes;
use kvpipe::transport::fuzzing::{farewell, hello, read_messages, report};
use kvpipe_fuzz::within;
use libfuzzer_sys::fuzz_target;

/// The texts of a report's two replies, and both once more when they are encoded again.
const REPORT_BYTES: usize = 16 << 10;

fuzz_target!(|bytes: &[u8]| {
    for again in [within(REPORT_BYTES, || hello(bytes)), within(REPORT_BYTES, || report(bytes))] {
        assert!(again.is_none_or(|again| again == bytes), "accepted bytes that are not the encoding");
    }
    within(REPORT_BYTES, || farewell(bytes));

    let Some((length, stream)) = bytes.split_first() else { return };
    let messages = stream.chunks(usize::from(*length) + 1).map(Bytes::copy_from_slice);
    let taken = read_messages(messages, bytes.len());
    assert!(stream.starts_with(&taken), "took what was not sent");
});

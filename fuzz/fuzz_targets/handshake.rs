//! Bodies of the four messages of a handshake, and the first message of a stream.

#![no_main]

use kvpipe::wire::frame::PREFIX_BYTES;
use kvpipe::wire::handshake::{Answer, Hello, MAGIC, Proof, Verdict, greeting_in};
use kvpipe_fuzz::{check, within_limit};
use libfuzzer_sys::fuzz_target;

const GREETING_BYTES: usize = MAGIC.len() + PREFIX_BYTES;

fuzz_target!(|bytes: &[u8]| {
    check(bytes, Hello::decode, Hello::encode_into, GREETING_BYTES);
    check(bytes, Answer::decode, Answer::encode_into, GREETING_BYTES);
    check(bytes, Proof::decode, Proof::encode_into, PREFIX_BYTES);
    check(bytes, Verdict::decode, Verdict::encode_into, PREFIX_BYTES);

    if let Ok(Some(body)) = within_limit(|| greeting_in(bytes)) {
        assert_eq!(bytes[..MAGIC.len()], MAGIC);
        check(&bytes[body], Hello::decode, Hello::encode_into, GREETING_BYTES);
    }
});

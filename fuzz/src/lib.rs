//! What must hold for every decoder of `kvpipe::wire`, whatever the bytes; the store's parsers, which
//! keep what was cut off, and pickles, which have several forms, have targets of their own shape.
//!
//! Run a target from the repository's root, and let it start from the hand-made messages in
//! `fuzz/corpus`:
//!
//! ```text
//! cargo +nightly fuzz run metadata -- -max_total_time=60
//! ```

use kvpipe::wire::DecodeError;

#[path = "../../tests/wire_allocation/counting.rs"]
mod counting;

/// The most memory that decoding may ask for; the documentation of `kvpipe::wire` promises it.
const LIMIT_BYTES: usize = 4096;

/// Checks that decoding `bytes` stays within its memory, and that whatever it accepts is the one
/// encoding of the message: `decode(bytes) = Ok(message)` implies `encode(message) == bytes`.
///
/// `encode_into` writes what is sent, which has a preamble (magic, length) of `preamble_bytes`
/// before what `decode` takes.
///
/// # Panics
/// If one of these does not hold.
pub fn check<M>(
    bytes: &[u8],
    decode: fn(&[u8]) -> Result<M, DecodeError>,
    encode_into: fn(&M, &mut Vec<u8>),
    preamble_bytes: usize,
) {
    if let Ok(message) = within_limit(|| decode(bytes)) {
        let mut sent = Vec::new();
        encode_into(&message, &mut sent);
        assert_eq!(&sent[preamble_bytes..], bytes, "accepted bytes that are not the encoding");
    }
}

/// What `work` returns, if it asked for no more memory than decoding may.
///
/// # Panics
/// If it asked for more.
pub fn within_limit<T>(work: impl FnOnce() -> T) -> T {
    within(LIMIT_BYTES, work)
}

/// What `work` returns, if it asked for no more memory than `limit_bytes`.
///
/// # Panics
/// If it asked for more.
pub fn within<T>(limit_bytes: usize, work: impl FnOnce() -> T) -> T {
    let (result, requested_bytes) = counting::allocated_by(work);
    assert!(requested_bytes <= limit_bytes, "{requested_bytes} bytes allocated");
    result
}

//! The fuzz targets, and what must hold for every decoder of `kvpipe::wire`, whatever the bytes; the
//! others have checks of their own shape.
//!
//! Run a target from the repository's root; it starts from the inputs in `fuzz/corpus`, and
//! keeps what it finds beside them, where git does not look:
//!
//! ```text
//! cargo +nightly fuzz run metadata -- -max_total_time=60
//! ```
//!
//! | `cargo +nightly fuzz run ...` | what it is given |
//! |---|---|
//! | `metadata` | an item's metadata |
//! | `metadata_structured` | the same field by field, one of which is wrong |
//! | `frame` | frames of both directions of an edge |
//! | `handshake` | the four messages of a handshake |
//! | `object` | objects of a native group |
//! | `pickle` | pickles, as vLLM sends them |
//! | `session` | both ends of an edge whose connections break, are late, and are doubled |
//! | `session_hostile` | each end of an edge with a peer that says anything |
//! | `store_request` | a client's bytes, parsed and carried out |
//! | `store_reply` | a server's bytes, parsed |
//! | `store_state` | requests of several clients, which come and go, beside a model of the server |
//! | `store_edge` | what the ends of an edge over a store find in it |
//! | `safetensors` | files of tensors, beside the crate of that name |
//! | `kv_transfer_config` | vLLM's configuration, in JSON |
//!
//! A crash that was found and mended is a test on stable, and its input stays in the corpus.

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

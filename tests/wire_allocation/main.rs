//! How much memory encoding and decoding ask for, in a binary of its own because an allocator is
//! global.

#[allow(unsafe_code, reason = "an allocator can't be written without; it never leaves this test")]
mod counting;

use kvpipe::tensor::{DType, Shape};
use kvpipe::wire::frame::{Frame, MAX_FRAME_BYTES, Reply};
use kvpipe::wire::handshake::{Answer, Hello, Verdict};
use kvpipe::wire::metadata::{Metadata, TensorMetadata};

use counting::allocated_by;

/// What the documentation of `kvpipe::wire` promises.
const LIMIT_BYTES: usize = 4096;

fn item(dims: &[usize]) -> Frame {
    let tensor = TensorMetadata::new(DType::BFloat16, Shape::new(dims).unwrap()).unwrap();
    Frame::Item { sequence: 1, metadata: Metadata::Tensor(tensor) }
}

#[test]
fn the_counter_counts() {
    let (boxed, bytes) = allocated_by(|| Box::new([0_u8; 100]));
    assert_eq!((boxed.len(), bytes), (100, 100));
}

#[test]
fn encoding_an_item_into_a_vec_with_room_allocates_nothing() {
    let item = item(&[2; 14]);
    let mut out = Vec::with_capacity(MAX_FRAME_BYTES);
    let ((), bytes) = allocated_by(|| item.encode_into(&mut out));
    assert_eq!(bytes, 0);
    assert!(!out.is_empty());
}

#[test]
fn decoding_an_item_allocates_nothing() {
    let mut sent = Vec::new();
    item(&[4, 5, 6]).encode_into(&mut sent);
    let (decoded, bytes) = allocated_by(|| Frame::decode(&sent[4..]));
    assert_eq!((decoded, bytes), (Ok(item(&[4, 5, 6])), 0));
}

#[test]
fn a_claimed_text_length_is_not_allocated() {
    for claimed in [1024, 1025, 1 << 20, 1 << 60, u64::MAX] {
        let tagged = |tag: &[u8]| [tag, &u64::to_le_bytes(claimed)].concat();
        let refused = allocated_by(|| {
            assert!(Frame::decode(&tagged(&[0x03])).is_err());
            assert!(Reply::decode(&tagged(&[0x84])).is_err());
            assert!(Hello::decode(&tagged(&[1, 0])).is_err());
            assert!(Answer::decode(&tagged(&[0, 1])).is_err());
            assert!(Verdict::decode(&tagged(&[0, 1])).is_err());
        });
        assert!(refused.1 < 200, "{} bytes for a claim of {claimed}", refused.1);
    }
}

#[test]
fn the_longest_refusal_is_within_the_limit() {
    // The error that says most: a shape of 14 dimensions of 20 digits each.
    let mut bytes = vec![1, 1, DType::UInt8.code(), 14];
    bytes.resize(Metadata::MAX_BYTES, 0xff);
    let (decoded, requested) = allocated_by(|| Metadata::decode(&bytes));
    assert!(decoded.is_err());
    assert!((1..=LIMIT_BYTES).contains(&requested), "{requested} bytes");
}

#[test]
fn input_over_the_limit_is_refused_without_a_copy() {
    let (decoded, requested) = allocated_by(|| Metadata::decode(&[0; 1 << 20]));
    assert!(decoded.is_err());
    assert_eq!(requested, 0);
}

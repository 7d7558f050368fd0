//! How much memory encoding and decoding ask for, in a binary of its own because an allocator is
//! global.

#[allow(unsafe_code, reason = "an allocator can't be written without; it never leaves this test")]
mod counting;

use bytes::Bytes;
use kvpipe::tensor::{DType, Shape, Tensor};
use kvpipe::wire::frame::{Frame, MAX_FRAME_BYTES, Reply};
use kvpipe::wire::handshake::{Answer, Hello, Verdict};
use kvpipe::wire::metadata::{Metadata, TensorMetadata};
use kvpipe::wire::pickle::{self, WORKING_BYTES_MAX};
use kvpipe::wire::{DecodeError, Object};

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
fn encoding_a_tensor_asks_for_its_length_once() {
    let tensor = Tensor::from_vec([100_000], vec![7_u8; 100_000]).unwrap();
    let object = Object::Tensor(tensor);
    let (encoded, bytes) = allocated_by(|| object.encode().unwrap());
    assert!(encoded.len() > 100_000);
    // Beside it: the metadata, and what two bytes begin with.
    assert!(bytes < encoded.len() + 1000, "{bytes} bytes");
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

/// Checks that decoding asks for no more than is promised: working memory, a text, or the copy of a
/// tensor that is not contiguous.
#[track_caller]
fn decode_pickle(message: &Bytes, limits: &pickle::Limits) -> Result<Object, DecodeError> {
    let (decoded, requested) = allocated_by(|| pickle::decode(message, limits));
    let value_bytes = match &decoded {
        Ok(Object::Text(text)) => text.len(),
        Ok(Object::Tensor(tensor)) => tensor.byte_len(),
        _ => 0,
    };
    let promised = WORKING_BYTES_MAX + value_bytes;
    assert!(requested <= promised, "{requested} bytes, {promised} were promised");
    decoded
}

/// The pickles that `tests/pickle` explains.
fn recorded_pickles() -> Vec<Bytes> {
    fn texts(value: &serde_json::Value) -> Vec<&str> {
        match value {
            serde_json::Value::String(text) => vec![text],
            serde_json::Value::Array(values) => values.iter().flat_map(texts).collect(),
            serde_json::Value::Object(values) => values.values().flat_map(texts).collect(),
            _ => Vec::new(),
        }
    }
    let recorded = serde_json::from_str(include_str!("../pickle/golden.json")).unwrap();
    let pickles = texts(&recorded).into_iter().filter(|text| text.starts_with("800"));
    pickles.map(|text| hex::decode(text).unwrap().into()).collect()
}

#[test]
fn no_recorded_pickle_cut_or_altered_takes_more_memory_than_is_promised() {
    let mut limits = pickle::Limits::default();
    limits.tensor_bytes = 4096;
    let recorded = recorded_pickles();
    assert_eq!(recorded.len(), 4 + 4 + 46 + 13 + 4 + 20);
    for pickle in recorded {
        let mut altered = pickle.to_vec();
        for position in 0..pickle.len() {
            let _ = decode_pickle(&pickle.slice(..position), &limits);
            // What makes the most of a length, a size or an opcode.
            for byte in [0x00, 0x7f, 0x80, 0xff, pickle[position] ^ 1, pickle[position].wrapping_add(1)] {
                altered[position] = byte;
                let _ = decode_pickle(&Bytes::copy_from_slice(&altered), &limits);
            }
            altered[position] = pickle[position];
        }
    }
}

#[test]
fn a_payload_is_not_copied() {
    let tensor = kvpipe::tensor::Tensor::from_slice([1 << 18], &vec![1.0_f32; 1 << 18]).unwrap();
    let message = pickle::encode(&Object::Tensor(tensor.clone())).unwrap();
    let limits = pickle::Limits::default();
    let (decoded, requested) = allocated_by(|| pickle::decode(&message, &limits));
    assert_eq!(decoded, Ok(Object::Tensor(tensor.clone())));
    assert!(requested <= WORKING_BYTES_MAX, "{requested} bytes");
    let (parts, requested) = allocated_by(|| pickle::encode_tensor(&tensor));
    assert_eq!(parts.unwrap()[1].as_ptr(), tensor.bytes().unwrap().as_ptr());
    assert!(requested <= 4096, "{requested} bytes");
}

/// Each flood fills another of the machine's lists as far as it goes; the last ones fill several.
#[test]
fn the_working_memory_is_bounded_whatever_the_operations() {
    for flood in [
        &b"N"[..],
        b"(",
        b"}",
        b"\x94",
        b"N\x94",
        b"NN\x86",
        b"NNN\x87\x94",
        b"}NNs",
        b"}\x94NNs\x85\x94",
        b"X\x00\x00\x00\x00\x94\x85\x94",
    ] {
        let message = [b"\x80\x04N", &flood.repeat(1000)[..]].concat();
        assert!(decode_pickle(&message.into(), &pickle::Limits::default()).is_err());
    }
}

/// The memo is the one list that a pickle can fill and still be accepted; a tensor has six pickles.
#[test]
fn the_working_memory_of_a_tensor_is_bounded_though_all_its_pickles_are_padded() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("../pickle/golden.json")).unwrap();
    let recorded = &golden["tensors"]["arange6_2x3_float32"]["pickle"];
    let recorded = hex::decode(recorded.as_str().unwrap()).unwrap();
    let stream = recorded.windows(4).position(|four| four == b"\x80\x02\x8a\x0a").unwrap();

    // Where each of the five ends (section 3.4 of the reference), and how many memo entries it has.
    let mut padded = Vec::new();
    let mut start = 0;
    for (end, memo) in [(15, 0), (21, 0), (137, 8), (215, 5), (243, 2)] {
        padded.extend_from_slice(&recorded[stream + start..stream + end - 1]);
        padded.extend((memo..95).flat_map(|index| [b'q', index]));
        padded.push(b'.');
        start = end;
    }
    let end = stream + 243 + 8 + 24;
    padded.extend_from_slice(&recorded[stream + start..end]);

    let frame = 2 + 9;
    let before = &recorded[frame..stream - 4];
    let body = &recorded[end..recorded.len() - 1];
    let flood = b"\x94".repeat(128 - 50);
    let length = (padded.len() as u32).to_le_bytes();
    let message = [b"\x80\x04", before, &length, &padded, body, &flood, b"."].concat();
    let message = Bytes::from(message);
    let (decoded, requested) = allocated_by(|| pickle::decode(&message, &pickle::Limits::default()));
    assert!(matches!(decoded, Ok(Object::Tensor(_))), "{decoded:?}");
    assert!((WORKING_BYTES_MAX / 4..=WORKING_BYTES_MAX).contains(&requested), "{requested} bytes");
}

#[test]
fn a_claimed_length_in_a_pickle_is_not_allocated() {
    for claimed in [1024, 1 << 31, 1 << 62, u64::MAX] {
        for code in [&b"\x95"[..], b"\x8e", b"X", b"B"] {
            let message = [b"\x80\x04", code, &u64::to_le_bytes(claimed), b"NNNN"].concat();
            let (decoded, requested) =
                allocated_by(|| pickle::decode(&message.into(), &pickle::Limits::default()));
            assert!(decoded.is_err());
            assert!(requested < 500, "{requested} bytes for a claim of {claimed}");
        }
    }
}

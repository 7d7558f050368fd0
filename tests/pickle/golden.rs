//! What Python, torch and vLLM wrote, byte for byte.
//!
//! `golden.json` holds pickles in hex: metadata and unique ids of CPython 3.11 to 3.13, tensors of torch
//! 2.8, and of tensors whose bytes are not those of the storage what torch says they are.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvpipe::tensor::{DType, Shape, Tensor};
use kvpipe::wire::metadata::TensorMetadata;
use kvpipe::wire::pickle::{Limits, decode, decode_metadata, decode_tensor, encode, encode_tensor};
use kvpipe::wire::{Metadata, Object, UniqueId};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    metadata_none_by_protocol: BTreeMap<String, String>,
    metadata_float16_2x3_by_protocol: BTreeMap<String, String>,
    metadata_2x3_by_dtype: BTreeMap<String, String>,
    metadata_bfloat16_by_shape: Vec<(Vec<usize>, String)>,
    unique_id_by_protocol: BTreeMap<String, String>,
    tensors: BTreeMap<String, PickledTensor>,
}

#[derive(Deserialize)]
struct PickledTensor {
    shape: Vec<usize>,
    dtype: String,
    raw: String,
    pickle: String,
}

/// Of a bfloat16, no memory can have this shape.
const IMPOSSIBLE: [usize; 1] = [isize::MAX as usize];

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden.json")).unwrap()
}

fn bytes(text: &str) -> Bytes {
    hex::decode(text).unwrap().into()
}

fn metadata(dtype: DType, dims: &[usize]) -> Object {
    let tensor = TensorMetadata::new(dtype, Shape::new(dims).unwrap()).unwrap();
    Object::Metadata(Metadata::Tensor(tensor))
}

fn id() -> Object {
    Object::UniqueId(UniqueId(std::array::from_fn(|index| index as u8)))
}

/// Every recorded pickle that is accepted, with its name and meaning.
pub(crate) fn all() -> Vec<(String, Bytes, Object)> {
    let golden = golden();
    let mut all = vec![("None".into(), bytes("80044e2e"), Object::None)];
    for (protocol, text) in &golden.metadata_none_by_protocol {
        all.push((format!("no tensor, {protocol}"), bytes(text), Object::Metadata(Metadata::None)));
    }
    for (protocol, text) in &golden.metadata_float16_2x3_by_protocol {
        all.push((format!("metadata, {protocol}"), bytes(text), metadata(DType::Float16, &[2, 3])));
    }
    for (dtype, text) in &golden.metadata_2x3_by_dtype {
        all.push((format!("metadata {dtype}"), bytes(text), metadata(dtype.parse().unwrap(), &[2, 3])));
    }
    for (dims, text) in golden.metadata_bfloat16_by_shape.iter().filter(|(dims, _)| *dims != IMPOSSIBLE) {
        all.push((format!("metadata {dims:?}"), bytes(text), metadata(DType::BFloat16, dims)));
    }
    for (protocol, text) in golden.unique_id_by_protocol.iter().filter(|(protocol, _)| *protocol != "2") {
        all.push((format!("unique id, {protocol}"), bytes(text), id()));
    }
    for (name, tensor) in &golden.tensors {
        let (dtype, shape) = (tensor.dtype.parse().unwrap(), &tensor.shape[..]);
        let meaning = Tensor::new(dtype, shape, bytes(&tensor.raw)).unwrap();
        all.push((name.clone(), bytes(&tensor.pickle), Object::Tensor(meaning)));
    }
    all
}

#[test]
fn every_recorded_pickle_means_what_it_meant_in_python() {
    let all = all();
    assert_eq!(all.len(), 1 + 4 + 4 + 46 + 12 + 3 + 20);
    for (name, pickle, meaning) in all {
        assert_eq!(decode(&pickle, &Limits::default()), Ok(meaning.clone()), "{name}");
        let as_metadata = decode_metadata(&pickle, &Limits::default()).map(Object::Metadata);
        let as_tensor = decode_tensor(&pickle, &Limits::default()).and_then(|tensor| tensor.into_tensor());
        assert_eq!(
            as_metadata.ok(),
            matches!(meaning, Object::Metadata(_)).then(|| meaning.clone()),
            "{name}"
        );
        assert_eq!(
            as_tensor.map(Object::Tensor).ok(),
            matches!(meaning, Object::Tensor(_)).then_some(meaning),
            "{name}"
        );
    }
}

#[test]
fn a_shape_that_no_memory_has_is_refused_and_the_longest_integer_is_written_as_python_does() {
    let golden = golden();
    let (_, text) = golden.metadata_bfloat16_by_shape.iter().find(|(dims, _)| *dims == IMPOSSIBLE).unwrap();
    let refused = decode(&bytes(text), &Limits::default()).unwrap_err().to_string();
    assert!(refused.starts_with("impossible shape: the byte length of bfloat16 ["), "{refused}");
    // The same with a name that is as long, of a dtype that a quarter of a byte suffices for.
    let (from, to) = (hex::encode("\x08bfloat16"), hex::encode("\x08quint2x4"));
    let other = bytes(&text.replace(&from, &to));
    let object = metadata(DType::QUInt2x4, &IMPOSSIBLE);
    assert_eq!(decode(&other, &Limits::default()), Ok(object.clone()));
    assert_eq!(encode(&object).unwrap(), other);
}

#[test]
fn every_dtype_has_a_recording() {
    let recorded: Vec<DType> =
        golden().metadata_2x3_by_dtype.keys().map(|name| name.parse().unwrap()).collect();
    assert!(DType::ALL.iter().all(|dtype| recorded.contains(dtype)));
}

#[test]
fn what_python_writes_in_protocol_4_is_what_we_write() {
    let mut compared = 0;
    for (name, pickle, object) in all() {
        if pickle[1] == 4 && !matches!(object, Object::Tensor(_)) {
            assert_eq!(hex::encode(encode(&object).unwrap()), hex::encode(&pickle), "{name}");
            compared += 1;
        }
    }
    assert_eq!(compared, 1 + 1 + 1 + 46 + 12 + 1);
}

/// `pickle.dumps("x" * length, 4)` of CPython 3.11 to 3.13: what stands before and behind the text.
#[test]
fn texts_are_framed_as_python_frames_them() {
    for (length, before, behind) in [
        (0, "80049504000000000000008c00", "942e"),
        (1, "80049505000000000000008c01", "942e"),
        (255, "80049503010000000000008cff", "942e"),
        (256, "80049507010000000000005800010000", "942e"),
        (65_530, "800495010001000000000058faff0000", "942e"),
        (65_531, "800495020001000000000058fbff0000", "942e"),
        (65_535, "800495060001000000000058ffff0000", "942e"),
        (65_536, "8004 5800000100", "942e"),
        (65_537, "8004 5801000100", "942e"),
    ] {
        let text = "x".repeat(length);
        let pickle = [&bytes(&before.replace(' ', "")), text.as_bytes(), &bytes(behind)].concat();
        let object = Object::Text(text);
        assert!(encode(&object).unwrap() == pickle, "a text of {length} bytes");
        assert!(decode(&pickle.into(), &Limits::default()) == Ok(object), "a text of {length} bytes");
    }
}

/// Protocol 2 has no bytes, and Python writes a call of `_codecs.encode` instead.
#[test]
fn a_unique_id_in_protocol_2_is_refused_by_the_function_that_it_calls() {
    let pickle = bytes(&golden().unique_id_by_protocol["2"]);
    assert_eq!(
        decode(&pickle, &Limits::default()).unwrap_err().to_string(),
        "opcode 0x63 at offset 95 of the pickle: the global \"_codecs.encode\" is not allowed"
    );
}

/// Neither frame nor memo, and "0" for an address. torch 2.8 loads it: see `torch.rs`.
#[test]
fn a_tensor_is_written_in_the_shortest_form() {
    let tensor = Tensor::from_slice([2, 3], &[0.0_f32, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
    let [prefix, payload, suffix] = encode_tensor(&tensor).unwrap();
    let stream = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\
        \x80\x02}(X\x10\0\0\0protocol_versionM\xe9\x03X\x0d\0\0\0little_endian\x88\
        X\x0a\0\0\0type_sizes}(X\x05\0\0\0shortK\x02X\x03\0\0\0intK\x04X\x04\0\0\0longK\x04uu.\
        \x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06NtQ.\
        \x80\x02]X\x01\0\0\x000a.\x06\0\0\0\0\0\0\0";
    let outer = b"\x80\x04\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v2\x93(\
        \x8c\x0dtorch.storage\x8c\x10_load_from_bytes\x93B\xdb\0\0\0";
    assert_eq!(prefix.escape_ascii().to_string(), [&outer[..], stream].concat().escape_ascii().to_string());
    assert_eq!(
        suffix.escape_ascii().to_string(),
        b"\x85RK\0K\x02K\x03\x86K\x03K\x01\x86\x89\x8c\x0bcollections\x8c\x0bOrderedDict\x93)RtR."
            .escape_ascii()
            .to_string()
    );
    assert_eq!(payload.as_ptr(), tensor.bytes().unwrap().as_ptr());
    let whole = encode(&Object::Tensor(tensor)).unwrap();
    assert_eq!(whole, [prefix, payload, suffix].concat());
}

/// A dimension of 0 counts as 1 in the strides that torch computes.
#[test]
fn an_empty_tensor_has_torchs_strides() {
    let empty = Tensor::from_slice([2, 0, 3], &[0.0_f32; 0]).unwrap();
    let [_, payload, suffix] = encode_tensor(&empty).unwrap();
    assert!(payload.is_empty());
    let size_and_stride = b"\x85RK\0K\x02K\0K\x03\x87K\x03K\x03K\x01\x87\x89";
    assert!(suffix.starts_with(size_and_stride), "{}", suffix.escape_ascii());
}

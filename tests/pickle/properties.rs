//! What holds for every value, and for every message that nearly is one.

use bytes::Bytes;
use kvpipe::tensor::{DType, Shape, Tensor};
use kvpipe::wire::metadata::TensorMetadata;
use kvpipe::wire::pickle::{Limits, check_tensor, decode, decode_metadata, decode_tensor, encode};
use kvpipe::wire::{DecodeError, Metadata, Object, UniqueId};
use proptest::prelude::*;

use crate::golden;
use crate::support::Parts;

const REFUSED: &str =
    "complex32 uint16 uint32 uint64 float8_e4m3fn float8_e5m2 float4_e2m1fn_x2 qint8 bits8 int4";

fn any_tensor() -> impl Strategy<Value = Tensor> {
    let dims = prop::collection::vec(0..6_usize, 0..5);
    let loadable: Vec<DType> = DType::ALL.iter().copied().filter(|dtype| is_loadable(*dtype)).collect();
    (prop::sample::select(loadable), dims, any::<u8>()).prop_map(|(dtype, dims, seed)| {
        let length = Shape::new(&dims).unwrap().byte_len(dtype).unwrap();
        let bytes: Vec<u8> = (0..length).map(|index| seed.wrapping_add(index as u8)).collect();
        Tensor::new(dtype, &dims[..], bytes.into()).unwrap()
    })
}

fn is_loadable(dtype: DType) -> bool {
    encode(&Object::Tensor(Tensor::new(dtype, [0], Bytes::new()).unwrap())).is_ok()
}

fn any_object() -> impl Strategy<Value = Object> {
    let dims = prop::collection::vec(prop_oneof![0..300_usize, 65_535..65_537_usize, Just(1 << 31)], 0..4);
    let tensor = (prop::sample::select(DType::ALL), dims);
    let metadata = tensor.prop_filter_map("no memory has this shape", |(dtype, dims)| {
        TensorMetadata::new(dtype, Shape::new(&dims).ok()?).ok()
    });
    prop_oneof![
        Just(Object::None),
        ".{0,300}".prop_map(Object::Text),
        Just(Object::Metadata(Metadata::None)),
        metadata.prop_map(|tensor| Object::Metadata(Metadata::Tensor(tensor))),
        any_tensor().prop_map(Object::Tensor),
        any::<[u8; 32]>().prop_map(|part| Object::UniqueId(UniqueId(std::array::from_fn(|i| part[i % 32])))),
    ]
}

proptest! {
    #[test]
    fn decoding_gives_back_what_was_encoded(object in any_object()) {
        let message = encode(&object).unwrap();
        prop_assert_eq!(decode(&message, &Limits::default()), Ok(object));
    }

    #[test]
    fn every_strict_prefix_is_refused(object in any_object()) {
        let message = encode(&object).unwrap();
        for length in 0..message.len() {
            prop_assert!(decode(&message.slice(..length), &Limits::default()).is_err(), "{} bytes", length);
        }
    }

    #[test]
    fn any_trailing_byte_is_refused(object in any_object(), trailing: u8) {
        let message = [&encode(&object).unwrap()[..], &[trailing]].concat();
        let refused = decode(&message.into(), &Limits::default());
        prop_assert_eq!(refused, Err(DecodeError::TrailingBytes { count: 1 }));
    }

    /// Against the plainest way to say what a view is.
    #[test]
    fn any_view_is_gathered_as_its_strides_say(
        axes in prop::collection::vec((0..5_usize, 0..7_usize), 0..5),
        offset in 0..40_usize,
        dtype in prop::sample::select(&[(1, "Byte"), (2, "Short"), (4, "Float"), (8, "Long"), (16, "ComplexDouble")][..]),
    ) {
        let (item_bytes, class) = dtype;
        let count = 200;
        let class: &'static str = Box::leak(format!("torch\n{class}Storage\n").into_boxed_str());
        let numbers = |numbers: &mut dyn Iterator<Item = usize>| {
            crate::support::ints(&numbers.map(|number| number as i64).collect::<Vec<_>>())
        };
        let parts = Parts {
            class,
            count,
            repeated_count: count,
            data: (0..200 * item_bytes).map(|index| index as u8 ^ (index >> 8) as u8).collect(),
            offset: crate::support::int(offset as i64),
            size: numbers(&mut axes.iter().map(|axis| axis.0)),
            stride: numbers(&mut axes.iter().map(|axis| axis.1)),
            ..Parts::default()
        };
        let mut starts = vec![offset];
        for (size, stride) in &axes {
            starts = starts.iter().flat_map(|start| (0..*size).map(move |index| start + index * stride)).collect();
        }
        let expected: Vec<u8> = starts
            .iter()
            .flat_map(|start| &parts.data[start * item_bytes..][..item_bytes])
            .copied()
            .collect();
        prop_assert_eq!(parts.payload(), expected);
    }

    #[test]
    fn arbitrary_operations_are_refused_or_mean_something(
        body in prop::collection::vec(prop_oneof![
            prop::sample::select(&b"(.NKMJ\x8aX\x8cCBt\x85)}su]aecR\x93\x94qhQ\x88"[..]).prop_map(|code| vec![code]),
            any::<u8>().prop_map(|byte| vec![byte]),
            Just(crate::support::text("dtype")),
            Just(crate::support::text("shape")),
            Just(crate::support::global("torch", "Size")),
            Just(crate::support::global("torch", "float16")),
            Just(crate::support::global("torch._utils", "_rebuild_tensor_v2")),
        ], 0..40),
    ) {
        let message = crate::support::pickle(&body.concat());
        means_the_same_again(&message);
        let metadata = decode_metadata(&message, &Limits::default());
        prop_assert!(metadata.is_err() || decode(&message, &Limits::default()) == metadata.map(Object::Metadata));
        prop_assert!(decode_tensor(&message, &Limits::default()).is_err(), "it takes more than that");
    }
}

/// What `message` decodes to, if anything, is a value that we can write, and that decodes to itself.
fn means_the_same_again(message: &Bytes) {
    let mut limits = Limits::default();
    limits.tensor_bytes = 4096;
    let Ok(object) = decode(message, &limits) else { return };
    if let Object::Tensor(tensor) = &object {
        assert!(tensor.byte_len() <= limits.tensor_bytes);
        if !is_loadable(tensor.dtype()) {
            return;
        }
    }
    let again = encode(&object).unwrap();
    assert_eq!(decode(&again, &limits), Ok(object));
}

#[test]
fn every_truncation_of_a_recorded_pickle_is_refused() {
    for (name, pickle, _) in golden::all() {
        for length in 0..pickle.len() {
            let cut = pickle.slice(..length);
            assert!(decode(&cut, &Limits::default()).is_err(), "{name}, {length} bytes");
        }
    }
}

#[test]
fn every_altered_byte_of_a_recorded_pickle_is_refused_or_means_something() {
    for (name, pickle, _) in golden::all() {
        // Dtypes differ in their names only.
        let one_of_many = name.starts_with("metadata ") && !name.contains('[') || name.starts_with("arange");
        if one_of_many && !name.contains("bfloat16") {
            continue;
        }
        for position in 0..pickle.len() {
            let mut altered = pickle.to_vec();
            for flipped in 1..=u8::MAX {
                altered[position] = pickle[position] ^ flipped;
                means_the_same_again(&Bytes::copy_from_slice(&altered));
            }
        }
    }
}

#[test]
fn dtypes_that_torch_cant_load_back_are_refused_with_what_to_do() {
    for dtype in REFUSED.split(' ') {
        let tensor = Tensor::new(dtype.parse().unwrap(), [0], Bytes::new()).unwrap();
        let checked = check_tensor(&tensor).map_err(|error| error.to_string());
        let refused = encode(&Object::Tensor(tensor)).unwrap_err();
        assert_eq!(checked, Err(refused.to_string()));
        assert!(matches!(refused, kvpipe::Error::Misuse(_)));
        assert_eq!(
            refused.to_string(),
            format!(
                "torch can't load a pickled tensor of {dtype}: send its bytes as a tensor of uint8, and the \
                 dtype some other way"
            )
        );
    }
    assert_eq!(DType::ALL.iter().filter(|dtype| is_loadable(**dtype)).count(), 12);
}

#[test]
fn raw_bytes_are_refused_with_what_to_do() {
    let refused = encode(&Object::Bytes(Bytes::from_static(b"x"))).unwrap_err();
    assert!(matches!(refused, kvpipe::Error::Misuse(_)));
    assert_eq!(
        refused.to_string(),
        "vllm's protocol has no bytes: send them as a tensor of uint8, or in a native group"
    );
}

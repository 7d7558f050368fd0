//! Values that nearly are the protocol's: one lie at a time, and the error that names it.

use kvpipe::wire::pickle::{Limits, decode, decode_tensor};
use kvpipe::wire::{Metadata, Object};

use crate::support::{Parts, global, int, ints, metadata_of, pickle, refusal, size, text, tuple};

const HUGE: i64 = 1 << 62;

#[test]
fn metadata_says_dtype_and_shape_once_each_and_nothing_else() {
    let dict = |entries: &[&[u8]]| pickle(&[b"}(", &entries.concat()[..], b"u"].concat());
    let (dtype, shape) = (text("dtype"), text("shape"));
    let swapped = dict(&[&shape, b"N", &dtype, b"N"]);
    assert_eq!(decode(&swapped, &Limits::default()), Ok(Object::Metadata(Metadata::None)));
    // A longer name is not repeated.
    let known = "x".repeat(63);
    for (message, fault) in [
        (dict(&[]), "metadata without dtype or shape"),
        (dict(&[&dtype, b"N"]), "metadata without dtype or shape"),
        (dict(&[&dtype, b"N", &dtype, b"N"]), "metadata that says the same twice"),
        (dict(&[&dtype, b"N", &shape, b"N", &text("device"), b"N"]), "metadata with \"device\""),
        (dict(&[&text(&known), b"N"]), &format!("metadata with {known:?}")),
        (dict(&[&text(&"x".repeat(64)), b"N"]), "metadata with something else than dtype and shape"),
        (dict(&[&dtype, b"N", &shape, b"N", b"NN"]), "metadata with something else than dtype and shape"),
        (dict(&[&dtype, b"N", &shape, &size(&[1])]), "metadata that is neither a tensor's nor that of None"),
        (
            dict(&[&dtype, &text("float16"), &shape, &size(&[1])]),
            "metadata that is neither a tensor's nor that of None",
        ),
        (metadata_of(&ints(&[2, 3])), "metadata that is neither a tensor's nor that of None"),
        (
            metadata_of(&[&global("torch", "Size")[..], b")R"].concat()),
            "a shape that is not made of one tuple",
        ),
        (
            metadata_of(&[&global("torch", "Size")[..], b"K\x02\x85R"].concat()),
            "a shape that is not made of one tuple",
        ),
        (metadata_of(&size(&[2, -1])), "a size of -1 is below 0"),
        (
            metadata_of(&[&global("torch", "Size")[..], b"N\x85\x85R"].concat()),
            "a size that is None, not a length",
        ),
        (
            metadata_of(&[&global("torch", "Size")[..], b"\x8a\x09\0\0\0\0\0\0\0\0\x01\x85\x85R"].concat()),
            "a size that is an integer, not a length",
        ),
    ] {
        assert_eq!(refusal(message), format!("malformed: {fault}"));
    }
    let refused = refusal(metadata_of(&size(&[HUGE, 4])));
    assert!(refused.starts_with("impossible shape: "), "{refused}");
}

#[test]
fn a_unique_id_is_128_bytes_and_no_attributes() {
    let id = |class: &[u8], attributes: &[u8], count: u8| {
        let bytes = [&[b'C', count][..], &vec![7; count.into()]].concat();
        let call = global("_ctypes", "_unpickle");
        pickle(&[&call, class, attributes, &bytes, b"\x86\x86R"].concat())
    };
    let class = global("vllm.distributed.device_communicators.pynccl_wrapper", "ncclUniqueId");
    assert!(matches!(decode(&id(&class, b"}", 128), &Limits::default()), Ok(Object::UniqueId(_))));
    for count in [0, 127, 129] {
        assert_eq!(refusal(id(&class, b"}", count)), "malformed: a unique id that is not 128 bytes long");
    }
    assert_eq!(refusal(id(&class, b"}NNs", 128)), "malformed: a unique id with attributes");
    assert_eq!(
        refusal(id(&class, b"N", 128)),
        "malformed: a unique id that is not made of attributes and bytes"
    );
    assert_eq!(refusal(id(b"N", b"}", 128)), "malformed: a ctypes structure other than nccl's unique id");
}

#[test]
fn views_become_contiguous() {
    let view = Parts::view_of_bytes;
    assert_eq!(view(6, 0, &[2, 3], &[3, 1]).payload(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(view(6, 0, &[3, 2], &[1, 3]).payload(), [0, 3, 1, 4, 2, 5]);
    assert_eq!(view(6, 1, &[2, 2], &[3, 1]).payload(), [1, 2, 4, 5]);
    assert_eq!(view(6, 5, &[], &[]).payload(), [5]);
    assert_eq!(view(6, 2, &[2, 3], &[0, 0]).payload(), [2; 6]);
    assert_eq!(view(6, 2, &[2, 2], &[0, 1]).payload(), [2, 3, 2, 3]);
    assert_eq!(view(6, 0, &[3], &[2]).payload(), [0, 2, 4]);
    assert_eq!(view(8, 0, &[2, 1, 2, 2], &[1, 77, 4, 2]).payload(), [0, 2, 4, 6, 1, 3, 5, 7]);
    assert_eq!(view(6, 6, &[0, 3], &[3, 1]).payload(), b"");
    assert_eq!(view(0, 0, &[0], &[1]).payload(), b"");
}

#[test]
fn a_contiguous_view_is_a_part_of_the_message_and_others_are_not() {
    let contiguous = |offset, size: &[i64], stride: &[i64]| {
        let message = Parts::view_of_bytes(6, offset, size, stride).pickle();
        let pickled = decode_tensor(&message, &Limits::default()).unwrap();
        let (claimed, tensor) = (pickled.is_contiguous(), pickled.into_tensor().unwrap());
        let payload = tensor.bytes().unwrap();
        assert_eq!(message.as_ptr_range().contains(&payload.as_ptr()), claimed);
        claimed
    };
    assert!(contiguous(0, &[2, 3], &[3, 1]));
    assert!(contiguous(1, &[5], &[1]));
    assert!(contiguous(0, &[2, 1, 3], &[3, 9, 1]), "the stride of a dimension of 1 means nothing");
    assert!(contiguous(4, &[], &[]));
    assert!(!contiguous(0, &[3, 2], &[1, 3]));
    assert!(!contiguous(0, &[3], &[2]));
    assert!(!contiguous(0, &[2], &[0]));
}

#[test]
fn the_caller_may_bring_the_memory() {
    let message = Parts::view_of_bytes(6, 0, &[3, 2], &[1, 3]).pickle();
    let pickled = decode_tensor(&message, &Limits::default()).unwrap();
    assert_eq!(pickled.metadata().payload_bytes(), 6);
    assert_eq!(format!("{pickled:?}"), "PickledTensor(uint8 [3, 2] in 6 bytes)");
    let mut out = [9; 6];
    pickled.copy_to(&mut out).unwrap();
    assert_eq!(out, [0, 3, 1, 4, 2, 5]);
    let error = pickled.copy_to(&mut [0; 5]).unwrap_err();
    assert_eq!(error.to_string(), "a tensor of 6 bytes can't be copied to 5");
}

#[test]
fn no_view_reaches_beyond_its_storage() {
    for (offset, size, stride) in [
        (1, &[6][..], &[1][..]),
        (6, &[1], &[1]),
        (7, &[0], &[1]),
        (0, &[2, 4], &[3, 1]),
        (0, &[2], &[6]),
        (HUGE, &[1], &[1]),
        (i64::MAX, &[2], &[i64::MAX]),
        (0, &[3], &[HUGE]),
        (0, &[3, 3], &[HUGE, HUGE]),
        (0, &[2, 2, 2, 2], &[HUGE, HUGE, HUGE, HUGE]),
    ] {
        let refused = Parts::view_of_bytes(6, offset, size, stride).refusal();
        assert_eq!(
            refused, "malformed: a tensor that reaches beyond its storage",
            "{offset} {size:?} {stride:?}"
        );
    }
    // The same in items of more than one byte, whose products overflow earlier.
    for (offset, stride) in [(HUGE, 1), (0, HUGE), (1, 1)] {
        let parts = Parts { offset: int(offset), stride: ints(&[stride]), ..Parts::default() };
        assert_eq!(parts.refusal(), "malformed: a tensor that reaches beyond its storage");
    }
}

#[test]
fn nothing_is_negative() {
    let view = Parts::view_of_bytes;
    assert_eq!(view(6, -1, &[1], &[1]).refusal(), "malformed: an offset of -1 is below 0");
    assert_eq!(view(6, 0, &[-1], &[1]).refusal(), "malformed: a size of -1 is below 0");
    assert_eq!(view(6, 5, &[2], &[-1]).refusal(), "malformed: a stride of -1 is below 0");
    assert_eq!(view(6, 0, &[0], &[-1]).refusal(), "malformed: a stride of -1 is below 0");
    let parts = Parts { count: -2, repeated_count: -2, ..Parts::default() };
    assert_eq!(parts.refusal(), "malformed: a negative count of items");
}

/// The sign is the top bit of however many bytes there are.
#[test]
fn short_integers_have_a_sign_too() {
    let of = |integer: &[u8]| Parts { size: [b"(", integer, b"t"].concat(), ..Parts::default() };
    assert_eq!(of(b"\x8a\x01\xff").refusal(), "malformed: a size of -1 is below 0");
    assert_eq!(of(b"\x8a\x03\xfe\xff\xff").refusal(), "malformed: a size of -2 is below 0");
    assert_eq!(of(b"J\xff\xff\xff\xff").refusal(), "malformed: a size of -1 is below 0");
    assert_eq!(of(b"\x8a\x00").payload(), b"");
    assert_eq!(of(b"\x8a\x02\x02\x00").payload(), Parts::default().data);
    assert_eq!(of(b"\x8a\x02\xff\x00").refusal(), "malformed: a tensor that reaches beyond its storage");
}

#[test]
fn an_expansion_bomb_is_refused_before_memory_is_asked_for() {
    let bomb = Parts::view_of_bytes(1, 0, &[1 << 20, 1 << 20], &[0, 0]);
    assert_eq!(bomb.refusal(), "a tensor of 1099511627776 bytes is over the limit of 4294967296 bytes");
    let bomb = Parts::view_of_bytes(1, 0, &[HUGE, 4], &[0, 0]);
    assert!(bomb.refusal().starts_with("impossible shape: "));
    let mut limits = Limits::default();
    limits.tensor_bytes = 6;
    assert!(decode(&Parts::view_of_bytes(1, 0, &[2, 3], &[0, 0]).pickle(), &limits).is_ok());
    let over = decode(&Parts::view_of_bytes(1, 0, &[7], &[0]).pickle(), &limits).unwrap_err();
    assert_eq!(over.to_string(), "a tensor of 7 bytes is over the limit of 6 bytes");
}

#[test]
fn counts_and_data_agree() {
    let with = |count, repeated_count, bytes: usize| {
        Parts { count, repeated_count, data: vec![0; bytes], ..Parts::default() }.refusal()
    };
    let disagree = "malformed: two counts of a storage's items that do not agree";
    assert_eq!(with(3, 2, 8), disagree);
    assert_eq!(with(2, 3, 8), disagree);
    assert_eq!(with(2, 2, 10), "2 trailing bytes after the message");
    assert_eq!(with(2, 2, 7), "the message is truncated");
    assert_eq!(with(HUGE, HUGE, 8), "the message is truncated");
    assert_eq!(with(i64::MAX, i64::MAX, 8), "the message is truncated");
}

#[test]
fn a_storage_is_what_torch_writes() {
    let default = Parts::default;
    let keys = "malformed: a list of keys that is not that of the one storage";
    for (parts, expected) in [
        (Parts { magic: int(1), ..default() }, "malformed: a storage without torch's magic number"),
        (Parts { version: 1002, ..default() }, "malformed: a storage of another version than 1001"),
        (Parts { little_endian: 0x89, ..default() }, "malformed: a storage in big-endian order"),
        (Parts { device: "cuda:0", ..default() }, "malformed: a storage that is not in the cpu's memory"),
        (Parts { view: text("v"), ..default() }, "malformed: a storage that is a view of another one"),
        (Parts { keys: vec![], ..default() }, keys),
        (Parts { keys: vec!["1"], ..default() }, keys),
        (Parts { keys: vec!["0", "0"], ..default() }, keys),
    ] {
        assert_eq!(parts.refusal(), expected);
    }
}

#[test]
fn a_tensor_is_what_torch_writes() {
    let default = Parts::default;
    let arguments = "a tensor that is not rebuilt from storage, offset, size and stride";
    let extra = "a tensor with a conjugate or negative bit, or other metadata";
    let conjugate = [b"}", &text("conj")[..], b"\x88s"].concat();
    let fit = "a tensor and a storage of which not exactly one has a dtype";
    let hooks = [&global("collections", "OrderedDict")[..], &tuple(&[tuple(&[])]), b"R"].concat();
    for (parts, fault) in [
        (Parts { size: b"K\x02".to_vec(), ..default() }, arguments),
        (Parts { stride: b"N".to_vec(), ..default() }, arguments),
        (Parts { requires_grad: b'N', ..default() }, arguments),
        (Parts { hooks: b"N".to_vec(), ..default() }, "a tensor with backward hooks"),
        (Parts { hooks, ..default() }, "a tensor with backward hooks"),
        (Parts { stride: ints(&[1, 1]), ..default() }, "a tensor with more sizes than strides, or fewer"),
        (Parts { size: ints(&[2, 1]), ..default() }, "a tensor with more sizes than strides, or fewer"),
        (Parts { more: vec![conjugate], ..default() }, extra),
        (Parts { more: vec![b"N".to_vec(), b"N".to_vec()], ..default() }, extra),
        (Parts { more: vec![global("torch", "float32")], ..default() }, extra),
        (Parts { rebuild: "_rebuild_tensor_v3", ..default() }, "a tensor without a dtype"),
        (Parts { class: UNTYPED, count: 8, repeated_count: 8, ..default() }, fit),
        (Parts { rebuild: "_rebuild_tensor_v3", more: vec![global("torch", "float32")], ..default() }, fit),
        (untyped("quint8"), "a quantized tensor, whose scale is not read"),
        (untyped("quint2x4"), "a quantized tensor, whose scale is not read"),
    ] {
        assert_eq!(parts.refusal(), format!("malformed: {fault}"));
    }
    for accepted in [
        Parts { requires_grad: 0x88, ..default() },
        Parts { more: vec![b"N".to_vec()], ..default() },
        Parts { more: vec![b"}".to_vec()], ..default() },
    ] {
        assert_eq!(accepted.payload(), default().data);
    }
}

const UNTYPED: &str = "torch.storage\nUntypedStorage\n";

/// Two items of 4 bytes, or 8 of one.
fn untyped(dtype: &str) -> Parts {
    let rebuild = "_rebuild_tensor_v3";
    let more = vec![global("torch", dtype)];
    Parts { rebuild, class: UNTYPED, count: 8, repeated_count: 8, more, ..Parts::default() }
}

#[test]
fn an_untyped_storage_counts_bytes_and_takes_the_dtype_that_is_named() {
    for dtype in ["uint32", "complex32", "float32"] {
        assert_eq!(untyped(dtype).payload(), Parts::default().data);
    }
    let one = Parts { offset: int(3), size: ints(&[1]), ..untyped("uint16") };
    assert_eq!(one.payload(), Parts::default().data[6..]);
    let beyond = Parts { offset: int(7), size: ints(&[1]), ..untyped("uint16") };
    assert_eq!(beyond.refusal(), "malformed: a tensor that reaches beyond its storage");
}

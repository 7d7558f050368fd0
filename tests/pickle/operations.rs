//! Operations that are no part of the protocol's values, or stand in the wrong place.

use std::collections::BTreeSet;

use kvpipe::wire::DecodeError;
use kvpipe::wire::pickle::{Limits, decode, decode_metadata, decode_tensor};

use crate::support::{Parts, global, metadata_of, pickle, refusal, size, text, tuple};

/// Names and codes from CPython's `Lib/pickletools.py`: all that no value of the protocol needs.
const FORBIDDEN: &[(&str, u8)] = &[
    ("BUILD", b'b'),
    ("NEWOBJ", 0x81),
    ("NEWOBJ_EX", 0x92),
    ("INST", b'i'),
    ("OBJ", b'o'),
    ("PERSID", b'P'),
    ("BINPERSID", b'Q'),
    ("EXT1", 0x82),
    ("EXT2", 0x83),
    ("EXT4", 0x84),
    ("BYTEARRAY8", 0x96),
    ("NEXT_BUFFER", 0x97),
    ("READONLY_BUFFER", 0x98),
    ("EMPTY_SET", 0x8f),
    ("ADDITEMS", 0x90),
    ("FROZENSET", 0x91),
    ("POP", b'0'),
    ("POP_MARK", b'1'),
    ("DUP", b'2'),
    ("INT", b'I'),
    ("LONG", b'L'),
    ("LONG4", 0x8b),
    ("STRING", b'S'),
    ("BINSTRING", b'T'),
    ("SHORT_BINSTRING", b'U'),
    ("UNICODE", b'V'),
    ("BINUNICODE8", 0x8d),
    ("FLOAT", b'F'),
    ("BINFLOAT", b'G'),
    ("EMPTY_LIST", b']'),
    ("APPEND", b'a'),
    ("APPENDS", b'e'),
    ("LIST", b'l'),
    ("DICT", b'd'),
    ("GET", b'g'),
    ("PUT", b'p'),
    ("PROTO", 0x80),
];

/// The refusal of an operation, whatever the machine's state.
fn forbidden(code: u8) -> String {
    format!("opcode {code:#04x} at offset 2 of the pickle: not allowed here")
}

/// The codes that a decoder does not refuse out of hand.
fn allowed<T>(decode: impl Fn(&[u8]) -> Result<T, DecodeError>) -> BTreeSet<u8> {
    let refused = |code: &u8| {
        let error = decode(&[0x80, 4, *code]).err().map(|error| error.to_string());
        error == Some(forbidden(*code))
    };
    (0..=u8::MAX).filter(|code| !refused(code)).collect()
}

fn set(codes: &[u8]) -> BTreeSet<u8> {
    codes.iter().copied().collect()
}

#[test]
fn every_operation_that_no_value_needs_is_refused_by_code_and_offset() {
    for (name, code) in FORBIDDEN {
        let message = [&[0x80, 4, *code][..], &[0; 16]].concat();
        assert_eq!(refusal(message), forbidden(*code), "{name}");
    }
}

/// The sets are those of the protocol's values as Python writes them, not what the code says.
#[test]
fn each_kind_of_value_has_its_own_operations() {
    let limits = Limits::default();
    let metadata = set(b"\x95}(\x8c\x94\x93NKMJ\x8a)\x85\x86\x87tRu.shjXcqr");
    assert_eq!(allowed(|bytes| decode_metadata(bytes, &limits)), metadata);

    let tensor = &metadata | &set(b"BC\x8e\x88\x89");
    assert_eq!(allowed(|bytes| decode_tensor(&bytes.to_vec().into(), &limits)), tensor);
    assert_eq!(allowed(|bytes| decode(&bytes.to_vec().into(), &limits)), tensor, "a unique id adds none");

    let storage: BTreeSet<u8> = (0..=u8::MAX)
        .filter(|code| {
            let refused = refusal(Parts::default().pickle_around(&[0x80, 2, *code]));
            !refused.ends_with("not allowed here")
        })
        .collect();
    assert_eq!(storage, set(b"\x8aMKJ}(Xq\x88\x89cNtQ]aeus."));
}

#[test]
fn a_pickle_begins_with_a_protocol_from_2_to_5() {
    for protocol in [0, 1, 6, 255] {
        let message = [0x80, protocol, b'N', b'.'];
        let expected = format!("opcode 0x80 at offset 0 of the pickle: protocol {protocol}");
        assert_eq!(refusal(message.to_vec()), expected);
    }
    assert_eq!(
        refusal(&b"N."[..]),
        "opcode 0x4e at offset 0 of the pickle: a pickle begins with its protocol"
    );
    for protocol in 2..=5 {
        assert!(decode(&vec![0x80, protocol, b'N', b'.'].into(), &Limits::default()).is_ok());
    }
}

/// torch's own storages are of protocol 2, so that a 4 in one is somebody else's.
#[test]
fn a_storage_is_pickled_in_protocol_2() {
    let mut stream = Parts::default().stream();
    stream[1] = 4;
    let refused = refusal(Parts::default().pickle_around(&stream));
    assert!(refused.ends_with(": protocol 4"), "{refused}");
}

#[test]
fn every_global_that_no_value_needs_is_refused_by_its_name() {
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("subprocess", "Popen"),
        ("_codecs", "encode"),
        ("torch", "load"),
        ("torch", "half"),
        ("torch", "Tensor"),
        ("torch", "bcomplex32"),
        ("torch", "float16.__class__"),
        ("torch.torch", "Size"),
        ("torch", "FloatStorage"),
        ("torch.storage", "UntypedStorage"),
        ("torch.storage", "TypedStorage"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch._utils", "_rebuild_qtensor"),
        ("torch._utils", "_rebuild_meta_tensor_no_storage"),
        ("torch._utils", "_rebuild_device_tensor_from_numpy"),
        ("vllm.distributed.device_communicators.pynccl_wrapper", "NCCLLibrary"),
        ("", ""),
    ] {
        let expected = format!("the global {:?} is not allowed", format!("{module}.{name}"));
        let by_stack = refusal(pickle(&global(module, name)));
        assert!(by_stack.ends_with(&expected), "{by_stack}");
        let by_lines = refusal(pickle(format!("c{module}\n{name}\n").as_bytes()));
        assert!(by_lines.ends_with(&expected), "{by_lines}");
    }
}

#[test]
fn a_global_of_one_kind_is_refused_in_another() {
    let limits = Limits::default();
    let tensors = pickle(&global("torch._utils", "_rebuild_tensor_v2"));
    let refused = decode_metadata(&tensors, &limits).unwrap_err().to_string();
    assert!(refused.ends_with("the global \"torch._utils._rebuild_tensor_v2\" is not allowed"), "{refused}");
    let metadatas = pickle(&global("torch", "Size"));
    let refused = decode_tensor(&metadatas, &limits).unwrap_err().to_string();
    assert!(refused.ends_with("the global \"torch.Size\" is not allowed"), "{refused}");
    let class = "torch\nSize\n";
    let refused = Parts { class, ..Parts::default() }.refusal();
    assert!(refused.ends_with("the global \"torch.Size\" is not allowed"), "{refused}");
}

#[test]
fn a_name_can_neither_be_long_nor_forge_a_line() {
    let long = "x".repeat(129);
    for message in [global("torch", &long), format!("ctorch\n{long}\n").into(), format!("c{long}\n").into()] {
        let refused = refusal(pickle(&message));
        assert!(refused.ends_with("a name over the limit of 128 bytes"), "{refused}");
    }
    let longest = "x".repeat(128);
    for message in [global("torch", &longest), format!("c{longest}\n{longest}\n").into()] {
        let refused = refusal(pickle(&message));
        assert!(refused.ends_with(&format!("{longest}\" is not allowed")), "{refused}");
    }
    // The end of the line may be what is missing.
    assert_eq!(refusal([b"\x80\x04c", longest.as_bytes()].concat()), "the message is truncated");
    let refused = refusal(pickle(&global("a\r\n\u{1b}[2J", "b")));
    assert!(refused.ends_with(r#"the global "a\r\n\u{1b}[2J.b" is not allowed"#), "{refused}");
    assert_eq!(refusal(b"\x80\x04ctorch".to_vec()), "the message is truncated");
}

#[test]
fn a_stack_with_other_things_on_it_is_refused() {
    for (body, fault) in [
        (&b""[..], "0 values are left, not one"),
        (b"NN", "2 values are left, not one"),
        (b"N(", "1 values are left, not one"),
        (b"\x85", "1 values are needed, the stack has fewer"),
        (b"N(\x85", "1 values are needed, the stack has fewer"),
        (b"\x94", "1 values are needed, the stack has fewer"),
        (b"N(\x94", "1 values are needed, the stack has fewer"),
        (b"NN\x93", "a global is named by two texts"),
        (b"N)R", "a call takes a global and a tuple"),
        (b"NR", "2 values are needed, the stack has fewer"),
        (b"t", "there is no mark"),
        (b"}NNu", "there is no mark"),
        (b"(NNu", "a list takes items, a dict keys and values"),
        (b"}((NNu", "a list takes items, a dict keys and values"),
        (b"N(NNu", "a list takes items, a dict keys and values"),
        (b"}(Nu", "a list takes items, a dict keys and values"),
        (b"}Ns", "a list takes items, a dict keys and values"),
        (b"h\x00", "the memo has no entry 0"),
        (b"N\x94j\x01\x00\x00\x00", "the memo has no entry 1"),
        (b"Nq\x01", "the memo's next entry is 0, not 1"),
        (b"Nr\xff\xff\xff\xff", "the memo's next entry is 0, not 4294967295"),
        (b"N\x94q\x00", "the memo's next entry is 1, not 0"),
        (b"X\x01\x00\x00\x00\xff", "not utf-8"),
        (b"c\xff\n\n", "not utf-8"),
    ] {
        let refused = refusal(pickle(body));
        assert!(refused.ends_with(&format!(": {fault}")), "{}: {refused}", body.escape_ascii());
    }
}

#[test]
fn the_memo_and_both_ways_to_fill_a_dict_mean_what_they_mean_in_python() {
    let plain = decode(&metadata_of(&size(&[2])), &Limits::default());
    let torch = [&text("torch")[..], b"\x94"].concat();
    let body = [
        b"}",
        &text("dtype")[..],
        &torch,
        &text("float16"),
        b"\x93s",
        &text("shape"),
        b"h\x00",
        &text("Size"),
        b"\x93K\x02\x85\x85Rs",
    ];
    assert_eq!(decode(&pickle(&body.concat()), &Limits::default()), plain);
    assert!(plain.is_ok());
}

#[test]
fn a_frame_is_no_longer_than_the_message() {
    let framed = |length: u64| [b"\x80\x04\x95", &length.to_le_bytes()[..], b"N."].concat();
    assert!(decode(&framed(2).into(), &Limits::default()).is_ok());
    for length in [3, 1 << 62, u64::MAX] {
        let expected =
            format!("opcode 0x95 at offset 2 of the pickle: a frame of {length} bytes, where 2 are left");
        assert_eq!(refusal(framed(length)), expected);
    }
}

#[test]
fn a_length_beyond_the_message_is_truncated_whatever_it_claims() {
    for claim in [4_u64, 1 << 31, 1 << 62, u64::MAX] {
        let eight = [b"\x80\x04\x8e", &claim.to_le_bytes()[..], b"abc"].concat();
        assert_eq!(refusal(eight), "the message is truncated");
        for code in [b'X', b'B'] {
            let four = [&[0x80, 4, code][..], &(claim as u32).max(4).to_le_bytes(), b"abc"].concat();
            assert_eq!(refusal(four), "the message is truncated");
        }
    }
}

#[test]
fn depth_memo_stack_and_containers_are_bounded_by_the_number_of_operations() {
    for (name, flood) in [
        ("nesting", &b"\x85"[..]),
        ("marks", b"("),
        ("memo", b"\x94"),
        ("stack", b"N"),
        ("dicts", b"}"),
        ("frames", b"\x95\x00\x00\x00\x00\x00\x00\x00\x00"),
    ] {
        let body = [b"N", &flood.repeat(1_000_000)[..]].concat();
        let at = 3 + 126 * flood.len();
        let code = flood[0];
        let expected = format!("opcode {code:#04x} at offset {at} of the pickle: more than 128 operations");
        assert_eq!(refusal(pickle(&body)), expected, "{name}");
    }
    // The last operation that is allowed.
    assert!(refusal(pickle(&[b"N", &b"\x85".repeat(126)[..]].concat())).contains("a pickle of a tuple"));
}

#[test]
fn a_tuple_has_at_most_14_members() {
    assert!(decode(&metadata_of(&size(&[1; 14])), &Limits::default()).is_ok());
    let refused = refusal(metadata_of(&size(&[1; 15])));
    assert!(refused.ends_with("a tuple of 15 is over the limit of 14"), "{refused}");
}

#[test]
fn nothing_follows_the_last_operation() {
    let message = [&pickle(b"N")[..], b"..."].concat();
    assert_eq!(refusal(message), "3 trailing bytes after the message");
}

#[test]
fn values_outside_of_the_protocol_are_refused_by_their_kind() {
    for (body, kind) in [
        (b"K\x01".to_vec(), "an integer"),
        (b"\x88".to_vec(), "a bool"),
        (b")".to_vec(), "a tuple"),
        (b"C\x01x".to_vec(), "bytes"),
        (global("torch", "float16"), "a global"),
        (size(&[2]), "a call"),
        ([&global("collections", "OrderedDict")[..], b")R"].concat(), "a call"),
        ([&global("torch", "float16")[..], &tuple(&[]), b"R"].concat(), "a call"),
    ] {
        let expected = format!("malformed: a pickle of {kind} is not an object of vllm's protocol");
        assert_eq!(refusal(pickle(&body)), expected);
    }
}

#[test]
fn a_message_over_the_limit_is_not_looked_at() {
    let mut limits = Limits::default();
    limits.message_bytes = 3;
    let refused = decode(&b"\x80\x04N.".to_vec().into(), &limits);
    assert_eq!(refused, Err(DecodeError::MessageTooLong { bytes: 4, limit: 3 }));
    limits.message_bytes = 4;
    assert!(decode(&b"\x80\x04N.".to_vec().into(), &limits).is_ok());
}

//! One lie at a time: bytes that nearly are a message, and the error that names what is wrong.

use std::time::Duration;

use kvpipe::tensor::DType;
use kvpipe::wire::frame::{Frame, Reply};
use kvpipe::wire::handshake::{Answer, Endpoint, Hello, Proof, Refusal, RefusalReason, Verdict, Welcome};
use kvpipe::wire::text::{GroupName, Text};
use kvpipe::wire::{DecodeError, Metadata};

use crate::message::{Message, tensor};

/// Metadata of a tensor, field by field.
fn metadata_bytes(dtype: u8, dims: &[u64], payload_bytes: u64) -> Vec<u8> {
    let mut bytes = vec![1, 1, dtype, dims.len() as u8];
    for field in dims.iter().chain([&payload_bytes]) {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes
}

#[track_caller]
fn refusal(bytes: &[u8]) -> String {
    Metadata::decode(bytes).unwrap_err().to_string()
}

fn hello() -> Hello {
    let endpoint = Endpoint {
        group: GroupName::new("g").unwrap(),
        from_rank: 0,
        to_rank: 1,
        world_size: 2,
        session: [1; 16],
        nonce: [2; 32],
        max_item_bytes: 3,
        heartbeat_ms: 5000,
        checksum: false,
        authenticated: false,
    };
    Hello { endpoint, peer_session: None }
}

const UINT8: u8 = DType::UInt8 as u8;
const FLOAT64: u8 = DType::Float64 as u8;

#[test]
fn metadata_of_another_version_is_refused_whatever_follows() {
    assert_eq!(refusal(&[2]), "metadata version 2 is not supported, only version 1");
    assert_eq!(refusal(&[0, 9, 9]), "metadata version 0 is not supported, only version 1");
}

#[test]
fn an_unknown_metadata_tag_is_refused() {
    assert_eq!(refusal(&[1, 2]), "unknown metadata tag 2");
}

#[test]
fn an_unknown_dtype_is_refused() {
    let unknown = DType::ALL.len() as u8;
    assert_eq!(refusal(&metadata_bytes(unknown, &[], 1)), format!("unknown dtype code {unknown}"));
}

#[test]
fn fifteen_dimensions_are_refused() {
    assert!(Metadata::decode(&metadata_bytes(UINT8, &[1; 14], 1)).is_ok());
    assert_eq!(refusal(&metadata_bytes(UINT8, &[1; 15], 1)), "15 dimensions are over the limit of 14");
}

#[test]
fn a_payload_length_that_does_not_agree_is_refused() {
    assert_eq!(Metadata::decode(&metadata_bytes(FLOAT64, &[2, 3], 48)), Ok(tensor(DType::Float64, &[2, 3])));
    for declared in [0, 6, 47, 49, u64::MAX] {
        assert_eq!(
            refusal(&metadata_bytes(FLOAT64, &[2, 3], declared)),
            format!(
                "a payload length of {declared} bytes does not agree with dtype and shape, which take 48 bytes"
            )
        );
    }
}

#[test]
fn a_shape_without_elements_has_no_payload() {
    assert_eq!(
        refusal(&metadata_bytes(UINT8, &[5, 0], 5)),
        "a payload length of 5 bytes does not agree with dtype and shape, which take 0 bytes"
    );
}

#[test]
fn dimensions_whose_product_overflows_are_refused() {
    let dims = [1 << 32, 1 << 32];
    // 2^64 is 0 in 64-bit arithmetic, which this payload length agrees with.
    assert!(refusal(&metadata_bytes(UINT8, &dims, 0)).starts_with("impossible shape: "));
    assert!(refusal(&metadata_bytes(UINT8, &[u64::MAX], u64::MAX)).starts_with("impossible shape: "));
}

#[test]
fn a_payload_that_no_machine_can_hold_is_refused() {
    // The elements can be counted, their bytes can't: 2^62 of 8 bytes are 0 in 64-bit arithmetic.
    assert!(refusal(&metadata_bytes(FLOAT64, &[1 << 61, 2], 0)).starts_with("impossible shape: "));
}

#[test]
fn a_message_beyond_the_codecs_limit_is_refused_unread() {
    assert_eq!(refusal(&[0xff; 4096]), "metadata version 255 is not supported, only version 1");
    assert_eq!(refusal(&[0xff; 4097]), "a message of 4097 bytes is over the limit of 4096 bytes");
}

#[test]
fn unknown_tags_are_refused_by_name() {
    let unknown = |what, found| DecodeError::UnknownTag { what, found };
    assert_eq!(Frame::decode(&[6]), Err(unknown("frame tag", 6)));
    assert_eq!(Reply::decode(&[0x86]), Err(unknown("reply tag", 0x86)));
    assert_eq!(Answer::decode(&[2]), Err(unknown("answer tag", 2)));
    assert_eq!(Verdict::decode(&[1]), Err(unknown("verdict tag", 1)));
    assert_eq!(Verdict::decode(&[0, 0]), Err(unknown("refusal reason", 0)));
    assert_eq!(Verdict::decode(&[0, 11]), Err(unknown("refusal reason", 11)));
}

#[test]
fn a_proof_is_never_short() {
    assert_eq!(Proof::decode(&[0; 31]), Err(DecodeError::Truncated));
}

#[test]
fn a_bool_is_zero_or_one() {
    let mut body = hello().body();
    // From the end: no peer session (1), authenticated (1), checksum.
    let checksum = body.len() - 3;
    body[checksum] = 2;
    assert_eq!(Hello::decode(&body), Err(DecodeError::UnknownTag { what: "bool", found: 2 }));
}

#[test]
fn an_option_is_zero_or_one() {
    let mut body = hello().body();
    let peer_session = body.len() - 1;
    body[peer_session] = 2;
    assert_eq!(Hello::decode(&body), Err(DecodeError::UnknownTag { what: "option tag", found: 2 }));
}

#[test]
fn the_heartbeat_travels_in_milliseconds() {
    assert_eq!(hello().endpoint.heartbeat(), Duration::from_secs(5));
}

#[test]
fn a_hello_of_another_version_is_named_whatever_follows() {
    let version = |found| DecodeError::Version { what: "protocol", found, supported: 1 };
    assert_eq!(Hello::decode(&[2, 0]), Err(version(2)));
    assert_eq!(Hello::decode(&[[0xff; 2].as_slice(), &[0xee; 2046]].concat()), Err(version(0xffff)));
    assert_eq!(Hello::decode(&[0, 0]), Err(version(0)));
}

#[test]
fn a_welcome_of_another_version_is_named_whatever_follows() {
    let version = DecodeError::Version { what: "protocol", found: 2, supported: 1 };
    assert_eq!(Answer::decode(&[1, 2, 0, 0xff]), Err(version));
}

/// An abort whose reason claims `length` bytes and has `text`.
fn abort(length: u64, text: &[u8]) -> Result<Frame, DecodeError> {
    Frame::decode(&[[0x03].as_slice(), &length.to_le_bytes(), text].concat())
}

#[test]
fn a_text_is_at_most_as_long_as_its_field_allows() {
    let longest = "x".repeat(Text::MAX_BYTES);
    assert_eq!(abort(1024, longest.as_bytes()), Ok(Frame::Abort { reason: longest.into() }));
    let error = abort(1025, &[b'x'; 1025]).unwrap_err();
    assert_eq!(error.to_string(), "a reason of an abort of 1025 bytes is over the limit of 1024 bytes");
}

#[test]
fn a_claimed_length_beyond_all_memory_is_refused() {
    for bytes in [1 << 60, u64::MAX] {
        let what = "reason of an abort";
        assert_eq!(abort(bytes, b"x"), Err(DecodeError::TextTooLong { what, bytes, limit: 1024 }));
    }
}

#[test]
fn a_group_name_is_at_most_as_long_as_its_field_allows() {
    let mut body = hello().body();
    body[2..10].copy_from_slice(&256_u64.to_le_bytes());
    body.resize(1000, b'g');
    let error = Hello::decode(&body).unwrap_err();
    assert_eq!(error.to_string(), "a group name of 256 bytes is over the limit of 255 bytes");
}

#[test]
fn a_text_that_is_not_utf_8_is_refused() {
    let what = "reason of an abort";
    // Overlong '/', a surrogate, and half a character.
    for text in [b"\xc0\xaf".as_slice(), b"\xed\xa0\x80", b"\xc3"] {
        assert_eq!(abort(text.len() as u64, text), Err(DecodeError::NotUtf8 { what }));
    }
}

#[test]
fn a_text_can_not_steer_a_terminal() {
    let error = abort(4, b"\x1b[2J").unwrap_err();
    assert_eq!(error.to_string(), r"the reason of an abort contains the control character '\u{1b}'");
    assert!(abort(2, "\u{9b}".as_bytes()).is_err());
}

#[test]
fn both_ends_compute_the_same_unproven_welcome() {
    let welcome = Welcome { endpoint: hello().endpoint, proof: [0; 32] };
    let proven = Welcome { proof: [9; 32], ..welcome.clone() };
    assert_eq!(welcome.unproven(), Answer::Welcome(welcome).sent());
    let Ok(Answer::Welcome(decoded)) = Answer::decode(&Answer::Welcome(proven.clone()).body()) else {
        panic!("a welcome must decode as one");
    };
    assert_eq!(decoded.unproven(), proven.unproven());
    assert_ne!(decoded.unproven(), Answer::Welcome(decoded.clone()).sent());
}

#[test]
fn a_refusal_is_understood_whatever_version_its_sender_speaks() {
    // No version in it: tag, reason, text.
    let body = [[0, 1].as_slice(), &3_u64.to_le_bytes(), b"why"].concat();
    let refusal = Refusal { reason: RefusalReason::Version, text: "why".into() };
    assert_eq!(Answer::decode(&body), Ok(Answer::Refusal(refusal)));
}

//! Finding messages in a stream of bytes.

use kvpipe::tensor::DType;
use kvpipe::wire::DecodeError;
use kvpipe::wire::frame::{Frame, MAX_FRAME_BYTES, frame_in};
use kvpipe::wire::handshake::{Answer, MAGIC, Refusal, RefusalReason, greeting_in};

use crate::message::{Message, tensor};

fn greeting() -> Vec<u8> {
    Answer::Refusal(Refusal { reason: RefusalReason::Busy, text: "taken".into() }).sent()
}

#[test]
fn a_frame_is_found_only_when_all_of_it_is_there() {
    let sent = Frame::Item { sequence: 3, metadata: tensor(DType::Int64, &[4]) }.sent();
    for length in 0..sent.len() {
        assert_eq!(frame_in(&sent[..length]), Ok(None), "{length} bytes");
    }
    assert_eq!(frame_in(&sent), Ok(Some(4..sent.len())));
}

#[test]
fn what_follows_a_frame_begins_where_its_body_ends() {
    let mut stream = Frame::Close { items: 2 }.sent();
    Frame::Alive.encode_into(&mut stream);
    stream.extend_from_slice(b"rest");

    let first = frame_in(&stream).unwrap().unwrap();
    assert_eq!(Frame::decode(&stream[first.clone()]), Ok(Frame::Close { items: 2 }));
    let stream = &stream[first.end..];
    let second = frame_in(stream).unwrap().unwrap();
    assert_eq!(Frame::decode(&stream[second.clone()]), Ok(Frame::Alive));
    assert_eq!(&stream[second.end..], b"rest");
}

#[test]
fn an_impossible_length_is_refused_before_any_byte_of_the_body_is_there() {
    for bytes in [0, MAX_FRAME_BYTES as u32 + 1, u32::MAX] {
        let refused = DecodeError::FrameLength { bytes, limit: MAX_FRAME_BYTES as u32 };
        assert_eq!(frame_in(&bytes.to_le_bytes()), Err(refused));
    }
}

#[test]
fn the_shortest_and_the_longest_frame_are_within_the_limit() {
    assert_eq!(frame_in(&1_u32.to_le_bytes()), Ok(None));
    assert_eq!(frame_in(&(MAX_FRAME_BYTES as u32).to_le_bytes()), Ok(None));
}

#[test]
fn a_greeting_is_found_only_when_all_of_it_is_there() {
    let sent = greeting();
    for length in 0..sent.len() {
        assert_eq!(greeting_in(&sent[..length]), Ok(None), "{length} bytes");
    }
    let body = greeting_in(&sent).unwrap().unwrap();
    assert_eq!(body, 12..sent.len());
    assert!(Answer::decode(&sent[body]).is_ok());
}

#[test]
fn a_stranger_is_recognised_by_its_first_wrong_byte() {
    for position in 0..MAGIC.len() {
        let mut found = MAGIC[..=position].to_vec();
        found[position] ^= 0x20;
        assert_eq!(greeting_in(&found), Err(DecodeError::Magic { found: found.clone() }));
    }
}

#[test]
fn a_stranger_is_recognised_before_its_length_is_looked_at() {
    let found = b"GET / HT".to_vec();
    assert_eq!(greeting_in(b"GET / HTTP/1.1\r\nHost: x\r\n"), Err(DecodeError::Magic { found }));
}

#[test]
fn a_greeting_of_impossible_length_is_refused() {
    let mut sent = greeting();
    sent[MAGIC.len()..][..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(greeting_in(&sent), Err(DecodeError::FrameLength { bytes: u32::MAX, .. })));
}

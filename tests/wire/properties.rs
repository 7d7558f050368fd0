//! What holds for every message, whatever its values.

use kvpipe::wire::collective::{GroupFrame, GroupReply};
use kvpipe::wire::frame::{Frame, MAX_FRAME_BYTES, Reply};
use kvpipe::wire::handshake::{Answer, Hello, Proof, Verdict};
use kvpipe::wire::nccl::{NcclFrame, NcclReply};
use kvpipe::wire::{DecodeError, Metadata};
use proptest::prelude::*;

use crate::message::{
    Message, any_answer, any_frame, any_group_frame, any_group_reply, any_hello, any_metadata,
    any_nccl_frame, any_nccl_reply, any_proof, any_reply, any_verdict,
};

macro_rules! properties {
    ($($module:ident: $message:ty = $any:expr;)*) => {$(
        mod $module {
            use super::*;

            proptest! {
                #[test]
                fn decoding_gives_back_what_was_encoded(message in $any) {
                    prop_assert_eq!(<$message as Message>::decode(&message.body()), Ok(message));
                }

                #[test]
                fn the_body_is_within_the_frame_limit(message in $any) {
                    prop_assert!((1..=MAX_FRAME_BYTES).contains(&message.body().len()));
                }

                #[test]
                fn every_strict_prefix_is_truncated(message in $any) {
                    let body = message.body();
                    for length in 0..body.len() {
                        let decoded = <$message as Message>::decode(&body[..length]);
                        prop_assert_eq!(decoded, Err(DecodeError::Truncated), "{} bytes", length);
                    }
                }

                #[test]
                fn any_trailing_byte_is_refused(message in $any, trailing: u8) {
                    let mut body = message.body();
                    body.push(trailing);
                    let decoded = <$message as Message>::decode(&body);
                    prop_assert_eq!(decoded, Err(DecodeError::TrailingBytes { count: 1 }));
                }

                #[test]
                fn an_altered_byte_is_refused_or_means_something_else(
                    message in $any,
                    position: prop::sample::Index,
                    flipped in 1..=u8::MAX,
                ) {
                    let mut body = message.body();
                    let position = position.index(body.len());
                    body[position] ^= flipped;
                    if let Ok(other) = <$message as Message>::decode(&body) {
                        prop_assert_ne!(&other, &message);
                        prop_assert_eq!(other.body(), body);
                    }
                }

                #[test]
                fn arbitrary_bytes_decode_to_their_one_encoding_or_not_at_all(
                    bytes in prop::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..64),
                ) {
                    if let Ok(message) = <$message as Message>::decode(&bytes) {
                        prop_assert_eq!(message.body(), bytes);
                    }
                }
            }
        }
    )*};
}

properties! {
    metadata: Metadata = any_metadata();
    frame: Frame = any_frame();
    reply: Reply = any_reply();
    nccl_frame: NcclFrame = any_nccl_frame();
    nccl_reply: NcclReply = any_nccl_reply();
    group_frame: GroupFrame = any_group_frame();
    group_reply: GroupReply = any_group_reply();
    hello: Hello = any_hello();
    answer: Answer = any_answer();
    proof: Proof = any_proof();
    verdict: Verdict = any_verdict();
}

proptest! {
    #[test]
    fn a_frame_never_decodes_as_a_reply(frame in any_frame()) {
        let tag = frame.body()[0].into();
        prop_assert_eq!(Reply::decode(&frame.body()), Err(DecodeError::UnknownTag { what: "reply tag", found: tag }));
    }

    #[test]
    fn a_reply_never_decodes_as_a_frame(reply in any_reply()) {
        let tag = reply.body()[0].into();
        prop_assert_eq!(Frame::decode(&reply.body()), Err(DecodeError::UnknownTag { what: "frame tag", found: tag }));
    }
}

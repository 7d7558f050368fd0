//! Frozen bytes: `golden.txt` was packed by another program, and each line must decode to the value
//! given here, and this value encode to the line.

use std::fmt::Debug;

use kvpipe::tensor::DType;
use kvpipe::wire::collective::{self, Call, Fault, GroupFrame, GroupReply};
use kvpipe::wire::frame::{Frame, Reply};
use kvpipe::wire::handshake::{Answer, Endpoint, Hello, Proof, Refusal, RefusalReason, Verdict, Welcome};
use kvpipe::wire::nccl::{NcclFrame, NcclReply};
use kvpipe::wire::text::GroupName;
use kvpipe::wire::{Metadata, UniqueId};

use crate::message::{Message, tensor};

#[track_caller]
fn assert_golden<M: Message + Debug>(name: &str, message: &M) {
    let golden = golden(name);
    assert_eq!(hex::encode(message.sent()), hex::encode(&golden), "{name}");
    assert_eq!(M::decode(&golden[M::PREAMBLE_BYTES..]).as_ref(), Ok(message), "{name}");
}

/// The bytes of the entry `name:`, up to the next empty line.
#[track_caller]
fn golden(name: &str) -> Vec<u8> {
    let heading = format!("{name}:");
    let entry = include_str!("golden.txt").lines().skip_while(|line| *line != heading).skip(1);
    let digits: String = entry.take_while(|line| !line.is_empty()).map(str::trim).collect();
    assert!(!digits.is_empty(), "no entry {name}");
    hex::decode(digits).unwrap()
}

fn endpoint(checksum: bool, authenticated: bool) -> Endpoint {
    Endpoint {
        group: GroupName::new("kv-cache").unwrap(),
        from_rank: 2,
        to_rank: 3,
        world_size: 4,
        session: std::array::from_fn(|index| 0x10 + index as u8),
        nonce: std::array::from_fn(|index| 0x40 + index as u8),
        max_item_bytes: 1 << 33,
        heartbeat_ms: 5000,
        checksum,
        authenticated,
    }
}

#[test]
fn metadata_is_frozen() {
    assert_golden("metadata none", &Metadata::None);
    assert_golden("metadata float32 scalar", &tensor(DType::Float32, &[]));
    assert_golden("metadata bfloat16 [2, 3]", &tensor(DType::BFloat16, &[2, 3]));
    assert_golden("metadata uint8 [5, 0]", &tensor(DType::UInt8, &[5, 0]));
    assert_golden("metadata quint4x2 [3, 5]", &tensor(DType::QUInt4x2, &[3, 5]));
    assert_golden("metadata complex128 [1; 14]", &tensor(DType::Complex128, &[1; 14]));
}

#[test]
fn frames_are_frozen() {
    assert_golden("frame item none", &Frame::Item { sequence: 7, metadata: Metadata::None });
    let metadata = tensor(DType::BFloat16, &[2, 3]);
    let item = Frame::Item { sequence: 0x0102_0304_0506_0708, metadata };
    assert_golden("frame item bfloat16 [2, 3]", &item);
    assert_golden("frame close", &Frame::Close { items: 8 });
    assert_golden("frame abort", &Frame::Abort { reason: "disk full: é".into() });
    assert_golden("frame alive", &Frame::Alive);
    assert_golden("frame goodbye", &Frame::Goodbye);
}

#[test]
fn replies_are_frozen() {
    assert_golden("reply acknowledge", &Reply::Acknowledge { upto: u64::MAX });
    assert_golden("reply finished", &Reply::Finished { taken: 8 });
    assert_golden("reply closed", &Reply::Closed { taken: 5 });
    assert_golden("reply abort", &Reply::Abort { reason: "".into() });
    assert_golden("reply alive", &Reply::Alive);
}

#[test]
fn what_an_nccl_edge_says_besides_is_frozen() {
    assert_golden("nccl join", &NcclFrame::Join { id: UniqueId(std::array::from_fn(|index| index as u8)) });
    assert_golden("frame goodbye", &NcclFrame::Edge(Frame::Goodbye));
    assert_golden("nccl ready", &NcclReply::Ready { upto: 9 });
    assert_golden("reply alive", &NcclReply::Edge(Reply::Alive));
}

#[test]
fn what_ranks_of_a_process_group_say_is_frozen() {
    let call = Call::new("broadcast of float32 [4] from rank 1");
    assert_golden("group begin", &GroupFrame::Begin { operation: 7, pair: None, call: call.clone() });
    assert_golden("group begin, pair", &GroupFrame::Begin { operation: 7, pair: Some(3), call });
    assert_golden("group part", &GroupFrame::Part { bytes: 0x0102_0304_0506 });
    let verdict = |fault| collective::Verdict { fault, rank: 2, reason: "why".into() };
    assert_golden("group abort, mismatch", &GroupFrame::Abort(verdict(Fault::Mismatch)));
    assert_golden("group alive", &GroupFrame::Alive);
    assert_golden("group goodbye", &GroupFrame::Goodbye);
    assert_golden("group reply abort, gone", &GroupReply::Abort(verdict(Fault::Gone)));
    assert_golden("group reply abort, other", &GroupReply::Abort(verdict(Fault::Other)));
    assert_golden("group reply alive", &GroupReply::Alive);
    assert_golden("group reply goodbye", &GroupReply::Goodbye);
}

#[test]
fn the_handshake_is_frozen() {
    let first = Hello { endpoint: endpoint(true, false), peer_session: None };
    assert_golden("hello first", &first);
    let peer_session = Some(std::array::from_fn(|index| 0xf0 + index as u8));
    let resume = Hello { endpoint: endpoint(false, true), peer_session };
    assert_golden("hello resume", &resume);

    let welcome = Welcome { endpoint: endpoint(true, true), proof: [0xab; 32] };
    assert_golden("answer welcome", &Answer::Welcome(welcome));
    let text = "this is rank 3, not rank 1".into();
    assert_golden("answer refusal", &Answer::Refusal(Refusal { reason: RefusalReason::Rank, text }));

    assert_golden("proof", &Proof { proof: [0xcd; 32] });
    assert_golden("verdict accepted", &Verdict::Accepted { received: 6 });
    let refusal = Refusal { reason: RefusalReason::Secret, text: "the secrets differ".into() };
    assert_golden("verdict refusal", &Verdict::Refusal(refusal));
}

#[test]
fn the_codes_of_refusal_reasons_are_frozen() {
    let codes: String =
        RefusalReason::ALL.iter().map(|reason| format!("{} {reason}, ", *reason as u8)).collect();
    assert_eq!(
        codes,
        "1 version, 2 group, 3 rank, 4 world size, 5 item limit, 6 checksum, 7 secret, 8 busy, 9 session, 10 other, "
    );
}

//! What the tests need to treat all messages alike: their bodies, and values of every kind.

use std::fmt::Debug;

use kvpipe::tensor::{DType, Shape};
use kvpipe::wire::collective::{self, Call, Fault, GroupFrame, GroupReply};
use kvpipe::wire::frame::{Frame, PREFIX_BYTES, Reply};
use kvpipe::wire::handshake::{
    Answer, Endpoint, Hello, MAGIC, Proof, Refusal, RefusalReason, Verdict, Welcome,
};
use kvpipe::wire::metadata::{Metadata, TensorMetadata};
use kvpipe::wire::nccl::{NcclFrame, NcclReply};
use kvpipe::wire::text::{GroupName, Text};
use kvpipe::wire::{DecodeError, UniqueId};
use proptest::prelude::*;

/// A message, with the part of its encoding that its own `decode` takes.
pub(crate) trait Message: Sized + Clone + Debug + PartialEq {
    /// All that goes over the wire, with magic and length prefix.
    fn sent(&self) -> Vec<u8>;

    /// What stands before the body.
    const PREAMBLE_BYTES: usize;

    fn decode(body: &[u8]) -> Result<Self, DecodeError>;

    fn body(&self) -> Vec<u8> {
        self.sent().split_off(Self::PREAMBLE_BYTES)
    }
}

macro_rules! messages {
    ($($message:ty: $preamble_bytes:expr;)*) => {$(
        impl Message for $message {
            const PREAMBLE_BYTES: usize = $preamble_bytes;

            fn sent(&self) -> Vec<u8> {
                let mut bytes = Vec::new();
                self.encode_into(&mut bytes);
                bytes
            }

            fn decode(body: &[u8]) -> Result<Self, DecodeError> {
                Self::decode(body)
            }
        }
    )*};
}

messages! {
    Metadata: 0;
    Frame: PREFIX_BYTES;
    Reply: PREFIX_BYTES;
    NcclFrame: PREFIX_BYTES;
    NcclReply: PREFIX_BYTES;
    GroupFrame: PREFIX_BYTES;
    GroupReply: PREFIX_BYTES;
    Hello: MAGIC.len() + PREFIX_BYTES;
    Answer: MAGIC.len() + PREFIX_BYTES;
    Proof: PREFIX_BYTES;
    Verdict: PREFIX_BYTES;
}

/// The metadata of a tensor.
pub(crate) fn tensor(dtype: DType, dims: &[usize]) -> Metadata {
    Metadata::Tensor(TensorMetadata::new(dtype, Shape::new(dims).unwrap()).unwrap())
}

pub(crate) fn any_metadata() -> impl Strategy<Value = Metadata> {
    let dim = prop_oneof![8 => 0..6_usize, 1 => any::<u32>().prop_map(|dim| dim as usize)];
    let tensors = (prop::sample::select(DType::ALL), prop::collection::vec(dim, 0..=14))
        .prop_filter_map("too large", |(dtype, dims)| {
            TensorMetadata::new(dtype, Shape::new(&dims).ok()?).ok()
        })
        .prop_map(Metadata::Tensor);
    prop_oneof![1 => Just(Metadata::None), 9 => tensors]
}

pub(crate) fn any_frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        (any::<u64>(), any_metadata()).prop_map(|(sequence, metadata)| Frame::Item { sequence, metadata }),
        any::<u64>().prop_map(|items| Frame::Close { items }),
        any_text().prop_map(|reason| Frame::Abort { reason }),
        Just(Frame::Alive),
        Just(Frame::Goodbye),
    ]
}

pub(crate) fn any_reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        any::<u64>().prop_map(|upto| Reply::Acknowledge { upto }),
        any::<u64>().prop_map(|taken| Reply::Finished { taken }),
        any::<u64>().prop_map(|taken| Reply::Closed { taken }),
        any_text().prop_map(|reason| Reply::Abort { reason }),
        Just(Reply::Alive),
    ]
}

pub(crate) fn any_nccl_frame() -> impl Strategy<Value = NcclFrame> {
    let join = prop::collection::vec(any::<u8>(), UniqueId::BYTES)
        .prop_map(|id| NcclFrame::Join { id: UniqueId(id.try_into().unwrap()) });
    prop_oneof![join, any_frame().prop_map(NcclFrame::Edge)]
}

pub(crate) fn any_nccl_reply() -> impl Strategy<Value = NcclReply> {
    prop_oneof![
        any::<u64>().prop_map(|upto| NcclReply::Ready { upto }),
        any_reply().prop_map(NcclReply::Edge)
    ]
}

pub(crate) fn any_group_frame() -> impl Strategy<Value = GroupFrame> {
    prop_oneof![
        (any::<u64>(), any::<Option<u64>>(), ".*").prop_map(|(operation, pair, words)| GroupFrame::Begin {
            operation,
            pair,
            call: Call::new(words)
        }),
        any::<u64>().prop_map(|bytes| GroupFrame::Part { bytes }),
        any_group_verdict().prop_map(GroupFrame::Abort),
        Just(GroupFrame::Alive),
        Just(GroupFrame::Goodbye),
    ]
}

pub(crate) fn any_group_reply() -> impl Strategy<Value = GroupReply> {
    prop_oneof![
        any_group_verdict().prop_map(GroupReply::Abort),
        Just(GroupReply::Alive),
        Just(GroupReply::Goodbye),
    ]
}

fn any_group_verdict() -> impl Strategy<Value = collective::Verdict> {
    let fault = prop_oneof![Just(Fault::Mismatch), Just(Fault::Gone), Just(Fault::Other)];
    (fault, any::<u32>(), any_text()).prop_map(|(fault, rank, reason)| collective::Verdict {
        fault,
        rank,
        reason,
    })
}

pub(crate) fn any_hello() -> impl Strategy<Value = Hello> {
    (any_endpoint(), any::<Option<[u8; 16]>>())
        .prop_map(|(endpoint, peer_session)| Hello { endpoint, peer_session })
}

pub(crate) fn any_answer() -> impl Strategy<Value = Answer> {
    let welcome = (any_endpoint(), any::<[u8; 32]>())
        .prop_map(|(endpoint, proof)| Answer::Welcome(Welcome { endpoint, proof }));
    prop_oneof![welcome, any_refusal().prop_map(Answer::Refusal)]
}

pub(crate) fn any_proof() -> impl Strategy<Value = Proof> {
    any::<[u8; 32]>().prop_map(|proof| Proof { proof })
}

pub(crate) fn any_verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        any::<u64>().prop_map(|received| Verdict::Accepted { received }),
        any_refusal().prop_map(Verdict::Refusal)
    ]
}

fn any_text() -> impl Strategy<Value = Text> {
    any::<String>().prop_map(Text::from)
}

fn any_refusal() -> impl Strategy<Value = Refusal> {
    (prop::sample::select(&RefusalReason::ALL), any_text())
        .prop_map(|(reason, text)| Refusal { reason, text })
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let group = "\\PC{0,60}".prop_map(|name| GroupName::new(name).unwrap());
    let numbers = any::<(u32, u32, u32, u64, u32)>();
    (group, numbers, any::<([u8; 16], [u8; 32])>(), any::<(bool, bool)>()).prop_map(
        |(
            group,
            (from_rank, to_rank, world_size, max_item_bytes, heartbeat_ms),
            (session, nonce),
            (checksum, authenticated),
        )| {
            Endpoint {
                group,
                from_rank,
                to_rank,
                world_size,
                session,
                nonce,
                max_item_bytes,
                heartbeat_ms,
                checksum,
                authenticated,
            }
        },
    )
}

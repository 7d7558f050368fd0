//! What rank 1 of vLLM 0.33.0's `StatelessProcessGroup` said to its store (torch 2.8.0), and what ours
//! says when it is asked to do the same.
//!
//! `golden.json` holds the recorded operations: `C` bytes of the client, `S` bytes of the server, in
//! hex, in order. The store is filled with what the recorded server answered; then keys and values must
//! be the same, in the same order. What must not is how a key is read: vLLM does by WAIT and GET, as any
//! client of TCPStore's, and one after the other where we wait for several at once.
//!
//! Up to 0.8.5 a barrier was a broadcast of None by every rank. That one is not spoken.

use bytes::Bytes;
use kvpipe::group::{StatelessProcessGroup, WireMode};
use kvpipe::store::tcp::protocol::{Request, RequestParser};
use kvpipe::store::{Limits, Store};
use kvpipe::wire::{Metadata, Object};
use kvpipe::{DType, Tensor};
use serde::Deserialize;

use crate::support::{LONG, Op, Watched, config, text};

#[derive(Deserialize)]
struct Operation {
    op: String,
    exchange: Vec<(String, String)>,
}

/// What matters of a request.
#[derive(Debug, PartialEq, Eq)]
enum Access {
    Read(String),
    Write(String, Bytes),
}

impl Operation {
    fn bytes(&self, side: &str) -> Vec<Vec<u8>> {
        let ours = self.exchange.iter().filter(|(whose, _)| whose == side);
        ours.map(|(_, text)| hex::decode(text).unwrap()).collect()
    }

    fn requests(&self) -> Vec<Request> {
        let mut parser = RequestParser::new(Limits::default());
        let sent = self.bytes("C").concat();
        let mut input = &sent[..];
        std::iter::from_fn(|| parser.parse(&mut input).unwrap()).collect()
    }

    /// Each key is waited for, then gotten: read once.
    fn accesses(&self) -> Vec<Access> {
        let access = |request| match request {
            Request::Get { key } => Some(Access::Read(user_key(&key))),
            Request::Set { key, value } => Some(Access::Write(user_key(&key), value)),
            _ => None,
        };
        self.requests().into_iter().filter_map(access).collect()
    }

    /// Keys and the values that the server had under them.
    fn answers(&self) -> Vec<(String, Bytes)> {
        // A WAIT is answered with one byte, a GET with a length and the value.
        let values = self.bytes("S").into_iter().filter(|reply| reply.len() >= 8);
        let values = values.map(|reply| Bytes::copy_from_slice(&reply[8..]));
        let read = self.accesses().into_iter().filter_map(|access| match access {
            Access::Read(key) => Some(key),
            Access::Write(..) => None,
        });
        let answers: Vec<_> = read.zip(values).collect();
        assert!(!answers.is_empty() || self.op.contains("send"), "{}", self.op);
        answers
    }
}

/// Without the `/` that clients put in front.
fn user_key(key: &Bytes) -> String {
    let key = str::from_utf8(key).unwrap();
    key.strip_prefix('/').unwrap().into()
}

fn accesses_of(ops: Vec<Op>) -> Vec<Access> {
    let accesses = ops.into_iter().flat_map(|op| match op {
        Op::Get(key) => vec![Access::Read(key)],
        Op::Wait(keys) => keys.into_iter().map(Access::Read).collect(),
        Op::Set(key, value) => vec![Access::Write(key, value)],
        other => panic!("{other:?} is not vllm's"),
    });
    accesses.collect()
}

#[tokio::test(start_paused = true)]
async fn rank_1_says_what_vllms_rank_1_said() {
    let recorded: Vec<Operation> = serde_json::from_str(include_str!("golden.json")).unwrap();
    let [join, operations @ ..] = &recorded[..] else { panic!("nothing is recorded") };
    assert!(join.requests().iter().any(|request| matches!(request, Request::Add { delta: 1, .. })));
    assert_eq!(operations.len(), 6);

    let store = Watched::new();
    let group = StatelessProcessGroup::new(store.clone(), 1, 2, config(WireMode::Vllm)).unwrap();
    for operation in operations {
        println!("{}", operation.op);
        let before_them = operation.answers();
        for (key, value) in before_them {
            // Our own marks we set ourselves.
            if !key.ends_with("_1") {
                store.set(&key, value, LONG).await.unwrap();
            }
        }
        let already = store.ops().len();
        repeat(&group, &operation.op).await;
        let ours = accesses_of(store.ops().split_off(already));
        let mut theirs = operation.accesses();
        if operation.op == "rank1 send_obj({'x':1},0)" {
            // A dict of its own making is no value of the protocol: only the key is compared.
            let Some(Access::Write(_, value)) = theirs.first_mut() else { panic!("it sets a key") };
            *value = kvpipe::wire::pickle::encode(&text("x")).unwrap();
        }
        assert_eq!(ours, theirs, "{}", operation.op);
    }
}

async fn repeat<S: Store + Clone>(group: &StatelessProcessGroup<S>, operation: &str) {
    match operation {
        "rank1 barrier" => group.barrier().await.unwrap(),
        "rank1 recv_obj(0) #0" => {
            let metadata = group.recv_obj(0).await.unwrap();
            let expected = Tensor::new(DType::Float16, [2, 3], vec![0; 12].into()).unwrap();
            assert_eq!(metadata, Object::Metadata(Metadata::of(&Some(expected))));
        }
        "rank1 recv_obj(0) #1" => assert_eq!(group.recv_obj(0).await.unwrap(), Object::None),
        "rank1 send_obj({'x':1},0)" => group.send_obj(&text("x"), 0).await.unwrap(),
        "rank1 broadcast_obj src0" => {
            assert_eq!(group.broadcast_obj(None, 0).await.unwrap(), text("bb"));
        }
        "rank1 all_gather_obj" => {
            assert_eq!(group.all_gather_obj(&text("r1")).await.unwrap(), [text("r0"), text("r1")]);
        }
        other => panic!("{other} is not known"),
    }
}

//! What PyTorch 2.8 and 2.15 said to their servers, and those to them, byte for byte.
//!
//! `golden.json` holds all recorded operations, of both server backends: `C` bytes of the client, `S`
//! bytes of the server, in hex, in order. The server answers each of them with the same bytes, except:
//!
//! | operation | PyTorch's servers | ours | why |
//! |---|---|---|---|
//! | `list_keys()` | in the order of a hash table | in that of the keys' bytes | it does not change from run to run |

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::BytesMut;
use kvpipe::net::TokioNet;
use kvpipe::store::tcp::TcpStore;
use kvpipe::store::tcp::protocol::{Expected, Reply, ReplyParser, Request};
use kvpipe::store::{Limits, PrefixStore, Store};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{LONG, Raw, connect, in_time, listener, server};

#[derive(Deserialize)]
struct Operation {
    op: String,
    exchange: Vec<(Side, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Side {
    #[serde(rename = "C")]
    Client,
    #[serde(rename = "S")]
    Server,
}

impl Operation {
    fn bytes(&self) -> impl Iterator<Item = (Side, Vec<u8>)> {
        self.exchange.iter().map(|(side, text)| (*side, hex::decode(text).unwrap()))
    }

    /// It begins with a new connection.
    fn connects(&self) -> bool {
        self.exchange[0].1.starts_with("00cef7853c")
    }

    /// SET, APPEND, MULTI_SET and QUEUE_PUSH have no reply.
    fn has_no_reply(&self) -> bool {
        self.exchange.len() == 1
    }

    /// The one reply whose order is not PyTorch's.
    fn lists_keys(&self) -> bool {
        self.op == "list_keys()"
    }
}

fn recordings() -> BTreeMap<String, Vec<Operation>> {
    let recordings: BTreeMap<_, _> = serde_json::from_str(include_str!("golden.json")).unwrap();
    assert_eq!(recordings.len(), 4, "two versions of torch, two backends");
    recordings
}

#[tokio::test]
async fn the_server_answers_pytorchs_clients_as_pytorchs_servers_did() {
    for (recording, operations) in recordings() {
        replay_to_server(&recording, &operations, usize::MAX).await;
    }
}

#[tokio::test]
async fn the_server_answers_the_same_when_every_byte_comes_alone() {
    for (recording, operations) in recordings() {
        replay_to_server(&recording, &operations, 1).await;
    }
}

async fn replay_to_server(recording: &str, operations: &[Operation], piece_bytes: usize) {
    let server = server().await;
    let mut connection = Raw::connect(server.local_addr()).await;
    for (index, operation) in operations.iter().enumerate() {
        println!("{recording}: {}", operation.op);
        if index > 0 && operation.connects() {
            connection = Raw::connect(server.local_addr()).await;
        }
        for (side, bytes) in operation.bytes() {
            if side == Side::Server {
                let bytes = if operation.lists_keys() { sorted_keys(&bytes) } else { bytes };
                connection.expect(&bytes).await;
                continue;
            }
            for piece in bytes.chunks(piece_bytes) {
                connection.write(piece).await;
            }
            if operation.op.contains("set later") {
                // Parked for certain: the server answers what comes after the WAIT.
                connection.ping().await;
                let mut other = Raw::validated(server.local_addr()).await;
                other.send(&[Request::Set { key: "/late".into(), value: "v".into() }]).await;
            }
        }
        connection.ping().await;
    }
}

/// A reply to LIST_KEYS, in our order.
fn sorted_keys(reply: &[u8]) -> Vec<u8> {
    let mut parser = ReplyParser::new(Expected::Keys, &Limits::default());
    let Some(Reply::Keys(mut keys)) = parser.parse(&mut &reply[..]).unwrap() else { panic!("no keys") };
    assert!(!keys.is_sorted(), "there is nothing to sort");
    keys.sort_unstable();
    let mut sorted = BytesMut::new();
    Reply::Keys(keys).encode(&mut sorted);
    sorted.to_vec()
}

#[tokio::test]
async fn the_client_says_what_pytorchs_clients_did() {
    for (recording, operations) in recordings() {
        let (listener, address) = listener().await;
        let driving = async {
            let store = connect(address).await;
            for operation in &operations[1..] {
                perform(&operation.op, &store).await;
            }
        };
        let playing = async {
            let mut stream = None;
            for operation in &operations {
                println!("{recording}: {}", operation.op);
                if stream.is_none() || operation.connects() {
                    stream = Some(listener.accept().await.unwrap().0);
                }
                play_server(operation, stream.as_mut().unwrap()).await;
            }
        };
        in_time(async { tokio::join!(driving, playing) }).await;
    }
}

/// Compares what the client says, up to its nonce, and answers as recorded.
async fn play_server(operation: &Operation, stream: &mut TcpStream) {
    let mut nonce = None;
    for (index, (side, mut bytes)) in operation.bytes().enumerate() {
        match side {
            Side::Client => {
                let mut said = vec![0; bytes.len()];
                stream.read_exact(&mut said).await.unwrap();
                if index == 0 && operation.connects() {
                    nonce = Some(said.split_off(said.len() - 4));
                    bytes.truncate(said.len());
                }
                assert_eq!(hex::encode(said), hex::encode(bytes), "{}", operation.op);
            }
            Side::Server => stream.write_all(&nonce.take().unwrap_or(bytes)).await.unwrap(),
        }
    }
    if operation.has_no_reply() {
        // The client's own: a PING whose echo says that it was carried out.
        let mut ping = [0; 5];
        stream.read_exact(&mut ping).await.unwrap();
        assert_eq!(ping[0], 13);
        stream.write_all(&ping[1..]).await.unwrap();
    }
}

/// The recorded operation, with our client.
async fn perform(operation: &str, store: &TcpStore<TokioNet>) {
    let another = || connect(store.server_addr());
    let get = |key: &'static str| async move { store.get(key, LONG).await.unwrap() };
    let compare_set = |key: &'static str, expected: &'static str, desired: &'static str| async move {
        store.compare_set(key, expected.into(), desired.into(), LONG).await.unwrap()
    };
    match operation {
        "set('k', b'abc')" => store.set("k", "abc".into(), LONG).await.unwrap(),
        "set('e', b'')" => store.set("e", "".into(), LONG).await.unwrap(),
        "get('k')" => assert_eq!(get("k").await, "abc"),
        "get('e')" => assert_eq!(get("e").await, ""),
        "get('n')" => assert_eq!(get("n").await, "-2"),
        "get('b')" => assert_eq!(get("b").await, "1"),
        "get('b2')" => assert_eq!(get("b2").await, "1"),
        "add('n', 5)" => assert_eq!(store.add("n", 5, LONG).await.unwrap(), 5),
        "add('n', -7)" => assert_eq!(store.add("n", -7, LONG).await.unwrap(), -2),
        "add('n', 0)" => assert_eq!(store.add("n", 0, LONG).await.unwrap(), -2),
        "check(['k'])" => assert!(store.check(&["k"], LONG).await.unwrap()),
        "check(['k','zz'])" => assert!(!store.check(&["k", "zz"], LONG).await.unwrap()),
        "check([])" => assert!(store.check(&[], LONG).await.unwrap()),
        "check csmissing" => assert!(!store.check(&["csmissing"], LONG).await.unwrap()),
        // The answer differs between the backends, of which one has no queues.
        "check(['q'])" => drop(store.check(&["q"], LONG).await.unwrap()),
        "wait(['k'])" => store.wait(&["k"], LONG).await.unwrap(),
        "wait(['k','e'])" => store.wait(&["k", "e"], LONG).await.unwrap(),
        "wait(['late']) set later" => store.wait(&["late"], LONG).await.unwrap(),
        "wait(['zz'],0.2s)" => drop(store.wait(&["zz"], Duration::ZERO).await.unwrap_err()),
        "get timeout" => drop(store.get("never", Duration::ZERO).await.unwrap_err()),
        "num_keys()" => assert_eq!(store.num_keys(LONG).await.unwrap(), 4),
        "num_keys() with queue" => assert_eq!(store.num_keys(LONG).await.unwrap(), 7),
        "delete_key('e')" => assert!(store.delete("e", LONG).await.unwrap()),
        "delete_key('nope')" => assert!(!store.delete("nope", LONG).await.unwrap()),
        "append('k', b'XY')" => store.append("k", "XY".into(), LONG).await.unwrap(),
        "append('newk', b'Z')" => store.append("newk", "Z".into(), LONG).await.unwrap(),
        "multi_set(['m1','m2'],[b'1',b'22'])" => {
            store.multi_set(&[("m1", "1".into()), ("m2", "22".into())], LONG).await.unwrap();
        }
        "multi_get(['m1','m2'])" => {
            assert_eq!(store.multi_get(&["m1", "m2"], LONG).await.unwrap(), ["1", "22"]);
        }
        "compare_set('cs','','v1')" => assert_eq!(compare_set("cs", "", "v1").await, "v1"),
        "compare_set('cs','v1','v2')" => assert_eq!(compare_set("cs", "v1", "v2").await, "v2"),
        "compare_set('cs','bad','v3')" => assert_eq!(compare_set("cs", "bad", "v3").await, "v2"),
        "compare_set('csmissing','x','y')" => assert_eq!(compare_set("csmissing", "x", "y").await, "x"),
        "queue_push('q', b'a1')" => store.queue_push("q", "a1".into(), LONG).await.unwrap(),
        "queue_push('q', b'b2')" => store.queue_push("q", "b2".into(), LONG).await.unwrap(),
        "queue_len('q')" => assert_eq!(store.queue_len("q", LONG).await.unwrap(), 2),
        "queue_pop('q', True)" => assert_eq!(store.queue_pop("q", LONG).await.unwrap(), "a1"),
        "queue_pop('q', False)" => assert_eq!(store.try_queue_pop("q", LONG).await.unwrap().unwrap(), "b2"),
        "queue_pop('q', False) empty" => assert_eq!(store.try_queue_pop("q", LONG).await.unwrap(), None),
        "list_keys()" => {
            let keys = ["cs", "k", "late", "m1", "m2", "n", "newk"];
            assert_eq!(store.list_keys(LONG).await.unwrap(), keys);
        }
        "barrier('b',1)" => store.barrier("b", 1, LONG).await.unwrap(),
        "barrier('b2',2) timeout" => drop(store.barrier("b2", 2, Duration::ZERO).await.unwrap_err()),
        "PrefixStore('pre').set('k',b'v')" => {
            PrefixStore::new("pre", store.clone()).set("k", "v".into(), LONG).await.unwrap();
        }
        "Prefix(a,Prefix(b)).set('k',b'v')" => {
            let inner = PrefixStore::new("b", store.clone());
            PrefixStore::new("a", inner).set("k", "v".into(), LONG).await.unwrap();
        }
        "PrefixStore.num_keys" => {
            // Two keys more where there are barriers.
            let keys = PrefixStore::new("pre", store.clone()).num_keys(LONG).await.unwrap();
            assert!([9, 11].contains(&keys), "{keys}");
        }
        "clone()" => drop(another().await),
        "client join world_size=3 (wait_for_workers)" => {
            assert_eq!(another().await.join(LONG).await.unwrap(), 1);
        }
        unknown => panic!("the recording has an operation {unknown:?} that nobody performs"),
    }
}

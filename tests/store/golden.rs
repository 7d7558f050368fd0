//! What PyTorch 2.8 and 2.15 said to their servers, and those to them, byte for byte.
//!
//! `golden.json` holds the recorded operations, of both server backends, that this part of the store
//! has: `C` bytes of the client, `S` bytes of the server, in hex, in order.

use std::collections::BTreeMap;
use std::time::Duration;

use kvpipe::net::TokioNet;
use kvpipe::store::tcp::TcpStore;
use kvpipe::store::tcp::protocol::Request;
use kvpipe::store::{PrefixStore, Store};
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

    /// SET is the one operation here without a reply.
    fn sets(&self) -> bool {
        self.exchange.len() == 1
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
    if operation.sets() {
        // The client's own: a PING that confirms the SET.
        let mut ping = [0; 5];
        stream.read_exact(&mut ping).await.unwrap();
        assert_eq!(ping[0], 13);
        stream.write_all(&ping[1..]).await.unwrap();
    }
}

/// The recorded operation, with our client.
async fn perform(operation: &str, store: &TcpStore<TokioNet>) {
    let another = || connect(store.server_addr());
    match operation {
        "set('k', b'abc')" => store.set("k", "abc".into(), LONG).await.unwrap(),
        "set('e', b'')" => store.set("e", "".into(), LONG).await.unwrap(),
        "get('k')" => assert_eq!(store.get("k", LONG).await.unwrap(), "abc"),
        "get('e')" => assert_eq!(store.get("e", LONG).await.unwrap(), ""),
        "get('n')" => assert_eq!(store.get("n", LONG).await.unwrap(), "-2"),
        "add('n', 5)" => assert_eq!(store.add("n", 5, LONG).await.unwrap(), 5),
        "add('n', -7)" => assert_eq!(store.add("n", -7, LONG).await.unwrap(), -2),
        "add('n', 0)" => assert_eq!(store.add("n", 0, LONG).await.unwrap(), -2),
        "check(['k'])" => assert!(store.check(&["k"], LONG).await.unwrap()),
        "check(['k','zz'])" => assert!(!store.check(&["k", "zz"], LONG).await.unwrap()),
        "check([])" => assert!(store.check(&[], LONG).await.unwrap()),
        "check csmissing" => assert!(!store.check(&["csmissing"], LONG).await.unwrap()),
        "wait(['k'])" => store.wait(&["k"], LONG).await.unwrap(),
        "wait(['k','e'])" => store.wait(&["k", "e"], LONG).await.unwrap(),
        "wait(['late']) set later" => store.wait(&["late"], LONG).await.unwrap(),
        "wait(['zz'],0.2s)" => {
            store.wait(&["zz"], Duration::ZERO).await.unwrap_err();
        }
        "get timeout" => {
            store.get("never", Duration::ZERO).await.unwrap_err();
        }
        "delete_key('e')" => assert!(store.delete("e", LONG).await.unwrap()),
        "delete_key('nope')" => assert!(!store.delete("nope", LONG).await.unwrap()),
        "PrefixStore('pre').set('k',b'v')" => {
            PrefixStore::new("pre", store.clone()).set("k", "v".into(), LONG).await.unwrap();
        }
        "Prefix(a,Prefix(b)).set('k',b'v')" => {
            let inner = PrefixStore::new("b", store.clone());
            PrefixStore::new("a", inner).set("k", "v".into(), LONG).await.unwrap();
        }
        "clone()" => drop(another().await),
        "client join world_size=3 (wait_for_workers)" => {
            assert_eq!(another().await.join(LONG).await.unwrap(), 1);
        }
        unknown => panic!("the recording has an operation {unknown:?} that nobody performs"),
    }
}

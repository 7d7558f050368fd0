//! A peer that breaks the protocol: refused with its reason, and nothing of it reaches the user.

use std::time::Duration;

use bytes::Bytes;
use kvpipe::store::{MemoryStore, Store};
use kvpipe::wire::frame::{Frame, Reply};
use kvpipe::wire::handshake::{Endpoint, Hello};
use kvpipe::wire::metadata::{Metadata, TensorMetadata};
use kvpipe::{DType, Error, Pipe, PipeConfig, Shape};

use crate::support::{HANG, config, drain, numbered, receiver, sender};

const EDGE: &str = "kvpipe//edge/0-1";
const LONG: Duration = HANG;

fn hello() -> Bytes {
    let endpoint = Endpoint {
        group: Default::default(),
        from_rank: 0,
        to_rank: 1,
        world_size: 2,
        session: [0xAB; 16],
        nonce: Default::default(),
        max_item_bytes: PipeConfig::default().max_item_bytes as u64,
        heartbeat_ms: 5_000,
        checksum: false,
        authenticated: false,
    };
    let mut bytes = Vec::new();
    Hello { endpoint, peer_session: None }.encode_into(&mut bytes);
    bytes.into()
}

/// Poses as the sender of a receiver, and gives the receiver and the base of the run's keys.
async fn as_sender(store: &MemoryStore) -> (Pipe, String) {
    let receiver = receiver(store, config(), PipeConfig::default());
    let theirs = store.get(&format!("{EDGE}/receiver"), LONG).await.unwrap();
    let body = kvpipe::wire::handshake::greeting_in(&theirs).unwrap().unwrap();
    let session = Hello::decode(&theirs[body]).unwrap().endpoint.session;
    let digits: String = session.iter().map(|byte| format!("{byte:02x}")).collect();
    let base = format!("{EDGE}/{digits}");
    store.set(&format!("{base}/sender"), hello(), LONG).await.unwrap();
    store.get(&format!("{base}/alive/receiver"), LONG).await.unwrap();
    (receiver, base)
}

/// What a receiver says of these messages, and what it tells its sender.
async fn refused(messages: &[&[u8]]) -> (String, String) {
    let store = MemoryStore::new();
    let (receiver, base) = as_sender(&store).await;
    for (number, message) in messages.iter().enumerate() {
        let message = Bytes::copy_from_slice(message);
        store.set(&format!("{base}/data/{number}"), message, LONG).await.unwrap();
    }
    // It stays until its last word is read.
    let ((received, end), told) = tokio::join!(drain(&receiver), last_word(&store, &base));
    assert!(received.is_empty(), "{received:?}");
    assert!(matches!(end, Error::PeerMisbehaved { .. }), "{end}");
    (end.to_string(), told)
}

/// Reads reports as a sender does, up to the one that says what is wrong.
async fn last_word(store: &MemoryStore, base: &str) -> String {
    let mut number = 0;
    loop {
        let key = format!("{base}/reply/{number}");
        let report = store.get(&key, LONG).await.unwrap();
        store.delete(&key, LONG).await.unwrap();
        let text = String::from_utf8_lossy(&report).into_owned();
        if text.contains("misbehaved") || text.contains("protocol") {
            return text;
        }
        number += 1;
    }
}

fn framed(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.encode_into(&mut bytes));
    bytes
}

fn item(sequence: u64, dims: &[usize]) -> Frame {
    let metadata = TensorMetadata::new(DType::UInt8, Shape::new(dims).unwrap()).unwrap();
    Frame::Item { sequence, metadata: Metadata::Tensor(metadata) }
}

#[tokio::test(start_paused = true)]
async fn a_receiver_refuses_what_is_no_stream_and_says_so_to_the_sender() {
    let whole = framed(&[Frame::Close { items: 0 }]);
    for (messages, why) in [
        (vec![&b""[..]], "empty message"),
        (vec![b"GET / HTTP/1.1\r\n\r\n"], "frame length"),
        (vec![&whole[..whole.len() - 1]], "ends inside a frame"),
        (vec![&framed(&[Frame::Item { sequence: 1, metadata: Metadata::None }])], "item 1 where 0 was due"),
        (vec![&framed(&[Frame::Close { items: 3 }])], "closed after 3 items"),
        (vec![&framed(&[Frame::Goodbye])], "goodbye"),
        (vec![&framed(&[item(0, &[4 << 30, 2])])], "over the limit"),
    ] {
        let (error, told) = refused(&messages).await;
        assert!(error.contains(why), "{error}");
        assert!(told.contains(why), "{told}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sender_refuses_reports_that_can_not_be() {
    let reply = |replies: &[Reply], consumed: u64| {
        let mut bytes = consumed.to_le_bytes().to_vec();
        replies.iter().for_each(|reply| reply.encode_into(&mut bytes));
        Bytes::from(bytes)
    };
    for (report, why) in [
        (Bytes::new(), "cut off"),
        (Bytes::from_static(b"1234567"), "cut off"),
        (reply(&[], 99), "consumed 99 messages"),
        (reply(&[Reply::Acknowledge { upto: 7 }], 0), "acknowledged items below 7"),
        (reply(&[Reply::Finished { taken: 0 }], 0), "finished after 0 items"),
        (Bytes::from([&reply(&[], 0)[..], b"\xff\xff\xff\xff"].concat()), "frame length"),
        // A value of the store may have room for many millions.
        (reply(&[Reply::Alive, Reply::Alive, Reply::Alive], 0), "a report of more than 2 replies"),
    ] {
        let store = MemoryStore::new();
        store.set(&format!("{EDGE}/receiver"), hello(), LONG).await.unwrap();
        let sender = sender(&store, config(), PipeConfig::default());
        let base = format!("{EDGE}/{}", "ab".repeat(16));
        store.get(&format!("{base}/sender"), LONG).await.unwrap();
        store.set(&format!("{base}/alive/receiver"), "1".into(), LONG).await.unwrap();
        sender.send(numbered(0, 8)).await.unwrap();
        store.get(&format!("{base}/data/0"), LONG).await.unwrap();
        store.set(&format!("{base}/reply/0"), report, LONG).await.unwrap();
        let error = sender.close().await.unwrap_err();
        assert!(matches!(error, Error::PeerMisbehaved { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(sender.undelivered().len(), 1);
    }
}

/// One that dies between its farewell and its last word, or never meant to say one.
#[tokio::test(start_paused = true)]
async fn a_farewell_without_a_last_word_does_not_keep_a_receiver_for_ever() {
    let store = MemoryStore::new();
    let (receiver, base) = as_sender(&store).await;
    let item = framed(&[Frame::Item { sequence: 0, metadata: Metadata::None }]);
    store.set(&format!("{base}/data/0"), item.into(), LONG).await.unwrap();
    store.set(&format!("{base}/alive/sender"), Bytes::from_static(&[0xFF; 8]), LONG).await.unwrap();
    let (received, end) = tokio::time::timeout(HANG, drain(&receiver)).await.expect("it hangs");
    assert_eq!(received, [None]);
    assert!(matches!(end, Error::PeerGone { .. }), "{end}");
}

/// Whatever the last word is: that all is taken, or that something is wrong.
#[tokio::test(start_paused = true)]
async fn a_farewell_of_one_that_does_not_read_our_last_word_does_not_keep_a_receiver_for_ever() {
    for last in [Frame::Close { items: 0 }, Frame::Goodbye] {
        let store = MemoryStore::new();
        let (receiver, base) = as_sender(&store).await;
        store.set(&format!("{base}/data/0"), framed(std::slice::from_ref(&last)).into(), LONG).await.unwrap();
        store.set(&format!("{base}/alive/sender"), Bytes::from_static(&[0xFF; 8]), LONG).await.unwrap();
        let (_, end) = tokio::time::timeout(HANG, drain(&receiver)).await.expect("it hangs");
        match last {
            Frame::Goodbye => assert!(matches!(end, Error::PeerMisbehaved { .. }), "{end}"),
            _ => assert!(end.is_closed(), "{end}"),
        }
        let left = store.num_keys(LONG).await.unwrap();
        assert_eq!(left, 0, "{last:?} leaves keys");
    }
}

#[tokio::test(start_paused = true)]
async fn the_reason_of_an_abort_is_one_line_whatever_the_peer_writes() {
    let store = MemoryStore::new();
    let (receiver, base) = as_sender(&store).await;
    let farewell = [&[0xFF; 8][..], b"no\x1b[31m\nmore\xff", &[b'x'; 5000]].concat();
    store.set(&format!("{base}/alive/sender"), farewell.into(), LONG).await.unwrap();
    let (_, end) = drain(&receiver).await;
    let Error::PeerAborted { reason, .. } = end else { panic!("{end}") };
    assert!(reason.starts_with("no [31m more") && reason.len() <= 1024, "{reason}");
    assert!(!reason.contains(char::is_control));
}

/// Its count of reports that it has read, which is looked at every so often.
#[tokio::test(start_paused = true)]
async fn a_count_that_is_none_ends_the_edge() {
    let store = MemoryStore::new();
    let (receiver, base) = as_sender(&store).await;
    store.set(&format!("{base}/reply/consumed"), "many".into(), LONG).await.unwrap();
    for number in 0..40 {
        let item = framed(&[Frame::Item { sequence: number, metadata: Metadata::None }]);
        store.set(&format!("{base}/data/{number}"), item.into(), LONG).await.unwrap();
    }
    let (_, end) = tokio::time::timeout(HANG, drain(&receiver)).await.expect("it hangs");
    assert!(matches!(end, Error::PeerMisbehaved { .. }), "{end}");
    assert!(end.to_string().contains("has 4 bytes, not 8"), "{end}");
}

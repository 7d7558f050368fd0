//! Peers that break the protocol, by hand.

use std::net::SocketAddr;

use kvpipe::store::{MemoryStore, Store};
use kvpipe::transport::tcp::TcpConfig;
use kvpipe::wire::frame::{Frame, Reply, frame_in};
use kvpipe::wire::handshake::{Answer, Endpoint, Hello, Proof, RefusalReason, SessionId, Verdict, Welcome};
use kvpipe::wire::metadata::{Metadata, TensorMetadata};
use kvpipe::{DType, Error, Pipe, PipeConfig, Shape};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::proxy::Proxy;
use crate::support::{PATIENCE, V4, config, item, limits, receiver, sender, transfers};

/// No checksums, as by default, so that hand-made frames are easy to write.
pub(crate) fn plain() -> TcpConfig {
    TcpConfig { checksum: false, ..config() }
}

#[tokio::test]
async fn garbage_and_silence_on_the_port_harm_nobody() {
    let store = MemoryStore::new();
    let (receiver, address) = receiver(&store, V4, config(), limits()).await;
    // One that says nothing, more that say nonsense.
    let _silent = TcpStream::connect(address).await.unwrap();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &b"KVPIPE\r\n\xff\xff\xff\xff"[..], b"KVP"] {
        let mut stranger = TcpStream::connect(address).await.unwrap();
        stranger.write_all(garbage).await.unwrap();
        stranger.shutdown().await.unwrap();
        // Refused without an answer.
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer).await;
        assert!(answer.is_empty(), "{answer:?}");
    }
    transfers(&sender(&store, config(), limits()), &receiver, &[item(9, 1), None]).await;
}

pub(crate) fn endpoint() -> Endpoint {
    Endpoint {
        group: Default::default(),
        from_rank: 0,
        to_rank: 1,
        world_size: 2,
        session: [7; 16],
        nonce: [9; 32],
        max_item_bytes: limits().max_item_bytes as u64,
        heartbeat_ms: 5000,
        checksum: false,
        authenticated: false,
    }
}

/// A connector that shakes hands properly, and then sends whatever the test wants.
pub(crate) async fn connector(address: SocketAddr) -> TcpStream {
    let knock = knock(address, endpoint().session, None).await;
    assert_eq!(knock.verdict, Verdict::Accepted { received: 0 });
    knock.stream
}

/// A connection to a listener that has heard everything it has to know.
pub(crate) struct Knock {
    pub(crate) stream: TcpStream,
    /// The listener's session.
    pub(crate) listener: SessionId,
    pub(crate) verdict: Verdict,
}

/// Shakes hands as the connector of a session, which means to resume `peer_session`.
pub(crate) async fn knock(address: SocketAddr, session: SessionId, peer_session: Option<SessionId>) -> Knock {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut bytes = Vec::new();
    Hello { endpoint: Endpoint { session, ..endpoint() }, peer_session }.encode_into(&mut bytes);
    stream.write_all(&bytes).await.unwrap();
    let mut magic = [0; 8];
    stream.read_exact(&mut magic).await.unwrap();
    let answer = read_frame(&mut stream).await.unwrap();
    let Answer::Welcome(welcome) = Answer::decode(&answer).unwrap() else { panic!("refused") };
    bytes.clear();
    Proof { proof: [0; 32] }.encode_into(&mut bytes);
    stream.write_all(&bytes).await.unwrap();
    let verdict = Verdict::decode(&read_frame(&mut stream).await.unwrap()).unwrap();
    Knock { stream, listener: welcome.endpoint.session, verdict }
}

/// A listener that shakes hands properly with the next sender.
pub(crate) async fn listener(store: &MemoryStore, sender: impl FnOnce() -> Pipe) -> (TcpStream, Pipe) {
    let listener = published(store).await;
    let pipe = sender();
    let (_, stream) = welcome(&listener, endpoint().session, &Verdict::Accepted { received: 0 }).await;
    (stream, pipe)
}

/// A socket at which rank 1 is said to listen.
pub(crate) async fn published(store: &MemoryStore) -> TcpListener {
    let listener = TcpListener::bind(V4).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    store.set("kvpipe//1/address", address.into(), PATIENCE).await.unwrap();
    listener
}

/// Shakes hands as the listener of a session with the next who comes.
pub(crate) async fn welcome(
    listener: &TcpListener,
    session: SessionId,
    verdict: &Verdict,
) -> (Hello, TcpStream) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut magic = [0; 8];
    stream.read_exact(&mut magic).await.unwrap();
    let hello = Hello::decode(&read_frame(&mut stream).await.unwrap()).unwrap();
    let mut bytes = Vec::new();
    let endpoint = Endpoint { session, ..endpoint() };
    Answer::Welcome(Welcome { endpoint, proof: [0; 32] }).encode_into(&mut bytes);
    stream.write_all(&bytes).await.unwrap();
    let proof = read_frame(&mut stream).await.unwrap();
    Proof::decode(&proof).unwrap();
    bytes.clear();
    verdict.encode_into(&mut bytes);
    stream.write_all(&bytes).await.unwrap();
    (hello, stream)
}

/// The body of the next frame, or None at the end of the stream.
pub(crate) async fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(body) = frame_in(&bytes).unwrap() {
            return Some(bytes[body].to_vec());
        }
        bytes.push(stream.read_u8().await.ok()?);
    }
}

pub(crate) async fn read_reply(stream: &mut TcpStream) -> Option<Reply> {
    loop {
        match Reply::decode(&read_frame(stream).await?).unwrap() {
            Reply::Alive => {}
            reply => return Some(reply),
        }
    }
}

pub(crate) fn bytes_of(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode_into(&mut bytes);
    bytes
}

pub(crate) fn tensor(sequence: u64, bytes: usize) -> Frame {
    let metadata = TensorMetadata::new(DType::UInt8, Shape::new(&[bytes]).unwrap()).unwrap();
    Frame::Item { sequence, metadata: Metadata::Tensor(metadata) }
}

/// Sends `bytes` to a receiver, which must end with an error that contains `names`, after telling
/// the peer the same.
async fn is_refused(bytes: &[u8], names: &str) {
    let store = MemoryStore::new();
    let (receiver, address) = receiver(&store, V4, plain(), limits()).await;
    let mut stream = connector(address).await;
    stream.write_all(bytes).await.unwrap();
    let error = receiver.recv().await.unwrap_err();
    assert!(matches!(error, Error::PeerMisbehaved { .. }), "{error}");
    assert!(error.to_string().contains(names), "{error}");
    let Some(Reply::Abort { reason }) = read_reply(&mut stream).await else { panic!("no abort") };
    assert!(reason.as_str().contains(names), "{reason}");
}

#[tokio::test]
async fn a_gap_in_the_sequence_is_refused() {
    is_refused(&bytes_of(&tensor(1, 4)), "sent item 1 where 0 was due").await;
}

#[tokio::test]
async fn an_item_over_the_limit_is_refused_before_a_byte_of_it_is_awaited() {
    is_refused(&bytes_of(&tensor(0, limits().max_item_bytes + 1)), "max_item_bytes").await;
}

#[tokio::test]
async fn a_duplicate_over_the_limit_is_refused_before_a_byte_of_it_is_awaited() {
    let mut bytes = bytes_of(&tensor(0, 3));
    bytes.extend(b"abc");
    bytes.extend(bytes_of(&tensor(0, limits().max_item_bytes + 1)));
    let store = MemoryStore::new();
    let (receiver, address) = receiver(&store, V4, plain(), limits()).await;
    let mut stream = connector(address).await;
    stream.write_all(&bytes).await.unwrap();
    assert!(receiver.recv().await.unwrap().is_some());
    let error = receiver.recv_timeout(PATIENCE).await.unwrap_err();
    assert!(matches!(error, Error::PeerMisbehaved { .. }), "{error}");
    assert!(error.to_string().contains("a duplicate"), "{error}");
}

#[tokio::test]
async fn a_first_connection_that_claims_an_earlier_one_is_refused() {
    let store = MemoryStore::new();
    let (_receiver, address) = receiver(&store, V4, plain(), limits()).await;
    let verdict = knock(address, endpoint().session, Some([1; 16])).await.verdict;
    let Verdict::Refusal(refusal) = verdict else { panic!("{verdict:?}") };
    assert_eq!(refusal.reason, RefusalReason::Session);
}

#[tokio::test]
async fn a_close_that_hides_a_missing_item_is_refused() {
    is_refused(&bytes_of(&Frame::Close { items: 3 }), "closed after 3 items, of which 0 arrived").await;
}

#[tokio::test]
async fn a_frame_that_is_none_is_refused() {
    is_refused(&[1, 0, 0, 0, 0x77], "frame tag").await;
    is_refused(&[0xff; 8], "4294967295").await;
}

#[tokio::test]
async fn a_payload_that_was_altered_on_the_way_is_refused() {
    let store = MemoryStore::new();
    let checked = TcpConfig { checksum: true, ..config() };
    let (receiver, address) = receiver(&store, V4, checked.clone(), limits()).await;
    let proxy = Proxy::before(address, &store).await;
    // In the middle of the payload.
    proxy.turns_a_bit_in(20_000);
    let pipe = sender(&store, checked, limits());
    pipe.try_send(item(50_000, 1)).unwrap();
    let error = receiver.recv().await.unwrap_err();
    assert!(matches!(error, Error::PeerMisbehaved { .. }), "{error}");
    assert!(error.to_string().contains("checksum"), "{error}");
    assert!(matches!(pipe.close().await, Err(Error::PeerAborted { .. })));
    assert_eq!(pipe.undelivered().len(), 1);
}

#[tokio::test]
async fn a_connection_that_ends_inside_a_payload_loses_only_that_item() {
    let store = MemoryStore::new();
    let (receiver, address) = receiver(&store, V4, plain(), limits()).await;
    let mut stream = connector(address).await;
    let mut bytes = bytes_of(&tensor(0, 3));
    bytes.extend(b"abc");
    bytes.extend(bytes_of(&tensor(1, 10)));
    bytes.extend(b"0123456");
    stream.write_all(&bytes).await.unwrap();
    drop(stream);
    assert_eq!(receiver.recv().await.unwrap().unwrap().bytes().unwrap()[..], b"abc"[..]);
    let error = receiver.recv().await.unwrap_err();
    assert!(matches!(error, Error::PeerGone { .. }), "{error}");
    assert!(error.to_string().contains("item 1 was due"), "{error}");
    assert_eq!(receiver.stats().receive.unwrap().held_bytes, 0, "the room of the cut item came back");
}

#[tokio::test]
async fn replies_that_cannot_be_are_refused() {
    for (reply, names) in [
        (Reply::Acknowledge { upto: 5 }, "acknowledged items below 5, of 1 sent"),
        (Reply::Finished { taken: 0 }, "finished after 0 items"),
        (Reply::Closed { taken: 2 }, "closed after 2 items, of 1 sent"),
    ] {
        let store = MemoryStore::new();
        let (mut stream, pipe) = listener(&store, || sender(&store, plain(), limits())).await;
        pipe.try_send(item(4, 1)).unwrap();
        // The item has gone out once the first frame with a payload is here.
        while !matches!(
            Frame::decode(&read_frame(&mut stream).await.unwrap()).unwrap(),
            Frame::Item { sequence: 0, .. }
        ) {}
        let mut bytes = Vec::new();
        reply.encode_into(&mut bytes);
        stream.write_all(&bytes).await.unwrap();
        let error = pipe.flush().await.unwrap_err();
        assert!(matches!(error, Error::PeerMisbehaved { .. }), "{error}");
        assert!(error.to_string().contains(names), "{error}");
        let undelivered = pipe.undelivered();
        assert_eq!((undelivered.len(), undelivered[0].in_doubt), (1, true), "nothing was freed");
    }
}

#[tokio::test]
async fn a_silent_sender_and_a_silent_receiver_are_given_up_within_the_heartbeat_limit() {
    let heartbeat = std::time::Duration::from_millis(300);
    let quick = TcpConfig { heartbeat, ..plain() };
    let store = MemoryStore::new();
    let (receiver, address) = receiver(&store, V4, quick.clone(), limits()).await;
    let _silent = connector(address).await;
    let error = receiver.recv().await.unwrap_err();
    assert!(error.to_string().contains("silent for 0.3 s"), "{error}");

    let (_silent, pipe) = listener(&store, || sender(&store, quick, limits())).await;
    pipe.try_send(item(4, 1)).unwrap();
    let error = pipe.flush().await.unwrap_err();
    assert!(matches!(error, Error::PeerGone { .. }), "{error}");
    assert!(error.to_string().contains("silent for 0.3 s; 0 of 1 sent items"), "{error}");
}

#[tokio::test]
async fn everything_is_delivered_if_only_the_last_word_is_lost() {
    let store = MemoryStore::new();
    let (mut stream, pipe) = listener(&store, || sender(&store, plain(), limits())).await;
    pipe.try_send(None).unwrap();
    let (closed, ()) = tokio::join!(pipe.close(), async {
        while !matches!(
            Frame::decode(&read_frame(&mut stream).await.unwrap()).unwrap(),
            Frame::Close { items: 1 }
        ) {}
        let mut bytes = Vec::new();
        Reply::Acknowledge { upto: 1 }.encode_into(&mut bytes);
        stream.write_all(&bytes).await.unwrap();
        drop(stream);
    });
    closed.unwrap();
}

#[tokio::test]
async fn a_close_fails_if_the_last_acknowledgement_is_lost() {
    let store = MemoryStore::new();
    let (mut stream, pipe) = listener(&store, || sender(&store, plain(), limits())).await;
    pipe.try_send(None).unwrap();
    let (closed, ()) = tokio::join!(pipe.close(), async {
        while !matches!(
            Frame::decode(&read_frame(&mut stream).await.unwrap()).unwrap(),
            Frame::Close { items: 1 }
        ) {}
        drop(stream);
    });
    assert!(matches!(closed, Err(Error::PeerGone { .. })), "{closed:?}");
    assert!(pipe.undelivered()[0].in_doubt);
}

#[tokio::test]
async fn the_limits_of_the_two_pipes_may_differ_but_for_the_item_limit() {
    let store = MemoryStore::new();
    let narrow = PipeConfig { max_items: 2, ..limits() }.with_buffer_bytes(10);
    let (receiver, _) = receiver(&store, V4, config(), narrow).await;
    let items: Vec<_> = (0..20).map(|mark| item(usize::from(mark) * 3, mark)).collect();
    transfers(&sender(&store, config(), limits()), &receiver, &items).await;
}

#[tokio::test]
async fn what_arrived_before_a_violation_is_acknowledged_before_the_abort() {
    let store = MemoryStore::new();
    let (_receiver, address) = receiver(&store, V4, plain(), limits()).await;
    let mut stream = connector(address).await;
    let mut bytes = bytes_of(&tensor(0, 3));
    bytes.extend(b"abc");
    bytes.extend(bytes_of(&tensor(2, 3)));
    stream.write_all(&bytes).await.unwrap();
    assert_eq!(read_reply(&mut stream).await, Some(Reply::Acknowledge { upto: 1 }));
    assert!(matches!(read_reply(&mut stream).await, Some(Reply::Abort { .. })));
}

#[tokio::test]
async fn a_peer_that_acknowledges_nothing_is_told_why_the_close_gave_up() {
    let store = MemoryStore::new();
    let hasty = PipeConfig { close_timeout: std::time::Duration::from_millis(300), ..limits() };
    let (mut stream, pipe) = listener(&store, || sender(&store, plain(), hasty)).await;
    pipe.try_send(None).unwrap();
    let alive = bytes_of_reply(&Reply::Alive);
    let told = async {
        loop {
            match Frame::decode(&read_frame(&mut stream).await.expect("a last word")).unwrap() {
                Frame::Abort { reason } => return reason.as_str().to_owned(),
                _ => stream.write_all(&alive).await.unwrap(),
            }
        }
    };
    let (closed, told) = tokio::join!(pipe.close(), told);
    let error = closed.unwrap_err().to_string();
    assert!(error.contains("acknowledge the last 1 item"), "{error}");
    assert_eq!(told, error);
}

#[tokio::test]
async fn a_user_who_leaves_items_untaken_after_the_peers_close_is_told_as_one() {
    let store = MemoryStore::new();
    let (receiver, _) = receiver(&store, V4, config(), limits()).await;
    let sender = sender(&store, config(), limits());
    for mark in 0..3 {
        sender.send(item(5, mark)).await.unwrap();
    }
    sender.sender().unwrap().finish();
    sender.flush().await.unwrap();
    // The close itself has arrived, too.
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    receiver.recv().await.unwrap();
    drop(receiver);
    let closed = sender.close().await;
    assert!(matches!(closed, Err(Error::ReceiverClosed { taken: 1, .. })), "{closed:?}");
}

#[tokio::test]
async fn a_receiver_whose_peer_never_comes_closes_within_the_close_timeout() {
    let store = MemoryStore::new();
    let hasty = PipeConfig { close_timeout: std::time::Duration::from_millis(300), ..limits() };
    let (receiver, _) = receiver(&store, V4, config(), hasty).await;
    let closing = tokio::time::timeout(std::time::Duration::from_secs(5), receiver.close());
    closing.await.expect("the close returns").unwrap();
}

pub(crate) fn bytes_of_reply(reply: &Reply) -> Vec<u8> {
    let mut bytes = Vec::new();
    reply.encode_into(&mut bytes);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_never_stops_talking_cannot_keep_a_receiver_from_leaving() {
    let store = MemoryStore::new();
    let (receiver, address) = receiver(&store, V4, plain(), limits()).await;
    let mut stream = connector(address).await;
    let chatter = bytes_of(&Frame::Alive).repeat(10_000);
    let talking = tokio::spawn(async move { while stream.write_all(&chatter).await.is_ok() {} });
    let closing = tokio::time::timeout(PATIENCE, receiver.receiver().unwrap().close());
    closing.await.expect("it leaves");
    talking.await.unwrap();
}

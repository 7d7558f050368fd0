//! Who may go on with an edge, and from where: peers that come back, by hand.

use std::net::SocketAddr;
use std::time::Duration;

use kvpipe::store::MemoryStore;
use kvpipe::transport::tcp::{Secret, TcpConfig};
use kvpipe::wire::auth::{Role, proof};
use kvpipe::wire::frame::{Frame, Reply};
use kvpipe::wire::handshake::{Answer, Endpoint, Hello, Proof, Refusal, RefusalReason, SessionId, Verdict};
use kvpipe::{Error, Pipe, PipeConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::hostile::{
    bytes_of, bytes_of_reply, endpoint, knock, plain, published, read_frame, read_reply, tensor, welcome,
};
use crate::support::{PATIENCE, V4, item, limits, receiver, sender};

const OURS: SessionId = [7; 16];
const FOREIGN: SessionId = [8; 16];

/// A receiver that has accepted our session and holds one item of it; and the receiver's session.
async fn receiver_of_an_item() -> (Pipe, SocketAddr, TcpStream, SessionId) {
    let store = MemoryStore::new();
    let patient = TcpConfig { reconnect_timeout: PATIENCE, ..plain() };
    let (receiver, address) = receiver(&store, V4, patient, limits()).await;
    let met = knock(address, OURS, None).await;
    assert_eq!(met.verdict, Verdict::Accepted { received: 0 });
    let mut stream = met.stream;
    deliver(&mut stream, 0, b"first").await;
    assert_eq!(received(&receiver).await, b"first");
    (receiver, address, stream, met.listener)
}

/// Sends an item and waits for its acknowledgement.
async fn deliver(stream: &mut TcpStream, sequence: u64, content: &[u8]) {
    put(stream, sequence, content).await;
    assert_eq!(read_reply(stream).await, Some(Reply::Acknowledge { upto: sequence + 1 }));
}

async fn put(stream: &mut TcpStream, sequence: u64, content: &[u8]) {
    stream.write_all(&bytes_of(&tensor(sequence, content.len()))).await.unwrap();
    stream.write_all(content).await.unwrap();
}

async fn received(receiver: &Pipe) -> Vec<u8> {
    receiver.recv_timeout(PATIENCE).await.unwrap().unwrap().bytes().unwrap().to_vec()
}

fn refusal(verdict: &Verdict) -> RefusalReason {
    match verdict {
        Verdict::Refusal(refusal) => refusal.reason,
        Verdict::Accepted { .. } => panic!("it was accepted"),
    }
}

/// Reads until the peer has closed, or reset, the connection.
async fn is_closed(mut stream: TcpStream) {
    let closing = async { while stream.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {} };
    timeout(PATIENCE, closing).await.expect("the connection is closed");
}

#[tokio::test]
async fn a_foreign_session_is_refused_while_the_peer_is_there_and_harms_nothing() {
    let (receiver, address, mut stream, listener) = receiver_of_an_item().await;
    assert_eq!(refusal(&knock(address, FOREIGN, None).await.verdict), RefusalReason::Busy);
    assert_eq!(refusal(&knock(address, FOREIGN, Some(listener)).await.verdict), RefusalReason::Busy);
    deliver(&mut stream, 1, b"second").await;
    assert_eq!(received(&receiver).await, b"second");
}

#[tokio::test]
async fn a_sender_that_comes_back_with_another_session_has_restarted() {
    let (receiver, address, stream, _) = receiver_of_an_item().await;
    drop(stream);
    let told = async {
        loop {
            // Busy until the receiver has noticed that the connection is gone.
            match refusal(&knock(address, FOREIGN, None).await.verdict) {
                RefusalReason::Busy => tokio::task::yield_now().await,
                reason => return reason,
            }
        }
    };
    assert_eq!(timeout(PATIENCE, told).await.unwrap(), RefusalReason::Session);
    let error = receiver.recv_timeout(PATIENCE).await.unwrap_err();
    assert!(matches!(error, Error::PeerRestarted { .. }), "{error}");
}

#[tokio::test]
async fn a_session_that_wants_to_resume_another_listener_is_refused_and_harms_nothing() {
    let (receiver, address, mut stream, _) = receiver_of_an_item().await;
    for session in [OURS, FOREIGN] {
        let verdict = knock(address, session, Some([1; 16])).await.verdict;
        assert_eq!(refusal(&verdict), RefusalReason::Session);
    }
    deliver(&mut stream, 1, b"second").await;
    assert_eq!(received(&receiver).await, b"second");
}

#[tokio::test]
async fn a_session_that_does_not_know_what_it_has_sent_is_refused_and_harms_nothing() {
    let (receiver, address, mut stream, _) = receiver_of_an_item().await;
    assert_eq!(refusal(&knock(address, OURS, None).await.verdict), RefusalReason::Session);
    deliver(&mut stream, 1, b"second").await;
    assert_eq!(received(&receiver).await, b"second");
}

#[tokio::test]
async fn a_newer_connection_of_a_session_takes_the_place_of_the_older() {
    let (receiver, address, mut older, listener) = receiver_of_an_item().await;
    // In the middle of an item.
    older.write_all(&bytes_of(&tensor(1, 6))).await.unwrap();
    older.write_all(b"sec").await.unwrap();
    let mut newer = knock(address, OURS, Some(listener)).await;
    assert_eq!(newer.verdict, Verdict::Accepted { received: 1 });
    // What the older one still says is not heard.
    let _ = older.write_all(b"OND").await;
    let _ = older.write_all(&bytes_of(&tensor(2, 0))).await;
    is_closed(older).await;
    for (sequence, content) in [(1, b"second"), (2, b"third.")] {
        deliver(&mut newer.stream, sequence, content).await;
        assert_eq!(received(&receiver).await, content);
    }
}

#[tokio::test]
async fn of_many_connections_of_a_session_the_newest_stays() {
    let (receiver, address, first, listener) = receiver_of_an_item().await;
    let mut older = first;
    for sequence in 1..30 {
        let knock = knock(address, OURS, Some(listener)).await;
        assert_eq!(knock.verdict, Verdict::Accepted { received: sequence });
        is_closed(std::mem::replace(&mut older, knock.stream)).await;
        deliver(&mut older, sequence, b"another").await;
        assert_eq!(received(&receiver).await, b"another");
    }
    older.write_all(&bytes_of(&Frame::Close { items: 30 })).await.unwrap();
    assert_eq!(read_reply(&mut older).await, Some(Reply::Finished { taken: 30 }));
    older.write_all(&bytes_of(&Frame::Goodbye)).await.unwrap();
    assert!(receiver.recv_timeout(PATIENCE).await.unwrap_err().is_closed());
}

#[tokio::test]
async fn items_that_were_acknowledged_in_vain_are_not_taken_twice() {
    let (receiver, address, mut older, listener) = receiver_of_an_item().await;
    put(&mut older, 1, b"second").await;
    assert_eq!(received(&receiver).await, b"second");
    // Nobody reads the acknowledgement.
    drop(older);
    let mut newer = knock(address, OURS, Some(listener)).await;
    assert_eq!(newer.verdict, Verdict::Accepted { received: 2 });
    for (sequence, content) in [(0, &b"first"[..]), (1, b"second"), (2, b"third")] {
        put(&mut newer.stream, sequence, content).await;
    }
    assert_eq!(received(&receiver).await, b"third");
    assert_eq!(read_reply(&mut newer.stream).await, Some(Reply::Acknowledge { upto: 3 }));
}

#[tokio::test]
async fn a_sender_that_comes_back_with_a_gap_is_refused() {
    let (receiver, address, older, listener) = receiver_of_an_item().await;
    drop(older);
    let mut newer = knock(address, OURS, Some(listener)).await;
    assert_eq!(newer.verdict, Verdict::Accepted { received: 1 });
    put(&mut newer.stream, 2, b"third").await;
    let error = receiver.recv_timeout(PATIENCE).await.unwrap_err();
    assert!(matches!(error, Error::PeerMisbehaved { .. }), "{error}");
    assert!(error.to_string().contains("sent item 2 where 1 was due"), "{error}");
    assert!(matches!(read_reply(&mut newer.stream).await, Some(Reply::Abort { .. })));
}

#[tokio::test]
async fn a_replayed_handshake_is_refused_and_harms_nothing() {
    let secret = Secret::new("open sesame").unwrap();
    let config = TcpConfig { secret: Some(secret.clone()), ..plain() };
    let (receiver, address) = receiver(&MemoryStore::new(), V4, config, limits()).await;
    let mut hello = Vec::new();
    let endpoint = Endpoint { authenticated: true, ..endpoint() };
    Hello { endpoint, peer_session: None }.encode_into(&mut hello);
    let (mut stream, answer) = say(address, &hello).await;
    let mut proven = Vec::new();
    Proof { proof: proof(&secret, Role::Connector, &[&hello, &answer]) }.encode_into(&mut proven);
    stream.write_all(&proven).await.unwrap();
    let verdict = Verdict::decode(&read_frame(&mut stream).await.unwrap()).unwrap();
    assert_eq!(verdict, Verdict::Accepted { received: 0 });

    // Somebody who has listened says the same again.
    let (mut replayed, _) = say(address, &hello).await;
    replayed.write_all(&proven).await.unwrap();
    let verdict = Verdict::decode(&read_frame(&mut replayed).await.unwrap()).unwrap();
    assert_eq!(refusal(&verdict), RefusalReason::Secret);
    deliver(&mut stream, 0, b"first").await;
    assert_eq!(received(&receiver).await, b"first");
}

/// Sends the first message to a listener; gives its answer as it came.
async fn say(address: SocketAddr, hello: &[u8]) -> (TcpStream, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(hello).await.unwrap();
    let mut magic = [0; 8];
    stream.read_exact(&mut magic).await.unwrap();
    let body = read_frame(&mut stream).await.unwrap();
    let mut answer = Vec::new();
    Answer::decode(&body).unwrap().encode_into(&mut answer);
    (stream, answer)
}

/// A sender whose three items have arrived, of which one is acknowledged; then the connection breaks.
async fn sender_in_doubt() -> (Pipe, TcpListener, SessionId) {
    let store = MemoryStore::new();
    let listener = published(&store).await;
    let pipe = sender(&store, TcpConfig { reconnect_timeout: PATIENCE, ..plain() }, limits());
    for mark in 0..3 {
        pipe.try_send(item(4, mark)).unwrap();
    }
    let (hello, mut stream) = welcome(&listener, OURS, &Verdict::Accepted { received: 0 }).await;
    for sequence in 0..3 {
        assert_eq!(next_item(&mut stream).await, sequence);
    }
    stream.write_all(&bytes_of_reply(&Reply::Acknowledge { upto: 1 })).await.unwrap();
    let settling = async {
        while pipe.undelivered().len() > 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, settling).await.unwrap();
    (pipe, listener, hello.endpoint.session)
}

/// Reads an item of four bytes.
async fn next_item(stream: &mut TcpStream) -> u64 {
    loop {
        match Frame::decode(&read_frame(stream).await.unwrap()).unwrap() {
            Frame::Alive => {}
            Frame::Item { sequence, .. } => {
                stream.read_exact(&mut [0; 4]).await.unwrap();
                return sequence;
            }
            frame => panic!("{frame:?} instead of an item"),
        }
    }
}

/// The sender's failure; what it gives back, and whether it is in doubt.
async fn failure(pipe: &Pipe) -> (Error, Vec<(u64, bool)>) {
    let error = timeout(PATIENCE, pipe.flush()).await.expect("the sender ends").unwrap_err();
    let undelivered = pipe.undelivered();
    (error, undelivered.iter().map(|item| (item.sequence, item.in_doubt)).collect())
}

#[tokio::test]
async fn a_sender_says_whom_it_resumes_and_goes_on_from_what_the_peer_holds() {
    let (pipe, listener, session) = sender_in_doubt().await;
    let (hello, mut stream) = welcome(&listener, OURS, &Verdict::Accepted { received: 2 }).await;
    assert_eq!((hello.endpoint.session, hello.peer_session), (session, Some(OURS)));
    assert_eq!(next_item(&mut stream).await, 2);
    stream.write_all(&bytes_of_reply(&Reply::Acknowledge { upto: 3 })).await.unwrap();
    timeout(PATIENCE, pipe.flush()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_receiver_that_claims_what_was_never_sent_is_refused() {
    let (pipe, listener, _) = sender_in_doubt().await;
    welcome(&listener, OURS, &Verdict::Accepted { received: 4 }).await;
    let (error, undelivered) = failure(&pipe).await;
    assert!(matches!(error, Error::PeerMisbehaved { .. }), "{error}");
    assert!(error.to_string().contains("claimed to hold 4 items; 1 of 3 sent items"), "{error}");
    assert_eq!(undelivered, [(1, true), (2, true)]);
}

#[tokio::test]
async fn a_receiver_that_takes_an_acknowledgement_back_is_refused() {
    let (pipe, listener, _) = sender_in_doubt().await;
    welcome(&listener, OURS, &Verdict::Accepted { received: 0 }).await;
    let (error, undelivered) = failure(&pipe).await;
    assert!(matches!(error, Error::PeerMisbehaved { .. }), "{error}");
    assert!(error.to_string().contains("claimed to hold 0 items; 1 of 3 sent items"), "{error}");
    assert_eq!(undelivered, [(1, true), (2, true)]);
}

#[tokio::test]
async fn a_first_receiver_that_claims_items_is_refused() {
    let store = MemoryStore::new();
    let listener = published(&store).await;
    let pipe = sender(&store, plain(), limits());
    pipe.try_send(item(4, 0)).unwrap();
    welcome(&listener, OURS, &Verdict::Accepted { received: 1 }).await;
    let (error, undelivered) = failure(&pipe).await;
    assert!(matches!(error, Error::PeerMisbehaved { .. }), "{error}");
    assert_eq!(undelivered, [(0, false)]);
}

#[tokio::test]
async fn a_receiver_that_comes_back_with_another_session_has_restarted() {
    let (pipe, listener, _) = sender_in_doubt().await;
    welcome(&listener, FOREIGN, &Verdict::Accepted { received: 0 }).await;
    let (error, undelivered) = failure(&pipe).await;
    assert!(matches!(error, Error::PeerRestarted { .. }), "{error}");
    assert_eq!(undelivered, [(1, true), (2, true)]);
}

#[tokio::test]
async fn a_receiver_that_no_longer_knows_the_session_has_restarted() {
    for reason in [RefusalReason::Session, RefusalReason::Busy] {
        let (pipe, listener, _) = sender_in_doubt().await;
        let refusal = Refusal { reason, text: "who are you?".into() };
        welcome(&listener, FOREIGN, &Verdict::Refusal(refusal)).await;
        let (error, undelivered) = failure(&pipe).await;
        assert!(matches!(error, Error::PeerRestarted { .. }), "{error}");
        assert_eq!(undelivered, [(1, true), (2, true)]);
    }
}

#[tokio::test]
async fn a_stranger_at_the_address_of_a_peer_that_holds_everything_does_not_spoil_the_close() {
    let store = MemoryStore::new();
    let listener = published(&store).await;
    let pipe = sender(&store, plain(), limits());
    pipe.try_send(None).unwrap();
    let peer = async {
        let (_, mut stream) = welcome(&listener, OURS, &Verdict::Accepted { received: 0 }).await;
        reads_close(&mut stream).await;
        stream.write_all(&bytes_of_reply(&Reply::Acknowledge { upto: 1 })).await.unwrap();
        drop(stream);
        let refusal = Refusal { reason: RefusalReason::Group, text: "another group".into() };
        welcome(&listener, FOREIGN, &Verdict::Refusal(refusal)).await;
    };
    let (closed, ()) = tokio::join!(pipe.close(), peer);
    closed.unwrap();
}

#[tokio::test]
async fn an_acknowledgement_that_is_only_repeated_is_no_progress() {
    let store = MemoryStore::new();
    let listener = published(&store).await;
    let hasty = PipeConfig { close_timeout: Duration::from_millis(300), ..limits() };
    let pipe = sender(&store, plain(), hasty);
    pipe.try_send(None).unwrap();
    let repeating = async {
        let (_, mut stream) = welcome(&listener, OURS, &Verdict::Accepted { received: 0 }).await;
        let mut ticker = tokio::time::interval(Duration::from_millis(30));
        while stream.write_all(&bytes_of_reply(&Reply::Acknowledge { upto: 0 })).await.is_ok() {
            ticker.tick().await;
        }
    };
    let both = async { tokio::join!(pipe.close(), repeating) };
    let (closed, ()) = timeout(PATIENCE, both).await.expect("the close ends");
    assert!(matches!(closed, Err(Error::Timeout { .. })), "{closed:?}");
}

#[tokio::test]
async fn a_close_whose_answer_is_lost_is_said_again() {
    let store = MemoryStore::new();
    let listener = published(&store).await;
    let pipe = sender(&store, plain(), limits());
    pipe.try_send(None).unwrap();
    let peer = async {
        let (_, mut stream) = welcome(&listener, OURS, &Verdict::Accepted { received: 0 }).await;
        reads_close(&mut stream).await;
        drop(stream);
        let (_, mut stream) = welcome(&listener, OURS, &Verdict::Accepted { received: 1 }).await;
        reads_close(&mut stream).await;
        stream.write_all(&bytes_of_reply(&Reply::Finished { taken: 1 })).await.unwrap();
    };
    let (closed, ()) = tokio::join!(pipe.close(), peer);
    closed.unwrap();
}

/// Reads up to the close of an edge of one item.
async fn reads_close(stream: &mut TcpStream) {
    while Frame::decode(&read_frame(stream).await.unwrap()).unwrap() != (Frame::Close { items: 1 }) {}
}

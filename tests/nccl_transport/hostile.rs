//! A peer that shakes hands as it should, and then says what it must not.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kvpipe::device::Stream;
use kvpipe::nccl::{Communicator, CommunicatorConfig};
use kvpipe::net::TokioNet;
use kvpipe::store::{MemoryStore, Store};
use kvpipe::transport::nccl::{NcclConfig, NcclOutgoing};
use kvpipe::wire::UniqueId;
use kvpipe::wire::frame::{Frame, PREFIX_BYTES, Reply, frame_in};
use kvpipe::wire::handshake::{Answer, Endpoint, Hello, MAGIC, Proof, Verdict, Welcome};
use kvpipe::wire::metadata::{Metadata, TensorMetadata};
use kvpipe::wire::nccl::{NcclFrame, NcclReply};
use kvpipe::wire::text::GroupName;
use kvpipe::{DType, Error, Pipe, PipeConfig, Shape};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::child::cuda;
use crate::ranks::{HANG, config, device, edge, eventually, failure, ring, send_failure, tensor};

/// Both ends but for their names.
fn endpoint(session: u8) -> Endpoint {
    Endpoint {
        group: GroupName::new("/nccl").unwrap(),
        from_rank: 0,
        to_rank: 1,
        world_size: 2,
        session: [session; 16],
        nonce: [9; 32],
        max_item_bytes: PipeConfig::default().max_item_bytes as u64,
        heartbeat_ms: 5000,
        checksum: false,
        authenticated: false,
    }
}

async fn read_body(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(body) = frame_in(&bytes).unwrap() {
            return Some(bytes[body].to_vec());
        }
        bytes.push(stream.read_u8().await.ok()?);
    }
}

/// A receiver that has accepted us as its sender.
async fn receiver() -> (Pipe, TcpStream) {
    let (_, incoming) = edge(config()).await;
    let address = incoming.local_addr();
    let (receiver, driver) = Pipe::receive_only(incoming, PipeConfig::default());
    tokio::spawn(driver);
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut bytes = Vec::new();
    Hello { endpoint: endpoint(7), peer_session: None }.encode_into(&mut bytes);
    Proof { proof: [0; 32] }.encode_into(&mut bytes);
    stream.write_all(&bytes).await.unwrap();
    stream.read_exact(&mut [0; MAGIC.len()]).await.unwrap();
    assert!(matches!(Answer::decode(&read_body(&mut stream).await.unwrap()), Ok(Answer::Welcome(_))));
    let verdict = Verdict::decode(&read_body(&mut stream).await.unwrap()).unwrap();
    assert_eq!(verdict, Verdict::Accepted { received: 0 });
    (receiver, stream)
}

/// A sender that we have accepted as its receiver, and how we are to form a communicator with it.
async fn sender_with(config: NcclConfig) -> (Pipe, TcpStream, UniqueId) {
    let store = MemoryStore::new();
    let listener = TcpListener::bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    store.set("kvpipe//nccl/1/address", address.into(), HANG).await.unwrap();
    let outgoing = NcclOutgoing::new(TokioNet, store, ring(0), config).unwrap();
    let (sender, driver) = Pipe::send_only(outgoing, PipeConfig::default());
    tokio::spawn(driver);
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.read_exact(&mut [0; MAGIC.len()]).await.unwrap();
    Hello::decode(&read_body(&mut stream).await.unwrap()).unwrap();
    let mut bytes = Vec::new();
    Answer::Welcome(Welcome { endpoint: endpoint(8), proof: [0; 32] }).encode_into(&mut bytes);
    stream.write_all(&bytes).await.unwrap();
    Proof::decode(&read_body(&mut stream).await.unwrap()).unwrap();
    bytes.clear();
    Verdict::Accepted { received: 0 }.encode_into(&mut bytes);
    stream.write_all(&bytes).await.unwrap();
    let first = NcclFrame::decode(&read_body(&mut stream).await.unwrap()).unwrap();
    let NcclFrame::Join { id } = first else { panic!("{first:?}") };
    (sender, stream, id)
}

async fn sender() -> (Pipe, TcpStream) {
    let (sender, stream, _) = sender_with(config()).await;
    (sender, stream)
}

/// A sender whose payloads must arrive within half a second, with which we have formed a communicator.
async fn joined_sender() -> (Pipe, TcpStream, Communicator) {
    let mut config = config();
    config.transfer_timeout = Duration::from_millis(500);
    // We show no signs of life.
    config.control.heartbeat = HANG;
    let (device, library) = (Arc::clone(&config.device), Arc::clone(&config.library));
    let (sender, stream, id) = sender_with(config).await;
    let joining = Communicator::with_unique_id(id, [1, 2], device, library, CommunicatorConfig::default());
    let communicator = joining.await.unwrap();
    let to_try = Stream::new(communicator.device()).unwrap();
    communicator.recv(DType::UInt8, Shape::new(&[1]).unwrap(), 0, &to_try).await.unwrap();
    (sender, stream, communicator)
}

async fn say(stream: &mut TcpStream, replies: &[NcclReply]) {
    let mut bytes = Vec::new();
    replies.iter().for_each(|reply| reply.encode_into(&mut bytes));
    stream.write_all(&bytes).await.unwrap();
}

/// Reads until so many items are announced.
async fn announced(stream: &mut TcpStream, items: u64) {
    loop {
        let frame = NcclFrame::decode(&read_body(stream).await.unwrap()).unwrap();
        if matches!(frame, NcclFrame::Edge(Frame::Item { sequence, .. }) if sequence + 1 == items) {
            return;
        }
    }
}

/// What a sender says last.
async fn reason_of_abort(stream: &mut TcpStream) -> String {
    loop {
        let frame = NcclFrame::decode(&read_body(stream).await.unwrap()).unwrap();
        if let NcclFrame::Edge(Frame::Abort { reason }) = frame {
            return reason.as_str().to_owned();
        }
    }
}

fn violation(error: Error) -> String {
    match error {
        Error::PeerMisbehaved { violation, .. } => violation,
        other => panic!("{other:?}"),
    }
}

fn item(sequence: u64) -> NcclFrame {
    let metadata = TensorMetadata::new(DType::UInt8, Shape::new(&[8]).unwrap()).unwrap();
    NcclFrame::Edge(Frame::Item { sequence, metadata: Metadata::Tensor(metadata) })
}

on_fakes!(a_sender_that_breaks_the_protocol_is_told_so, "", async || {
    for (frames, expected) in [
        (vec![item(0)], "announced an item before a communicator"),
        (vec![item(1)], "announced item 1 or closed there, where 0 was due"),
        (
            vec![NcclFrame::Edge(Frame::Close { items: 3 })],
            "announced item 3 or closed there, where 0 was due",
        ),
        (vec![NcclFrame::Edge(Frame::Goodbye)], "said goodbye before we had finished"),
    ] {
        let (receiver, mut stream) = receiver().await;
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode_into(&mut bytes));
        stream.write_all(&bytes).await.unwrap();
        assert_eq!(violation(failure(&receiver).await), expected);
        let mut told = None;
        while let Some(body) = read_body(&mut stream).await {
            if let NcclReply::Edge(Reply::Abort { reason }) = NcclReply::decode(&body).unwrap() {
                told = Some(reason);
            }
        }
        assert!(told.unwrap().as_str().contains(expected));
    }
});

on_fakes!(bytes_that_are_no_frame_end_the_edge, "", async || {
    let (receiver, mut stream) = receiver().await;
    let mut bytes = vec![0; PREFIX_BYTES];
    bytes[0] = 1;
    bytes.push(0x77);
    stream.write_all(&bytes).await.unwrap();
    assert_eq!(violation(failure(&receiver).await), "unknown frame tag 119");
});

on_fakes!(a_communicator_that_nobody_else_forms_does_not_outlive_its_edge, "", async || {
    let (receiver, mut stream) = receiver().await;
    let mut bytes = Vec::new();
    NcclFrame::Join { id: config().library.unique_id().unwrap() }.encode_into(&mut bytes);
    stream.write_all(&bytes).await.unwrap();
    drop(stream);
    let error = failure(&receiver).await;
    assert!(matches!(error, Error::PeerGone { .. }), "{error}");
});

on_fakes!(a_receiver_that_is_ready_for_what_was_not_announced_breaks_the_protocol, "", async || {
    let (sender, mut stream) = sender().await;
    say(&mut stream, &[NcclReply::Ready { upto: 5 }]).await;
    sender.send(None).await.ok();
    let said = violation(send_failure(&sender).await);
    assert!(said.starts_with("was ready for items below 5, of "), "{said}");
});

on_fakes!(a_receiver_that_acknowledges_what_it_was_not_ready_for_breaks_the_protocol, "", async || {
    let (sender, mut stream) = sender().await;
    sender.send(Some(tensor(8, 0))).await.unwrap();
    sender.send(Some(tensor(8, 1))).await.unwrap();
    announced(&mut stream, 2).await;
    say(&mut stream, &[NcclReply::Ready { upto: 1 }, Reply::Acknowledge { upto: 2 }.into()]).await;
    let said = violation(send_failure(&sender).await);
    assert_eq!(said, "acknowledged items below 2, and was ready for those below 1");
    assert_eq!(sender.undelivered().len(), 2);
});

on_fakes!(a_receiver_that_is_ready_and_never_receives_ends_the_edge, "", async || {
    let (sender, mut stream, _communicator) = joined_sender().await;
    // The first is too short for NCCL to mind.
    sender.send(Some(tensor(8, 0))).await.unwrap();
    sender.send(None).await.unwrap();
    announced(&mut stream, 2).await;
    say(&mut stream, &[NcclReply::Ready { upto: 2 }]).await;
    let said = "timed out after 1.5 s waiting for rank 1 to receive item 0, for which it was ready";
    assert_eq!(send_failure(&sender).await.to_string(), said);
    assert_eq!(reason_of_abort(&mut stream).await, said);
    let undelivered = sender.undelivered();
    assert_eq!(undelivered.iter().map(|item| item.in_doubt).collect::<Vec<_>>(), [true, true]);
});

on_fakes!(each_item_that_is_received_gives_the_next_its_time, "", async || {
    let (sender, mut stream, communicator) = joined_sender().await;
    let on = Stream::new(communicator.device()).unwrap();
    let receive = async || communicator.recv(DType::UInt8, Shape::new(&[8]).unwrap(), 0, &on).await.unwrap();
    for _ in 0..5 {
        sender.send(Some(tensor(8, 0))).await.unwrap();
    }
    announced(&mut stream, 5).await;
    say(&mut stream, &[NcclReply::Ready { upto: 5 }]).await;
    for upto in 1..=5 {
        receive().await;
        // In all more than it may take, but each well within it.
        tokio::time::sleep(Duration::from_millis(400)).await;
        say(&mut stream, &[Reply::Acknowledge { upto }.into()]).await;
    }
    // While there is nothing to receive, nobody is late.
    tokio::time::sleep(Duration::from_millis(2000)).await;
    sender.send(Some(tensor(8, 0))).await.unwrap();
    announced(&mut stream, 6).await;
    say(&mut stream, &[NcclReply::Ready { upto: 6 }]).await;
    receive().await;
    say(&mut stream, &[Reply::Acknowledge { upto: 6 }.into()]).await;
    eventually(|| sender.stats().send.unwrap().delivered_items == 6).await;
});

on_fakes!(a_receiver_that_acknowledges_what_was_not_sent_breaks_the_protocol, "", async || {
    // Without a communicator nothing can be sent.
    let (sender, mut stream) = sender().await;
    sender.send(Some(tensor(8, 0))).await.unwrap();
    announced(&mut stream, 1).await;
    say(&mut stream, &[NcclReply::Ready { upto: 1 }, Reply::Acknowledge { upto: 1 }.into()]).await;
    assert_eq!(violation(send_failure(&sender).await), "acknowledged item 0 before it was sent");
});

on_fakes!(a_receiver_that_acknowledges_what_it_never_receives_ends_the_edge, "", async || {
    const SENDING_MAX: u64 = 32;
    let (sender, mut stream, _communicator) = joined_sender().await;
    // Too long for NCCL to get rid of, and then shorter ones behind it.
    let sources = [tensor(64 << 20, 0), tensor(8, 0)];
    let [long, short] = sources.map(|tensor| async move { tensor.to_device(&device()).await.unwrap() });
    let (long, short) = (long.await, short.await);
    eventually(|| cuda().events == 0).await;
    for upto in 1..=SENDING_MAX {
        let tensor = if upto == 1 { &long } else { &short };
        sender.send(Some(tensor.clone())).await.unwrap();
        announced(&mut stream, upto).await;
        say(&mut stream, &[NcclReply::Ready { upto }]).await;
        // An event for each that was sent.
        eventually(|| cuda().events == upto).await;
        say(&mut stream, &[Reply::Acknowledge { upto }.into()]).await;
    }
    eventually(|| sender.stats().send.unwrap().delivered_items == SENDING_MAX).await;
    sender.send(Some(short)).await.unwrap();
    announced(&mut stream, SENDING_MAX + 1).await;
    say(&mut stream, &[NcclReply::Ready { upto: SENDING_MAX + 1 }]).await;
    let said = "timed out after 0.5 s waiting for rank 1 to receive what it acknowledged";
    assert_eq!(send_failure(&sender).await.to_string(), said);
});

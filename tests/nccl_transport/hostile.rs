//! A peer that shakes hands as it should, and then says what it must not.

use std::net::{Ipv4Addr, SocketAddr};

use kvpipe::net::TokioNet;
use kvpipe::store::{MemoryStore, Store};
use kvpipe::transport::nccl::NcclOutgoing;
use kvpipe::wire::frame::{Frame, PREFIX_BYTES, Reply, frame_in};
use kvpipe::wire::handshake::{Answer, Endpoint, Hello, MAGIC, Proof, Verdict, Welcome};
use kvpipe::wire::metadata::{Metadata, TensorMetadata};
use kvpipe::wire::nccl::{NcclFrame, NcclReply};
use kvpipe::wire::text::GroupName;
use kvpipe::{DType, Error, Pipe, PipeConfig, Shape};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::ranks::{HANG, config, edge, failure, ring, send_failure};

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

/// A sender that we have accepted as its receiver.
async fn sender() -> (Pipe, TcpStream) {
    let store = MemoryStore::new();
    let listener = TcpListener::bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    store.set("kvpipe//nccl/1/address", address.into(), HANG).await.unwrap();
    let outgoing = NcclOutgoing::new(TokioNet, store, ring(0), config()).unwrap();
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
    assert!(matches!(first, NcclFrame::Join { .. }), "{first:?}");
    (sender, stream)
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
    let mut bytes = Vec::new();
    NcclReply::Ready { upto: 5 }.encode_into(&mut bytes);
    stream.write_all(&bytes).await.unwrap();
    sender.send(None).await.ok();
    let said = violation(send_failure(&sender).await);
    assert!(said.starts_with("was ready for items below 5, of "), "{said}");
});

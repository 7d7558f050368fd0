//! What must hold between two hosts on any network: one serves, the other visits.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use kvpipe::net::{Listener, Net, SocketOptions, Stream};
use kvpipe_sim::net::SimStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// One thing that must hold.
pub(crate) trait Case: Copy + 'static {
    async fn serve<L: Listener>(self, listener: L, place: impl Place<L::Stream>);
    async fn visit<N: Net>(self, net: N, server: SocketAddr, place: impl Place<N::Stream>);
}

/// What the two networks do in different ways.
pub(crate) trait Place<S>: Copy {
    /// Breaks a connection so that the other end finds it reset, behind what was sent.
    fn break_off(self, stream: S);

    /// Until all that was sent has arrived.
    async fn settle(self);
}

#[derive(Clone, Copy)]
pub(crate) struct Loopback;

impl Place<TcpStream> for Loopback {
    fn break_off(self, stream: TcpStream) {
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Linux delivers within the call that sends.
    async fn settle(self) {}
}

#[derive(Clone, Copy)]
pub(crate) struct Simulation;

impl Place<SimStream> for Simulation {
    fn break_off(self, stream: SimStream) {
        stream.abort();
    }

    async fn settle(self) {
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}

async fn accept<L: Listener>(listener: &L) -> L::Stream {
    listener.accept().await.unwrap().0
}

async fn connect<N: Net>(net: &N, server: SocketAddr) -> N::Stream {
    net.connect(server, &SocketOptions::default()).await.unwrap()
}

#[derive(Clone, Copy)]
pub(crate) struct WriterDropped;

impl Case for WriterDropped {
    async fn serve<L: Listener>(self, listener: L, _: impl Place<L::Stream>) {
        let (mut reader, mut writer) = accept(&listener).await.split();
        writer.write_all(b"the last word").await.unwrap();
        // It ends our direction, with the reader still there.
        drop(writer);
        assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0, "until the visitor has gone");
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr, _: impl Place<N::Stream>) {
        let (mut reader, _writer) = connect(&net, server).await.split();
        let mut heard = Vec::new();
        reader.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"the last word");
        assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0, "the end stays the end");
    }
}

#[derive(Clone, Copy)]
pub(crate) struct HalfClose;

impl Case for HalfClose {
    async fn serve<L: Listener>(self, listener: L, _: impl Place<L::Stream>) {
        let (mut reader, mut writer) = accept(&listener).await.split();
        let mut asked = Vec::new();
        reader.read_to_end(&mut asked).await.unwrap();
        writer.write_all(&asked).await.unwrap();
        assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0, "the end stays the end");
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr, _: impl Place<N::Stream>) {
        let (mut reader, mut writer) = connect(&net, server).await.split();
        writer.write_all(b"a question").await.unwrap();
        writer.shutdown().await.unwrap();
        let late = writer.write(b"and one more").await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::BrokenPipe);
        let mut answer = Vec::new();
        reader.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"a question");
    }
}

#[derive(Clone, Copy)]
pub(crate) struct ResetByAbort;

impl Case for ResetByAbort {
    async fn serve<L: Listener>(self, listener: L, place: impl Place<L::Stream>) {
        place.break_off(accept(&listener).await);
        // And one more after that.
        let (_reader, mut writer) = accept(&listener).await.split();
        writer.write_all(b"welcome back").await.unwrap();
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr, _: impl Place<N::Stream>) {
        let (mut reader, mut writer) = connect(&net, server).await.split();
        let read = reader.read(&mut [0; 8]).await;
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0, "it is told once");
        let written = writer.write(b"anybody?").await.unwrap_err();
        assert_eq!(written.kind(), ErrorKind::BrokenPipe);
        writer.shutdown().await.expect("there is nothing left to end, which is no failure");

        let (mut reader, _writer) = connect(&net, server).await.split();
        let mut heard = Vec::new();
        reader.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"welcome back");
    }
}

#[derive(Clone, Copy)]
pub(crate) struct WritingToNobody;

impl Case for WritingToNobody {
    async fn serve<L: Listener>(self, listener: L, _: impl Place<L::Stream>) {
        drop(accept(&listener).await);
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr, _: impl Place<N::Stream>) {
        let (_reader, mut writer) = connect(&net, server).await.split();
        let error = loop {
            match writer.write(&[0; 4096]).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => break error,
            }
        };
        assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    }
}

/// The writer may be told of a reset before the reader is, which then finds an end.
#[derive(Clone, Copy)]
pub(crate) struct ResetTellsTheWriter;

impl Case for ResetTellsTheWriter {
    async fn serve<L: Listener>(self, listener: L, place: impl Place<L::Stream>) {
        place.break_off(accept(&listener).await);
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr, _: impl Place<N::Stream>) {
        let (mut reader, mut writer) = connect(&net, server).await.split();
        let error = loop {
            match writer.write(&[0; 4096]).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(writer.write(&[0]).await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}

/// A close with bytes unread tells the peer that they were.
#[derive(Clone, Copy)]
pub(crate) struct ClosedUnread;

impl Case for ClosedUnread {
    async fn serve<L: Listener>(self, listener: L, place: impl Place<L::Stream>) {
        let stream = accept(&listener).await;
        let (mut reader, _writer) = accept(&listener).await.split();
        assert_eq!(reader.read_u8().await.unwrap(), 1, "the other one's bytes are written");
        place.settle().await;
        drop(stream);
        assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0, "until the visitor has gone");
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr, place: impl Place<N::Stream>) {
        let (mut reader, mut writer) = connect(&net, server).await.split();
        place.settle().await;
        let (_reader, mut other) = connect(&net, server).await.split();
        writer.write_all(b"unread").await.unwrap();
        other.write_u8(1).await.unwrap();
        let read = reader.read(&mut [0; 8]).await;
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset, "not an end");
        assert_eq!(writer.write(&[0]).await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}

/// Bytes that come to an end which was closed in order: its peer has seen the end, so what it writes
/// later breaks, and reading stays at the end.
#[derive(Clone, Copy)]
pub(crate) struct WrittenAfterEnd;

impl Case for WrittenAfterEnd {
    async fn serve<L: Listener>(self, listener: L, _: impl Place<L::Stream>) {
        drop(accept(&listener).await);
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr, place: impl Place<N::Stream>) {
        let (mut reader, mut writer) = connect(&net, server).await.split();
        assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(writer.write(&[0]).await.unwrap(), 1, "who knows, the reader may be there still");
        place.settle().await;
        assert_eq!(writer.write(&[0]).await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0, "the end stays the end");
    }
}

/// Who connects need not wait to be accepted before it writes, and goes.
#[derive(Clone, Copy)]
pub(crate) struct GoneBeforeAccept;

impl Case for GoneBeforeAccept {
    async fn serve<L: Listener>(self, listener: L, place: impl Place<L::Stream>) {
        place.settle().await;
        let (mut reader, _writer) = accept(&listener).await.split();
        let mut heard = Vec::new();
        reader.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"early");
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr, _: impl Place<N::Stream>) {
        let (_, mut writer) = connect(&net, server).await.split();
        writer.write_all(b"early").await.unwrap();
    }
}

/// Who waits to be accepted when the listener is dropped.
#[derive(Clone, Copy)]
pub(crate) struct NeverAccepted;

impl Case for NeverAccepted {
    async fn serve<L: Listener>(self, listener: L, _: impl Place<L::Stream>) {
        let (mut reader, _writer) = accept(&listener).await.split();
        reader.read_u8().await.unwrap();
        drop(listener);
        assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0, "until the visitor has gone");
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr, place: impl Place<N::Stream>) {
        let (_reader, mut first) = connect(&net, server).await.split();
        place.settle().await;
        let (mut reader, _writer) = connect(&net, server).await.split();
        first.write_u8(1).await.unwrap();
        let read = reader.read(&mut [0; 8]).await;
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

/// A writer that found no room goes on where it stopped once there is some.
#[derive(Clone, Copy)]
pub(crate) struct FullThenRead;

impl Case for FullThenRead {
    async fn serve<L: Listener>(self, listener: L, _: impl Place<L::Stream>) {
        let (mut full, _writer) = accept(&listener).await.split();
        let (mut reader, _other) = accept(&listener).await.split();
        assert_eq!(reader.read_u8().await.unwrap(), 1, "there is no more room");
        let mut heard = Vec::new();
        full.read_to_end(&mut heard).await.unwrap();
        assert!(heard == large(), "{} bytes came", heard.len());
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr, place: impl Place<N::Stream>) {
        let mut options = SocketOptions::default();
        options.send_buffer_bytes = Some(1 << 16);
        let (_reader, mut writer) = net.connect(server, &options).await.unwrap().split();
        place.settle().await;
        let (_other, mut teller) = connect(&net, server).await.split();
        let (sent, mut written) = (large(), 0);
        while let Ok(part) = timeout(Duration::from_millis(100), writer.write(&sent[written..])).await {
            written += part.unwrap();
            assert!(written < sent.len(), "nobody reads");
        }
        teller.write_u8(1).await.unwrap();
        writer.write_all(&sent[written..]).await.unwrap();
    }
}

#[derive(Clone, Copy)]
pub(crate) struct AddressesMirror;

impl Case for AddressesMirror {
    async fn serve<L: Listener>(self, listener: L, _: impl Place<L::Stream>) {
        let (stream, origin) = listener.accept().await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), origin);
        assert_eq!(stream.local_addr().unwrap(), listener.local_addr().unwrap());
        let (_reader, mut writer) = stream.split();
        writer.write_all(origin.to_string().as_bytes()).await.unwrap();
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr, _: impl Place<N::Stream>) {
        let stream = connect(&net, server).await;
        assert_eq!(stream.peer_addr().unwrap(), server);
        let ours = stream.local_addr().unwrap().to_string();
        let mut heard = String::new();
        stream.split().0.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, ours);
    }
}

/// Both ends write before they read, each more than a socket takes, so neither may depend on a write
/// that is taken whole.
#[derive(Clone, Copy)]
pub(crate) struct LargeTransfer;

/// The bytes that go each way.
fn large() -> Vec<u8> {
    (0u32..300_000).flat_map(u32::to_le_bytes).collect()
}

async fn exchange(stream: impl Stream) {
    let (mut reader, mut writer) = stream.split();
    let (sent, mut received) = (large(), Vec::new());
    let writing = async {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let (_, read) = tokio::join!(writing, reader.read_to_end(&mut received));
    read.unwrap();
    assert!(received == sent, "{} bytes came of {}", received.len(), sent.len());
}

impl Case for LargeTransfer {
    async fn serve<L: Listener>(self, listener: L, _: impl Place<L::Stream>) {
        exchange(accept(&listener).await).await;
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr, _: impl Place<N::Stream>) {
        exchange(connect(&net, server).await).await;
    }
}

#[derive(Clone, Copy)]
pub(crate) struct RefusedAfterUnbind;

impl Case for RefusedAfterUnbind {
    async fn serve<L: Listener>(self, listener: L, _: impl Place<L::Stream>) {
        let (mut reader, mut writer) = accept(&listener).await.split();
        drop(listener);
        writer.write_u8(1).await.unwrap();
        assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0, "until the visitor has gone");
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr, _: impl Place<N::Stream>) {
        let (mut reader, _writer) = connect(&net, server).await.split();
        reader.read_u8().await.unwrap();
        let refused = net.connect(server, &SocketOptions::default()).await;
        assert_eq!(refused.err().map(|error| error.kind()), Some(ErrorKind::ConnectionRefused));
    }
}

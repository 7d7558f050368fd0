//! What must hold between two hosts on any network: one serves, the other visits.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use kvpipe::net::{Listener, Net, SocketOptions, Stream};
use kvpipe_sim::net::{Network, SimStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One thing that must hold.
pub(crate) trait Case: Copy + 'static {
    async fn serve<L: Listener>(self, listener: L, breaker: impl Break<L::Stream>);
    async fn visit<N: Net>(self, net: N, server: SocketAddr);
}

/// Breaks a connection so that the other end finds it reset.
pub(crate) trait Break<S> {
    fn break_off(&self, stream: S);
}

/// As a process that is killed with a full socket, or by choice (`SO_LINGER` of zero).
pub(crate) struct Abort;

impl Break<TcpStream> for Abort {
    fn break_off(&self, stream: TcpStream) {
        socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }
}

/// By a cut of the link.
pub(crate) struct CutLink(pub(crate) Network, pub(crate) [IpAddr; 2]);

impl Break<SimStream> for CutLink {
    fn break_off(&self, stream: SimStream) {
        let Self(network, [one, other]) = self;
        network.cut(*one, *other);
        drop(stream);
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
    async fn serve<L: Listener>(self, listener: L, _: impl Break<L::Stream>) {
        let (mut reader, mut writer) = accept(&listener).await.split();
        writer.write_all(b"the last word").await.unwrap();
        // It ends our direction, with the reader still there.
        drop(writer);
        assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0, "until the visitor has gone");
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr) {
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
    async fn serve<L: Listener>(self, listener: L, _: impl Break<L::Stream>) {
        let (mut reader, mut writer) = accept(&listener).await.split();
        let mut asked = Vec::new();
        reader.read_to_end(&mut asked).await.unwrap();
        writer.write_all(&asked).await.unwrap();
        assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0, "the end stays the end");
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr) {
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
    async fn serve<L: Listener>(self, listener: L, breaker: impl Break<L::Stream>) {
        let first = accept(&listener).await;
        let (mut reader, writer) = accept(&listener).await.split();
        assert_eq!(reader.read_u8().await.unwrap(), 1, "both connections are up at the visitor");
        breaker.break_off(first);
        drop((reader, writer));
        // And one more after that.
        let (_reader, mut writer) = accept(&listener).await.split();
        writer.write_all(b"welcome back").await.unwrap();
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr) {
        let (mut reader, mut writer) = connect(&net, server).await.split();
        let (other_reader, mut other_writer) = connect(&net, server).await.split();
        other_writer.write_u8(1).await.unwrap();
        // It waits in the read when the reset comes.
        let read = reader.read(&mut [0; 8]).await;
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
        let written = writer.write(b"anybody?").await.unwrap_err();
        assert!(matches!(written.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{written}");
        writer.shutdown().await.expect("there is nothing left to end, which is no failure");
        drop((other_reader, other_writer));

        let (mut reader, _writer) = connect(&net, server).await.split();
        let mut heard = Vec::new();
        reader.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"welcome back");
    }
}

#[derive(Clone, Copy)]
pub(crate) struct WritingToNobody;

impl Case for WritingToNobody {
    async fn serve<L: Listener>(self, listener: L, _: impl Break<L::Stream>) {
        drop(accept(&listener).await);
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr) {
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

#[derive(Clone, Copy)]
pub(crate) struct AddressesMirror;

impl Case for AddressesMirror {
    async fn serve<L: Listener>(self, listener: L, _: impl Break<L::Stream>) {
        let (stream, origin) = listener.accept().await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), origin);
        assert_eq!(stream.local_addr().unwrap(), listener.local_addr().unwrap());
        let (_reader, mut writer) = stream.split();
        writer.write_all(origin.to_string().as_bytes()).await.unwrap();
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr) {
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
    async fn serve<L: Listener>(self, listener: L, _: impl Break<L::Stream>) {
        exchange(accept(&listener).await).await;
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr) {
        exchange(connect(&net, server).await).await;
    }
}

#[derive(Clone, Copy)]
pub(crate) struct RefusedAfterUnbind;

impl Case for RefusedAfterUnbind {
    async fn serve<L: Listener>(self, listener: L, _: impl Break<L::Stream>) {
        let (mut reader, mut writer) = accept(&listener).await.split();
        drop(listener);
        writer.write_u8(1).await.unwrap();
        assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0, "until the visitor has gone");
    }

    async fn visit<N: Net>(self, net: N, server: SocketAddr) {
        let (mut reader, _writer) = connect(&net, server).await.split();
        reader.read_u8().await.unwrap();
        let refused = net.connect(server, &SocketOptions::default()).await;
        assert_eq!(refused.err().map(|error| error.kind()), Some(ErrorKind::ConnectionRefused));
    }
}

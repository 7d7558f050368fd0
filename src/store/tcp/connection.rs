//! One connection of a client: exchanges of requests and replies, one after another.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout_at};

use super::pieces::Pieces;
use super::protocol::{Expected, MAGIC, ProtocolError, Reply, ReplyParser, Request};
use super::stock::Stock;
use crate::net::Stream;
use crate::store::Limits;

/// How long the server may take to answer CANCEL_WAIT, once the deadline has passed.
const CANCEL_WITHIN: Duration = Duration::from_secs(1);

/// How much room there is for what the server sends, at least.
const READ_BUFFER_BYTES: usize = 16 << 10;

/// Why an exchange failed. The connection is of no more use.
#[derive(Debug)]
pub(super) enum Failure {
    /// The deadline passed.
    Late,
    /// The connection broke, or the server closed it.
    Broken(io::Error),
    /// The server does not speak the protocol, or a value is over the limit.
    Protocol(ProtocolError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl From<ProtocolError> for Failure {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

impl Failure {
    /// Says so if the connection may have been closed because the server does not know the request.
    fn of(self, request: &Request) -> Self {
        match (self, request.known_to()) {
            (Self::Broken(error), Some(servers)) => {
                let name = request.name();
                let text = format!("{error} (does it know {name}? known to: {servers})");
                Self::Broken(io::Error::new(error.kind(), text))
            }
            (other, _) => other,
        }
    }

    /// As the source of an [`Error::Io`](crate::Error::Io).
    pub(super) fn into_io(self) -> io::Error {
        match self {
            Self::Late => io::ErrorKind::TimedOut.into(),
            Self::Broken(error) => error,
            Self::Protocol(error) => io::Error::new(io::ErrorKind::InvalidData, error),
        }
    }
}

/// `future` until `deadline`.
pub(super) async fn within<T>(
    deadline: Instant,
    future: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout_at(deadline, future).await.unwrap_or(Err(Failure::Late))
}

/// Reads out of a reply what was asked for, or gives it back if it is of another kind.
pub(super) type Answer<T> = fn(Reply) -> Result<T, Reply>;

/// A validated connection.
///
/// An exchange that is dropped midway leaves bytes behind that belong to nobody: whoever drops one
/// drops the connection with it. Only [`wait`](Self::wait) looks after itself when its deadline passes.
pub(super) struct Connection<S: Stream> {
    reader: S::Reader,
    writer: S::Writer,
    local_addr: SocketAddr,
    limits: Limits,
    stock: Arc<Stock>,
    /// Read, but not yet part of a reply.
    unread: BytesMut,
}

impl<S: Stream> Connection<S> {
    /// Introduces us: VALIDATE and PING in one write, since libuv's server drops a client whose
    /// VALIDATE comes in pieces; the echo proves that a store is there.
    pub(super) async fn open(
        stream: S,
        nonce: u32,
        limits: Limits,
        stock: Arc<Stock>,
    ) -> Result<Self, Failure> {
        let local_addr = stream.local_addr()?;
        let (reader, writer) = stream.split();
        let mut connection = Self { reader, writer, local_addr, limits, stock, unread: BytesMut::new() };
        let mut introduction = BytesMut::new();
        Request::Validate { magic: MAGIC }.encode(&mut introduction);
        Request::Ping { nonce }.encode(&mut introduction);
        connection.write(introduction).await?;
        connection.pong(nonce).await?;
        Ok(connection)
    }

    /// Our end.
    pub(super) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// False if the server has closed it, or has sent what nobody asked for.
    pub(super) async fn is_idle(&mut self) -> bool {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let nothing_to_read = poll_fn(|context| {
            Poll::Ready(Pin::new(&mut self.reader).poll_read(context, &mut buffer).is_pending())
        });
        self.unread.is_empty() && nothing_to_read.await
    }

    /// Sends a request that has a reply, and reads it.
    pub(super) async fn ask<T>(&mut self, request: &Request, answer: Answer<T>) -> Result<T, Failure> {
        let mut bytes = Pieces::default();
        request.encode_to(&mut bytes);
        let exchange = async {
            self.write(bytes).await?;
            match request.expected() {
                Some(expected) => self.receive(expected).await,
                None => Err(Failure::Broken(io::Error::other("bug in kvpipe: awaiting a reply to nothing"))),
            }
        };
        let reply = exchange.await.map_err(|failure| failure.of(request))?;
        answer(reply).map_err(|other| wrong_reply(request.name(), &other))
    }

    /// Sends a request that has no reply; a server that refuses it says nothing until the next one. So
    /// a PING follows in the same write, whose echo says that the request was carried out.
    pub(super) async fn tell(&mut self, request: &Request, nonce: u32) -> Result<(), Failure> {
        let mut bytes = Pieces::default();
        request.encode_to(&mut bytes);
        Request::Ping { nonce }.encode_to(&mut bytes);
        let exchange = async {
            self.write(bytes).await?;
            self.pong(nonce).await
        };
        exchange.await.map_err(|failure| failure.of(request))
    }

    /// Sends a WAIT or BARRIER and waits for its end; false if the deadline passes first, and then the
    /// connection is as good as before: the wait is cancelled at the server.
    ///
    /// The end may come while CANCEL_WAIT is on its way. Then the server has answered both, 00 and 01,
    /// and both are read; it is still false, as the deadline had passed (so does PyTorch's client).
    pub(super) async fn wait(&mut self, wait: &Request, deadline: Instant) -> Result<bool, Failure> {
        let mut bytes = BytesMut::new();
        wait.encode(&mut bytes);
        within(deadline, self.write(bytes)).await?;
        // Dropping `receive` at the deadline loses nothing: the reply has one byte.
        match timeout_at(deadline, self.receive(Expected::Wait)).await {
            Ok(Ok(Reply::StopWaiting)) => Ok(true),
            Ok(Ok(other)) => Err(wrong_reply(wait.name(), &other)),
            Ok(Err(failure)) => Err(failure.of(wait)),
            Err(_elapsed) => within(Instant::now() + CANCEL_WITHIN, self.cancel_wait()).await.map(|()| false),
        }
    }

    async fn cancel_wait(&mut self) -> Result<(), Failure> {
        let mut bytes = BytesMut::new();
        Request::CancelWait.encode(&mut bytes);
        self.write(bytes).await?;
        let mut reply = self.receive(Expected::Wait).await?;
        if reply == Reply::StopWaiting {
            reply = self.receive(Expected::Wait).await?;
        }
        match reply {
            Reply::WaitCanceled => Ok(()),
            other => Err(wrong_reply("CANCEL_WAIT", &other)),
        }
    }

    async fn pong(&mut self, nonce: u32) -> Result<(), Failure> {
        match self.receive(Expected::Pong).await? {
            Reply::Pong(echo) if echo == nonce => Ok(()),
            other => Err(wrong_reply("PING", &other)),
        }
    }

    async fn write(&mut self, mut bytes: impl Buf) -> Result<(), Failure> {
        self.writer.write_all_buf(&mut bytes).await?;
        Ok(self.writer.flush().await?)
    }

    async fn receive(&mut self, expected: Expected) -> Result<Reply, Failure> {
        let mut parser = ReplyParser::recycling(expected, &self.limits, Arc::clone(&self.stock));
        loop {
            let mut input = &self.unread[..];
            let reply = parser.parse(&mut input)?;
            let used = self.unread.len() - input.len();
            self.unread.advance(used);
            if let Some(reply) = reply {
                return Ok(reply);
            }
            let read = match parser.spare() {
                // A large value goes straight to its place.
                Some(mut spare) => self.reader.read_buf(&mut spare).await?,
                None => {
                    self.unread.reserve(READ_BUFFER_BYTES);
                    self.reader.read_buf(&mut self.unread).await?
                }
            };
            if read == 0 {
                let closed = "the server closed the connection";
                return Err(Failure::Broken(io::Error::new(io::ErrorKind::UnexpectedEof, closed)));
            }
        }
    }
}

fn wrong_reply(request: &'static str, reply: &Reply) -> Failure {
    Failure::Protocol(ProtocolError::WrongReply { request, reply: format!("{reply:?}") })
}

#[cfg(test)]
mod tests {
    use std::task::Context;

    use tokio::io::{AsyncWrite, Empty};

    use super::*;
    use crate::sync::Mutex;

    /// A connection to nobody that keeps what each write had.
    #[derive(Clone)]
    struct Recorder(Arc<Mutex<Vec<Vec<u8>>>>);

    const NOBODY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    impl Stream for Recorder {
        type Reader = Empty;
        type Writer = Self;

        fn split(self) -> (Empty, Self) {
            (tokio::io::empty(), self)
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(NOBODY)
        }

        fn peer_addr(&self) -> io::Result<SocketAddr> {
            Ok(NOBODY)
        }
    }

    impl AsyncWrite for Recorder {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.0.lock().push(bytes.to_vec());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn validate_and_ping_leave_in_one_write() {
        let recorder = Recorder(Arc::new(Mutex::new(Vec::new())));
        let opened = Connection::open(recorder.clone(), 0x7857, Limits::default(), Arc::default()).await;
        assert!(matches!(opened, Err(Failure::Broken(_))), "nobody answers");
        assert_eq!(*recorder.0.lock(), [b"\x00\xce\xf7\x85\x3c\x0d\x57\x78\x00\x00"]);
    }
}

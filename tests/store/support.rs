//! Servers, clients and bare connections for the tests beside.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::BytesMut;
use kvpipe::net::TokioNet;
use kvpipe::store::Limits;
use kvpipe::store::tcp::protocol::{MAGIC, Request, RequestParser};
use kvpipe::store::tcp::{ConnectOptions, TcpStore, TcpStoreServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Far beyond what anything here takes; reached only by a defect.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) async fn server() -> TcpStoreServer {
    server_with(Limits::default()).await
}

pub(crate) async fn server_with(limits: Limits) -> TcpStoreServer {
    server_at(Ipv4Addr::LOCALHOST.into(), limits).await
}

pub(crate) async fn server_at(host: IpAddr, limits: Limits) -> TcpStoreServer {
    TcpStoreServer::bind(&TokioNet, SocketAddr::new(host, 0), limits).await.unwrap()
}

pub(crate) fn options() -> ConnectOptions {
    let mut options = ConnectOptions::default();
    options.timeout = LONG;
    options
}

pub(crate) async fn connect(address: SocketAddr) -> TcpStore<TokioNet> {
    connect_with(address, Limits::default()).await
}

pub(crate) async fn connect_with(address: SocketAddr, limits: Limits) -> TcpStore<TokioNet> {
    let mut options = options();
    options.limits = limits;
    TcpStore::connect(TokioNet, &address.ip().to_string(), address.port(), options).await.unwrap()
}

/// A defect that would hang fails instead.
pub(crate) async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("it hangs")
}

/// Waits until something that the test can only look at has come true.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    in_time(async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A bare connection to a server under test.
pub(crate) struct Raw(pub(crate) TcpStream);

impl Raw {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    /// Past VALIDATE.
    pub(crate) async fn validated(address: SocketAddr) -> Self {
        let mut raw = Self::connect(address).await;
        raw.send(&[Request::Validate { magic: MAGIC }]).await;
        raw.ping().await;
        raw
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn send(&mut self, requests: &[Request]) {
        self.write(&encoded(requests)).await;
    }

    /// Reads exactly what is expected.
    pub(crate) async fn expect(&mut self, expected: &[u8]) {
        let mut bytes = vec![0; expected.len()];
        in_time(self.0.read_exact(&mut bytes)).await.expect("a closed connection");
        assert_eq!(hex::encode(bytes), hex::encode(expected));
    }

    /// Nothing is on its way but the echo.
    pub(crate) async fn ping(&mut self) {
        self.send(&[Request::Ping { nonce: 0x1234_5678 }]).await;
        self.expect(&[0x78, 0x56, 0x34, 0x12]).await;
    }

    /// The server closes the connection without another byte.
    pub(crate) async fn expect_closed(&mut self) {
        let mut byte = [0];
        let read = in_time(self.0.read(&mut byte)).await;
        // A reset instead of an end: the server did not read all that was sent.
        assert!(matches!(read, Ok(0) | Err(_)), "got {byte:?}");
    }
}

pub(crate) fn encoded(requests: &[Request]) -> BytesMut {
    let mut bytes = BytesMut::new();
    requests.iter().for_each(|request| request.encode(&mut bytes));
    bytes
}

/// A listener for a server that the test plays itself.
pub(crate) async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// One connection of a client under test to a server that the test plays.
pub(crate) struct Played {
    pub(crate) stream: TcpStream,
    parser: RequestParser,
    unread: Vec<u8>,
}

impl Played {
    /// Accepts a client and lets it introduce itself.
    pub(crate) async fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().await.unwrap();
        let mut played = Self { stream, parser: RequestParser::new(Limits::default()), unread: Vec::new() };
        assert_eq!(played.request().await, Some(Request::Validate { magic: MAGIC }));
        played.answer_ping().await;
        played
    }

    /// The next request; `None` when the client has closed.
    pub(crate) async fn request(&mut self) -> Option<Request> {
        loop {
            let mut input = &self.unread[..];
            let request = self.parser.parse(&mut input).unwrap();
            self.unread = input.to_vec();
            if request.is_some() {
                return request;
            }
            if self.stream.read_buf(&mut self.unread).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    pub(crate) async fn answer(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn answer_ping(&mut self) {
        let Some(Request::Ping { nonce }) = self.request().await else { panic!("not a PING") };
        self.answer(&nonce.to_le_bytes()).await;
    }
}

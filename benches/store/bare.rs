//! The same bytes without a store: a server that reads as many as a request has, and writes as many as
//! its reply has.

use bytes::{Buf, Bytes};
use kvpipe::store::tcp::protocol::{MAGIC, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

/// What a client sends, and how many bytes it gets.
#[derive(Clone)]
pub(crate) struct Exchange {
    pub(crate) request: Bytes,
    pub(crate) reply_bytes: usize,
}

/// A client that sends exchanges again and again, and looks at no reply.
pub(crate) struct BareClient {
    stream: TcpStream,
    exchanges: Vec<Exchange>,
    reply: Vec<u8>,
}

impl BareClient {
    /// To [`serve`], which must know beforehand what will be exchanged.
    pub(crate) async fn of_echo(address: &str, exchanges: Vec<Exchange>) -> Self {
        let mut client = Self::connect(address, exchanges).await;
        let mut plan = (client.exchanges.len() as u64).to_le_bytes().to_vec();
        for Exchange { request, reply_bytes } in &client.exchanges {
            plan.extend_from_slice(&(request.len() as u64).to_le_bytes());
            plan.extend_from_slice(&(*reply_bytes as u64).to_le_bytes());
        }
        client.stream.write_all(&plan).await.expect("the server reads");
        client
    }

    /// To a store.
    pub(crate) async fn of_store(address: &str, exchanges: Vec<Exchange>) -> Self {
        let mut client = Self::connect(address, exchanges).await;
        let mut introduction = bytes::BytesMut::new();
        Request::Validate { magic: MAGIC }.encode(&mut introduction);
        Request::Ping { nonce: 7 }.encode(&mut introduction);
        client.exchange(&introduction, 4).await;
        client
    }

    async fn connect(address: &str, exchanges: Vec<Exchange>) -> Self {
        let stream = TcpStream::connect(address).await.expect("the server listens");
        stream.set_nodelay(true).expect("a socket takes options");
        let longest = exchanges.iter().map(|exchange| exchange.reply_bytes).max().unwrap_or(0);
        Self { stream, exchanges, reply: vec![0; longest.max(4)] }
    }

    /// All exchanges once.
    pub(crate) async fn round(&mut self) {
        for index in 0..self.exchanges.len() {
            let Exchange { request, reply_bytes } = self.exchanges[index].clone();
            self.exchange(&request, reply_bytes).await;
        }
    }

    async fn exchange(&mut self, request: &[u8], reply_bytes: usize) {
        self.stream.write_all(request).await.expect("the server reads");
        self.stream.read_exact(&mut self.reply[..reply_bytes]).await.expect("the server replies");
    }
}

/// The server, on the runtime that `kvpipe store` has, in a process of its own.
pub(crate) fn serve() {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        println!("{}", listener.local_addr().expect("it is bound"));
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_client(stream));
        }
    });
}

async fn serve_client(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let count = stream.read_u64_le().await? as usize;
    let mut plan = vec![0; count * 16];
    stream.read_exact(&mut plan).await?;
    let lengths: Vec<(usize, usize)> =
        plan.chunks(16).map(|mut pair| (pair.get_u64_le() as usize, pair.get_u64_le() as usize)).collect();
    let longest = lengths.iter().map(|(request, reply)| *request.max(reply)).max().unwrap_or(0);
    let mut buffer = vec![0; longest];
    for (request_bytes, reply_bytes) in lengths.into_iter().cycle() {
        stream.read_exact(&mut buffer[..request_bytes]).await?;
        stream.write_all(&buffer[..reply_bytes]).await?;
    }
    Ok(())
}

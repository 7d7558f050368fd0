//! A network that reads and writes a few bytes at a time, at random, and is often not ready.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use kvpipe::entropy::Entropy;
use kvpipe::net::{Listener, Net, SocketOptions, Stream, TokioNet};
use kvpipe::store::MemoryStore;
use kvpipe::transport::tcp::{TcpIncoming, TcpOutgoing};
use kvpipe::{Item, Pipe};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, tcp};

use crate::support::{V4, config, item, limits, ring, transfers};

#[derive(Clone)]
struct TrickleNet(Entropy);

struct TrickleListener(TcpListener, Entropy);
struct TrickleStream(TcpStream, Entropy);
struct Trickle<T>(T, Entropy);

impl Net for TrickleNet {
    type Stream = TrickleStream;
    type Listener = TrickleListener;

    async fn connect(&self, address: SocketAddr, options: &SocketOptions) -> io::Result<TrickleStream> {
        Ok(TrickleStream(TokioNet.connect(address, options).await?, self.0.clone()))
    }

    async fn bind(&self, address: SocketAddr, options: &SocketOptions) -> io::Result<TrickleListener> {
        Ok(TrickleListener(TokioNet.bind(address, options).await?, self.0.clone()))
    }

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        TokioNet.resolve(host, port).await
    }
}

impl Listener for TrickleListener {
    type Stream = TrickleStream;

    async fn accept(&self) -> io::Result<(TrickleStream, SocketAddr)> {
        let (stream, address) = Listener::accept(&self.0).await?;
        Ok((TrickleStream(stream, self.1.clone()), address))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Stream for TrickleStream {
    type Reader = Trickle<tcp::OwnedReadHalf>;
    type Writer = Trickle<tcp::OwnedWriteHalf>;

    fn split(self) -> (Self::Reader, Self::Writer) {
        let (reader, writer) = self.0.into_split();
        (Trickle(reader, self.1.clone()), Trickle(writer, self.1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.peer_addr()
    }
}

impl<T> Trickle<T> {
    /// How many bytes to move, or to come back later.
    fn draw(&self, context: &Context<'_>) -> Poll<usize> {
        let random = self.1.next_u64().unwrap();
        if random.is_multiple_of(3) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        // Mostly a few bytes, now and then many: both kinds of boundaries are met.
        Poll::Ready(if random.is_multiple_of(7) { 5000 } else { 1 + random as usize % 7 })
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Trickle<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let bytes = ready!(self.draw(context));
        let mut part = vec![0; bytes.min(buffer.remaining())];
        let mut read = ReadBuf::new(&mut part);
        ready!(Pin::new(&mut self.0).poll_read(context, &mut read))?;
        buffer.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Trickle<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let limit = ready!(self.draw(context)).min(bytes.len());
        Pin::new(&mut self.0).poll_write(context, &bytes[..limit])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let joined: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.poll_write(context, &joined)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// Sizes around every boundary that the transport has: none, inline, chunked.
fn items() -> Vec<Item> {
    let sizes = [0, 1, 7, 0, 4095, 16 << 10, (16 << 10) + 1, 70_000, 3, 300_000];
    let tensors = sizes.iter().zip(0..).map(|(&bytes, mark)| item(bytes, mark));
    tensors.flat_map(|tensor| [tensor, None]).collect()
}

#[tokio::test]
async fn short_reads_and_writes_change_nothing() {
    for seed in 0..6 {
        let net = TrickleNet(Entropy::seeded(seed));
        let store = MemoryStore::new();
        let mut config = config();
        config.checksum = seed % 2 == 0;
        let address = V4.parse().unwrap();
        let incoming =
            TcpIncoming::bind(net.clone(), &store, ring(1), address, config.clone()).await.unwrap();
        let (receiver, driver) = Pipe::receive_only(incoming, limits());
        driver.spawn().unwrap();
        let outgoing = TcpOutgoing::new(net, store, ring(0), config);
        let (sender, driver) = Pipe::send_only(outgoing, limits());
        driver.spawn().unwrap();
        transfers(&sender, &receiver, &items()).await;
    }
}

//! A network whose owner dies after so many writes: its connections end, as those of a killed process do.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use kvpipe::net::{Listener, Net, SocketOptions, Stream, TokioNet};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::sync::watch;

/// The sockets of one rank.
#[derive(Clone)]
pub(crate) struct Mortal(Arc<Life>);

struct Life {
    /// How many more writes it has; `usize::MAX` is for ever.
    writes: AtomicUsize,
    is_over: watch::Sender<bool>,
}

impl Mortal {
    /// Lives until [`limit`](Self::limit) says otherwise.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Life { writes: AtomicUsize::new(usize::MAX), is_over: watch::Sender::new(false) }))
    }

    /// Dies at the write after so many.
    pub(crate) fn limit(&self, writes: usize) {
        self.0.writes.store(writes, Ordering::SeqCst);
    }

    /// Dies.
    pub(crate) fn die(&self) {
        self.0.is_over.send_replace(true);
    }

    fn is_dead(&self) -> bool {
        *self.0.is_over.borrow()
    }

    /// Resolves when it dies.
    pub(crate) async fn death(&self) {
        // We hold the sender.
        let mut is_over = self.0.is_over.subscribe();
        is_over.wait_for(|over| *over).await.unwrap();
    }

    fn may_write(&self) -> bool {
        let spend = |writes: usize| match writes {
            usize::MAX => Some(writes),
            _ => writes.checked_sub(1),
        };
        let alive =
            !self.is_dead() && self.0.writes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend).is_ok();
        if !alive {
            self.0.is_over.send_replace(true);
        }
        alive
    }
}

fn dead() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl Net for Mortal {
    type Stream = MortalStream;
    type Listener = MortalListener;

    async fn connect(&self, address: SocketAddr, options: &SocketOptions) -> io::Result<MortalStream> {
        if self.is_dead() {
            return Err(dead());
        }
        Ok(MortalStream(TokioNet.connect(address, options).await?, self.clone()))
    }

    async fn bind(&self, address: SocketAddr, options: &SocketOptions) -> io::Result<MortalListener> {
        let listener = TokioNet.bind(address, options).await?;
        let local_addr = listener.local_addr()?;
        let listener = tokio::sync::Mutex::new(Some(listener));
        Ok(MortalListener { listener, local_addr, owner: self.clone() })
    }

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        TokioNet.resolve(host, port).await
    }
}

pub(crate) struct MortalListener {
    listener: tokio::sync::Mutex<Option<TcpListener>>,
    local_addr: SocketAddr,
    owner: Mortal,
}

impl Listener for MortalListener {
    type Stream = MortalStream;

    async fn accept(&self) -> io::Result<(MortalStream, SocketAddr)> {
        let mut listener = self.listener.lock().await;
        if let Some(listening) = &*listener {
            tokio::select! {
                biased;
                () = self.owner.death() => {}
                accepted = Listener::accept(listening) => {
                    let (stream, address) = accepted?;
                    return Ok((MortalStream(stream, self.owner.clone()), address));
                }
            }
        }
        // Nobody listens there any more.
        drop(listener.take());
        std::future::pending().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local_addr)
    }
}

pub(crate) struct MortalStream(TcpStream, Mortal);

impl Stream for MortalStream {
    type Reader = MortalReader;
    type Writer = MortalWriter;

    fn split(self) -> (MortalReader, MortalWriter) {
        let Self(stream, owner) = self;
        let (reader, writer) = stream.into_split();
        let half = Arc::new(std::sync::Mutex::new(Some(writer)));
        let closing = Arc::clone(&half);
        let life = owner.clone();
        // A process's end closes its connections, whatever it is doing.
        tokio::spawn(async move {
            life.death().await;
            drop(closing.lock().unwrap().take());
        });
        (MortalReader(reader, owner.clone()), MortalWriter(half, owner))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.peer_addr()
    }
}

pub(crate) struct MortalReader(tcp::OwnedReadHalf, Mortal);

impl AsyncRead for MortalReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.1.is_dead() {
            return Poll::Ready(Err(dead()));
        }
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

pub(crate) struct MortalWriter(Arc<std::sync::Mutex<Option<tcp::OwnedWriteHalf>>>, Mortal);

impl MortalWriter {
    fn with<T>(
        &self,
        act: impl FnOnce(Pin<&mut tcp::OwnedWriteHalf>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut *self.0.lock().unwrap() {
            Some(writer) => act(Pin::new(writer)),
            None => Poll::Ready(Err(dead())),
        }
    }
}

impl AsyncWrite for MortalWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.1.may_write() {
            return Poll::Ready(Err(dead()));
        }
        self.with(|writer| writer.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|writer| writer.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|writer| writer.poll_shutdown(cx))
    }
}

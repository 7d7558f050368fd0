//! The ends of a simulated connection.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use kvpipe::net::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::TcpStream;

use super::connection::{Connection, End};

/// A simulated connection.
#[derive(Debug)]
pub struct SimStream(Arc<Socket>);

/// The receiving half of a simulated connection.
#[derive(Debug)]
pub struct SimReader(Arc<Socket>);

/// The sending half of a simulated connection. Dropping it ends our direction, as tokio's does.
#[derive(Debug)]
pub struct SimWriter {
    socket: Arc<Socket>,
    is_shut_down: bool,
}

/// One end of a connection. It is open until both halves are dropped.
#[derive(Debug)]
struct Socket {
    stream: Mutex<TcpStream>,
    connection: Arc<Connection>,
    end: End,
}

impl SimStream {
    pub(super) fn connector(stream: TcpStream, connection: Arc<Connection>) -> Self {
        Self(Arc::new(Socket { stream: Mutex::new(stream), connection, end: End::Connector }))
    }

    pub(super) fn listener(stream: TcpStream, connection: Arc<Connection>) -> Self {
        Self(Arc::new(Socket { stream: Mutex::new(stream), connection, end: End::Listener }))
    }
}

impl Stream for SimStream {
    type Reader = SimReader;
    type Writer = SimWriter;

    fn split(self) -> (SimReader, SimWriter) {
        (SimReader(Arc::clone(&self.0)), SimWriter { socket: self.0, is_shut_down: false })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.connection.address(self.0.end))
    }

    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.connection.address(self.0.end.other()))
    }
}

impl Socket {
    fn lock(&self) -> MutexGuard<'_, TcpStream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.connection.close(self.end);
    }
}

impl AsyncRead for SimReader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let socket = &self.0;
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let limit = ready!(socket.connection.poll_read(socket.end, context, buffer.remaining()))?;
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(limit));
        ready!(Pin::new(&mut *socket.lock()).poll_read(context, &mut part))?;
        let read = part.filled().len();
        buffer.advance(read);
        socket.connection.read(socket.end, read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SimWriter {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { socket, is_shut_down } = &*self;
        if *is_shut_down {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        if bytes == 0 {
            return Poll::Ready(Ok(0));
        }
        let limit = ready!(socket.connection.poll_write(socket.end, context, bytes))?;
        let mut part = Vec::with_capacity(limit);
        for slice in slices {
            part.extend_from_slice(&slice[..slice.len().min(limit - part.len())]);
        }
        let written = ready!(Pin::new(&mut *socket.lock()).poll_write(context, &part))?;
        socket.connection.wrote(socket.end, written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// As tokio's it succeeds on a connection that is reset, and when repeated.
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut_down();
        Poll::Ready(Ok(()))
    }
}

impl SimWriter {
    fn shut_down(&mut self) {
        if self.is_shut_down {
            return;
        }
        self.is_shut_down = true;
        // After the end of the simulation there is nobody to tell, and no network to tell it through.
        if !self.socket.connection.is_cut() && turmoil::in_simulation() {
            let mut context = Context::from_waker(std::task::Waker::noop());
            // It never waits, and fails only where there is no connection any more.
            let _ = Pin::new(&mut *self.socket.lock()).poll_shutdown(&mut context);
        }
    }
}

impl Drop for SimWriter {
    fn drop(&mut self) {
        self.shut_down();
    }
}

//! The ends of a simulated connection.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use kvpipe::net::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::connection::{End, Progress};
use super::network::Network;

/// A simulated connection.
#[derive(Debug)]
pub struct SimStream(Arc<Socket>);

/// The receiving half of a simulated connection.
#[derive(Debug)]
pub struct SimReader {
    socket: Arc<Socket>,
    alarm: Alarm,
}

/// The sending half of a simulated connection. Dropping it ends our direction, as tokio's does.
#[derive(Debug)]
pub struct SimWriter {
    socket: Arc<Socket>,
    alarm: Alarm,
    is_shut_down: bool,
}

/// One end of a connection. It is open until both halves are dropped.
#[derive(Debug)]
struct Socket {
    network: Network,
    connection: u64,
    end: End,
}

impl SimStream {
    pub(super) fn new(network: &Network, connection: u64, end: End) -> Self {
        Self(Arc::new(Socket { network: network.clone(), connection, end }))
    }

    /// Closes the connection by a reset, as `SO_LINGER` of zero does.
    pub fn abort(self) {
        self.0.network.with(|fabric, now| fabric.abort(self.0.id(), now));
    }
}

impl Stream for SimStream {
    type Reader = SimReader;
    type Writer = SimWriter;

    fn split(self) -> (SimReader, SimWriter) {
        let reader = SimReader { socket: Arc::clone(&self.0), alarm: Alarm::default() };
        (reader, SimWriter { socket: self.0, alarm: Alarm::default(), is_shut_down: false })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.address(self.0.end)
    }

    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.address(self.0.end.other())
    }
}

impl Socket {
    fn id(&self) -> (u64, End) {
        (self.connection, self.end)
    }

    fn address(&self, end: End) -> io::Result<SocketAddr> {
        self.network.with(|fabric, _| fabric.address(self.connection, end))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.network.with(|fabric, now| fabric.close(self.id(), now));
    }
}

impl AsyncRead for SimReader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let Self { socket, alarm } = self.get_mut();
        let Socket { network, end, .. } = &**socket;
        let attempt =
            |waker: &_| network.with(|fabric, now| (fabric.read(socket.id(), now, waker, buffer), now));
        alarm.poll(context, attempt).map_ok(|read| {
            network.trace().count(2 + *end as u64, read);
        })
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
        let Self { socket, alarm, is_shut_down } = self.get_mut();
        if *is_shut_down {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if slices.iter().all(|slice| slice.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        let Socket { network, end, .. } = &**socket;
        let attempt =
            |waker: &_| network.with(|fabric, now| (fabric.write(socket.id(), now, waker, slices), now));
        alarm.poll(context, attempt).map_ok(|written| {
            network.trace().count(*end as u64, written);
            written
        })
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
        if !std::mem::replace(&mut self.is_shut_down, true) {
            let socket = &self.socket;
            socket.network.with(|fabric, now| fabric.shut_down(socket.id(), now));
        }
    }
}

impl Drop for SimWriter {
    fn drop(&mut self) {
        // A killed process shuts nothing down: its system closes the socket.
        if !self.socket.network.trace().is_killed() {
            self.shut_down();
        }
    }
}

/// Wakes a task when the time has come for what it waits for.
#[derive(Debug, Default)]
pub(super) struct Alarm(Option<(Duration, Pin<Box<Sleep>>)>);

impl Alarm {
    /// Attempts until it is done or has to wait. An attempt comes with the time at which it was made.
    pub(super) fn poll<T>(
        &mut self,
        context: &mut Context<'_>,
        mut attempt: impl FnMut(&std::task::Waker) -> (Progress<T>, Duration),
    ) -> Poll<T> {
        loop {
            let (until, now) = match attempt(context.waker()) {
                (Progress::Done(result), _) => return Poll::Ready(result),
                (Progress::Again, _) => {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                (Progress::Later(until), now) => (until, now),
            };
            let Some(until) = until else { return Poll::Pending };
            if self.set(until, now).as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            // It rang for a time that is over.
            self.0 = None;
        }
    }

    fn set(&mut self, until: Duration, now: Duration) -> &mut Pin<Box<Sleep>> {
        let left = until.saturating_sub(now);
        let (at, sleep) = self.0.get_or_insert_with(|| (until, Box::pin(sleep(left))));
        if *at != until {
            *at = until;
            sleep.as_mut().reset(Instant::now() + left);
        }
        sleep
    }
}

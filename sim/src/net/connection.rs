//! What the two ends of a simulated connection share beside turmoil's own.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::network::{Conditions, Network};
use crate::draws::Draws;

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Connector,
    Listener,
}

impl End {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Connector => Self::Listener,
            Self::Listener => Self::Connector,
        }
    }
}

/// A connection, as both ends see it.
#[derive(Debug)]
pub(super) struct Connection {
    network: Network,
    /// The connector's host and the listener's.
    hosts: [IpAddr; 2],
    ends: [SocketAddr; 2],
    conditions: Conditions,
    draws: Draws,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    cut: bool,
    sides: [Side; 2],
}

/// One end.
#[derive(Debug, Default)]
struct Side {
    /// Written here, and not yet read over there.
    unread_bytes: usize,
    /// Both halves are dropped.
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Connection {
    pub(super) fn new(
        network: Network,
        connector: IpAddr,
        ends: [SocketAddr; 2],
        conditions: Conditions,
        draws: Draws,
    ) -> Self {
        let [_, listener] = ends;
        // On a loopback address the listener is the connector's own host.
        let listener = if listener.ip().is_loopback() { connector } else { listener.ip() };
        let hosts = [connector, listener];
        Self { network, hosts, ends, conditions, draws, state: Mutex::default() }
    }

    pub(super) fn address(&self, end: End) -> SocketAddr {
        self.ends[end as usize]
    }

    pub(super) fn hosts(&self) -> [IpAddr; 2] {
        self.hosts
    }

    pub(super) fn ends(&self) -> [SocketAddr; 2] {
        self.ends
    }

    /// How many bytes `end` may write now, out of so many.
    pub(super) fn poll_write(
        &self,
        end: End,
        context: &mut Context<'_>,
        bytes: usize,
    ) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        state.check()?;
        state.sides[end as usize].writer = Some(context.waker().clone());
        let Some(part) = self.part(context, bytes) else { return Poll::Pending };
        let room = self.conditions.window_bytes.saturating_sub(state.sides[end as usize].unread_bytes);
        match part.min(room) {
            // Nobody will ever read what fills the window.
            0 if state.sides[end.other() as usize].closed => {
                Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
            }
            0 => Poll::Pending,
            part => Poll::Ready(Ok(part)),
        }
    }

    /// How many bytes `end` may read now, out of so many.
    pub(super) fn poll_read(
        &self,
        end: End,
        context: &mut Context<'_>,
        bytes: usize,
    ) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        state.check()?;
        state.sides[end as usize].reader = Some(context.waker().clone());
        let Some(part) = self.part(context, bytes) else { return Poll::Pending };
        drop(state);
        Poll::Ready(Ok(self.network.bytes_before_cut(self.flow_to(end), part)))
    }

    pub(super) fn wrote(&self, end: End, bytes: usize) {
        self.lock().sides[end as usize].unread_bytes += bytes;
        self.network.trace().count(end as u64, bytes);
    }

    pub(super) fn read(&self, end: End, bytes: usize) {
        let writer = {
            let mut state = self.lock();
            let peer = &mut state.sides[end.other() as usize];
            peer.unread_bytes = peer.unread_bytes.saturating_sub(bytes);
            peer.writer.take()
        };
        wake(writer);
        self.network.trace().count(2 + end as u64, bytes);
        self.network.came(self.flow_to(end), bytes);
    }

    /// Both halves of this end are gone.
    pub(super) fn close(&self, end: End) {
        let writer = {
            let mut state = self.lock();
            state.sides[end as usize].closed = true;
            state.sides[end.other() as usize].writer.take()
        };
        wake(writer);
        self.network.forget(self);
    }

    /// Both ends find it reset, and what was on its way is lost. False if it was before, or if both
    /// ends have closed it.
    pub(super) fn cut(&self) -> bool {
        let wakers = {
            let mut state = self.lock();
            if state.cut || state.sides.iter().all(|side| side.closed) {
                return false;
            }
            state.cut = true;
            state.sides.each_mut().map(|side| [side.reader.take(), side.writer.take()])
        };
        wakers.into_iter().flatten().for_each(wake);
        true
    }

    pub(super) fn is_cut(&self) -> bool {
        self.lock().cut
    }

    /// By both ends.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().sides.iter().all(|side| side.closed)
    }

    /// A part of so many bytes, at least one; or nothing yet, and the task is woken at once.
    fn part(&self, context: &Context<'_>, bytes: usize) -> Option<usize> {
        if self.draws.one_in(16) {
            context.waker().wake_by_ref();
            return None;
        }
        let most = match self.draws.between(0..=7) {
            0 => 16,
            1 | 2 => 1500,
            _ => self.conditions.part_bytes_max,
        };
        Some(self.draws.bytes(1..=most).min(bytes))
    }

    /// From which host to which the bytes come that `end` reads.
    fn flow_to(&self, end: End) -> [IpAddr; 2] {
        [self.hosts[end.other() as usize], self.hosts[end as usize]]
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&self) -> io::Result<()> {
        if self.cut { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

/// Not under a lock: a waker may run anything.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

//! A connection: two directions, and what either end knows.

use std::io::{self, ErrorKind, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::task::Waker;
use std::time::Duration;

use tokio::io::ReadBuf;

use super::flow::{Flow, Kind, RESEND_FIRST, Transit, resent};
use super::medium::{Medium, Way};
use crate::draws::Draws;

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Connector,
    Listener,
}

impl End {
    pub(super) const BOTH: [Self; 2] = [Self::Connector, Self::Listener];

    pub(super) fn other(self) -> Self {
        match self {
            Self::Connector => Self::Listener,
            Self::Listener => Self::Connector,
        }
    }
}

/// What an attempt came to.
#[derive(Debug)]
pub(super) enum Progress<T> {
    Done(T),
    /// Nothing now, though there might have been something: to be tried again at once.
    Again,
    /// Nothing until that time, or until woken.
    Later(Option<Duration>),
}

/// How one end's system answers segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// There is a socket.
    Open,
    /// Closed in order: what is sent is still delivered, but data that comes is answered by a reset.
    Closed,
    /// There is no such socket: whatever comes is answered by a reset.
    Unknown,
    /// As that, because the host was restarted.
    Forgotten,
    /// The host has no power.
    Silent,
}

/// One end.
#[derive(Debug)]
struct Side {
    life: Life,
    /// Somebody may still use it, or find it in a listener's queue.
    is_in_use: bool,
    /// It has ended its direction.
    is_shut_down: bool,
    /// The reset was reported; a socket tells it once.
    told: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Side {
    fn new(is_in_use: bool) -> Self {
        let (life, reader, writer) = (Life::Open, None, None);
        Self { life, is_in_use, is_shut_down: false, told: false, reader, writer }
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    /// The connector's host and the listener's.
    pub(super) hosts: Way,
    pub(super) addresses: [SocketAddr; 2],
    pub(super) begun: Duration,
    /// The listener's host has got the request and has answered it.
    pub(super) is_answered: bool,
    /// The connector has got the answer.
    pub(super) is_established: bool,
    pub(super) draws: Draws,
    sides: [Side; 2],
    /// By the end that sends.
    flows: [Flow; 2],
}

impl Connection {
    pub(super) fn new(hosts: Way, addresses: [SocketAddr; 2], draws: Draws, begun: Duration) -> Self {
        let (sides, flows) = ([Side::new(true), Side::new(false)], [Flow::new(begun), Flow::new(begun)]);
        let (is_answered, is_established) = (false, false);
        Self { hosts, addresses, begun, is_answered, is_established, draws, sides, flows }
    }

    /// What `end` sends.
    pub(super) fn from(&mut self, end: End) -> &mut Flow {
        &mut self.flows[end as usize]
    }

    /// What comes to `end`.
    pub(super) fn to(&mut self, end: End) -> &mut Flow {
        self.from(end.other())
    }

    /// The way that segments of `end` take.
    pub(super) fn way(&self, end: End) -> Way {
        [self.hosts[end as usize], self.hosts[end.other() as usize]]
    }

    pub(super) fn is_in_use(&self) -> bool {
        self.sides.iter().any(|side| side.is_in_use)
    }

    /// Whether that end is on that host, and somebody uses it.
    pub(super) fn is_used_at(&self, end: End, host: IpAddr) -> bool {
        self.hosts[end as usize] == host && self.sides[end as usize].is_in_use
    }

    pub(super) fn life(&self, end: End) -> Life {
        self.sides[end as usize].life
    }

    /// How the system of `end` answers from now on.
    pub(super) fn set_life(&mut self, end: End, life: Life) {
        self.sides[end as usize].life = life;
    }

    /// The listener's end waits to be accepted.
    pub(super) fn is_queued(&mut self) {
        self.sides[End::Listener as usize].is_in_use = true;
    }

    /// Nobody uses that end, or ever will.
    pub(super) fn is_dropped(&mut self, end: End) {
        self.sides[end as usize].is_in_use = false;
    }

    pub(super) fn set_reader(&mut self, end: End, waker: &Waker) {
        set(&mut self.sides[end as usize].reader, waker);
    }

    pub(super) fn set_writer(&mut self, end: End, waker: &Waker) {
        set(&mut self.sides[end as usize].writer, waker);
    }

    /// Everybody looks again.
    pub(super) fn wake(&mut self, medium: &mut Medium) {
        for side in &mut self.sides {
            medium.wakers.extend([side.reader.take(), side.writer.take()].into_iter().flatten());
        }
    }

    pub(super) fn read(
        &mut self,
        end: End,
        now: Duration,
        medium: &mut Medium,
        most: usize,
        buffer: &mut ReadBuf<'_>,
    ) -> Progress<io::Result<usize>> {
        if self.is_lifeless(end) {
            return Progress::Later(None);
        }
        if self.to(end).is_ended {
            return Progress::Done(Ok(0));
        }
        match self.to(end).arrived(now) {
            Some(Kind::Bytes(_)) => {
                let Some(part) = self.part(medium, most) else { return Progress::Again };
                let read = self.to(end).read(now, part, buffer);
                let is_heard = !medium.loses(self.way(end)) && !medium.holds(self.way(end));
                self.to(end).free(read, is_heard, now);
                if is_heard {
                    medium.wakers.extend(self.sides[end.other() as usize].writer.take());
                }
                Progress::Done(Ok(read))
            }
            Some(Kind::Fin) => {
                self.to(end).pop();
                self.to(end).is_ended = true;
                Progress::Done(Ok(0))
            }
            // Those of the handshake are taken before there is a reader.
            Some(Kind::Syn | Kind::SynAck | Kind::Ack) => Progress::Later(None),
            None if self.to(end).reset_has_arrived(now) => Progress::Done(self.tell(end).map(|()| 0)),
            None => Progress::Later(self.to(end).next_arrival()),
        }
    }

    pub(super) fn write(
        &mut self,
        end: End,
        now: Duration,
        medium: &mut Medium,
        slices: &[IoSlice<'_>],
    ) -> Progress<io::Result<usize>> {
        if self.is_lifeless(end) {
            return Progress::Later(None);
        }
        if self.to(end).reset_has_arrived(now) {
            return Progress::Done(self.refuse_write(end, now));
        }
        let room = self.from(end).room(now, medium.conditions.window_bytes);
        if room == 0 {
            let arrivals = [self.to(end).reset_arrival(), self.from(end).room_arrival()];
            return Progress::Later(arrivals.into_iter().flatten().min());
        }
        let Some(part) = self.part(medium, room) else { return Progress::Again };
        let mut left = part;
        for slice in slices {
            let taken = slice.len().min(left);
            self.from(end).extend(&slice[..taken]);
            left -= taken;
        }
        self.send(end, Kind::Bytes(part - left), now, medium);
        Progress::Done(Ok(part - left))
    }

    /// Sends a segment, unless the host can't. The bytes of one are in the flow already.
    pub(super) fn send(&mut self, end: End, kind: Kind, now: Duration, medium: &mut Medium) {
        let transit = medium.depart(self.way(end), now, &self.draws);
        match (transit, kind) {
            (Transit::Lost, Kind::Syn) => medium.struck.connects_lost += 1,
            (Transit::Lost, _) => medium.struck.lost += 1,
            (Transit::Arrives(_) | Transit::Held, _) => {}
        }
        // With others before it the reader waits for those.
        if self.from(end).push(kind, transit, now) {
            medium.wakers.extend(self.sides[end.other() as usize].reader.take());
        }
        self.answer(end.other(), now, medium);
    }

    /// Ends the direction that starts here.
    pub(super) fn shut_down(&mut self, end: End, now: Duration, medium: &mut Medium) {
        let side = &mut self.sides[end as usize];
        if side.life != Life::Open || std::mem::replace(&mut side.is_shut_down, true) {
            return;
        }
        if !self.to(end).reset_has_arrived(now) {
            self.send(end, Kind::Fin, now, medium);
        }
    }

    /// Nobody uses this end any more.
    pub(super) fn close(&mut self, end: End, now: Duration, medium: &mut Medium) {
        self.is_dropped(end);
        if self.life(end) != Life::Open {
            return;
        }
        if self.to(end).has_arrived(now, |kind| matches!(kind, Kind::Bytes(_))) {
            // As Linux: the peer shall know that not everything was read.
            return self.abort(end, now, medium);
        }
        self.shut_down(end, now, medium);
        let is_reset = self.to(end).reset_has_arrived(now);
        self.set_life(end, if is_reset { Life::Unknown } else { Life::Closed });
        self.to(end).drop_arrived(now);
        self.answer(end, now, medium);
    }

    /// Resets the connection from this end.
    pub(super) fn abort(&mut self, end: End, now: Duration, medium: &mut Medium) {
        self.is_dropped(end);
        if self.life(end) != Life::Open {
            return;
        }
        self.set_life(end, Life::Unknown);
        self.to(end).drop_arrived(now);
        if !self.to(end).reset_has_arrived(now) {
            self.from(end).drop_lost();
            self.send_reset(end, now, medium);
        }
    }

    /// Resets both ends at once. False if there was nothing left to reset.
    pub(super) fn cut(&mut self, now: Duration, medium: &mut Medium) -> bool {
        let is_cut = End::BOTH.into_iter().all(|end| self.to(end).reset_has_arrived(now));
        let is_open = |side: &Side| side.is_in_use && side.life == Life::Open;
        if is_cut || !self.sides.iter().any(is_open) {
            return false;
        }
        for flow in &mut self.flows {
            flow.drop_under_way(now);
            flow.push_reset(Transit::Arrives(now));
        }
        self.wake(medium);
        true
    }

    /// A reset for what has come, or will, to an end that has no use for it.
    pub(super) fn answer(&mut self, end: End, now: Duration, medium: &mut Medium) {
        let peer_listens = matches!(self.life(end.other()), Life::Open | Life::Closed);
        if self.from(end).has_reset() || !peer_listens {
            return;
        }
        let arrival = match self.life(end) {
            Life::Open | Life::Silent => return,
            Life::Closed => self.to(end).arrival_of(|kind| matches!(kind, Kind::Bytes(_))),
            Life::Unknown | Life::Forgotten => self.to(end).arrival_of(|kind| kind != Kind::Syn),
        };
        let Some(arrival) = arrival else { return };
        // It was answered before, and that answer got lost.
        let again = arrival < now;
        let at = if again { resent(arrival, RESEND_FIRST, now) } else { arrival };
        self.send_reset(end, at, medium);
        let is_sent = self.from(end).has_reset();
        medium.struck.forgotten += usize::from(is_sent && self.life(end) == Life::Forgotten);
    }

    pub(super) fn send_reset(&mut self, end: End, at: Duration, medium: &mut Medium) {
        let transit = medium.depart(self.way(end), at, &self.draws);
        medium.struck.lost += usize::from(transit == Transit::Lost);
        self.from(end).push_reset(transit);
        let peer = &mut self.sides[end.other() as usize];
        medium.wakers.extend([peer.reader.take(), peer.writer.take()].into_iter().flatten());
    }

    /// The host has no power, or has had none since.
    fn is_lifeless(&self, end: End) -> bool {
        matches!(self.life(end), Life::Silent | Life::Forgotten)
    }

    /// The reset, or if it was told before, the end.
    fn tell(&mut self, end: End) -> io::Result<()> {
        let told = std::mem::replace(&mut self.sides[end as usize].told, true);
        if told { Ok(()) } else { Err(ErrorKind::ConnectionReset.into()) }
    }

    /// As Linux: broken is a connection whose peer had ended its direction, or that was told to be reset.
    fn refuse_write(&mut self, end: End, now: Duration) -> io::Result<usize> {
        let incoming = self.to(end);
        if incoming.is_ended || incoming.has_arrived(now, |kind| kind == Kind::Fin) {
            return Err(ErrorKind::BrokenPipe.into());
        }
        self.tell(end)?;
        Err(ErrorKind::BrokenPipe.into())
    }

    /// A part of so many bytes, at least one; or nothing yet.
    fn part(&self, medium: &Medium, bytes: usize) -> Option<usize> {
        if self.draws.one_in(16) {
            return None;
        }
        let most = match self.draws.between(0..=7) {
            0 => 16,
            1 | 2 => 1500,
            _ => medium.conditions.part_bytes_max,
        };
        Some(self.draws.bytes(1..=most).min(bytes))
    }
}

fn set(place: &mut Option<Waker>, waker: &Waker) {
    match place {
        Some(known) => known.clone_from(waker),
        None => *place = Some(waker.clone()),
    }
}

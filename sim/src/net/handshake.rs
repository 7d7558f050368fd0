//! How connections come to be: listening, connecting, accepting.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::task::Waker;
use std::time::Duration;

use super::connection::{Connection, End, Life, Progress};
use super::fabric::{Fabric, ordered};
use super::flow::{CONNECT_RESEND_FIRST, Kind, resent};
use crate::draws::Draws;

/// How long a system tries to connect: Linux's six repetitions of the request.
const CONNECT_LIMIT: Duration = Duration::from_secs(127);

/// Connections that may wait to be accepted, as kvpipe asks of a real system. Linux has one more wait.
const BACKLOG: usize = 1024;

/// What a system chooses ports from.
const EPHEMERAL: std::ops::RangeInclusive<u16> = 49_152..=65_535;

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) host: IpAddr,
    address: SocketAddr,
    /// Its host has answered them.
    waiting: VecDeque<u64>,
    acceptors: Vec<Waker>,
}

impl Listener {
    pub(super) fn has_waiting(&self, connection: u64) -> bool {
        self.waiting.contains(&connection)
    }
}

impl Fabric {
    /// A new listener, and its address. Port 0 chooses one.
    pub(super) fn bind(&mut self, host: IpAddr, address: SocketAddr) -> io::Result<(u64, SocketAddr)> {
        let port = match address.port() {
            0 => self.free_port(host)?,
            port => port,
        };
        let address = SocketAddr::new(address.ip(), port);
        let [ip, any] = [address.ip(), unspecified(address.ip())];
        let overlaps = |taken: IpAddr| taken == ip || taken == any || ip == any;
        let mut others = self.listeners.values().filter(|listener| listener.host == host);
        if others.any(|other| other.address.port() == port && overlaps(other.address.ip())) {
            return Err(ErrorKind::AddrInUse.into());
        }
        let id = self.next_id();
        let (waiting, acceptors) = (VecDeque::new(), Vec::new());
        self.listeners.insert(id, Listener { host, address, waiting, acceptors });
        Ok((id, address))
    }

    /// The listener is dropped: what waits in its queue is reset.
    pub(super) fn unbind(&mut self, id: u64, now: Duration) {
        let Some(listener) = self.listeners.remove(&id) else { return };
        for id in listener.waiting {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            if connection.to(End::Listener).arrived(now).is_some() {
                connection.abort(End::Listener, now, &mut self.medium);
            } else {
                connection.is_dropped(End::Listener);
                connection.set_life(End::Listener, Life::Unknown);
                connection.answer(End::Listener, now, &mut self.medium);
            }
            self.forget_unused(id);
        }
    }

    /// A host has lost its power, and its listeners with it.
    pub(super) fn drop_listeners(&mut self, host: IpAddr) {
        let mut waiting = VecDeque::new();
        self.listeners.retain(|_, listener| {
            let stays = listener.host != host;
            if !stays {
                waiting.append(&mut listener.waiting);
            }
            stays
        });
        for id in waiting {
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.is_dropped(End::Listener);
            }
        }
    }

    /// Begins to connect.
    pub(super) fn connect(&mut self, host: IpAddr, to: SocketAddr, now: Duration) -> io::Result<u64> {
        // On a loopback address the listener is the connector's own host.
        let (listener, own) = if to.ip().is_loopback() { (host, to.ip()) } else { (to.ip(), host) };
        let addresses = [SocketAddr::new(own, self.free_port(host)?), to];
        let id = self.next_id();
        let draws = Draws::new(self.seed, &format!("connection {id}"));
        let mut connection = Connection::new([host, listener], addresses, draws, now);
        connection.send(End::Connector, Kind::Syn, now, &mut self.medium);
        self.connections.insert(id, connection);
        Ok(id)
    }

    /// How far connecting has come. Once it failed there is no such connection.
    pub(super) fn poll_connect(&mut self, id: u64, now: Duration, waker: &Waker) -> Progress<io::Result<()>> {
        let progress = self.step_connect(id, now);
        match &progress {
            Progress::Done(Ok(())) => {}
            Progress::Done(Err(_)) => self.abandon(id),
            Progress::Again | Progress::Later(_) => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.set_reader(End::Connector, waker);
                }
            }
        }
        progress
    }

    fn step_connect(&mut self, id: u64, now: Duration) -> Progress<io::Result<()>> {
        let Some(connection) = self.connections.get_mut(&id) else { return Progress::Later(None) };
        let deadline = connection.begun + CONNECT_LIMIT;
        if connection.life(End::Connector) != Life::Open {
            return Progress::Later(None);
        }
        if now >= deadline {
            return Progress::Done(Err(ErrorKind::TimedOut.into()));
        }
        if connection.from(End::Connector).arrived(now) == Some(Kind::Syn) {
            self.request_arrives(id, now);
        }
        let Some(connection) = self.connections.get_mut(&id) else { return Progress::Later(None) };
        if !connection.is_answered {
            let arrival = connection.from(End::Connector).next_arrival();
            return Progress::Later(Some(arrival.map_or(deadline, |arrival| arrival.min(deadline))));
        }
        if connection.to(End::Connector).reset_has_arrived(now) {
            return Progress::Done(Err(ErrorKind::ConnectionRefused.into()));
        }
        if connection.to(End::Connector).arrived(now) == Some(Kind::SynAck) {
            self.established(id, now);
            return Progress::Done(Ok(()));
        }
        let arrival = connection.to(End::Connector).next_arrival();
        Progress::Later(Some(arrival.map_or(deadline, |arrival| arrival.min(deadline))))
    }

    /// The request to connect is at the listener's host.
    fn request_arrives(&mut self, id: u64, now: Duration) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let [host, to] = [connection.hosts[1], connection.addresses[1].ip()];
        let port = connection.addresses[1].port();
        let any = unspecified(to);
        let mut listeners = self.listeners.values_mut();
        let hears = |listener: &&mut Listener| {
            let ip = listener.address.ip();
            listener.host == host && listener.address.port() == port && (ip == to || ip == any)
        };
        match listeners.find(hears) {
            None => {
                connection.from(End::Connector).pop();
                connection.is_answered = true;
                connection.set_life(End::Listener, Life::Unknown);
                connection.send_reset(End::Listener, now, &mut self.medium);
                self.repeat_request(id, now);
            }
            // More than may wait: as if the request had been lost.
            Some(listener) if listener.waiting.len() > BACKLOG => {
                let way = connection.way(End::Connector);
                let latency = self.medium.latency(way, &connection.draws);
                connection.from(End::Connector).put_off(now, latency);
            }
            Some(listener) => {
                connection.from(End::Connector).pop();
                connection.is_answered = true;
                connection.is_queued();
                listener.waiting.push_back(id);
                connection.send(End::Listener, Kind::SynAck, now, &mut self.medium);
            }
        }
    }

    /// If the refusal got lost, the connector's system asks again.
    pub(super) fn repeat_request(&mut self, id: u64, now: Duration) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let is_refused = connection.is_answered && connection.life(End::Listener) == Life::Unknown;
        let is_lost =
            connection.to(End::Connector).first().is_none() && !connection.to(End::Connector).has_reset();
        if connection.is_established || !is_refused || !is_lost {
            return;
        }
        connection.is_answered = false;
        connection.set_life(End::Listener, Life::Open);
        let again = resent(connection.begun, CONNECT_RESEND_FIRST, now + Duration::from_micros(1));
        connection.send(End::Connector, Kind::Syn, again, &mut self.medium);
    }

    /// The answer is at the connector's host, which answers in turn.
    fn established(&mut self, id: u64, now: Duration) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.to(End::Connector).pop();
        connection.is_established = true;
        connection.send(End::Connector, Kind::Ack, now, &mut self.medium);
        *self.made.entry(ordered(connection.hosts)).or_default() += 1;
        self.wake_acceptor(id);
    }

    /// Whoever waits for this connection looks again.
    pub(super) fn wake_acceptor(&mut self, id: u64) {
        let listener = self.listeners.values_mut().find(|listener| listener.waiting.contains(&id));
        self.medium.wakers.extend(listener.into_iter().flat_map(|listener| listener.acceptors.drain(..)));
    }

    /// Nobody wants to connect any more, or nobody can.
    pub(super) fn abandon(&mut self, id: u64) {
        self.connections.remove(&id);
        self.unqueue(id);
    }

    /// It is not to be accepted.
    pub(super) fn unqueue(&mut self, id: u64) {
        self.listeners.values_mut().for_each(|listener| listener.waiting.retain(|&waiting| waiting != id));
    }

    /// The next connection of a listener.
    pub(super) fn poll_accept(&mut self, id: u64, now: Duration, waker: &Waker) -> Progress<u64> {
        let Some(listener) = self.listeners.get_mut(&id) else { return Progress::Later(None) };
        let mut next = None;
        for (at, &id) in listener.waiting.iter().enumerate() {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            if connection.to(End::Listener).arrived(now) == Some(Kind::Ack) {
                connection.to(End::Listener).pop();
                listener.waiting.remove(at);
                return Progress::Done(id);
            }
            let arrival = connection.to(End::Listener).next_arrival();
            next = next.into_iter().chain(arrival).min();
        }
        if !listener.acceptors.iter().any(|known| known.will_wake(waker)) {
            listener.acceptors.push(waker.clone());
        }
        Progress::Later(next)
    }

    fn free_port(&mut self, host: IpAddr) -> io::Result<u16> {
        let next = self.ports.entry(host).or_insert(*EPHEMERAL.start());
        for _ in EPHEMERAL {
            let port = *next;
            *next = if port == *EPHEMERAL.end() { *EPHEMERAL.start() } else { port + 1 };
            let mut listeners = self.listeners.values().filter(|listener| listener.host == host);
            let mut connections = self.connections.values().filter(|connection| connection.hosts[0] == host);
            let is_taken = listeners.any(|listener| listener.address.port() == port)
                || connections.any(|connection| connection.addresses[0].port() == port);
            if !is_taken {
                return Ok(port);
            }
        }
        Err(ErrorKind::AddrNotAvailable.into())
    }
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

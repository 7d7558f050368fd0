//! All hosts' connections and listeners, and what faults do to them. No clock and no tasks: the time
//! comes in, and whoever has to look again is in [`Medium::wakers`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::task::Waker;
use std::time::Duration;

use tokio::io::ReadBuf;

use super::conditions::Conditions;
use super::connection::{Connection, End, Life, Progress};
use super::handshake::Listener;
use super::medium::{Medium, Way};

/// After everything was healed, what is under way has arrived within that time.
const HEALED_WITHIN: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Fabric {
    pub(super) seed: u64,
    pub(super) medium: Medium,
    pub(super) connections: BTreeMap<u64, Connection>,
    pub(super) listeners: BTreeMap<u64, Listener>,
    /// How many connections there ever were between two hosts.
    pub(super) made: BTreeMap<Way, u64>,
    /// Where each host looks for a free port next.
    pub(super) ports: BTreeMap<IpAddr, u16>,
    ids: u64,
    /// Cuts to come, after so many more bytes, by the way that these take.
    cuts: BTreeMap<Way, VecDeque<usize>>,
    pub(super) cuts_struck: usize,
    /// The pairs of hosts whose connections were cut.
    pub(super) cut: BTreeSet<Way>,
}

impl Fabric {
    pub(super) fn new(seed: u64, conditions: Conditions) -> Self {
        Self {
            seed,
            medium: Medium::new(conditions),
            connections: BTreeMap::new(),
            listeners: BTreeMap::new(),
            made: BTreeMap::new(),
            ports: BTreeMap::new(),
            ids: 0,
            cuts: BTreeMap::new(),
            cuts_struck: 0,
            cut: BTreeSet::new(),
        }
    }

    /// The host is on the network; if it was before, nothing changes.
    pub(super) fn join(&mut self, host: IpAddr, now: Duration) {
        if !self.medium.has(host) {
            self.power_on(host, now);
        }
    }

    pub(super) fn sockets(&self, host: IpAddr) -> usize {
        let ends = |connection: &Connection| {
            End::BOTH.into_iter().filter(|end| connection.is_used_at(*end, host)).count()
        };
        let listeners = self.listeners.values().filter(|listener| listener.host == host).count();
        self.connections.values().map(ends).sum::<usize>() + listeners
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    pub(super) fn address(&self, id: u64, end: End) -> io::Result<SocketAddr> {
        let connection = self.connections.get(&id).ok_or(io::ErrorKind::NotConnected)?;
        Ok(connection.addresses[end as usize])
    }

    pub(super) fn read(
        &mut self,
        (id, end): (u64, End),
        now: Duration,
        waker: &Waker,
        buffer: &mut ReadBuf<'_>,
    ) -> Progress<io::Result<usize>> {
        let Some(connection) = self.connections.get_mut(&id) else { return Progress::Later(None) };
        let way = connection.way(end.other());
        let next = self.cuts.get(&way).and_then(VecDeque::front);
        let most = next.map_or(buffer.remaining(), |bytes_left| buffer.remaining().min(*bytes_left));
        let progress = connection.read(end, now, &mut self.medium, most, buffer);
        match progress {
            Progress::Done(Ok(bytes)) => self.came(id, end, bytes, now),
            Progress::Done(Err(_)) | Progress::Again => {}
            Progress::Later(_) => connection.set_reader(end, waker),
        }
        progress
    }

    pub(super) fn write(
        &mut self,
        (id, end): (u64, End),
        now: Duration,
        waker: &Waker,
        slices: &[IoSlice<'_>],
    ) -> Progress<io::Result<usize>> {
        let Some(connection) = self.connections.get_mut(&id) else { return Progress::Later(None) };
        let progress = connection.write(end, now, &mut self.medium, slices);
        if matches!(progress, Progress::Later(_)) {
            connection.set_writer(end, waker);
        }
        progress
    }

    pub(super) fn shut_down(&mut self, (id, end): (u64, End), now: Duration) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.shut_down(end, now, &mut self.medium);
        }
    }

    pub(super) fn close(&mut self, (id, end): (u64, End), now: Duration) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.close(end, now, &mut self.medium);
            self.forget_unused(id);
        }
    }

    pub(super) fn abort(&mut self, (id, end): (u64, End), now: Duration) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.abort(end, now, &mut self.medium);
            self.forget_unused(id);
        }
    }

    pub(super) fn forget_unused(&mut self, id: u64) {
        if self.connections.get(&id).is_some_and(|connection| !connection.is_in_use()) {
            self.connections.remove(&id);
        }
    }

    /// Resets the connections that there are between two hosts. How many.
    pub(super) fn cut(&mut self, one: IpAddr, other: IpAddr, now: Duration) -> usize {
        let mut cut = 0;
        for id in self.ids_where(|way| ordered(way) == ordered([one, other])) {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            // What is not one yet is tried again by the connector's system.
            if !connection.is_established || !connection.cut(now, &mut self.medium) {
                continue;
            }
            cut += 1;
            let queued = self.listeners.values().any(|listener| listener.has_waiting(id));
            if queued && connection.to(End::Listener).arrived(now).is_none() {
                connection.is_dropped(End::Listener);
                self.unqueue(id);
                self.forget_unused(id);
            }
        }
        if cut > 0 {
            self.cuts_struck += 1;
            self.cut.insert(ordered([one, other]));
        }
        self.medium.struck.cut += cut;
        cut
    }

    pub(super) fn cut_after(&mut self, way: Way, bytes: usize) {
        self.cuts.entry(way).or_default().push_back(bytes.max(1));
    }

    /// So many bytes came to `end`.
    fn came(&mut self, id: u64, end: End, bytes: usize, now: Duration) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let way @ [from, to] = connection.way(end.other());
        let Some(cuts) = self.cuts.get_mut(&way) else { return };
        let Some(bytes_left) = cuts.front_mut() else { return };
        *bytes_left = bytes_left.saturating_sub(bytes);
        if *bytes_left == 0 {
            cuts.pop_front();
            // Here it comes after that byte, however many more had arrived.
            connection.to(end).drop_arrived(now);
            self.cut(from, to, now);
        }
    }

    pub(super) fn block(&mut self, way: Way, now: Duration) {
        self.medium.set_blocked(way, true);
        self.each_flow(way, |fabric, id, end| fabric.lose(id, end, now));
    }

    pub(super) fn unblock(&mut self, way: Way, now: Duration) {
        self.medium.set_blocked(way, false);
        self.each_flow(way, |fabric, id, end| fabric.resend(id, end, now));
    }

    pub(super) fn hold(&mut self, way: Way, now: Duration) {
        self.medium.set_held(way, true);
        self.each_flow(way, |fabric, id, end| {
            let Some(connection) = fabric.connections.get_mut(&id) else { return };
            fabric.medium.struck.held += connection.from(end).hold(now);
            connection.to(end).withhold_room(now);
        });
    }

    pub(super) fn release(&mut self, way: Way, now: Duration) {
        self.medium.set_held(way, false);
        self.each_flow(way, |fabric, id, end| {
            let Some(connection) = fabric.connections.get_mut(&id) else { return };
            connection.from(end).release(now);
            connection.to(end).tell_room(now, true);
            connection.answer(end.other(), now, &mut fabric.medium);
        });
    }

    /// The host has no power: nothing leaves it, and what is sent to it gets lost.
    pub(super) fn power_off(&mut self, host: IpAddr, now: Duration) {
        if !self.medium.power_off(host) {
            return;
        }
        self.drop_listeners(host);
        for id in self.ids_where(|way| way.contains(&host)) {
            for end in End::BOTH {
                let Some(connection) = self.connections.get_mut(&id) else { continue };
                if connection.hosts[end as usize] == host {
                    self.medium.struck.silenced += usize::from(connection.silence(end));
                    self.lose(id, end.other(), now);
                }
            }
            self.look_again(id);
            self.forget_unused(id);
        }
    }

    /// The host has power, and knows nothing of the connections from before.
    pub(super) fn power_on(&mut self, host: IpAddr, now: Duration) {
        if !self.medium.power_on(host) {
            return;
        }
        for id in self.ids_where(|way| way.contains(&host)) {
            for end in End::BOTH {
                let Some(connection) = self.connections.get_mut(&id) else { continue };
                if connection.hosts[end as usize] == host {
                    connection.forget(end);
                    self.resend(id, end.other(), now);
                }
            }
            self.look_again(id);
        }
    }

    /// All links are ordinary ones, no cut is to come, and what is under way arrives soon.
    pub(super) fn heal(&mut self, now: Duration) {
        self.medium.heal();
        self.cuts.clear();
        for id in self.ids_where(|_| true) {
            for end in End::BOTH {
                self.hurry(id, end, now);
                let Some(connection) = self.connections.get_mut(&id) else { continue };
                connection.to(end).tell_room(now, true);
                connection.answer(end.other(), now, &mut self.medium);
            }
            // The answers as well.
            End::BOTH.into_iter().for_each(|end| self.hurry(id, end, now));
            self.look_again(id);
        }
    }

    fn hurry(&mut self, id: u64, end: End, now: Duration) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let is_lost = self.medium.loses(connection.way(end));
        connection.from(end).hurry(now + HEALED_WITHIN, is_lost);
    }

    /// What `end` has under way is lost.
    fn lose(&mut self, id: u64, end: End, now: Duration) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let (lost, connects_lost) = connection.from(end).lose(now);
        self.medium.struck.lost += lost;
        self.medium.struck.connects_lost += connects_lost;
        connection.to(end).withhold_room(now);
        self.repeat_request(id, now);
    }

    /// What `end` sent in vain is sent again, if that has a chance now.
    fn resend(&mut self, id: u64, end: End, now: Duration) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let way = connection.way(end);
        if self.medium.loses(way) {
            return;
        }
        if connection.from(end).has_lost() {
            let latency = self.medium.latency(way, &connection.draws);
            connection.from(end).resend(now, latency, self.medium.holds(way));
        }
        connection.to(end).tell_room(now, false);
        for end in End::BOTH {
            connection.answer(end, now, &mut self.medium);
        }
    }

    /// Does something to whatever takes this way, and has everybody concerned look again.
    fn each_flow(&mut self, way: Way, act: impl Fn(&mut Self, u64, End)) {
        for id in self.ids_where(|hosts| ordered(hosts) == ordered(way)) {
            for end in End::BOTH {
                if self.connections.get(&id).is_some_and(|connection| connection.way(end) == way) {
                    act(self, id, end);
                }
            }
            self.look_again(id);
        }
    }

    fn look_again(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.wake(&mut self.medium);
            self.wake_acceptor(id);
        }
    }

    fn ids_where(&self, is_meant: impl Fn(Way) -> bool) -> Vec<u64> {
        let meant = self.connections.iter().filter(|(_, connection)| is_meant(connection.hosts));
        meant.map(|(&id, _)| id).collect()
    }
}

impl Connection {
    /// The host of `end` has lost its power. True if the other end can't know.
    fn silence(&mut self, end: End) -> bool {
        if end == End::Listener && !self.is_answered {
            // It knows nothing of the request yet.
            return false;
        }
        let was_open = self.life(end) != Life::Silent;
        self.set_life(end, Life::Silent);
        was_open && self.is_established && self.life(end.other()) == Life::Open
    }

    /// The host of `end` has power again.
    fn forget(&mut self, end: End) {
        if self.life(end) == Life::Silent {
            self.set_life(end, Life::Forgotten);
        }
    }
}

/// The same for both ways of a pair of hosts.
pub(super) fn ordered([one, other]: Way) -> Way {
    [one.min(other), one.max(other)]
}

//! One direction of a connection: what is under way, what has arrived, what room there is.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::io::ReadBuf;

/// The first time after which data is sent again. Each further one takes twice as long.
pub(super) const RESEND_FIRST: Duration = Duration::from_millis(200);

/// The first time after which a handshake's segment is sent again.
pub(super) const CONNECT_RESEND_FIRST: Duration = Duration::from_secs(1);

/// The most time between two attempts.
const RESEND_MOST: Duration = Duration::from_secs(120);

/// What a segment is. A reset is none: it stands in no queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The request to connect.
    Syn,
    /// Its answer.
    SynAck,
    /// The answer's answer: the listener may accept.
    Ack,
    Bytes(usize),
    /// The end of the direction.
    Fin,
}

impl Kind {
    fn resend_first(self) -> Duration {
        match self {
            Self::Syn | Self::SynAck | Self::Ack => CONNECT_RESEND_FIRST,
            Self::Bytes(_) | Self::Fin => RESEND_FIRST,
        }
    }

    fn len(self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Syn | Self::SynAck | Self::Ack | Self::Fin => 0,
        }
    }
}

/// Where a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transit {
    /// It arrives at that time, or did.
    Arrives(Duration),
    /// Until the link is released.
    Held,
    /// Until it gets through when it is sent again.
    Lost,
}

impl Transit {
    fn has_arrived(self, now: Duration) -> bool {
        self.arrival().is_some_and(|arrival| arrival <= now)
    }

    fn arrival(self) -> Option<Duration> {
        match self {
            Self::Arrives(arrival) => Some(arrival),
            Self::Held | Self::Lost => None,
        }
    }
}

#[derive(Debug)]
struct Segment {
    kind: Kind,
    transit: Transit,
}

/// One direction. Its segments arrive in order, and those that are lost are the last ones.
#[derive(Debug)]
pub(super) struct Flow {
    segments: VecDeque<Segment>,
    /// Of the segments.
    bytes: VecDeque<u8>,
    /// A reset under way or arrived, behind all segments.
    reset: Option<Transit>,
    arrival_last: Duration,
    loss: Option<Loss>,
    /// When the connection was begun.
    begun: Duration,
    /// Bytes written that the writer doesn't know to be read.
    unread_bytes: usize,
    withheld: Withheld,
    /// The reader has seen the end.
    pub(super) is_ended: bool,
}

/// Segments got lost.
#[derive(Clone, Copy, Debug)]
struct Loss {
    since: Duration,
    heals: Option<Duration>,
}

/// Room that reading made, and the writer has not heard of.
#[derive(Debug, Default)]
struct Withheld {
    bytes: usize,
    since: Duration,
    until: Option<Duration>,
}

impl Flow {
    pub(super) fn new(begun: Duration) -> Self {
        Self {
            segments: VecDeque::new(),
            bytes: VecDeque::new(),
            reset: None,
            arrival_last: begun,
            loss: None,
            begun,
            unread_bytes: 0,
            withheld: Withheld::default(),
            is_ended: false,
        }
    }

    /// Appends a segment. True if it is the only one.
    pub(super) fn push(&mut self, kind: Kind, transit: Transit, now: Duration) -> bool {
        let transit = self.in_order(transit);
        self.segments.push_back(Segment { kind, transit });
        if transit == Transit::Lost {
            self.lost(kind, now);
        }
        self.segments.len() == 1
    }

    /// Appends bytes, whose segment is then pushed.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.unread_bytes += bytes.len();
    }

    /// A reset that is lost is not repeated.
    pub(super) fn push_reset(&mut self, transit: Transit) {
        self.reset = (transit != Transit::Lost).then(|| self.in_order(transit));
    }

    /// The first segment, if it has arrived.
    pub(super) fn arrived(&self, now: Duration) -> Option<Kind> {
        self.segments.front().filter(|segment| segment.transit.has_arrived(now)).map(|segment| segment.kind)
    }

    /// The first segment, wherever it is.
    pub(super) fn first(&self) -> Option<Kind> {
        self.segments.front().map(|segment| segment.kind)
    }

    /// Takes the first segment, which has no bytes.
    pub(super) fn pop(&mut self) {
        self.segments.pop_front();
    }

    /// When the reader has to look again.
    pub(super) fn next_arrival(&self) -> Option<Duration> {
        self.segments.front().map_or(self.reset, |segment| Some(segment.transit))?.arrival()
    }

    /// When the first segment of these kinds arrives, or did.
    pub(super) fn arrival_of(&self, kinds: impl Fn(Kind) -> bool) -> Option<Duration> {
        self.segments.iter().find(|segment| kinds(segment.kind))?.transit.arrival()
    }

    /// A segment of these kinds has arrived and is not taken.
    pub(super) fn has_arrived(&self, now: Duration, kinds: impl Fn(Kind) -> bool) -> bool {
        self.arrival_of(kinds).is_some_and(|arrival| arrival <= now)
    }

    pub(super) fn has_reset(&self) -> bool {
        self.reset.is_some()
    }

    pub(super) fn reset_arrival(&self) -> Option<Duration> {
        self.reset?.arrival()
    }

    pub(super) fn reset_has_arrived(&self, now: Duration) -> bool {
        self.reset.is_some_and(|reset| reset.has_arrived(now))
    }

    /// Moves arrived bytes, at most so many, into the buffer.
    pub(super) fn read(&mut self, now: Duration, most: usize, buffer: &mut ReadBuf<'_>) -> usize {
        let mut left = most.min(buffer.remaining());
        while left > 0
            && let Some(Segment { kind: Kind::Bytes(bytes), transit }) = self.segments.front_mut()
            && transit.has_arrived(now)
        {
            let part = left.min(*bytes);
            *bytes -= part;
            left -= part;
            if *bytes == 0 {
                self.segments.pop_front();
            }
        }
        let read = most.min(buffer.remaining()) - left;
        let (front, back) = self.bytes.as_slices();
        let part = front.len().min(read);
        buffer.put_slice(&front[..part]);
        buffer.put_slice(&back[..read - part]);
        self.bytes.drain(..read);
        read
    }

    /// So many bytes were read; does the writer hear of it?
    pub(super) fn free(&mut self, bytes: usize, is_heard: bool, now: Duration) {
        if is_heard {
            // An acknowledgement tells what those before it did.
            self.unread_bytes -= bytes + std::mem::take(&mut self.withheld).bytes;
            return;
        }
        if self.withheld.bytes == 0 {
            self.withheld.since = now;
        }
        self.withheld.bytes += bytes;
    }

    /// How many bytes may be written.
    pub(super) fn room(&mut self, now: Duration, window_bytes: usize) -> usize {
        if self.withheld.until.is_some_and(|until| until <= now) {
            self.free(0, true, now);
        }
        window_bytes.saturating_sub(self.unread_bytes)
    }

    /// When the writer hears of more room.
    pub(super) fn room_arrival(&self) -> Option<Duration> {
        self.withheld.until
    }

    /// Acknowledgements get through again: on the next attempt, or at once.
    pub(super) fn tell_room(&mut self, now: Duration, at_once: bool) {
        if self.withheld.bytes > 0 {
            let resent = if at_once { now } else { resent(self.withheld.since, RESEND_FIRST, now) };
            self.withheld.until = Some(self.withheld.until.map_or(resent, |until| until.min(resent)));
        }
    }

    /// They get through no more.
    pub(super) fn withhold_room(&mut self, now: Duration) {
        if self.withheld.until.is_some_and(|until| until > now) {
            self.withheld.until = None;
        }
    }

    /// What is under way is lost. The segments that are, requests to connect among them apart.
    pub(super) fn lose(&mut self, now: Duration) -> (usize, usize) {
        let first = self.under_way(now);
        let (mut lost, mut connects_lost) = (0, 0);
        let mut first_kind = None;
        for segment in self.segments.iter_mut().skip(first).filter(|each| each.transit != Transit::Lost) {
            segment.transit = Transit::Lost;
            first_kind = first_kind.or(Some(segment.kind));
            match segment.kind {
                Kind::Syn => connects_lost += 1,
                _ => lost += 1,
            }
        }
        if let Some(kind) = first_kind {
            self.lost(kind, now);
        }
        if self.reset.is_some_and(|reset| !reset.has_arrived(now)) {
            self.reset = None;
            lost += 1;
        }
        self.arrival_last = self.arrival_last.min(now);
        (lost, connects_lost)
    }

    /// What is under way is held. How many segments are, that were not before.
    pub(super) fn hold(&mut self, now: Duration) -> usize {
        let first = self.under_way(now);
        let moving = self.segments.iter_mut().skip(first).map(|segment| &mut segment.transit);
        let mut held = 0;
        for transit in moving.chain(&mut self.reset) {
            if transit.arrival().is_some_and(|arrival| arrival > now) {
                *transit = Transit::Held;
                held += 1;
            }
        }
        self.arrival_last = self.arrival_last.min(now);
        held
    }

    /// What was held arrives.
    pub(super) fn release(&mut self, now: Duration) {
        let transits = self.segments.iter_mut().map(|segment| &mut segment.transit);
        for transit in transits.chain(&mut self.reset).filter(|transit| **transit == Transit::Held) {
            *transit = Transit::Arrives(now);
        }
        self.arrival_last = self.arrival_last.max(now);
    }

    pub(super) fn has_lost(&self) -> bool {
        self.segments.back().is_some_and(|segment| segment.transit == Transit::Lost)
    }

    /// What was lost gets through when it is sent the next time, unless the link holds it then.
    pub(super) fn resend(&mut self, now: Duration, latency: Duration, is_held: bool) {
        let Some(first) = self.segments.iter().position(|segment| segment.transit == Transit::Lost) else {
            return;
        };
        let since = self.loss.map_or(now, |loss| loss.since);
        let arrival = resent(since, self.segments[first].kind.resend_first(), now) + latency;
        self.loss = Some(Loss { since, heals: Some(arrival) });
        let transit = if is_held { Transit::Held } else { self.in_order(Transit::Arrives(arrival)) };
        self.segments.iter_mut().skip(first).for_each(|segment| segment.transit = transit);
    }

    /// Puts off the first segment, as if it had been lost when it arrived.
    pub(super) fn put_off(&mut self, now: Duration, latency: Duration) {
        if let Some(first) = self.segments.front_mut() {
            let resent = resent(self.begun, first.kind.resend_first(), now + Duration::from_micros(1));
            first.transit = Transit::Arrives(resent + latency);
        }
    }

    /// All that is under way arrives at that time at the latest, what was lost included unless it
    /// `is_lost` still.
    pub(super) fn hurry(&mut self, latest: Duration, is_lost: bool) {
        let transits = self.segments.iter_mut().map(|segment| &mut segment.transit);
        for transit in transits.chain(&mut self.reset).filter(|each| !is_lost || **each != Transit::Lost) {
            let arrival = transit.arrival().map_or(latest, |arrival| arrival.min(latest));
            *transit = Transit::Arrives(arrival);
        }
        self.arrival_last = self.arrival_last.min(latest);
        if !is_lost && let Some(loss) = &mut self.loss {
            loss.heals = Some(loss.heals.map_or(latest, |heals| heals.min(latest)));
        }
    }

    /// What has not arrived never will.
    pub(super) fn drop_under_way(&mut self, now: Duration) {
        self.truncate(self.under_way(now));
        self.reset = self.reset.filter(|reset| reset.has_arrived(now));
        self.arrival_last = self.arrival_last.min(now);
    }

    /// Nobody sends again what was lost.
    pub(super) fn drop_lost(&mut self) {
        let first = self.segments.iter().position(|segment| segment.transit == Transit::Lost);
        self.truncate(first.unwrap_or(self.segments.len()));
    }

    /// Nobody reads what has arrived.
    pub(super) fn drop_arrived(&mut self, now: Duration) {
        let arrived = self.segments.drain(..self.under_way(now));
        let bytes: usize = arrived.map(|segment| segment.kind.len()).sum();
        self.bytes.drain(..bytes);
    }

    fn truncate(&mut self, segments: usize) {
        let left: usize = self.segments.iter().take(segments).map(|segment| segment.kind.len()).sum();
        self.segments.truncate(segments);
        self.bytes.truncate(left);
    }

    /// The first segment that has not arrived.
    fn under_way(&self, now: Duration) -> usize {
        self.segments.partition_point(|segment| segment.transit.has_arrived(now))
    }

    /// No sooner than what was sent before.
    fn in_order(&mut self, transit: Transit) -> Transit {
        let Transit::Arrives(arrival) = transit else { return transit };
        self.arrival_last = self.arrival_last.max(arrival);
        Transit::Arrives(self.arrival_last)
    }

    /// A loss that has not healed goes on: its attempts have become rare.
    fn lost(&mut self, kind: Kind, now: Duration) {
        let since = match self.loss {
            Some(loss) if loss.heals.is_none_or(|heals| heals > now) => loss.since,
            _ if kind == Kind::Syn => self.begun,
            _ => now,
        };
        self.loss = Some(Loss { since, heals: None });
    }
}

/// When what was sent in vain at `since` is sent again, at `now` or later.
pub(super) fn resent(since: Duration, first: Duration, now: Duration) -> Duration {
    let (mut wait, mut at) = (first, since + first);
    while at < now {
        wait = (2 * wait).min(RESEND_MOST);
        at += wait;
    }
    at
}

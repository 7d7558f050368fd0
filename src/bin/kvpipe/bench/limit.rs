//! The limit: how fast two processes move items over a bare socket, with as little as will do.
//!
//! Blocking std sockets. The sender writes whole items and reads an acknowledgement of one byte for
//! each, concurrently; it never has more bytes unacknowledged than a pipe with the same budget may
//! have. The receiver reads into buffers that it uses again, but not before [`KEPT_ITEMS`] more items
//! have come, as a consumer would that still works on the last ones. Nothing is framed, checked,
//! queued or resumed.
//!
//! How much one `read` may take decides much, and not the same way for every size of item, so the
//! limit is the best of [`READ_CAPS`].
//!
//! std only: `benches/tcp.rs` has this file as well.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many of the last items a receiver keeps.
pub(crate) const KEPT_ITEMS: usize = 8;

/// The most bytes that one `read` takes, in turn; `usize::MAX` is whatever is missing of the item.
pub(crate) const READ_CAPS: [usize; 4] = [usize::MAX, 64 << 10, 256 << 10, 1 << 20];

/// Items without acknowledgement at most, however small they are: as many as a pipe holds.
const IN_FLIGHT_ITEMS_MAX: u64 = 65_536;

/// A peer that takes longer over a read or a write is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// The sending end.
#[derive(Debug)]
pub(crate) struct BareSender {
    stream: TcpStream,
}

/// The receiving end, and its buffers.
#[derive(Debug)]
pub(crate) struct BareReceiver {
    stream: TcpStream,
    buffers: Vec<Vec<u8>>,
    next: usize,
}

fn prepared(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

impl BareSender {
    /// # Errors
    /// If the socket takes no options.
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        Ok(Self { stream: prepared(stream)? })
    }

    /// Sends `items`, the sources in turn, with at most `budget` bytes unacknowledged. Gives the time
    /// from the first write until the last item was acknowledged.
    ///
    /// # Errors
    /// Whatever the socket says.
    pub(crate) fn send<B: AsRef<[u8]>>(
        &mut self,
        sources: &[B],
        items: u64,
        budget: usize,
    ) -> io::Result<Duration> {
        // Of sources that differ, by the largest: never more bytes than the budget.
        let size = sources.iter().map(|source| source.as_ref().len()).max().unwrap_or(0);
        let in_flight = u64::try_from(budget / size.max(1)).unwrap_or(u64::MAX).clamp(1, IN_FLIGHT_ITEMS_MAX);
        let acknowledged = Acknowledged::default();
        let reader = &self.stream;
        let mut writer = &self.stream;
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| acknowledged.read_all(reader, items));
            let begin = now();
            for (sent, source) in (0..items).zip(sources.iter().cycle()) {
                acknowledged.wait_for((sent + 1).saturating_sub(in_flight))?;
                writer.write_all(source.as_ref())?;
            }
            let end = reading.join().map_err(|_| io::Error::other("the thread that reads panicked"))??;
            Ok(end.saturating_duration_since(begin))
        })
    }

    /// Sends `items` one at a time, the sources in turn. Gives the time that each took from the write
    /// until it was acknowledged.
    ///
    /// # Errors
    /// Whatever the socket says.
    pub(crate) fn send_paced<B: AsRef<[u8]>>(
        &mut self,
        sources: &[B],
        items: u64,
    ) -> io::Result<Vec<Duration>> {
        let mut latencies = Vec::new();
        for (_, source) in (0..items).zip(sources.iter().cycle()) {
            let begin = now();
            self.stream.write_all(source.as_ref())?;
            self.stream.read_exact(&mut [0])?;
            latencies.push(begin.elapsed());
        }
        Ok(latencies)
    }

    /// Sends `message` and reads as much back, `count` times. Gives the time that each took.
    ///
    /// # Errors
    /// Whatever the socket says.
    pub(crate) fn round_trips(&mut self, message: &[u8], count: u64) -> io::Result<Vec<Duration>> {
        let mut answer = vec![0; message.len()];
        let mut latencies = Vec::new();
        for _ in 0..count {
            let begin = now();
            self.stream.write_all(message)?;
            self.stream.read_exact(&mut answer)?;
            latencies.push(begin.elapsed());
        }
        Ok(latencies)
    }
}

impl BareReceiver {
    /// # Errors
    /// If the socket takes no options.
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        Ok(Self { stream: prepared(stream)?, buffers: Vec::new(), next: 0 })
    }

    /// Receives `items` of these sizes in turn, at most `read_cap` bytes with one `read`, and
    /// acknowledges each.
    ///
    /// # Errors
    /// Whatever the socket says.
    pub(crate) fn receive(&mut self, sizes: &[usize], items: u64, read_cap: usize) -> io::Result<()> {
        let largest = sizes.iter().copied().max().unwrap_or(0);
        if self.buffers.first().is_none_or(|buffer| buffer.len() != largest) {
            // Those of another size first, or there were twice as many.
            self.buffers.clear();
            self.buffers.resize_with(KEPT_ITEMS + 1, || vec![0; largest]);
        }
        for (_, &size) in (0..items).zip(sizes.iter().cycle()) {
            self.next = (self.next + 1) % self.buffers.len();
            let buffer = &mut self.buffers[self.next][..size];
            let mut received = 0;
            while received < size {
                let most = size.min(received.saturating_add(read_cap));
                match self.stream.read(&mut buffer[received..most])? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    read => received += read,
                }
            }
            self.stream.write_all(&[1])?;
        }
        Ok(())
    }

    /// Sends each of `count` messages of `size` bytes back.
    ///
    /// # Errors
    /// Whatever the socket says.
    pub(crate) fn echo(&mut self, size: usize, count: u64) -> io::Result<()> {
        let mut message = vec![0; size];
        for _ in 0..count {
            self.stream.read_exact(&mut message)?;
            self.stream.write_all(&message)?;
        }
        Ok(())
    }
}

/// How many items were acknowledged; the writer waits for it when it is far ahead.
#[derive(Default)]
struct Acknowledged {
    count: Mutex<Count>,
    more: Condvar,
}

#[derive(Default)]
struct Count {
    items: u64,
    failed: bool,
}

impl Acknowledged {
    /// Reads `items` acknowledgements; gives the time of the last.
    fn read_all(&self, mut stream: &TcpStream, items: u64) -> io::Result<Instant> {
        let mut bytes = [0; 256];
        let mut left = items;
        while left > 0 {
            let wanted = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = match stream.read(&mut bytes[..wanted]) {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                read => read,
            };
            let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
            match read {
                Ok(read) => {
                    left -= read as u64;
                    count.items += read as u64;
                }
                Err(_) => count.failed = true,
            }
            self.more.notify_one();
            drop(count);
            read?;
        }
        Ok(now())
    }

    fn wait_for(&self, items: u64) -> io::Result<()> {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        while count.items < items && !count.failed {
            count = self.more.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
        match count.failed {
            true => Err(io::Error::other("the receiver acknowledges no more")),
            false => Ok(()),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "measured without tokio, whose time could be virtual")]
fn now() -> Instant {
    Instant::now()
}

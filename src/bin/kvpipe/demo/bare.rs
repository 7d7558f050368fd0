//! What bare sockets would do in the place of the pipes: the same edges, all at the same time, with the
//! same sizes of items and as many bytes unacknowledged. The limit of `kvpipe bench`, in this workload.
//!
//! After each request that the pipes have moved, the bare sockets move as much of it as takes a moment,
//! once for each read size; the fastest counts for the whole request. They receive into buffers that
//! are used again, while the pipes' receivers keep a request until it is checked.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use kvpipe::store::Store;
use kvpipe::transport::Ring;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use super::exchange::Meeting;
use super::workload::Request;
use crate::bench::limit::{BareReceiver, BareSender, READ_CAPS};
use crate::failure::Failure;

/// Our ends of the two edges.
pub(super) struct BareEdges {
    sender: BareSender,
    receiver: BareReceiver,
    budget_bytes: usize,
    warm: bool,
}

/// Of a request, for each read size; at least an item.
const MOVED_BYTES: usize = 32 << 20;

impl BareEdges {
    /// Connects to the next rank, and is connected to by the previous one.
    pub(super) async fn connect(
        store: &impl Store,
        ring: Ring,
        budget_bytes: usize,
        patience: Duration,
    ) -> Result<Self, Failure> {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await;
        let listener = listener.map_err(|error| Failure::io("listening for a bare socket", &error))?;
        let address =
            listener.local_addr().map_err(|error| Failure::io("reading the address bound", &error))?;
        store.set(&key(ring.rank()), address.to_string().into(), patience).await?;
        let next = store.get(&key(ring.next()), patience).await?;
        let next = std::str::from_utf8(&next).ok().and_then(|text| text.parse::<SocketAddr>().ok());
        let next = next.ok_or_else(|| Failure::new("bug in kvpipe: a bare socket without an address"))?;
        let outgoing = TcpStream::connect(next).await;
        let outgoing = outgoing
            .map_err(|error| Failure::io(format!("connecting to rank {} at {next}", ring.next()), &error))?;
        let accepted = timeout(patience, listener.accept()).await.map_err(|_| {
            let (previous, waited) = (ring.previous(), patience.as_secs_f64());
            Failure::new(format!("rank {previous} did not connect a bare socket within {waited} s"))
        })?;
        let (incoming, _) = accepted.map_err(|error| Failure::io("accepting a bare socket", &error))?;
        let sender = blocking(outgoing).and_then(BareSender::new).map_err(|error| lost(&error))?;
        let receiver = blocking(incoming).and_then(BareReceiver::new).map_err(|error| lost(&error))?;
        Ok(Self { sender, receiver, budget_bytes, warm: false })
    }

    /// How long it would take to receive `expected` while `sent` is sent.
    pub(super) async fn time<S: Store>(
        mut self,
        meeting: &Meeting<'_, S>,
        sent: &Request,
        expected: &Request,
    ) -> Result<(Self, Duration), Failure> {
        let payloads = beginning(sent)?;
        let sizes: Vec<usize> = beginning(expected)?.iter().map(bytes::Bytes::len).collect();
        let moved: usize = sizes.iter().sum();
        let mut fastest = Duration::MAX;
        // The first time of all is for the page faults of fresh buffers.
        let warm_up = (!self.warm).then_some(usize::MAX);
        for (number, read_cap) in warm_up.into_iter().chain(READ_CAPS).enumerate() {
            meeting.all_are_at(&format!("bare/{number}/ready")).await?;
            let clock = Instant::now();
            meeting.all_are_at(&format!("bare/{number}/steady")).await?;
            let (payloads, sizes) = (payloads.clone(), sizes.clone());
            let (edges, received) = tokio::task::spawn_blocking(move || {
                let received = self.exchange(&payloads, &sizes, read_cap);
                (self, received)
            })
            .await
            .map_err(|error| Failure::new(format!("bug in kvpipe: a bare socket's thread: {error}")))?;
            self = edges;
            let elapsed = received.map_err(|error| lost(&error))? - clock;
            if self.warm {
                fastest = fastest.min(elapsed);
            }
            self.warm = true;
        }
        // As if the rest went on at the same speed.
        let whole = fastest.as_secs_f64() * expected.bytes() as f64 / moved.max(1) as f64;
        Ok((self, Duration::from_secs_f64(whole)))
    }

    /// Gives the time when everything was received.
    fn exchange(
        &mut self,
        payloads: &[bytes::Bytes],
        sizes: &[usize],
        read_cap: usize,
    ) -> std::io::Result<Instant> {
        let Self { sender, receiver, budget_bytes, .. } = self;
        let budget_bytes = *budget_bytes;
        std::thread::scope(|scope| {
            let sending = scope.spawn(move || sender.send(payloads, payloads.len() as u64, budget_bytes));
            let received = receiver.receive(sizes, sizes.len() as u64, read_cap).map(|()| Instant::now());
            let sent = sending.join().map_err(|_| std::io::Error::other("the sending thread panicked"))?;
            sent.and(received)
        })
    }
}

/// Of the payloads of a request, as many as are moved.
fn beginning(request: &Request) -> Result<Vec<bytes::Bytes>, Failure> {
    let mut payloads = Vec::new();
    let mut bytes = 0;
    for part in &request.parts {
        if bytes >= MOVED_BYTES {
            break;
        }
        let payload = part.tensor.bytes()?.clone();
        bytes += payload.len();
        payloads.push(payload);
    }
    Ok(payloads)
}

/// A std socket that blocks.
fn blocking(stream: TcpStream) -> std::io::Result<std::net::TcpStream> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn lost(error: &std::io::Error) -> Failure {
    Failure::io("moving a request over bare sockets", error)
}

fn key(rank: usize) -> String {
    format!("demo/{rank}/bare")
}

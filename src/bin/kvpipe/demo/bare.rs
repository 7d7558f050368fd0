//! What bare sockets would do in the place of the pipes: the same edges, all at the same time, with the
//! same sizes of items and as many bytes unacknowledged. The limit of `kvpipe bench`, in this workload.
//!
//! After each request that the pipes have moved, the bare sockets move as much of it as takes a moment,
//! once for each read size; the fastest counts for the whole request. They receive into buffers that
//! are used again, while the pipes' receivers keep a request until it is checked.

use std::time::Duration;

use kvpipe::store::Store;
use kvpipe::transport::Ring;
use tokio::time::Instant;

use super::exchange::Meeting;
use super::workload::Request;
use crate::bench::limit::{BareReceiver, BareSender, READ_CAPS};
use crate::edges::Edges;
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
        let Edges { next, previous } = Edges::connect(store, "demo", ring, patience).await?;
        let sender = BareSender::new(next).map_err(|error| lost(&error))?;
        let receiver = BareReceiver::new(previous).map_err(|error| lost(&error))?;
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

fn lost(error: &std::io::Error) -> Failure {
    Failure::io("moving a request over bare sockets", error)
}

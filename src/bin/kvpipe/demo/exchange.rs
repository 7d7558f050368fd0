//! One rank of a demo: sends its requests, receives those of the previous rank, checks and measures.
//!
//! # How the speed is measured
//!
//! Requests are moved one at a time. All ranks wait for each other, start their clocks, wait for each
//! other again, and only then send; so no clock starts after the first item has left. A clock stops
//! when the request's None is in the receiving user's hands. What was received is compared after that,
//! while nothing is being moved: checking neither costs time nor lets the sender get ahead unseen. On a
//! GPU a request is put there before the clocks start, and fetched from there to be checked.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use kvpipe::device::Device;
use kvpipe::pipe::Driver;
use kvpipe::store::Store;
use kvpipe::tensor::{Item, Tensor};
use kvpipe::transport::{Ring, Transport};
use kvpipe::{Error, Pipe, PipeConfig};
use tokio::time::{Instant, timeout};

use super::bare::BareEdges;
use super::report::RankReport;
use super::workload::{Part, Request, Workload};
use crate::args::WorkloadArgs;
use crate::failure::Failure;

/// What a rank sends, and what it must receive.
pub(super) struct Workloads {
    sent: Workload,
    expected: Workload,
    /// Where tensors are sent from; None for host memory.
    device: Option<Arc<dyn Device>>,
}

impl Workloads {
    pub(super) fn new(
        args: &WorkloadArgs,
        ring: Ring,
        device: Option<Arc<dyn Device>>,
    ) -> Result<Self, Failure> {
        let expected = Workload::new(args, ring.previous())?;
        Ok(Self { sent: Workload::new(args, ring.rank())?, expected, device })
    }

    /// The tensors of a request, where they are sent from.
    async fn tensors(&self, request: &Request) -> Result<Vec<Tensor>, Error> {
        let mut tensors = Vec::with_capacity(request.parts.len());
        for Part { tensor, .. } in &request.parts {
            tensors.push(match &self.device {
                Some(device) => tensor.to_device(device).await?,
                None => tensor.clone(),
            });
        }
        Ok(tensors)
    }
}

/// A pipe over a transport, and its driver.
pub(super) fn pipe(transport: impl Transport, config: PipeConfig) -> (Pipe, Driver) {
    let (outgoing, incoming) = transport.split();
    Pipe::new(outgoing, incoming, config)
}

/// Exchanges all requests and closes the pipe; after each, has bare sockets do the same, if there are
/// any. Tells `progress` the bytes of each checked request.
pub(super) async fn run(
    pipe: &Pipe,
    store: &impl Store,
    ring: Ring,
    workloads: &Workloads,
    mut bare: Option<BareEdges>,
    patience: Duration,
    mut progress: impl FnMut(u64) -> Result<(), Failure>,
) -> Result<RankReport, Failure> {
    greet(pipe, ring, patience).await?;
    let mut report = RankReport::new(ring.rank());
    let requests = workloads.sent.requests.iter().zip(&workloads.expected.requests);
    for (number, (sent, expected)) in requests.enumerate() {
        let meeting = Meeting { store, ring, request: number, patience };
        let tensors = workloads.tensors(sent).await?;
        meeting.all_are_at("ready").await?;
        let clock = Instant::now();
        meeting.all_are_at("steady").await?;
        let start = Instant::now();
        let (received, sending) = move_request(pipe, &tensors, expected, start, patience).await?;
        let elapsed = received.last - clock;
        let received = received.on_host().await?;
        check(expected, &received.items).map_err(|what| {
            let (rank, previous) = (ring.rank(), ring.previous());
            Failure::new(format!("rank {rank}: request {number} from rank {previous}: {what}"))
        })?;
        sending?;
        report.add(received.items.len(), expected.bytes(), elapsed, &received.latencies);
        drop(received);
        if let Some(edges) = bare.take() {
            let (edges, limit) = edges.time(&meeting, sent, expected).await?;
            report.add_limit(limit);
            bare = Some(edges);
        }
        progress(expected.bytes())?;
    }
    pipe.close().await?;
    Ok(report)
}

/// One None each way, so that connecting is not part of what is measured.
async fn greet(pipe: &Pipe, ring: Ring, patience: Duration) -> Result<(), Failure> {
    let (sent, received) = tokio::join!(pipe.send(None), pipe.recv_timeout(patience));
    match received? {
        None => {}
        Some(tensor) => {
            let what = format!("rank {} began with {tensor:?} where a None belongs", ring.previous());
            return Err(Failure::new(what));
        }
    }
    sent?;
    Ok(())
}

/// Where all ranks wait for each other.
pub(super) struct Meeting<'a, S> {
    store: &'a S,
    ring: Ring,
    request: usize,
    patience: Duration,
}

impl<S: Store> Meeting<'_, S> {
    pub(super) async fn all_are_at(&self, point: &str) -> Result<(), Failure> {
        let Self { store, ring, request, patience } = *self;
        let (count, go) = (format!("demo/{request}/{point}"), format!("demo/{request}/{point}/go"));
        let arrived = store.add(&count, 1, patience).await?;
        if usize::try_from(arrived) == Ok(ring.world_size()) {
            store.set(&go, "".into(), patience).await?;
        }
        store.wait(&[&go], patience).await.map_err(|error| match error {
            Error::Timeout { after, .. } => {
                let awaited = format!("all {} ranks to be {point} for request {request}", ring.world_size());
                Error::timeout(awaited, after).into()
            }
            error => error.into(),
        })
    }
}

/// Sends one request and receives another. How sending went is told beside what was received: both
/// fail if a rank leaves because it got something wrong, and that is what has to be found.
async fn move_request(
    pipe: &Pipe,
    sent: &[Tensor],
    expected: &Request,
    start: Instant,
    patience: Duration,
) -> Result<(Received, Result<(), Error>), Error> {
    let mut sending = pin!(send(pipe, sent, patience));
    let mut receiving = pin!(receive(pipe, expected, start, patience));
    tokio::select! {
        biased;
        received = &mut receiving => Ok((received?, sending.await)),
        sending = &mut sending => match sending {
            Ok(()) => Ok((receiving.await?, Ok(()))),
            Err(error) => match timeout(GRACE, receiving).await {
                Ok(Ok(received)) => Ok((received, Err(error))),
                // What failed first is the cause.
                _ => Err(error),
            },
        },
    }
}

/// When we can't send, for the rest of what may be on its way to us.
const GRACE: Duration = Duration::from_secs(1);

async fn send(pipe: &Pipe, tensors: &[Tensor], patience: Duration) -> Result<(), Error> {
    for tensor in tensors {
        pipe.send_timeout(Some(tensor.clone()), patience).await?;
    }
    pipe.send_timeout(None, patience).await?;
    pipe.flush().await
}

/// What came in place of a request.
struct Received {
    items: Vec<Item>,
    latencies: Vec<Duration>,
    /// When the last item had come.
    last: Instant,
}

impl Received {
    async fn on_host(mut self) -> Result<Self, Error> {
        for tensor in self.items.iter_mut().flatten() {
            *tensor = tensor.to_host().await?;
        }
        Ok(self)
    }
}

/// Receives up to the None, or until there is one tensor too many.
async fn receive(
    pipe: &Pipe,
    expected: &Request,
    start: Instant,
    patience: Duration,
) -> Result<Received, Error> {
    let count = expected.parts.len() + 1;
    let (mut items, mut latencies) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let mut last = start;
    loop {
        items.push(pipe.recv_timeout(patience).await?);
        let now = Instant::now();
        latencies.push(now - last);
        last = now;
        if items.last().is_some_and(Item::is_none) || items.len() == count {
            return Ok(Received { items, latencies, last });
        }
    }
}

/// Compares dtypes, shapes, the place of the None and each byte; says what differs first.
fn check(expected: &Request, received: &[Item]) -> Result<(), String> {
    for (part, item) in expected.parts.iter().zip(received) {
        match item {
            Some(tensor) => check_tensor(part, tensor).map_err(|what| format!("{}: {what}", part.name))?,
            None => return Err(format!("a None came where {} belongs", part.name)),
        }
    }
    match received.get(expected.parts.len()) {
        Some(None) => Ok(()),
        Some(Some(tensor)) => Err(format!("{tensor:?} came where the None belongs")),
        None => Err("it ended early".into()),
    }
}

fn check_tensor(part: &Part, received: &Tensor) -> Result<(), String> {
    let expected = &part.tensor;
    if (received.dtype(), received.shape()) != (expected.dtype(), expected.shape()) {
        let (right, wrong) = ((expected.dtype(), expected.shape()), (received.dtype(), received.shape()));
        return Err(format!("{} {} came where {} {} belongs", wrong.0, wrong.1, right.0, right.1));
    }
    let of = |tensor: &Tensor| tensor.bytes().cloned().map_err(|error| error.to_string());
    let (expected, received) = (of(expected)?, of(received)?);
    if expected == received {
        return Ok(());
    }
    // Equal shapes and dtypes have payloads of equal length.
    let differs = expected.iter().zip(&received).position(|(right, wrong)| right != wrong).unwrap_or(0);
    Err(format!("byte {differs} is {:#04x} and should be {:#04x}", received[differs], expected[differs]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        let part = |name: &str, values: [u8; 3]| Part {
            name: name.into(),
            tensor: Tensor::from_slice([3], &values).unwrap(),
        };
        Request { parts: vec![part("layer 0 K", [1, 2, 3]), part("layer 0 V", [4, 5, 6])] }
    }

    fn items() -> Vec<Item> {
        request().parts.into_iter().map(|part| Some(part.tensor)).chain([None]).collect()
    }

    fn complaint(items: &[Item]) -> String {
        check(&request(), items).unwrap_err()
    }

    #[test]
    fn what_was_sent_passes() {
        assert_eq!(check(&request(), &items()), Ok(()));
    }

    #[test]
    fn a_wrong_byte_is_named_with_its_layer_and_offset() {
        let mut items = items();
        items[1] = Some(Tensor::from_slice([3], &[4_u8, 5, 7]).unwrap());
        assert_eq!(complaint(&items), "layer 0 V: byte 2 is 0x07 and should be 0x06");
    }

    #[test]
    fn another_dtype_or_shape_is_refused() {
        let mut items = items();
        items[0] = Some(Tensor::from_slice([3], &[1_i8, 2, 3]).unwrap());
        assert_eq!(complaint(&items), "layer 0 K: int8 [3] came where uint8 [3] belongs");
        items[0] = Some(Tensor::from_slice([1, 3], &[1_u8, 2, 3]).unwrap());
        assert_eq!(complaint(&items), "layer 0 K: uint8 [1, 3] came where uint8 [3] belongs");
    }

    #[test]
    fn a_none_too_early_too_late_or_missing_is_refused() {
        let items = items();
        assert_eq!(complaint(&[items[0].clone(), None]), "a None came where layer 0 V belongs");
        let late = [items[0].clone(), items[1].clone(), items[1].clone()];
        assert!(complaint(&late).ends_with("came where the None belongs"));
        assert_eq!(complaint(&items[..2]), "it ended early");
    }
}

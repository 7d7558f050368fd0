//! [`Communicator`]: ranks that move and reduce device memory through NCCL. vLLM's
//! `PyNcclCommunicator` (`vllm/distributed/device_communicators/pynccl.py`).
//!
//! | vLLM's | here |
//! |---|---|
//! | the constructor waits for ever for a rank that does not come | [`Communicator::new`] has a [deadline](CommunicatorConfig::connect_timeout) |
//! | operations return once they are enqueued; who frees or reads the memory too early is wrong | they return once they are done, and own the memory until then, dropped or not |
//! | a dead peer is waited for for ever | the deadline, an asynchronous error, or [`abort`](Communicator::abort) ends every wait, with NCCL's code and text |
//! | no check of contiguity and counts | tensors are contiguous, counts are checked |
//! | never destroyed | finalized and destroyed when it is dropped, without keeping the caller |
//! | `group_start` may be left open | a [`Group`] is started and ended in one |
//!
//! # Meeting
//!
//! Rank 0's unique id goes to the others over the group's store: as bytes, or in vLLM's wire mode as the
//! pickle that vLLM sends. Then all of them form the communicator and sum up one float32, as vLLM's
//! constructor does: a rank that left it out would keep the others waiting. It also makes connections,
//! which NCCL does only at the first operation, within the deadline.
//!
//! # Failure
//!
//! Any error of NCCL is the end of a communicator, since nobody knows what the other ranks make of it:
//! whoever waits gets it, and whoever calls later. NCCL does not tell the other ranks; the nccl
//! transport does, over its control connections. A rank alone has its deadline.

mod call;
mod collective;
mod group;
mod operations;
mod registration;
mod worker;

use std::ffi::c_int;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

pub(crate) use self::call::Call;
pub(crate) use self::collective::Collective;
pub use self::group::Group;
pub use self::registration::Registration;
use self::worker::{Command, Shared, Worker};
use super::{DataType, Library, ReduceOp};
use crate::device::{Device, Event, InFlight, Stream};
use crate::error::{Error, Result};
use crate::group::StatelessProcessGroup;
use crate::store::Store;
use crate::wire::{Object, UniqueId};

/// How a communicator waits.
#[derive(Clone, Debug)]
pub struct CommunicatorConfig {
    /// How long forming it takes at most: 300 s.
    pub connect_timeout: Duration,
    /// How long each operation takes at most, the wait for the other ranks to call it included. 300 s.
    pub operation_timeout: Duration,
    /// How long [`Communicator::abort`] waits for NCCL, whose abort has hung. 10 s.
    pub abort_timeout: Duration,
}

impl Default for CommunicatorConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(300),
            operation_timeout: Duration::from_secs(300),
            abort_timeout: Duration::from_secs(10),
        }
    }
}

/// Beyond all measure.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// A rank among others that share a communicator of NCCL: vLLM's `PyNcclCommunicator`.
///
/// Operations must be called in the same order by all ranks of the communicator. On one rank those of
/// several tasks are enqueued one after the other.
///
/// Dropping it returns at once; a thread lets NCCL finish what was enqueued and frees it.
pub struct Communicator {
    rank: usize,
    world_size: usize,
    device: Arc<dyn Device>,
    config: CommunicatorConfig,
    /// None in a world of one, which needs no NCCL.
    members: Option<Members>,
}

struct Members {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    /// Says nothing, and ends with the thread. None once somebody waits for that.
    ended: Option<oneshot::Receiver<()>>,
}

impl Drop for Members {
    fn drop(&mut self) {
        self.shared.orphan();
    }
}

impl Communicator {
    /// Forms a communicator of the ranks of `group`; each of them must call it, on a device of its own.
    /// A world of one needs no `library`, and forms nothing.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for more than one rank without a library; [`Error::Timeout`] if a rank does
    /// not come; [`Error::Nccl`]; and as the group.
    ///
    /// # Cancel safety
    /// Dropped early there is no communicator; the other ranks wait until their deadline.
    pub async fn new<S: Store + Clone>(
        group: &StatelessProcessGroup<S>,
        device: Arc<dyn Device>,
        library: Option<Arc<Library>>,
        config: CommunicatorConfig,
    ) -> Result<Self> {
        let (rank, world_size) = (group.rank(), group.world_size());
        if world_size == 1 {
            return Ok(Self::alone(device, config));
        }
        let deadline = Instant::now() + config.connect_timeout.min(FAR);
        let library = library.ok_or_else(|| Error::Unavailable {
            what: format!("a communicator of {world_size} ranks"),
            reason: "it needs NCCL, and no library was given".into(),
        })?;
        let own = match rank {
            0 => Some(Object::UniqueId(library.unique_id()?)),
            _ => None,
        };
        let id = match group.broadcast_obj_timeout(own.as_ref(), 0, config.connect_timeout).await? {
            Object::UniqueId(id) => id,
            other => {
                return Err(Error::PeerMisbehaved {
                    link: crate::error::Link::new(rank, 0),
                    violation: format!("sent {} where NCCL's unique id was due", other.kind()),
                });
            }
        };
        // What is left of the time is for forming it, which includes the first all-reduce.
        Self::warmed_up(id, [rank, world_size], device, library, config, deadline).await
    }

    /// The only rank of its world, which needs no NCCL.
    pub(crate) fn alone(device: Arc<dyn Device>, config: CommunicatorConfig) -> Self {
        Self { rank: 0, world_size: 1, device, config, members: None }
    }

    /// [`with_unique_id`](Self::with_unique_id), and the first all-reduce, by the deadline.
    pub(crate) async fn warmed_up(
        id: UniqueId,
        [rank, world_size]: [usize; 2],
        device: Arc<dyn Device>,
        library: Arc<Library>,
        config: CommunicatorConfig,
        deadline: Instant,
    ) -> Result<Self> {
        let left = deadline.saturating_duration_since(Instant::now());
        let forming = CommunicatorConfig { connect_timeout: left, operation_timeout: left, ..config.clone() };
        let mut communicator = Self::with_unique_id(id, [rank, world_size], device, library, forming).await?;
        let warmed_up = tokio::time::timeout_at(deadline, communicator.warm_up()).await;
        warmed_up.unwrap_or_else(|_| {
            let awaited = format!("the first all-reduce of {world_size} ranks");
            Err(Error::timeout(awaited, config.connect_timeout))
        })?;
        communicator.set_config(config);
        Ok(communicator)
    }

    /// Forms a communicator of the ranks that have `id`, without the first all-reduce of [`new`](Self::new).
    ///
    /// # Errors
    /// [`Error::Misuse`] if there is no such rank; otherwise as [`new`](Self::new).
    ///
    /// # Cancel safety
    /// As [`new`](Self::new).
    pub async fn with_unique_id(
        id: UniqueId,
        [rank, world_size]: [usize; 2],
        device: Arc<dyn Device>,
        library: Arc<Library>,
        config: CommunicatorConfig,
    ) -> Result<Self> {
        let ranks = [c_int::try_from(rank), c_int::try_from(world_size)];
        let (true, [Ok(rank_number), Ok(ranks)]) = (rank < world_size, ranks) else {
            return Err(Error::Misuse(format!("there is no rank {rank} of {world_size} in a communicator")));
        };
        let name = format!("the communicator of rank {rank} of {world_size}");
        let shared = Arc::new(Shared::new(name, library, Arc::clone(&device)));
        let (commands, work) = channel();
        let worker = Arc::clone(&shared);
        let (ends, ended) = oneshot::channel();
        let work = move || {
            Worker::run(worker, [rank_number, ranks], &id, &work);
            drop(ends);
        };
        std::thread::Builder::new()
            .name("kvpipe-nccl".into())
            .spawn(work)
            .map_err(|error| Error::io("starting a thread for NCCL's calls", error))?;
        let members = Some(Members { shared, commands, ended: Some(ended) });
        let communicator = Self { rank, world_size, device, config, members };
        let awaited = || format!("the {world_size} ranks of a communicator to come together");
        // The thread does nothing else before it is formed.
        communicator.command(|_worker| Ok(()), communicator.config.connect_timeout, awaited).await?;
        Ok(communicator)
    }

    /// This rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// Where its memory is.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Why it is of no use any more, if it is not.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.members.as_ref().and_then(|members| members.shared.failure())
    }

    /// Waits until it fails, which may be never, and gives the reason. Cancel safe.
    pub async fn failed(&self) -> Error {
        match &self.members {
            Some(members) => members.shared.failed().await,
            None => std::future::pending().await,
        }
    }

    /// Ends it: everybody who waits for it on this rank gets `reason`. For what NCCL can't know, such as
    /// that another rank is gone. Returns when NCCL has let go of the device.
    ///
    /// # Errors
    /// [`Error::Timeout`] if NCCL does not return, which it has been seen to do. The communicator has
    /// failed all the same; only the process's end stops what the device still does for it.
    ///
    /// # Cancel safety
    /// It goes on without the caller.
    pub async fn abort(&self, reason: Error) -> Result<()> {
        let Some(Members { shared, .. }) = &self.members else { return Ok(()) };
        shared.fail(reason);
        let limit = self.config.abort_timeout;
        tokio::time::timeout(limit, shared.aborted())
            .await
            .map_err(|_| Error::timeout(format!("NCCL to abort {}", shared.name), limit))
    }

    /// Drops it, and waits until NCCL has let go of it, so that the other ranks have all of what this one
    /// gave them; not longer than this.
    pub(crate) async fn close(mut self, limit: Duration) {
        let Some(ended) = self.members.as_mut().and_then(|members| members.ended.take()) else { return };
        drop(self);
        if tokio::time::timeout(limit, ended).await.is_err() {
            tracing::debug!("NCCL has not finished a communicator in time");
        }
    }

    /// From now on.
    pub(crate) fn set_config(&mut self, config: CommunicatorConfig) {
        self.config = config;
    }

    /// Ends it without waiting for NCCL.
    pub(crate) fn fail(&self, reason: Error) {
        if let Some(Members { shared, .. }) = &self.members {
            shared.fail(reason);
        }
    }

    /// Enqueues calls behind what `after` waits for; together, if there are several. What they use comes
    /// back when the stream has done them.
    ///
    /// # Safety
    /// `memory` owns all that the addresses in `calls` point to, for as long as the counts say, and
    /// nobody writes to what is read, or touches what is written.
    pub(crate) async unsafe fn enqueue<M: Send + 'static>(
        &self,
        calls: Vec<Call>,
        memory: M,
        after: Vec<Event>,
        stream: &Stream,
    ) -> Result<InFlight<M>> {
        let on = stream.clone();
        let work = move |worker: &Worker| {
            if let Some(failure) = worker.shared().failure() {
                return Err(failure);
            }
            for event in &after {
                on.wait(event)?;
            }
            let enqueued = worker.call(|library, comm| match &calls[..] {
                // SAFETY: the caller's; the memory is kept below until the work is done.
                [call] => unsafe { call.enqueue(library, comm, on.raw()) },
                // SAFETY: as above.
                calls => unsafe { Call::enqueue_group(calls, library, comm, on.raw()) },
            });
            match enqueued.and_then(|()| on.record()) {
                Ok(event) => Ok(InFlight::new(event, memory)),
                Err(error) => {
                    // Some of it may have been enqueued.
                    worker.shared().lose(Box::new(memory));
                    Err(error)
                }
            }
        };
        self.command(work, self.config.operation_timeout, || "NCCL to enqueue an operation".into()).await
    }

    /// Has the thread do something, within the deadline; an overdue one is the end of the communicator.
    async fn command<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Worker) -> Result<T> + Send + 'static,
        limit: Duration,
        awaited: impl FnOnce() -> String,
    ) -> Result<T> {
        let Some(Members { shared, commands, .. }) = &self.members else {
            return Err(Error::Misuse("in a world of one there is nobody to exchange anything with".into()));
        };
        let (answer, answered) = oneshot::channel();
        let command: Command = Box::new(move |worker| {
            // Nobody waits any more; what is in flight looks after itself.
            let _ = answer.send(work(worker));
        });
        if commands.send(command).is_err() {
            return Err(Error::Bug("the thread of a communicator is gone".into()));
        }
        let answer =
            async { answered.await.unwrap_or_else(|_| Err(Error::Bug("a call to NCCL panicked".into()))) };
        in_time(answer, limit, awaited, shared).await
    }

    /// One float32, summed up: vLLM's constructor does it, so its ranks wait for ours to.
    async fn warm_up(&self) -> Result<()> {
        let stream = Stream::new(&self.device)?;
        let bytes = size_of::<f32>();
        let from = stream.fill_zero(self.output(bytes).await?)?;
        let from = self.finish(from, || "a first element".into()).await?;
        let to = self.output(bytes).await?;
        let call = Call::AllReduce {
            from: from.address(),
            to: to.address(),
            count: 1,
            data_type: DataType::Float32,
            op: ReduceOp::Sum,
        };
        // SAFETY: both are of one element, and go along.
        let summing = unsafe { self.enqueue(vec![call], (from, to), Vec::new(), &stream).await? };
        self.finish(summing, || "the first all-reduce of a communicator".into()).await.map(drop)
    }

    /// Waits for work in flight.
    pub(crate) async fn finish<M: Send + 'static>(
        &self,
        work: InFlight<M>,
        awaited: impl FnOnce() -> String,
    ) -> Result<M> {
        self.wait(work.done(), awaited).await
    }

    /// Waits for a part of an operation.
    async fn wait<T>(
        &self,
        work: impl Future<Output = Result<T>>,
        awaited: impl FnOnce() -> String,
    ) -> Result<T> {
        match &self.members {
            Some(members) => in_time(work, self.config.operation_timeout, awaited, &members.shared).await,
            None => work.await,
        }
    }
}

/// Waits for work of a communicator, its failure, or the deadline, which is its failure, too.
async fn in_time<T>(
    work: impl Future<Output = Result<T>>,
    limit: Duration,
    awaited: impl FnOnce() -> String,
    shared: &Arc<Shared>,
) -> Result<T> {
    tokio::select! {
        biased;
        // An abort ends the work on the stream as if it were done.
        done = work => done.and_then(|done| shared.failure().map_or(Ok(done), Err)),
        failure = shared.failed() => Err(failure),
        () = tokio::time::sleep(limit) => {
            let error = Error::timeout(awaited(), limit);
            shared.fail(error.clone());
            Err(error)
        }
    }
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Communicator")
            .field("rank", &self.rank)
            .field("world_size", &self.world_size)
            .field("device", &self.device.location())
            .field("failure", &self.failure())
            .finish_non_exhaustive()
    }
}

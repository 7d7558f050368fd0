//! vLLM's wire on a GPU: metadata through a store that both ends have, payloads by `ncclSend` and
//! `ncclRecv` on the one communicator of its `PyNcclPipe`.
//!
//! The messages are those of vLLM 0.9 to 0.12 with `kv_buffer_device` `"cuda"`: the group's barrier, rank
//! 0's unique id as a broadcast, a warm-up all-reduce; then for each item its metadata as an object of the
//! group, and for a tensor the payload over NCCL.
//!
//! # What this wire can't do
//!
//! What the [store's](crate::transport::store) can't do either: nothing comes back. An item is settled once
//! the stream has sent it, a None once the store has it. Both directions share a communicator, and NCCL does
//! one thing at a time on it: a payload that the peer does not receive keeps the other direction waiting,
//! and two ends that send payloads to each other at once wait for each other, as vLLM's do. A deadline,
//! [`transfer_timeout`](NcclConfig::transfer_timeout), ends that. So let them take turns, as vLLM's
//! requests and answers do, or use kvpipe's own wire.
//!
//! # Better than the original
//!
//! | vLLM's pipe | this end of it |
//! |---|---|
//! | hands out a tensor whose bytes are still on their way (vLLM issue 12197) | after its event |
//! | frees the source of a send when Python does | keeps it until the stream has sent it |
//! | waits for ever for a peer that is gone | until the deadline, and then aborts |
//! | 8-bit floats are refused | travel as bytes |

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;

use super::NcclConfig;
use crate::device::{Staging, Stream};
use crate::error::{Error, Link, Result};
use crate::group::StatelessProcessGroup;
use crate::nccl::Communicator;
use crate::store::Store;
use crate::tensor::{Item, Tensor};
use crate::transport::{Guarantees, Inbox, Incoming, Outbox, Outgoing, Ring, Transport};
use crate::wire::metadata::{Metadata, TensorMetadata};
use crate::wire::{Object, WireMode, pickle};

/// Both edges of a rank in a ring, on vLLM's wire for GPUs.
pub struct VllmNcclTransport<S> {
    outgoing: VllmNcclOutgoing<S>,
    incoming: VllmNcclIncoming<S>,
}

/// The sending end of an edge on vLLM's wire for GPUs.
pub struct VllmNcclOutgoing<S>(Shared<S>);

/// The receiving end of an edge on vLLM's wire for GPUs.
pub struct VllmNcclIncoming<S>(Shared<S>);

/// What a direction has.
struct Shared<S> {
    group: Arc<StatelessProcessGroup<S>>,
    communicator: Arc<Communicator>,
    config: NcclConfig,
    stream: Stream,
    staging: AsyncMutex<Staging>,
    ring: Ring,
}

impl<S: Store + Clone> VllmNcclTransport<S> {
    /// The edges of a rank whose group has just been created, as vLLM's pipe begins: with a barrier, and
    /// then a communicator of all ranks.
    ///
    /// A rank that serves the group's store must keep the group until the pipe has ended, and then
    /// `close` it, which waits for the others.
    ///
    /// # Errors
    /// [`Error::Misuse`] for a group that is not on vLLM's wire, or has one rank only; and as
    /// [`barrier`](StatelessProcessGroup::barrier) and [`Communicator::new`].
    ///
    /// # Cancel safety
    /// The group can't be used for this again, unless it had not come beyond the barrier.
    pub async fn meet(group: Arc<StatelessProcessGroup<S>>, config: NcclConfig) -> Result<Self> {
        if group.wire() != WireMode::Vllm {
            return Err(Error::Misuse("vllm's pipe needs a group on vllm's wire".into()));
        }
        if group.world_size() < 2 {
            return Err(Error::Misuse("vllm's pipe needs two ranks: its group has one".into()));
        }
        let ring = Ring::new(group.rank(), group.world_size())?;
        group.barrier().await?;
        let (device, library) = (Arc::clone(&config.device), Arc::clone(&config.library));
        let communicator =
            Communicator::new(&group, Arc::clone(&device), Some(library), config.communicator()).await?;
        let communicator = Arc::new(communicator);
        let direction = || {
            let (group, communicator) = (Arc::clone(&group), Arc::clone(&communicator));
            let (stream, staging) = (Stream::new(&device)?, AsyncMutex::new(Staging::new(&device)?));
            Ok::<_, Error>(Shared { group, communicator, config: config.clone(), stream, staging, ring })
        };
        Ok(Self { outgoing: VllmNcclOutgoing(direction()?), incoming: VllmNcclIncoming(direction()?) })
    }
}

impl<S: Store + Clone> Transport for VllmNcclTransport<S> {
    type Out = VllmNcclOutgoing<S>;
    type In = VllmNcclIncoming<S>;

    fn guarantees(&self) -> Guarantees {
        Guarantees { acknowledged: false, close_visible: false, detects_death: false, resumes: false }
    }

    fn split(self) -> (Self::Out, Self::In) {
        (self.outgoing, self.incoming)
    }
}

impl<S: Store + Clone> Outgoing for VllmNcclOutgoing<S> {
    fn link(&self) -> Link {
        self.0.ring.outgoing_link()
    }

    fn admission(&self) -> fn(&Item) -> Result<()> {
        |item| item.as_ref().map_or(Ok(()), pickle::check_tensor)
    }

    async fn run(self, items: &Outbox) -> Result<()> {
        loop {
            let next = tokio::select! {
                biased;
                // The other direction's failure is ours.
                failure = self.0.communicator.failed() => return Err(failure),
                next = items.next() => next?,
            };
            let Some((sequence, item)) = next else { return Ok(()) };
            let mut sending = pin!(self.send(item, items));
            tokio::select! {
                biased;
                sent = &mut sending => sent?,
                failure = items.failed() => {
                    self.0.communicator.fail(failure.clone());
                    return Err(failure);
                }
            }
            items.settle(sequence + 1);
        }
    }
}

impl<S: Store + Clone> VllmNcclOutgoing<S> {
    async fn send(&self, item: Item, items: &Outbox) -> Result<()> {
        let Shared { group, communicator, stream, staging, ring, .. } = &self.0;
        group.send_obj(&Object::Metadata(Metadata::of(&item)), ring.next()).await?;
        items.progress();
        let Some(tensor) = item else { return Ok(()) };
        let source = super::on_device(&tensor, communicator.device(), &mut *staging.lock().await).await?;
        if source.is_empty() {
            return Ok(());
        }
        let sending = communicator.begin_send(&source, ring.next(), stream).await?;
        let awaited = || format!("rank {} to receive a payload", ring.next());
        communicator.finish(sending, awaited).await.map(drop)
    }
}

impl<S: Store + Clone> Incoming for VllmNcclIncoming<S> {
    fn link(&self) -> Link {
        self.0.ring.incoming_link()
    }

    async fn run(self, items: &Inbox) -> Result<()> {
        loop {
            let mut receiving = pin!(self.receive(items));
            let received = tokio::select! {
                biased;
                () = items.closed() => return Ok(()),
                // The other direction's failure is ours.
                failure = self.0.communicator.failed() => Err(failure),
                received = &mut receiving => received,
            };
            match received {
                Err(Error::Closed) => return Ok(()),
                received => received?,
            }
        }
    }
}

impl<S: Store + Clone> VllmNcclIncoming<S> {
    async fn receive(&self, items: &Inbox) -> Result<()> {
        let previous = self.0.ring.previous();
        // However long it takes: an idle peer is no failure.
        let metadata = match self.0.group.recv_obj_timeout(previous, Duration::MAX).await? {
            Object::Metadata(metadata) => metadata,
            other => return Err(self.misbehaved(format!("sent {} where metadata was due", other.kind()))),
        };
        let too_large = |error| match error {
            Error::TooLarge { .. } => self.misbehaved(format!("announced an item over the limit: {error}")),
            error => error,
        };
        let permit = items.reserve(metadata.payload_bytes()).await.map_err(too_large)?;
        let item = match metadata {
            Metadata::None => None,
            Metadata::Tensor(metadata) => Some(self.receive_tensor(&metadata).await?),
        };
        permit.fill(item)
    }

    async fn receive_tensor(&self, announced: &TensorMetadata) -> Result<Tensor> {
        let Shared { communicator, config, stream, staging, ring, .. } = &self.0;
        let bytes = announced.payload_bytes();
        let mut buffer = config.pool.take_beside(bytes, usize::MAX).await?;
        if bytes > 0 {
            let receiving = communicator.begin_recv(buffer, ring.previous(), stream).await?;
            let awaited = || format!("the payload of an item from rank {}", ring.previous());
            buffer = communicator.finish(receiving, awaited).await?;
        }
        config.hand_out(announced.dtype(), *announced.shape(), buffer, staging).await
    }

    fn misbehaved(&self, violation: String) -> Error {
        Error::PeerMisbehaved { link: self.link(), violation }
    }
}

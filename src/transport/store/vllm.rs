//! vLLM's wire: the messages of its `PyNcclPipe` on the cpu device, through a store that both ends have.
//!
//! An item is one object of the group for None, `{"dtype": None, "shape": None}`, and two for a tensor:
//! its metadata, then the tensor itself (vLLM 0.6.6 to 0.12, `kv_transfer/kv_pipe/pynccl_pipe.py`, with
//! `kv_buffer_device` `"cpu"`).
//!
//! # What this wire can't do
//!
//! Nothing comes back: no acknowledgement, no end of the stream, no sign of life. An item is settled
//! once the store has it, whoever takes it then. A sender that closes is not seen; a receiver waits
//! until its own user closes, or the store is gone. So both ends must know how many items there are, as
//! vLLM's do.
//!
//! # Better than the original
//!
//! | vLLM's pipe | this end of it |
//! |---|---|
//! | one thread for both directions: two ranks that receive before they have sent wait for ever | directions that know nothing of each other |
//! | a receive fails after 300 s without an item | waits as long as its user does |
//! | a tensor that does not come after its metadata puts all that follow out of place | the item is waited for until it is whole |
//! | a tensor of another dtype or shape than announced is converted or broadcast | it is a broken protocol |
//! | a send that fails keeps its room for ever, and nobody is told | the pipe fails, and keeps account |
//! | a dtype that torch can't load is found out by the receiver | it is refused when it is sent |

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Link, Result};
use crate::group::StatelessProcessGroup;
use crate::store::Store;
use crate::tensor::{BufferPool, Item, Tensor};
use crate::transport::{Guarantees, Inbox, Incoming, Outbox, Outgoing, Ring, Transport};
use crate::wire::metadata::{Metadata, TensorMetadata};
use crate::wire::{Object, WireMode, pickle};

/// Both edges of a rank in a ring, on vLLM's wire.
pub struct VllmTransport<S> {
    outgoing: VllmOutgoing<S>,
    incoming: VllmIncoming<S>,
}

/// The sending end of an edge on vLLM's wire.
pub struct VllmOutgoing<S> {
    group: Arc<StatelessProcessGroup<S>>,
    ring: Ring,
}

/// The receiving end of an edge on vLLM's wire.
pub struct VllmIncoming<S> {
    group: Arc<StatelessProcessGroup<S>>,
    ring: Ring,
    pool: BufferPool,
}

impl<S: Store + Clone> VllmTransport<S> {
    /// The edges of a rank whose group has just been created, as vLLM's pipe begins: with a barrier. On
    /// the cpu device there is no communicator to build then.
    ///
    /// A rank that serves the group's store must keep the group until the pipe has ended, and then
    /// `close` it, which waits for the others.
    ///
    /// # Errors
    /// [`Error::Misuse`] for a group that is not on vLLM's wire, or has one rank only; and as
    /// [`barrier`](StatelessProcessGroup::barrier).
    ///
    /// # Cancel safety
    /// As `barrier`: it goes on when this is called again.
    pub async fn meet(group: Arc<StatelessProcessGroup<S>>, pool: BufferPool) -> Result<Self> {
        if group.wire() != WireMode::Vllm {
            return Err(Error::Misuse("vllm's pipe needs a group on vllm's wire".into()));
        }
        if group.world_size() < 2 {
            return Err(Error::Misuse("vllm's pipe needs two ranks: its group has one".into()));
        }
        let ring = Ring::new(group.rank(), group.world_size())?;
        group.barrier().await?;
        let outgoing = VllmOutgoing { group: Arc::clone(&group), ring };
        Ok(Self { outgoing, incoming: VllmIncoming { group, ring, pool } })
    }
}

impl<S: Store + Clone> Transport for VllmTransport<S> {
    type Out = VllmOutgoing<S>;
    type In = VllmIncoming<S>;

    fn guarantees(&self) -> Guarantees {
        Guarantees { acknowledged: false, close_visible: false, detects_death: false, resumes: false }
    }

    fn split(self) -> (Self::Out, Self::In) {
        (self.outgoing, self.incoming)
    }
}

impl<S: Store + Clone> Outgoing for VllmOutgoing<S> {
    fn link(&self) -> Link {
        self.ring.outgoing_link()
    }

    fn admission(&self) -> fn(&Item) -> Result<()> {
        |item| item.as_ref().map_or(Ok(()), pickle::check_tensor)
    }

    async fn run(self, items: &Outbox) -> Result<()> {
        while let Some((sequence, item)) = items.next().await? {
            let mut sending = pin!(self.send(item, items));
            tokio::select! {
                biased;
                sent = &mut sending => sent?,
                failure = items.failed() => return Err(failure),
            }
            // The store has answered, so it holds the item; nobody will say more.
            items.settle(sequence + 1);
        }
        Ok(())
    }
}

impl<S: Store + Clone> VllmOutgoing<S> {
    async fn send(&self, item: Item, items: &Outbox) -> Result<()> {
        let next = self.ring.next();
        // Whole, since the store takes it as one value; and first, since nothing else may follow metadata.
        let item = match item {
            Some(tensor) => Some(tensor.to_host().await?),
            None => None,
        };
        self.group.send_obj(&Object::Metadata(Metadata::of(&item)), next).await?;
        items.progress();
        match item {
            None => Ok(()),
            Some(tensor) => self.group.send_obj(&Object::Tensor(tensor), next).await,
        }
    }
}

impl<S: Store + Clone> Incoming for VllmIncoming<S> {
    fn link(&self) -> Link {
        self.ring.incoming_link()
    }

    async fn run(self, items: &Inbox) -> Result<()> {
        loop {
            let mut receiving = pin!(self.receive(items));
            let received = tokio::select! {
                biased;
                () = items.closed() => return Ok(()),
                received = &mut receiving => received,
            };
            match received {
                Err(Error::Closed) => return Ok(()),
                received => received?,
            }
        }
    }
}

impl<S: Store + Clone> VllmIncoming<S> {
    async fn receive(&self, items: &Inbox) -> Result<()> {
        let metadata = match self.next_object().await? {
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
        let bytes = announced.payload_bytes();
        let differs = |sent: String| {
            let (dtype, shape) = (announced.dtype(), announced.shape());
            self.misbehaved(format!("announced a tensor {dtype} {shape} and sent {sent}"))
        };
        let received = self.group.recv_pickled_tensor(self.ring.previous(), bytes).await;
        let pickled = received.map_err(|error| match error {
            Error::PeerMisbehaved { violation, .. } => differs(format!("something else: {violation}")),
            error => error,
        })?;
        let sent = pickled.metadata();
        if sent != *announced {
            return Err(differs(format!("one {} {}", sent.dtype(), sent.shape())));
        }
        // Out of the pickle, where it lies at any address, and in whatever order.
        let mut buffer = self.pool.take(bytes)?;
        pickled.copy_to(&mut buffer)?;
        Tensor::new(sent.dtype(), *sent.shape(), buffer.freeze())
    }

    /// However long it takes: an idle peer is no failure.
    async fn next_object(&self) -> Result<Object> {
        self.group.recv_obj_timeout(self.ring.previous(), Duration::MAX).await
    }

    fn misbehaved(&self, violation: String) -> Error {
        Error::PeerMisbehaved { link: self.link(), violation }
    }
}

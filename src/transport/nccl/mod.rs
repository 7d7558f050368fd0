//! Payloads by NCCL, from device memory to device memory, and all else over a tcp connection.
//!
//! # An edge
//!
//! The two ranks of an edge meet as on [`tcp`](super::tcp), over a *control connection*, and form a
//! communicator of two for it: each direction of a pipe has its own, so that neither waits for the other.
//! Items are [announced](crate::wire::nccl) over the control connection, as many as there are. The
//! receiver reserves room in its inbox, posts an `ncclRecv`, and says that it is ready; only then does the
//! sender call `ncclSend`. So neither end ever has work on its device that waits for the other's user,
//! which would occupy the device, and keep others from allocating and freeing memory there. What a sender
//! has to copy to the device it copies before it announces it, so that nothing stands between a receiver
//! that is ready and its payload.
//!
//! | | |
//! |---|---|
//! | order at the receiver | reserve, `ncclRecv`, its event, inbox, acknowledge |
//! | an item is settled | by the acknowledgement; the sender's own event only frees the source |
//! | source memory | kept until that event, and read after its [`ready`](crate::device::DeviceBuffer::ready) event |
//! | host tensors | go through pinned staging buffers, and arrive as device tensors |
//! | None, and tensors without elements | need no NCCL |
//!
//! # Staying alive
//!
//! As on tcp: heartbeats on the control connection, which also carries each end's abort, since NCCL does
//! not tell a rank that the other has given up. Then, and when the peer is gone, the communicator is
//! aborted, so that nothing stays on the device. A payload that does not arrive within
//! [`transfer_timeout`](NcclConfig::transfer_timeout) of the receiver being ready ends the edge, too: each
//! end has a clock, and the sender gives the receiver a second to say so.
//!
//! NCCL can't go on after a failure, so nothing is resumed: a control connection that breaks is the end.
//!
//! # With an unmodified vLLM
//!
//! [`VllmNcclTransport`] speaks to vLLM's `PyNcclPipe` on a GPU: metadata over the group's store, payloads
//! over the one communicator that its constructor makes. It promises none of the above: see there.

mod incoming;
mod intake;
mod outgoing;
mod payloads;
mod vllm;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;

pub use self::incoming::NcclIncoming;
pub use self::outgoing::NcclOutgoing;
pub use self::vllm::{VllmNcclIncoming, VllmNcclOutgoing, VllmNcclTransport};
use super::tcp::TcpConfig;
use super::tcp::connection::WireFrame;
use super::timing::after;
use super::{Guarantees, Ring, Transport};
use crate::device::{Device, DeviceBuffer, DeviceBufferMut, DevicePool, Staging, Stream};
use crate::error::{Error, Result};
use crate::nccl::{Communicator, CommunicatorConfig, Library};
use crate::net::Net;
use crate::store::Store;
use crate::tensor::{DType, Shape, Tensor};
use crate::wire::nccl::{NcclFrame, NcclReply};
use crate::wire::text::GroupName;
use crate::wire::{DecodeError, UniqueId};

/// Where received tensors are handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HandOut {
    /// Where NCCL has put them.
    #[default]
    OnDevice,
    /// In host memory, where they come through pinned staging buffers.
    OnHost,
}

/// How ranks meet and talk over NCCL.
#[derive(Clone, Debug)]
pub struct NcclConfig {
    /// Of the control connections. Its `reconnect_timeout` is not used, its `checksum` is of the frames
    /// only, and its `pool` is for what is handed out [on the host](HandOut::OnHost). On vLLM's wire only
    /// its `connect_timeout` and `pool` have a meaning.
    pub control: TcpConfig,
    /// Where payloads are sent from and received into.
    pub device: Arc<dyn Device>,
    /// Where received tensors are handed out: on the device, unless this says otherwise.
    pub hand_out: HandOut,
    /// Where payloads are received.
    pub pool: DevicePool,
    /// The library.
    pub library: Arc<Library>,
    /// How long a payload may take, once its receiver is ready; of which the producer of a source that is
    /// not ready takes its part. 30 s. On vLLM's wire, where nobody says when it is ready, of each payload
    /// from when it is sent, or its metadata is there.
    pub transfer_timeout: Duration,
}

impl NcclConfig {
    /// The defaults, with a device and a library.
    #[must_use]
    pub fn new(device: Arc<dyn Device>, library: Arc<Library>) -> Self {
        Self {
            control: TcpConfig::default(),
            pool: DevicePool::new(&device, POOL_IDLE_BYTES_MAX),
            device,
            hand_out: HandOut::OnDevice,
            library,
            transfer_timeout: Duration::from_secs(30),
        }
    }

    fn communicator(&self) -> CommunicatorConfig {
        CommunicatorConfig {
            connect_timeout: self.control.connect_timeout,
            operation_timeout: self.transfer_timeout,
            ..CommunicatorConfig::default()
        }
    }

    /// The tensor that was received, where our user wants it.
    async fn hand_out(
        &self,
        dtype: DType,
        shape: Shape,
        buffer: DeviceBufferMut,
        staging: &AsyncMutex<Staging>,
    ) -> Result<Tensor> {
        let buffer = buffer.freeze();
        match self.hand_out {
            HandOut::OnDevice => Tensor::on_device(dtype, shape, buffer),
            HandOut::OnHost => {
                let mut bytes = self.control.pool.take(buffer.len())?;
                staging.lock().await.to_host(&buffer, &mut bytes).await?;
                Tensor::new(dtype, shape, bytes.freeze())
            }
        }
    }

    /// The same with what NCCL edges do otherwise on their control connections: they have a name of their
    /// own, so that an end that speaks plain tcp never meets one.
    fn prepared(mut self) -> Result<Self> {
        self.control.group = GroupName::new(format!("{}/nccl", self.control.group))?;
        self.control.reconnect_timeout = Duration::ZERO;
        Ok(self)
    }
}

/// Enough for the buffers that a consumer hands back while others are on their way.
const POOL_IDLE_BYTES_MAX: usize = 256 << 20;

/// Both edges of a rank in a ring: to the next one, and from the previous one.
#[derive(Debug)]
pub struct NcclTransport<N: Net, S> {
    outgoing: NcclOutgoing<N, S>,
    incoming: NcclIncoming<N>,
}

impl<N: Net, S: Store + Clone> NcclTransport<N, S> {
    /// Binds a listener for control connections on exactly `address` (port 0 chooses one) and publishes
    /// it. Nobody is connected to yet: that begins when the pipe's driver is polled, and how it ends is
    /// what the pipe's methods report.
    ///
    /// # Errors
    /// As [`NcclIncoming::bind`].
    pub async fn bind(net: N, store: S, ring: Ring, address: SocketAddr, config: NcclConfig) -> Result<Self> {
        let incoming = NcclIncoming::bind(net.clone(), &store, ring, address, config.clone()).await?;
        let outgoing = NcclOutgoing::new(net, store, ring, config)?;
        Ok(Self { outgoing, incoming })
    }

    /// The address that is published.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.incoming.local_addr()
    }
}

impl<N: Net, S: Store + Clone> Transport for NcclTransport<N, S> {
    type Out = NcclOutgoing<N, S>;
    type In = NcclIncoming<N>;

    fn guarantees(&self) -> Guarantees {
        Guarantees { acknowledged: true, close_visible: true, detects_death: true, resumes: false }
    }

    fn split(self) -> (Self::Out, Self::In) {
        (self.outgoing, self.incoming)
    }
}

impl WireFrame for NcclFrame {
    fn encode_into(&self, out: &mut Vec<u8>) {
        self.encode_into(out);
    }

    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(body)
    }
}

impl WireFrame for NcclReply {
    fn encode_into(&self, out: &mut Vec<u8>) {
        self.encode_into(out);
    }

    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(body)
    }
}

/// The tensor's memory on `device`: copied there through pinned memory, if it is elsewhere.
async fn on_device(tensor: &Tensor, device: &Arc<dyn Device>, staging: &mut Staging) -> Result<DeviceBuffer> {
    let here = |buffer: &&DeviceBuffer| buffer.device().location() == device.location();
    match tensor.device_buffer().filter(here) {
        Some(buffer) => Ok(buffer.clone()),
        None => staging.to_device(tensor.to_host().await?.bytes()?).await,
    }
}

/// Ranks in the communicator of an edge.
const SENDER: usize = 0;
const RECEIVER: usize = 1;

/// The communicator of an edge and the stream of its payloads.
struct Lane {
    communicator: Communicator,
    stream: Stream,
    /// Between the host and the device, on a stream of its own.
    staging: Arc<AsyncMutex<Staging>>,
}

impl Lane {
    /// Forms the communicator, and sends a byte through it: NCCL connects its ranks only then, and a
    /// connection that hangs is to be found out now.
    async fn form(rank: usize, id: UniqueId, config: &NcclConfig) -> Result<Self> {
        let limit = config.control.connect_timeout;
        let formed = tokio::time::timeout_at(after(limit), Self::form_at_leisure(rank, id, config)).await;
        formed
            .unwrap_or_else(|_| Err(Error::timeout("the two ranks of an edge to form a communicator", limit)))
    }

    async fn form_at_leisure(rank: usize, id: UniqueId, config: &NcclConfig) -> Result<Self> {
        // The first exchange is a part of forming it.
        let limits =
            CommunicatorConfig { operation_timeout: config.control.connect_timeout, ..config.communicator() };
        let (device, library) = (Arc::clone(&config.device), Arc::clone(&config.library));
        // Allocating may wait for what is on the device: for the other direction, too, which may wait for
        // a rank that allocates in its turn. So that is done before anything is there.
        let (stream, staging) = (Stream::new(&device)?, Staging::new(&device)?);
        let byte = DeviceBufferMut::allocated(&device, 1).await?;
        let byte = stream.fill_zero(byte)?.done().await?;
        let mut communicator = Communicator::with_unique_id(id, [rank, 2], device, library, limits).await?;
        let awaited = || "the first byte of an edge".to_owned();
        if rank == SENDER {
            let sending = communicator.begin_send(&byte.freeze(), RECEIVER, &stream).await?;
            communicator.finish(sending, awaited).await.map(drop)?;
        } else {
            let receiving = communicator.begin_recv(byte, SENDER, &stream).await?;
            communicator.finish(receiving, awaited).await.map(drop)?;
        }
        communicator.set_config(config.communicator());
        Ok(Self { communicator, stream, staging: Arc::new(AsyncMutex::new(staging)) })
    }

    fn fail(&self, error: &Error) {
        self.communicator.fail(error.clone());
    }
}

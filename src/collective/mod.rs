//! Process groups: ranks that compute together, such as the sum of everybody's tensor.
//!
//! [`ProcessGroup`] is what vLLM's `stateless_init_torch_distributed_process_group` gives, without any
//! global state: a process may be in many groups, side by side, of whatever members. Host tensors go
//! over TCP, in place of Gloo; device tensors over NCCL.
//!
//! ```
//! use kvpipe::collective::{ProcessGroup, ProcessGroupConfig, ReduceOp};
//! use kvpipe::{Tensor, net::TokioNet, store::MemoryStore};
//!
//! # #[tokio::main] async fn main() -> kvpipe::Result<()> {
//! let store = MemoryStore::new();
//! let rank = async |rank| {
//!     let config = ProcessGroupConfig::default();
//!     let group = ProcessGroup::from_store(TokioNet, &store, rank, 2, config).await?;
//!     let own = Tensor::from_slice([2], &[1.0_f32, rank as f32])?;
//!     let sum = group.all_reduce(&own, ReduceOp::Sum).await?;
//!     assert_eq!(sum.as_slice::<f32>()?, [2.0, 1.0]);
//!     group.destroy().await
//! };
//! tokio::try_join!(rank(0), rank(1))?;
//! # Ok(())
//! # }
//! ```
//!
//! # Rules
//!
//! Every rank of a group calls the same operations in the same order, with tensors of the same dtype and
//! shape where the operation says so. On one rank, calls of several tasks take turns in the order in which
//! they were made. [`send`](ProcessGroup::send) and [`recv`](ProcessGroup::recv) concern two ranks only.
//!
//! An operation ends at a rank only when every rank has begun it, and has called the same. So a
//! **mismatch** (another operation, shape, dtype, root, or another order) is an error at *every* rank,
//! [`Error::PeerIncompatible`](crate::Error::PeerIncompatible), which names both sides; it is never a
//! hang, and never a wrong number.
//!
//! A failure is everybody's at once: a rank that is behind may hear of it while it still waits in an earlier
//! operation. A group that has failed is broken for good: the operation that failed says why, and all later ones
//! give [`Error::GroupBroken`](crate::Error::GroupBroken). Connections are not resumed, for a reduction
//! can't be done by halves. What is left of the ranks may form a new group.
//!
//! | failure | at every other rank, at the latest |
//! |---|---|
//! | a rank's process ends, or leaves too early | at once, [`PeerGone`](crate::Error::PeerGone) |
//! | a rank is frozen or cut off | after the heartbeat limit, `PeerGone` |
//! | a rank does not call | after [`timeout`](ProcessGroupConfig::timeout): [`Timeout`](crate::Error::Timeout) where it passes first, and its words in a [`PeerAborted`](crate::Error::PeerAborted) elsewhere |
//! | a rank's call is refused there ([`Misuse`](crate::Error::Misuse)) | nothing was begun there; as if it did not call |
//! | the future of a call is dropped before its end | at once, `PeerAborted` |
//!
//! A future must be polled until its end, and a group's runtime must run: a rank whose runtime stands
//! still for the heartbeat limit looks frozen.
//!
//! # Numbers
//!
//! On the host, results are bitwise the same on every rank, and from run to run: the order in which elements are
//! combined depends on nothing but the number of ranks and the size. Integers wrap, their mean is cut
//! towards zero. 16-bit floats are accumulated in `float32` and rounded once. Minimum and maximum give NaN
//! if any element is one, and hold -0 to be below 0. Complex tensors can be summed and averaged.
//!
//! # On NCCL
//!
//! A group of [`Backend::Nccl`] works on tensors of one device for each rank, with the same calls and the
//! same rules; only these differ:
//!
//! - All ranks agree over TCP before NCCL is asked. That costs each operation a
//!   [`barrier`](ProcessGroup::barrier) on the host, ⌈log₂ p⌉ messages one after the other, or a message
//!   each way where it concerns two ranks. It is what makes a mismatch an error: NCCL would hang, or write
//!   wrong numbers.
//! - While NCCL works, the connections between the hosts are looked after. When the group fails, NCCL is
//!   aborted at every rank, without waiting for it.
//! - Numbers are NCCL's: the order in which it combines elements is its own, which depends on its version
//!   and on the machines, and it reduces no `bool`, no 16-bit integers, no 8-bit floats and no complex
//!   numbers. Other operations take every dtype.
//! - It uses a stream of the group's own, after the [`ready`](crate::device::DeviceBuffer::ready) event of
//!   the input, and returns when the device is done: a result can be used at once.
//! - Results for which the caller gives no memory come from a
//!   [`DevicePool`](crate::device::DevicePool). Drop one only when no stream of yours uses it any more.
//!
//! # Other wires
//!
//! A kvpipe group of host tensors and torch's Gloo do not share a wire: all ranks of a group are kvpipe's.
//! Only on NCCL could they be mixed.

#[cfg(not(loom))]
mod config;
#[cfg(not(loom))]
mod group;
#[cfg(not(loom))]
mod host;
#[cfg(not(loom))]
mod kernels;
mod lobby;
#[cfg(not(loom))]
mod memory;
#[cfg(loom)]
#[doc(hidden)]
pub mod modelling;
#[cfg(all(unix, not(loom)))]
mod nccl;
#[cfg(not(loom))]
mod number;
#[cfg(not(loom))]
mod operations;
#[cfg(not(loom))]
mod plan;
#[cfg(not(loom))]
mod program;
#[cfg(all(test, not(loom)))]
mod random;
#[cfg(not(loom))]
mod reduction;
#[cfg(all(test, not(loom)))]
mod reference;
#[cfg(not(loom))]
mod request;

#[cfg(not(loom))]
pub use self::config::{Backend, ProcessGroupConfig};
#[cfg(not(loom))]
pub use self::group::ProcessGroup;
#[cfg(not(loom))]
pub use crate::reduce_op::ReduceOp;

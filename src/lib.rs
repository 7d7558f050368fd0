//! kvpipe moves `Option<Tensor>` from one rank to the next, in order, each item once.
//!
//! It hands KV caches from prefill workers to decode workers: within a byte budget at each end, with
//! an acknowledgement for every item, and with an account of what was not delivered when something
//! breaks.
//!
//! ```text
//!  user ─send─▶ Outbox ─▶ Outgoing::run ~~~wire~~~ Incoming::run ─▶ Inbox ─recv─▶ user
//!              ByteQueue                Transport                   ByteQueue
//! ```
//!
//! The same queue stands at both ends. Each direction of a [`Transport`](transport::Transport) is one
//! plain future that pulls from one queue or fills the other, and everything in which wires differ is
//! inside that future.
//!
//! # Example
//!
//! Two ranks, here in one process. Between processes the store is a
//! [`TcpStore`](store::tcp::TcpStore), and each process has one of the two pipes.
//!
//! ```
//! use kvpipe::transport::tcp::{TcpConfig, TcpTransport};
//! use kvpipe::{Pipe, PipeConfig, Tensor, net::TokioNet, store::MemoryStore, transport::Ring};
//!
//! # #[tokio::main] async fn main() -> kvpipe::Result<()> {
//! let store = MemoryStore::new();
//! let here = "127.0.0.1:0".parse().expect("an address");
//! let rank = async |rank| {
//!     TcpTransport::bind(TokioNet, store.clone(), Ring::new(rank, 2)?, here, TcpConfig::default()).await
//! };
//! let prefill = Pipe::spawn(rank(0).await?, PipeConfig::default())?;
//! let decode = Pipe::spawn(rank(1).await?, PipeConfig::default())?;
//!
//! prefill.send(Some(Tensor::from_slice([2, 3], &[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0])?)).await?;
//! prefill.send(None).await?;
//! assert_eq!(decode.recv().await?.expect("a tensor").shape().dims(), [2, 3]);
//! assert_eq!(decode.recv().await?, None);
//! prefill.close().await
//! # }
//! ```
//!
//! # Where to look
//!
//! | module | what it is |
//! |---|---|
//! | [`pipe`] | [`Pipe`], its halves and its driver; how a stream ends; statistics |
//! | [`transport`] | the contract between pipes and wires; the wires: [`memory`](transport::memory), [`tcp`](transport::tcp), [`store`](transport::store) |
//! | [`device`] | GPUs: memory, streams, events, and copies between them and the host |
//! | [`tensor`] | [`Tensor`], [`DType`], [`Shape`]; pooled buffers; safetensors files |
//! | [`store`] | how ranks find each other; PyTorch's TCPStore, both ends of it |
//! | [`collective`] | process groups: sums, gathers and broadcasts among ranks, in place of torch's Gloo and NCCL groups |
//! | [`group`] | objects and barriers among ranks: vLLM's `StatelessProcessGroup` |
//! | [`wire`] | every byte that kvpipe's own protocol sends, and vLLM's pickles, without I/O |
//! | [`nccl`] | NCCL, loaded when it is asked for: its functions, codes and versions |
//! | [`parallel`] | dividing tensors and layers among ranks, as vLLM does |
//! | [`config`] | [`PipeConfig`]; reading vLLM's `--kv-transfer-config` |
//! | [`error`] | one [`Error`], by who is at fault |
//! | [`net`], [`entropy`] | sockets and random bytes, so that a simulation can replace them |
//!
//! # Features
//!
//! `safetensors` reads, maps and writes files of tensors. `cli`, the default, adds the command line,
//! and changes nothing in the library. With `default-features = false` neither is there. `plot` adds
//! drawing to the command line.

pub mod collective;
pub mod config;
// The driver's functions are C's; each call says why it may be made.
#[allow(unsafe_code)]
pub mod device;
pub mod entropy;
pub mod error;
#[cfg(not(loom))]
pub mod group;
// Calling C can't do without; the module says why it may.
#[cfg(all(unix, not(loom)))]
#[allow(unsafe_code)]
pub mod nccl;
#[cfg(not(loom))]
pub mod net;
pub mod parallel;
pub mod pipe;
mod queue;
#[cfg(not(loom))]
mod reduce_op;
mod stock;
pub mod store;
mod sync;
pub mod tensor;
pub mod transport;
pub mod wire;

pub use config::PipeConfig;
pub use error::{Error, Link, Result};
pub use pipe::Pipe;
pub use tensor::{DType, Item, Shape, Tensor};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;

//! The seams at which a simulation takes the place of the real world under kvpipe.
//!
//! Production code contains nothing for the simulation, no feature and no `cfg`: it is generic over
//! [`Net`], draws every random byte from the [`Entropy`] it is given, and tells time by `tokio::time`,
//! which a paused runtime makes virtual. This crate names these seams and, so far, holds nothing else.
//!
//! To come here: a simulated network behind [`Net`], fault plans drawn from a seed, a world of whole
//! ranks, the runner that repeats a seed exactly, and stand-ins for the NCCL and CUDA libraries.

pub use kvpipe::entropy::Entropy;
pub use kvpipe::net::{Listener, Net, SocketOptions, Stream};

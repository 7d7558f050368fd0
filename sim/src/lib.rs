//! kvpipe in a simulated world: the production code, unchanged, where every delay, every short read
//! and every broken connection is drawn from a seed.
//!
//! Production code contains nothing for the simulation, no feature and no `cfg`: it is generic over
//! [`Net`], draws every random byte from the [`Entropy`] it is given, and tells time by `tokio::time`,
//! which a paused runtime makes virtual. Here are the other sides of these seams:
//!
//! - [`net`]: a network within a turmoil simulation, and cuts of its connections;
//! - [`scenario`]: two ranks that meet through the production store, and what goes wrong between them;
//! - [`oracle`]: the judge of what the two saw;
//! - [`conformance`](mod@conformance): what every transport must do, as scenarios;
//! - [`trace`]: the history, equal to the byte for equal seeds.
//!
//! `cargo run --manifest-path sim/Cargo.toml -- --seed 7 --trace` repeats a run. To come: plans of many
//! kinds of faults, worlds of more ranks, and stand-ins for the NCCL and CUDA libraries.

pub mod conformance;
pub mod draws;
pub mod fault;
pub mod net;
pub mod oracle;
pub mod runner;
pub mod scenario;
pub mod trace;
pub mod workload;
pub mod world;

pub use kvpipe::entropy::Entropy;
pub use kvpipe::net::{Listener, Net, SocketOptions, Stream};

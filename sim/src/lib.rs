//! kvpipe in a simulated world: the production code, unchanged, where every delay, every short read,
//! every fault and every crash is drawn from a seed; and the way to test what is built on kvpipe.
//!
//! Production code contains nothing for the simulation, no feature and no `cfg`: it is generic over
//! [`Net`], draws every random byte from the [`Entropy`] it is given, and tells time by `tokio::time`,
//! which a paused runtime makes virtual. Here are the other sides of these seams, from the bottom up:
//!
//! | module | |
//! |---|---|
//! | [`net`] | TCP between the hosts of a turmoil simulation, with the faults that real links have |
//! | [`fault`] | [`FaultPlan`](fault::FaultPlan): what goes wrong and when, drawn, printed, made smaller |
//! | [`oracle`] | the judge: knows what every end did and saw, and what that must not be |
//! | [`world`] | [`World`](world::World): ranks and a store, running any software, while the plan strikes |
//! | [`workload`] | software for the ranks: rings of pipes, used in all ways, and what vLLM sends |
//! | [`scenario`] | families of worlds, by name |
//! | [`runner`] | many seeds, what they met, and small cases of what failed |
//! | [`conformance`](mod@conformance) | what every transport must do, as a suite for whoever writes one |
//! | [`trace`] | the history, equal to the byte for equal seeds |
//! | [`device`], [`nccl`] | a GPU and NCCL on the host, for tests that are not simulated |
//!
//! An example of somebody else's service in a world is in [`world`]. The command line and how to read
//! what it prints: `README.md` in this folder.

pub mod conformance;
// The fakes have the C interfaces of CUDA and NCCL.
#[allow(unsafe_code)]
pub mod device;
pub mod draws;
pub mod fault;
#[allow(unsafe_code)]
pub mod nccl;
pub mod net;
pub mod oracle;
mod panics;
pub mod runner;
pub mod scenario;
pub mod trace;
pub mod workload;
pub mod world;

pub use kvpipe::entropy::Entropy;
pub use kvpipe::net::{Listener, Net, SocketOptions, Stream};

//! NCCL, loaded when it is asked for.
//!
//! Nothing of NCCL is linked: a [`Library`] is found and opened while the program runs, so that one build
//! runs with any NCCL from 2.14 on, with AMD's RCCL, and without either.

mod calls;
mod codes;
// What NCCL uses is owned by those who wait for it; each call says how.
#[allow(unsafe_code)]
mod communicator;
mod functions;
mod library;
mod search;

pub use codes::{DataType, Progress, ReduceOp, ResultCode, Version};
pub use communicator::{Communicator, CommunicatorConfig, Group, Registration};
pub use functions::{Config, Functions, Missing, RawComm};
pub use library::Library;

pub use crate::wire::UniqueId;

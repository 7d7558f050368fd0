//! The fake of NCCL: what it moves and computes, in threads and in processes; what it refuses; and every
//! switch.

// What a call is given is in the same line; a rank is a thread.
#![allow(clippy::undocumented_unsafe_blocks, clippy::disallowed_methods)]

mod collectives;
mod failures;
mod library;
mod nonblocking;
mod processes;
mod ranks;
mod transfers;

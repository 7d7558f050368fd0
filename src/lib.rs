//! kvpipe moves `Option<Tensor>` from one rank to the next, in order, each item once.

pub mod config;
pub mod entropy;
pub mod error;
#[cfg(not(loom))]
pub mod net;
pub mod pipe;
mod queue;
pub mod store;
mod sync;
pub mod tensor;
pub mod transport;
pub mod wire;

pub use config::PipeConfig;
pub use error::{Error, Link, Result};
pub use pipe::Pipe;
pub use tensor::{DType, Item, Shape, Tensor};

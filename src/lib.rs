//! kvpipe moves `Option<Tensor>` from one rank to the next, in order, each item once.

pub mod entropy;
pub mod error;
#[cfg(not(loom))]
pub mod net;
pub mod store;
pub(crate) mod sync;
pub mod tensor;
pub mod wire;

pub use error::{Error, Link, Result};

//! Tensors: what travels through a pipe.

mod dtype;
mod shape;

pub use dtype::DType;
pub use shape::{MAX_DIMS, Shape};

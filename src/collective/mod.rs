//! Process groups.
#![allow(dead_code, reason = "no group uses it yet")]

mod kernels;
mod memory;
mod number;
mod plan;
mod program;
#[cfg(test)]
mod random;
mod reduction;
#[cfg(test)]
mod reference;

pub use crate::reduce_op::ReduceOp;

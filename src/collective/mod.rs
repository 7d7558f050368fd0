//! Process groups.
#![allow(dead_code, reason = "no group uses it yet")]

mod kernels;
mod memory;
mod plan;
mod program;
mod reduction;

pub use crate::reduce_op::ReduceOp;

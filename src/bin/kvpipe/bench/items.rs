//! What is sent, and how much of it.

use std::time::Duration;

use kvpipe::DType;
use kvpipe::tensor::{BufferMut, Tensor};

use crate::failure::Failure;
use crate::gpu::Gpu;

/// How many different buffers are sent in turn.
const SOURCES: usize = 4;

/// However small, and however fast.
pub(super) const ITEMS_MAX: u64 = 10_000_000;

/// Fewer say nothing about throughput.
const ITEMS_MIN: u64 = 8;

/// One at a time, in each round.
pub(super) const PACED_ITEMS_MAX: u64 = 1000;

/// So many items that they take as long as is wanted, if `items` took `elapsed`.
pub(super) fn scaled(items: u64, elapsed: Duration, wanted: Duration) -> u64 {
    let each = elapsed.as_nanos() / u128::from(items.max(1));
    let count = wanted.as_nanos() / each.max(1);
    u64::try_from(count).unwrap_or(ITEMS_MAX).clamp(ITEMS_MIN, ITEMS_MAX)
}

pub(super) fn sources(size: usize) -> Result<Vec<Tensor>, Failure> {
    (0..SOURCES).map(|number| tensor(size, number)).collect()
}

/// The same tensors where they are sent from.
pub(super) async fn placed(tensors: Vec<Tensor>, gpu: Option<&Gpu>) -> Result<Vec<Tensor>, Failure> {
    let Some(gpu) = gpu else { return Ok(tensors) };
    let mut placed = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        placed.push(tensor.to_device(&gpu.device).await?);
    }
    Ok(placed)
}

/// A tensor in memory of its own, every page of it written.
pub(super) fn tensor(size: usize, number: usize) -> Result<Tensor, Failure> {
    let mut buffer = BufferMut::zeroed(size)?;
    let byte = u8::try_from(number % 251).unwrap_or_default();
    buffer.fill(byte + 1);
    Ok(Tensor::new(DType::UInt8, [size], buffer.freeze())?)
}

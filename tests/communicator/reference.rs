//! What NCCL should make of some tensors, done naively.

use half::{bf16, f16};
use kvpipe::nccl::ReduceOp;
use kvpipe::tensor::Element;
use kvpipe::{DType, Tensor};

/// Dtypes that can be reduced.
pub(crate) const REDUCED: [DType; 10] = [
    DType::Int8,
    DType::UInt8,
    DType::Int32,
    DType::UInt32,
    DType::Int64,
    DType::UInt64,
    DType::Float16,
    DType::Float32,
    DType::Float64,
    DType::BFloat16,
];

pub(crate) const OPS: [ReduceOp; 5] =
    [ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Max, ReduceOp::Min, ReduceOp::Avg];

/// Small numbers that differ from rank to rank, all of whose sums and products are exact in any dtype;
/// and whose sum over the ranks they divide.
pub(crate) fn numbers(count: usize, rank: usize, ranks: usize) -> Vec<u8> {
    (0..count)
        .map(|index| if (index + rank).is_multiple_of(3) { ranks as u8 } else { 0 } + (index % 2) as u8)
        .collect()
}

/// A tensor of those numbers.
pub(crate) fn tensor(dtype: DType, shape: &[usize], numbers: &[u8]) -> Tensor {
    fn of<T: Element>(shape: &[usize], numbers: &[u8], convert: impl Fn(u8) -> T) -> Tensor {
        let elements: Vec<T> = numbers.iter().map(|number| convert(*number)).collect();
        Tensor::from_slice(shape, &elements).unwrap()
    }
    match dtype {
        DType::Int8 => of(shape, numbers, |number| number as i8),
        DType::UInt8 => of(shape, numbers, |number| number),
        DType::Int32 => of(shape, numbers, i32::from),
        DType::UInt32 => of(shape, numbers, u32::from),
        DType::Int64 => of(shape, numbers, i64::from),
        DType::UInt64 => of(shape, numbers, u64::from),
        DType::Float16 => of(shape, numbers, |number| f16::from_f32(number.into())),
        DType::Float32 => of(shape, numbers, f32::from),
        DType::Float64 => of(shape, numbers, f64::from),
        DType::BFloat16 => of(shape, numbers, |number| bf16::from_f32(number.into())),
        other => panic!("{other} is not reduced"),
    }
}

/// The reduction of one element of each rank.
pub(crate) fn reduce(op: ReduceOp, elements: impl Iterator<Item = u8> + Clone) -> u8 {
    let count = elements.clone().count() as u8;
    match op {
        ReduceOp::Sum => elements.sum(),
        ReduceOp::Prod => elements.product(),
        ReduceOp::Max => elements.max().unwrap(),
        ReduceOp::Min => elements.min().unwrap(),
        ReduceOp::Avg => elements.sum::<u8>() / count,
    }
}

/// The reduction of the same places of all ranks.
pub(crate) fn reduced(op: ReduceOp, inputs: &[Vec<u8>]) -> Vec<u8> {
    (0..inputs[0].len()).map(|index| reduce(op, inputs.iter().map(|input| input[index]))).collect()
}

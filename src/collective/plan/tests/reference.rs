//! What reductions have to give, element by element, in the plainest way.

use half::{bf16, f16};

use super::world::Random;
use crate::collective::ReduceOp;
use crate::tensor::DType;

/// Every dtype that can be reduced.
pub(super) const DTYPES: [DType; 15] = [
    DType::UInt8,
    DType::Int8,
    DType::UInt16,
    DType::Int16,
    DType::UInt32,
    DType::Int32,
    DType::UInt64,
    DType::Int64,
    DType::Float16,
    DType::BFloat16,
    DType::Float32,
    DType::Float64,
    DType::Complex32,
    DType::Complex64,
    DType::Complex128,
];

pub(super) const OPS: [ReduceOp; 5] =
    [ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Min, ReduceOp::Max, ReduceOp::Avg];

/// What an element consists of.
fn parts(dtype: DType) -> DType {
    match dtype {
        DType::Complex32 => DType::Float16,
        DType::Complex64 => DType::Float32,
        DType::Complex128 => DType::Float64,
        other => other,
    }
}

/// The input of one rank. Sums and products of floats are exact in any order.
pub(super) fn elements(dtype: DType, op: ReduceOp, count: usize, random: &mut Random) -> Vec<u8> {
    let part = parts(dtype);
    let numbers = count * (dtype.item_bytes() / part.item_bytes());
    let number = |random: &mut Random| match op {
        ReduceOp::Prod => [1.0, 2.0, -1.0, 0.5, -0.5][random.below(5)],
        _ => random.below(64) as f64 - 32.0,
    };
    (0..numbers)
        .flat_map(|_| match part {
            DType::Float16 => f16::from_f64(number(random)).to_le_bytes().to_vec(),
            DType::BFloat16 => bf16::from_f64(number(random)).to_le_bytes().to_vec(),
            DType::Float32 => (number(random) as f32).to_le_bytes().to_vec(),
            DType::Float64 => number(random).to_le_bytes().to_vec(),
            integer => random.next().to_le_bytes()[..integer.item_bytes()].to_vec(),
        })
        .collect()
}

/// All ranks' inputs, reduced in the order of ranks.
pub(super) fn reduced(dtype: DType, op: ReduceOp, inputs: &[Vec<u8>]) -> Vec<u8> {
    let part = parts(dtype);
    let numbers = (0..inputs[0].len()).step_by(part.item_bytes());
    let column = |at: usize| inputs.iter().map(move |input| &input[at..][..part.item_bytes()]);
    let ranks = inputs.len();
    numbers
        .flat_map(|at| match part {
            DType::Float16 => {
                let floats = column(at).map(|bytes| f16::from_le_bytes(bytes.try_into().unwrap()).to_f32());
                f16::from_f32(f32s(op, ranks, floats)).to_le_bytes().to_vec()
            }
            DType::BFloat16 => {
                let floats = column(at).map(|bytes| bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32());
                bf16::from_f32(f32s(op, ranks, floats)).to_le_bytes().to_vec()
            }
            DType::Float32 => {
                let floats = column(at).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
                f32s(op, ranks, floats).to_le_bytes().to_vec()
            }
            DType::Float64 => {
                let floats = column(at).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap()));
                f64s(op, ranks, floats).to_le_bytes().to_vec()
            }
            integer => integers(op, ranks, integer, column(at)),
        })
        .collect()
}

macro_rules! floats {
    ($name:ident, $float:ty) => {
        fn $name(op: ReduceOp, ranks: usize, floats: impl Iterator<Item = $float> + Clone) -> $float {
            let ordered = |one: $float, other: $float| match one.is_nan() || other.is_nan() {
                true => <$float>::NAN,
                false if one.total_cmp(&other).is_lt() == (op == ReduceOp::Min) => one,
                false => other,
            };
            match op {
                ReduceOp::Sum => floats.reduce(|sum, next| sum + next).unwrap(),
                ReduceOp::Avg => floats.reduce(|sum, next| sum + next).unwrap() / ranks as $float,
                ReduceOp::Prod => floats.reduce(|product, next| product * next).unwrap(),
                ReduceOp::Min | ReduceOp::Max => floats.reduce(ordered).unwrap(),
            }
        }
    };
}

floats!(f32s, f32);
floats!(f64s, f64);

fn integers<'a>(
    op: ReduceOp,
    ranks: usize,
    dtype: DType,
    elements: impl Iterator<Item = &'a [u8]>,
) -> Vec<u8> {
    let signed = matches!(dtype, DType::Int8 | DType::Int16 | DType::Int32 | DType::Int64);
    let number = |bytes: &[u8]| {
        let negative = signed && bytes[bytes.len() - 1] >= 0x80;
        let mut wide = [if negative { 0xFF } else { 0 }; 16];
        wide[..bytes.len()].copy_from_slice(bytes);
        i128::from_le_bytes(wide)
    };
    let bytes = dtype.item_bytes();
    let wrapped = |wide: i128| number(&wide.to_le_bytes()[..bytes]);
    let numbers = elements.map(number);
    let result = match op {
        ReduceOp::Sum => numbers.sum(),
        ReduceOp::Avg => wrapped(numbers.sum()) / ranks as i128,
        ReduceOp::Prod => numbers.reduce(|product, next| wrapped(product.wrapping_mul(next))).unwrap(),
        ReduceOp::Min => numbers.min().unwrap(),
        ReduceOp::Max => numbers.max().unwrap(),
    };
    result.to_le_bytes()[..bytes].to_vec()
}

//! What reductions have to give, element by element, in the plainest way.

use half::{bf16, f16};

use super::ReduceOp;
use super::random::Random;
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

/// What the elements of an input are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// Floats are such that sums and products are exact, in any order.
    Exact,
    /// Between -1 and 1, which can't be added without rounding.
    Uneven,
    /// Any bits, the special ones often.
    Bits,
}

/// The input of one rank.
pub(super) fn elements(dtype: DType, op: ReduceOp, data: Data, count: usize, random: &mut Random) -> Vec<u8> {
    let part = parts(dtype);
    let numbers = count * (dtype.item_bytes() / part.item_bytes());
    (0..numbers).flat_map(|_| element(part, op, data, random)).collect()
}

fn element(dtype: DType, op: ReduceOp, data: Data, random: &mut Random) -> Vec<u8> {
    let number = match (data, op) {
        (Data::Exact, ReduceOp::Prod) => [1.0, 2.0, -1.0, 0.5, -0.5][random.below(5)],
        (Data::Exact, _) => random.below(64) as f64 - 32.0,
        (Data::Uneven, _) => random.next() as i64 as f64 / 2.0_f64.powi(63),
        (Data::Bits, _) => match random.below(4) {
            0 => [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0][random.below(5)],
            1 => [f64::from(f16::MAX), f64::from(f32::MAX), 1e-7, -1e-40][random.below(4)],
            _ => return random.next().to_le_bytes()[..dtype.item_bytes()].to_vec(),
        },
    };
    match dtype {
        DType::Float16 => f16::from_f64(number).to_le_bytes().to_vec(),
        DType::BFloat16 => bf16::from_f64(number).to_le_bytes().to_vec(),
        DType::Float32 => (number as f32).to_le_bytes().to_vec(),
        DType::Float64 => number.to_le_bytes().to_vec(),
        integer => random.next().to_le_bytes()[..integer.item_bytes()].to_vec(),
    }
}

/// The bytes, with one NaN for all: of several, which one an addition gives is nobody's promise.
pub(super) fn one_nan(dtype: DType, bytes: &[u8]) -> Vec<u8> {
    let part = parts(dtype);
    let nan = match part {
        DType::Float16 => f16::NAN.to_le_bytes().to_vec(),
        DType::BFloat16 => bf16::NAN.to_le_bytes().to_vec(),
        DType::Float32 => f32::NAN.to_le_bytes().to_vec(),
        DType::Float64 => f64::NAN.to_le_bytes().to_vec(),
        _ => return bytes.to_vec(),
    };
    let is_nan = |bytes: &[u8]| match part {
        DType::Float16 => f16::from_le_bytes(bytes.try_into().unwrap()).is_nan(),
        DType::BFloat16 => bf16::from_le_bytes(bytes.try_into().unwrap()).is_nan(),
        DType::Float32 => f32::from_le_bytes(bytes.try_into().unwrap()).is_nan(),
        _ => f64::from_le_bytes(bytes.try_into().unwrap()).is_nan(),
    };
    bytes
        .chunks_exact(nan.len())
        .flat_map(|element| if is_nan(element) { &nan } else { element })
        .copied()
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

//! The loops that combine elements, for bytes of any alignment.
//!
//! Each is a loop without branches over equal chunks of bytes, so that the compiler makes vector
//! instructions of it.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::ReduceOp;
use crate::tensor::DType;

/// How many bytes of accumulators are worked on at a time where a result takes several passes.
pub(super) const TILE_BYTES: usize = 4096;

type Combine = fn(&[u8], &[u8], &mut [u8]);
type Accumulate = fn(&mut [u8], &[u8]);

/// What can be done to accumulators of one type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    /// The last is filled with what the other two combine to.
    pub(super) combine: Combine,
    /// The first is combined with the second.
    pub(super) accumulate: Accumulate,
    /// For a mean.
    pub(super) divide: fn(&mut [u8], u64),
    /// How elements become accumulators and back, unless they are the same.
    pub(super) width: Option<Width>,
}

/// Conversion of elements to accumulators of twice their size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Width {
    pub(super) widen: fn(&[u8], &mut [u8]),
    pub(super) narrow: fn(&[u8], &mut [u8]),
}

impl Kernels {
    /// None for a dtype that is no number. A complex number is two of its parts.
    pub(super) fn of(dtype: DType, op: ReduceOp) -> Option<Self> {
        Some(match dtype {
            DType::UInt8 => Self::of_type::<u8, 1>(op),
            DType::Int8 => Self::of_type::<i8, 1>(op),
            DType::UInt16 => Self::of_type::<u16, 2>(op),
            DType::Int16 => Self::of_type::<i16, 2>(op),
            DType::UInt32 => Self::of_type::<u32, 4>(op),
            DType::Int32 => Self::of_type::<i32, 4>(op),
            DType::UInt64 => Self::of_type::<u64, 8>(op),
            DType::Int64 => Self::of_type::<i64, 8>(op),
            DType::Float32 | DType::Complex64 => Self::of_type::<f32, 4>(op),
            DType::Float64 | DType::Complex128 => Self::of_type::<f64, 8>(op),
            DType::Float16 | DType::Complex32 => {
                let width = Width { widen: widen_f16, narrow: narrow_f16 };
                Self { width: Some(width), ..Self::of_type::<f32, 4>(op) }
            }
            DType::BFloat16 => {
                let width = Width { widen: widen_bf16, narrow: narrow_bf16 };
                Self { width: Some(width), ..Self::of_type::<f32, 4>(op) }
            }
            _ => return None,
        })
    }

    fn of_type<T: Number<N>, const N: usize>(op: ReduceOp) -> Self {
        let (combine, accumulate): (Combine, Accumulate) = match op {
            ReduceOp::Sum | ReduceOp::Avg => (
                |left, right, into| combine(left, right, into, T::sum),
                |into, other| accumulate(into, other, T::sum),
            ),
            ReduceOp::Prod => (
                |left, right, into| combine(left, right, into, T::prod),
                |into, other| accumulate(into, other, T::prod),
            ),
            ReduceOp::Min => (
                |left, right, into| combine(left, right, into, T::least),
                |into, other| accumulate(into, other, T::least),
            ),
            ReduceOp::Max => (
                |left, right, into| combine(left, right, into, T::greatest),
                |into, other| accumulate(into, other, T::greatest),
            ),
        };
        Self { combine, accumulate, divide: divide::<T, N>, width: None }
    }
}

fn combine<T: Number<N>, const N: usize>(left: &[u8], right: &[u8], into: &mut [u8], op: impl Fn(T, T) -> T) {
    let (left, right) = (left.as_chunks().0, right.as_chunks().0);
    for ((into, left), right) in into.as_chunks_mut().0.iter_mut().zip(left).zip(right) {
        *into = op(T::load(*left), T::load(*right)).store();
    }
}

fn accumulate<T: Number<N>, const N: usize>(into: &mut [u8], other: &[u8], op: impl Fn(T, T) -> T) {
    for (into, other) in into.as_chunks_mut().0.iter_mut().zip(other.as_chunks().0) {
        *into = op(T::load(*into), T::load(*other)).store();
    }
}

fn divide<T: Number<N>, const N: usize>(elements: &mut [u8], divisor: u64) {
    for element in elements.as_chunks_mut().0 {
        *element = T::load(*element).mean(divisor).store();
    }
}

/// What can be combined, in `N` bytes.
trait Number<const N: usize>: Copy {
    fn load(bytes: [u8; N]) -> Self;
    fn store(self) -> [u8; N];
    fn sum(self, other: Self) -> Self;
    fn prod(self, other: Self) -> Self;
    fn least(self, other: Self) -> Self;
    fn greatest(self, other: Self) -> Self;
    /// Of as many elements as the divisor says.
    fn mean(self, divisor: u64) -> Self;
}

macro_rules! integers {
    ($($integer:ty, $wide:ty;)*) => {
        $(impl Number<{ size_of::<$integer>() }> for $integer {
            fn load(bytes: [u8; size_of::<Self>()]) -> Self { Self::from_le_bytes(bytes) }
            fn store(self) -> [u8; size_of::<Self>()] { self.to_le_bytes() }
            fn sum(self, other: Self) -> Self { self.wrapping_add(other) }
            fn prod(self, other: Self) -> Self { self.wrapping_mul(other) }
            fn least(self, other: Self) -> Self { self.min(other) }
            fn greatest(self, other: Self) -> Self { self.max(other) }
            // In a type that every number of ranks fits into.
            fn mean(self, divisor: u64) -> Self { (<$wide>::from(self) / divisor as $wide) as Self }
        })*
    };
}

integers! {
    u8, u64;
    i8, i64;
    u16, u64;
    i16, i64;
    u32, u64;
    i32, i64;
    u64, u64;
    i64, i64;
}

macro_rules! floats {
    ($($float:ty;)*) => {
        $(impl Number<{ size_of::<$float>() }> for $float {
            fn load(bytes: [u8; size_of::<Self>()]) -> Self { Self::from_le_bytes(bytes) }
            fn store(self) -> [u8; size_of::<Self>()] { self.to_le_bytes() }
            fn sum(self, other: Self) -> Self { self + other }
            fn prod(self, other: Self) -> Self { self * other }
            // Of zeros with both signs the one with the sign bit.
            fn least(self, other: Self) -> Self {
                let zero = Self::from_bits(self.to_bits() | other.to_bits());
                let least = if self < other { self } else if other < self { other } else { zero };
                if self.is_nan() || other.is_nan() { Self::NAN } else { least }
            }
            fn greatest(self, other: Self) -> Self {
                let zero = Self::from_bits(self.to_bits() & other.to_bits());
                let greatest = if self > other { self } else if other > self { other } else { zero };
                if self.is_nan() || other.is_nan() { Self::NAN } else { greatest }
            }
            fn mean(self, divisor: u64) -> Self { self / divisor as Self }
        })*
    };
}

floats! {
    f32;
    f64;
}

fn widen_bf16(from: &[u8], into: &mut [u8]) {
    for (into, from) in into.as_chunks_mut().0.iter_mut().zip(from.as_chunks().0) {
        *into = f32::from_bits(u32::from(u16::from_le_bytes(*from)) << 16).to_le_bytes();
    }
}

/// To the nearest, of two that are as near to the even one.
fn narrow_bf16(from: &[u8], into: &mut [u8]) {
    for (into, from) in into.as_chunks_mut().0.iter_mut().zip(from.as_chunks().0) {
        *into = bf16::from_f32(f32::from_le_bytes(*from)).to_le_bytes();
    }
}

/// How many halves are converted at a time: the instructions for it want them aligned, and as a slice.
const HALVES: usize = TILE_BYTES / 4;

fn widen_f16(from: &[u8], into: &mut [u8]) {
    let (mut halves, mut floats) = ([f16::ZERO; HALVES], [0.0_f32; HALVES]);
    for (into, from) in into.as_chunks_mut().0.chunks_mut(HALVES).zip(from.as_chunks().0.chunks(HALVES)) {
        let (halves, floats) = (&mut halves[..from.len()], &mut floats[..from.len()]);
        for (half, from) in halves.iter_mut().zip(from) {
            *half = f16::from_le_bytes(*from);
        }
        halves.convert_to_f32_slice(floats);
        for (into, float) in into.iter_mut().zip(floats) {
            *into = float.to_le_bytes();
        }
    }
}

fn narrow_f16(from: &[u8], into: &mut [u8]) {
    let (mut halves, mut floats) = ([f16::ZERO; HALVES], [0.0_f32; HALVES]);
    for (into, from) in into.as_chunks_mut().0.chunks_mut(HALVES).zip(from.as_chunks().0.chunks(HALVES)) {
        let (halves, floats) = (&mut halves[..from.len()], &mut floats[..from.len()]);
        for (float, from) in floats.iter_mut().zip(from) {
            *float = f32::from_le_bytes(*from);
        }
        halves.convert_from_f32_slice(floats);
        for (into, half) in into.iter_mut().zip(halves) {
            *into = half.to_le_bytes();
        }
    }
}

//! The loops that combine elements, for bytes of any alignment.
//!
//! Each is a loop without branches over equal chunks of bytes, so that the compiler makes vector
//! instructions of it.

use super::ReduceOp;
use super::number::{Bf16, F16, Number, Stored};
use crate::tensor::DType;

/// How many bytes of accumulators are worked on at a time where a result takes several passes: what
/// stays in the nearest cache, beside what is combined with them.
pub(super) const TILE_BYTES: usize = 8192;

/// Fills the last with what the others combine to.
type Combine = fn(&[u8], &[u8], &mut [u8]);
/// Combines the first with the other.
type Accumulate = fn(&mut [u8], &[u8]);
/// Fills the second with the first.
type Convert = fn(&[u8], &mut [u8]);

/// What can be done to accumulators of one type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernels {
    pub(super) combine: Combine,
    pub(super) accumulate: Accumulate,
    /// For a mean.
    pub(super) divide: fn(&mut [u8], u64),
    /// What can be done to elements, unless they are their own accumulators.
    pub(super) width: Option<Width>,
}

/// What can be done to elements of half the size of accumulators.
#[derive(Clone, Copy, Debug)]
pub(super) struct Width {
    /// Elements to elements.
    pub(super) combine: Combine,
    /// Elements to accumulators.
    pub(super) accumulate: Accumulate,
    pub(super) widen: Convert,
    pub(super) narrow: Convert,
}

impl Kernels {
    /// None for a dtype that is no number. A complex number is two of its parts.
    pub(super) fn of(dtype: DType, op: ReduceOp) -> Option<Self> {
        Some(match op {
            ReduceOp::Sum | ReduceOp::Avg => Self::with::<Sum>(dtype)?,
            ReduceOp::Prod => Self::with::<Prod>(dtype)?,
            ReduceOp::Min => Self::with::<Least>(dtype)?,
            ReduceOp::Max => Self::with::<Greatest>(dtype)?,
        })
    }

    fn with<O: Op>(dtype: DType) -> Option<Self> {
        Some(match dtype {
            DType::UInt8 => Self::plain::<u8, O, 1>(),
            DType::Int8 => Self::plain::<i8, O, 1>(),
            DType::UInt16 => Self::plain::<u16, O, 2>(),
            DType::Int16 => Self::plain::<i16, O, 2>(),
            DType::UInt32 => Self::plain::<u32, O, 4>(),
            DType::Int32 => Self::plain::<i32, O, 4>(),
            DType::UInt64 => Self::plain::<u64, O, 8>(),
            DType::Int64 => Self::plain::<i64, O, 8>(),
            DType::Float32 | DType::Complex64 => Self::plain::<f32, O, 4>(),
            DType::Float64 | DType::Complex128 => Self::plain::<f64, O, 8>(),
            DType::Float16 | DType::Complex32 => Self::half::<F16, O>(),
            DType::BFloat16 => Self::half::<Bf16, O>(),
            _ => return None,
        })
    }

    fn plain<S: Stored<N>, O: Op, const N: usize>() -> Self {
        Self {
            combine: combine::<S, O, N>,
            accumulate: accumulate::<S, S, O, N, N>,
            divide: divide::<S, N>,
            width: None,
        }
    }

    fn half<S: Stored<2, Number = f32>, O: Op>() -> Self {
        let width = Width {
            combine: combine::<S, O, 2>,
            accumulate: accumulate::<f32, S, O, 4, 2>,
            widen: convert::<S, f32, 2, 4>,
            narrow: convert::<f32, S, 4, 2>,
        };
        Self { width: Some(width), ..Self::plain::<f32, O, 4>() }
    }
}

fn combine<S: Stored<N>, O: Op, const N: usize>(left: &[u8], right: &[u8], into: &mut [u8]) {
    let (left, right) = (left.as_chunks().0, right.as_chunks().0);
    for ((into, left), right) in into.as_chunks_mut().0.iter_mut().zip(left).zip(right) {
        *into = S::store(O::apply(S::load(*left), S::load(*right)));
    }
}

/// `S` are stored as `A` are computed with.
fn accumulate<A: Stored<N>, S: Stored<M, Number = A::Number>, O: Op, const N: usize, const M: usize>(
    into: &mut [u8],
    other: &[u8],
) {
    for (into, other) in into.as_chunks_mut().0.iter_mut().zip(other.as_chunks().0) {
        *into = A::store(O::apply(A::load(*into), S::load(*other)));
    }
}

fn convert<S: Stored<N>, T: Stored<M, Number = S::Number>, const N: usize, const M: usize>(
    from: &[u8],
    into: &mut [u8],
) {
    for (into, from) in into.as_chunks_mut().0.iter_mut().zip(from.as_chunks().0) {
        *into = T::store(S::load(*from));
    }
}

fn divide<S: Stored<N>, const N: usize>(elements: &mut [u8], divisor: u64) {
    for element in elements.as_chunks_mut().0 {
        *element = S::store(S::load(*element).mean(divisor));
    }
}

/// An operation, as a type: each loop is compiled for one.
trait Op {
    fn apply<T: Number>(left: T, right: T) -> T;
}

macro_rules! ops {
    ($($op:ident = $method:ident,)*) => {
        $(struct $op;

        impl Op for $op {
            fn apply<T: Number>(left: T, right: T) -> T {
                left.$method(right)
            }
        })*
    };
}

ops! {
    Sum = sum,
    Prod = prod,
    Least = least,
    Greatest = greatest,
}

//! Data types and reductions.

use half::{bf16, f16};

use crate::codes::{INVALID_ARGUMENT, Result, failed};

/// An `ncclDataType_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DataType(pub(crate) u32);

/// An `ncclRedOp_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduction {
    Sum,
    Product,
    Max,
    Min,
    Average,
}

impl DataType {
    pub(crate) fn check(number: u32) -> Result<Self> {
        // The last two are float8, which can be moved, but not reduced.
        if number <= 11 {
            Ok(Self(number))
        } else {
            Err(failed(INVALID_ARGUMENT, format_args!("invalid type {number}")))
        }
    }

    pub(crate) fn bytes(self) -> usize {
        match self.0 {
            0 | 1 | 10 | 11 => 1,
            6 | 9 => 2,
            2 | 3 | 7 => 4,
            _ => 8,
        }
    }
}

impl Reduction {
    pub(crate) fn check(number: u32, dtype: DataType) -> Result<Self> {
        if dtype.0 > 9 {
            return Err(failed(INVALID_ARGUMENT, "float8 is not reduced"));
        }
        let all = [Self::Sum, Self::Product, Self::Max, Self::Min, Self::Average];
        let found = all.get(number as usize).copied();
        found.ok_or_else(|| failed(INVALID_ARGUMENT, format_args!("invalid reduction operation {number}")))
    }

    /// Element by element, in the order of the parts, which are of one length.
    pub(crate) fn reduce(self, dtype: DataType, parts: &[&[u8]]) -> Vec<u8> {
        match dtype.0 {
            0 => self.reduce_as::<i8, 1>(parts),
            1 => self.reduce_as::<u8, 1>(parts),
            2 => self.reduce_as::<i32, 4>(parts),
            3 => self.reduce_as::<u32, 4>(parts),
            4 => self.reduce_as::<i64, 8>(parts),
            5 => self.reduce_as::<u64, 8>(parts),
            6 => self.reduce_as::<f16, 2>(parts),
            7 => self.reduce_as::<f32, 4>(parts),
            8 => self.reduce_as::<f64, 8>(parts),
            _ => self.reduce_as::<bf16, 2>(parts),
        }
    }

    fn reduce_as<T: Number<N>, const N: usize>(self, parts: &[&[u8]]) -> Vec<u8> {
        let columns: Vec<&[[u8; N]]> = parts.iter().map(|part| part.as_chunks().0).collect();
        let elements = columns.first().map_or(0, |column| column.len());
        let rows = (0..elements).map(|index| columns.iter().map(move |column| T::read(column[index])));
        let reduced = rows.map(|row| {
            let ranks = row.len();
            let combine = match self {
                Self::Sum | Self::Average => T::add,
                Self::Product => T::multiply,
                Self::Max => T::max,
                Self::Min => T::min,
            };
            let result = row.reduce(combine).unwrap_or_else(|| T::read([0; N]));
            let result = if self == Self::Average { T::divide(result, ranks) } else { result };
            T::write(result)
        });
        reduced.flatten().collect()
    }
}

/// How one element is read, calculated with, and written. The half types are calculated with as `f32`,
/// and rounded once.
trait Number<const N: usize> {
    type Wide: Copy;
    fn read(bytes: [u8; N]) -> Self::Wide;
    fn write(value: Self::Wide) -> [u8; N];
    fn add(left: Self::Wide, right: Self::Wide) -> Self::Wide;
    fn multiply(left: Self::Wide, right: Self::Wide) -> Self::Wide;
    fn max(left: Self::Wide, right: Self::Wide) -> Self::Wide;
    fn min(left: Self::Wide, right: Self::Wide) -> Self::Wide;
    fn divide(value: Self::Wide, ranks: usize) -> Self::Wide;
}

macro_rules! integers {
    ($($type:ty: $bytes:literal),*) => {$(
        impl Number<$bytes> for $type {
            type Wide = Self;
            fn read(bytes: [u8; $bytes]) -> Self { Self::from_ne_bytes(bytes) }
            fn write(value: Self) -> [u8; $bytes] { value.to_ne_bytes() }
            fn add(left: Self, right: Self) -> Self { left.wrapping_add(right) }
            fn multiply(left: Self, right: Self) -> Self { left.wrapping_mul(right) }
            fn max(left: Self, right: Self) -> Self { Ord::max(left, right) }
            fn min(left: Self, right: Self) -> Self { Ord::min(left, right) }
            fn divide(value: Self, ranks: usize) -> Self { value.wrapping_div(ranks as Self) }
        }
    )*};
}

macro_rules! floats {
    ($($type:ty: $bytes:literal, $wide:ty, $widen:expr, $narrow:expr);*) => {$(
        impl Number<$bytes> for $type {
            type Wide = $wide;
            fn read(bytes: [u8; $bytes]) -> $wide { $widen(<$type>::from_ne_bytes(bytes)) }
            fn write(value: $wide) -> [u8; $bytes] { $narrow(value).to_ne_bytes() }
            fn add(left: $wide, right: $wide) -> $wide { left + right }
            fn multiply(left: $wide, right: $wide) -> $wide { left * right }
            fn max(left: $wide, right: $wide) -> $wide { left.max(right) }
            fn min(left: $wide, right: $wide) -> $wide { left.min(right) }
            fn divide(value: $wide, ranks: usize) -> $wide { value / ranks as $wide }
        }
    )*};
}

integers!(i8: 1, u8: 1, i32: 4, u32: 4, i64: 8, u64: 8);
floats! {
    f16: 2, f32, Self::to_f32, Self::from_f32;
    bf16: 2, f32, Self::to_f32, Self::from_f32;
    f32: 4, f32, std::convert::identity, std::convert::identity::<f32>;
    f64: 8, f64, std::convert::identity, std::convert::identity::<f64>
}

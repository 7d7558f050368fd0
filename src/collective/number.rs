//! What elements are computed with, and how they are stored.
//!
//! Nothing here branches: where there are cases, all are computed and one is selected, which the
//! compiler can do for many elements at once.

/// What can be combined.
pub(super) trait Number: Copy {
    fn sum(self, other: Self) -> Self;
    fn prod(self, other: Self) -> Self;
    fn least(self, other: Self) -> Self;
    fn greatest(self, other: Self) -> Self;
    /// Of as many elements as the divisor says.
    fn mean(self, divisor: u64) -> Self;
}

/// How numbers are stored in `N` bytes.
pub(super) trait Stored<const N: usize> {
    type Number: Number;
    fn load(bytes: [u8; N]) -> Self::Number;
    fn store(number: Self::Number) -> [u8; N];
}

macro_rules! stored {
    ($($number:ty)*) => {
        $(impl Stored<{ size_of::<$number>() }> for $number {
            type Number = Self;

            fn load(bytes: [u8; size_of::<Self>()]) -> Self {
                Self::from_le_bytes(bytes)
            }

            fn store(number: Self) -> [u8; size_of::<Self>()] {
                number.to_le_bytes()
            }
        })*
    };
}

stored!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64);

/// Columns: type, and one in which its quotients are cut off rightly: there are vector instructions to
/// divide floats only, and one with twice the bits is near enough to the true quotient.
macro_rules! integers {
    ($($integer:ty: $quotient:ty,)*) => {
        $(impl Number for $integer {
            fn sum(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            fn prod(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }

            fn least(self, other: Self) -> Self {
                self.min(other)
            }

            fn greatest(self, other: Self) -> Self {
                self.max(other)
            }

            fn mean(self, divisor: u64) -> Self {
                (self as $quotient / divisor as $quotient) as Self
            }
        })*
    };
}

integers! {
    u8: f32,
    i8: f32,
    u16: f32,
    i16: f32,
    u32: f64,
    i32: f64,
    u64: u64,
    i64: i64,
}

macro_rules! floats {
    ($($float:ty)*) => {
        $(impl Number for $float {
            fn sum(self, other: Self) -> Self {
                self + other
            }

            fn prod(self, other: Self) -> Self {
                self * other
            }

            fn least(self, other: Self) -> Self {
                // Of two zeros the one with the sign bit.
                let equal = Self::from_bits(self.to_bits() | other.to_bits());
                let least = if self < other { self } else if other < self { other } else { equal };
                if self.is_nan() || other.is_nan() { Self::NAN } else { least }
            }

            fn greatest(self, other: Self) -> Self {
                let equal = Self::from_bits(self.to_bits() & other.to_bits());
                let greatest = if self > other { self } else if other > self { other } else { equal };
                if self.is_nan() || other.is_nan() { Self::NAN } else { greatest }
            }

            fn mean(self, divisor: u64) -> Self {
                self / divisor as Self
            }
        })*
    };
}

floats!(f32 f64);

/// IEEE half precision: 5 bits of exponent, 10 of mantissa.
pub(super) struct F16;

impl Stored<2> for F16 {
    type Number = f32;

    fn load(bytes: [u8; 2]) -> f32 {
        let bits = u32::from(u16::from_le_bytes(bytes));
        let (sign, magnitude) = ((bits & 0x8000) << 16, bits & 0x7FFF);
        // Exponents are 15 more than they mean in 16 bits, 127 more in 32.
        let normal = (magnitude << 13) + ((127 - 15) << 23);
        let infinite = normal + ((127 - 15) << 23);
        let subnormal = (magnitude as i32 as f32 * TINY).to_bits();
        let finite = if magnitude < 0x0400 { subnormal } else { normal };
        let magnitude = if magnitude < 0x7C00 { finite } else { infinite };
        f32::from_bits(sign | magnitude)
    }

    /// To the nearest; of two that are as near, to the even one.
    fn store(number: f32) -> [u8; 2] {
        let bits = number.to_bits();
        let (sign, magnitude) = ((bits >> 16) & 0x8000, bits & 0x7FFF_FFFF);
        // Half of what is cut off, less one bit if the rest is even.
        let odd = (magnitude >> 13) & 1;
        let normal = magnitude.wrapping_sub((127 - 15) << 23).wrapping_add(0x0FFF + odd) >> 13;
        // An addition rounds for us: in the sum, the last bit is worth as much as that of a subnormal.
        let subnormal = (f32::from_bits(magnitude) + f32::from_bits(ALIGNED)).to_bits().wrapping_sub(ALIGNED);
        let nan = 0x7E00 | (magnitude >> 13) & 0x03FF;
        let finite = if magnitude < 113 << 23 { subnormal } else { normal };
        let rounded = if magnitude < (127 + 16) << 23 { finite } else { 0x7C00 };
        let magnitude = if magnitude > 0x7F80_0000 { nan } else { rounded };
        ((sign | magnitude) as u16).to_le_bytes()
    }
}

/// The smallest half above zero, 2⁻²⁴.
const TINY: f32 = f32::from_bits((127 - 24) << 23);
/// 2⁻¹, of which the last bit is worth 2⁻²⁴.
const ALIGNED: u32 = (127 - 1) << 23;

/// The upper half of a `float32`.
pub(super) struct Bf16;

impl Stored<2> for Bf16 {
    type Number = f32;

    fn load(bytes: [u8; 2]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
    }

    /// To the nearest; of two that are as near, to the even one.
    fn store(number: f32) -> [u8; 2] {
        let bits = number.to_bits();
        let odd = (bits >> 16) & 1;
        let rounded = bits.wrapping_add(0x7FFF + odd) >> 16;
        let nan = (bits >> 16) | 0x0040;
        let chosen = if bits & 0x7FFF_FFFF > 0x7F80_0000 { nan } else { rounded };
        (chosen as u16).to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// Every half, and beside it and the middle between it and the next: what rounds differently.
    fn edges(halves: impl Fn(u16) -> f32) -> impl Iterator<Item = f32> {
        (0..=u16::MAX)
            .flat_map(move |bits| {
                let here = halves(bits).to_bits();
                let middle = here.midpoint(halves(bits.wrapping_add(1)).to_bits());
                [here, middle].into_iter().flat_map(|bits| [bits.wrapping_sub(1), bits, bits.wrapping_add(1)])
            })
            .map(f32::from_bits)
    }

    #[test]
    fn halves_are_those_of_the_standard() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (F16::load(bits.to_le_bytes()), f16::from_bits(bits).to_f32_const());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{theirs}");
        }
        for float in edges(|bits| f16::from_bits(bits).to_f32()) {
            assert_eq!(F16::store(float), f16::from_f32_const(float).to_le_bytes(), "{float}");
        }
    }

    #[test]
    fn brain_floats_are_those_of_the_standard() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (Bf16::load(bits.to_le_bytes()), bf16::from_bits(bits).to_f32_const());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{theirs}");
        }
        for float in edges(|bits| bf16::from_bits(bits).to_f32()) {
            assert_eq!(Bf16::store(float), bf16::from_f32_const(float).to_le_bytes(), "{float}");
        }
    }

    #[test]
    fn means_of_integers_are_cut_off_toward_zero() {
        let divisors = [1, 2, 3, 5, 7, 8, 100, 127, 128, 255, 256, 257, 1000, 65_537];
        for divisor in divisors {
            for number in i16::MIN..=i16::MAX {
                assert_eq!(i64::from(number.mean(divisor)), i64::from(number) / divisor as i64);
                assert_eq!(u64::from((number as u16).mean(divisor)), u64::from(number as u16) / divisor);
                assert_eq!(i64::from((number as i8).mean(divisor)), i64::from(number as i8) / divisor as i64);
                assert_eq!(u64::from((number as u8).mean(divisor)), u64::from(number as u8) / divisor);
            }
            // Quotients that are just below a whole number, where a float is most easily rounded up.
            for near in [u64::MAX, 1 << 53, u64::from(u32::MAX), 1 << 31] {
                for number in [near, near / divisor * divisor, (near / divisor * divisor).wrapping_sub(1)] {
                    assert_eq!(number.mean(divisor), number / divisor);
                    assert_eq!((number as i64).mean(divisor), number as i64 / divisor as i64);
                    assert_eq!(u64::from((number as u32).mean(divisor)), u64::from(number as u32) / divisor);
                    assert_eq!(
                        i64::from((number as i32).mean(divisor)),
                        i64::from(number as i32) / divisor as i64
                    );
                }
            }
        }
    }
}

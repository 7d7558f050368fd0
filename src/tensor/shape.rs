//! How many elements a tensor has, and how they are arranged.

use std::convert::Infallible;
use std::fmt;

use super::DType;
use crate::error::{Error, Result};

/// The most dimensions that a [`Shape`] can have.
pub const MAX_DIMS: usize = 14;

/// The extents of a contiguous, row-major tensor, outermost first: at most [`MAX_DIMS`] of them.
///
/// No dimension at all is a scalar, which has one element. A dimension of 0 makes a tensor without
/// elements.
///
/// The product of all dimensions *that are not 0* fits `isize`. So `[0, usize::MAX]` is refused
/// although it has no element: its strides could not be computed, and whether it is accepted does
/// not depend on where the 0 stands. numpy has the same rule; torch refuses some of these shapes
/// ("Stride calculation overflowed") and accepts others, depending on the order.
///
/// ```
/// use kvpipe::tensor::{DType, Shape};
///
/// let shape = Shape::new(&[2, 3])?;
/// assert_eq!(shape.element_count(), 6);
/// assert_eq!(shape.byte_len(DType::BFloat16)?, 12);
/// assert_eq!(shape.to_string(), "[2, 3]");
/// # Ok::<(), kvpipe::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Zero from `rank` on, so that equality and hashing may be derived.
    dims: [usize; MAX_DIMS],
    rank: u8,
}

impl Shape {
    /// The shape of a scalar: no dimensions, one element.
    pub const SCALAR: Self = Self { dims: [0; MAX_DIMS], rank: 0 };

    /// The shape with these dimensions.
    ///
    /// # Errors
    /// [`Error::Misuse`] for more than [`MAX_DIMS`] dimensions, or if the product of those that are
    /// not 0 does not fit `isize`.
    pub fn new(dims: &[usize]) -> Result<Self> {
        if dims.len() > MAX_DIMS {
            return Err(Error::Misuse(format!(
                "a shape of {} dimensions is over the limit of {MAX_DIMS}",
                dims.len()
            )));
        }
        let product = dims.iter().filter(|&&dim| dim != 0).try_fold(1_usize, |n, &dim| n.checked_mul(dim));
        if product.is_none_or(|n| isize::try_from(n).is_err()) {
            return Err(Error::Misuse(format!(
                "the element count of shape {dims:?} is over the limit of {}",
                isize::MAX
            )));
        }
        let mut shape = Self { dims: [0; MAX_DIMS], rank: dims.len() as u8 };
        shape.dims[..dims.len()].copy_from_slice(dims);
        Ok(shape)
    }

    /// The dimensions, outermost first; empty for a scalar.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        &self.dims[..usize::from(self.rank)]
    }

    /// The product of the dimensions: 1 for a scalar, 0 if any dimension is 0.
    #[must_use]
    pub fn element_count(&self) -> usize {
        // No prefix overflows: `new` checked the product of all dimensions that are not 0.
        self.dims().iter().product()
    }

    /// How many rows there are, and the dimensions of one. A scalar is one row of no dimensions.
    #[cfg(not(loom))]
    pub(crate) fn rows(&self) -> (usize, &[usize]) {
        match self.dims() {
            [] => (1, &[]),
            [rows, row @ ..] => (*rows, row),
        }
    }

    /// So many rows of these dimensions.
    #[cfg(not(loom))]
    pub(crate) fn of_rows(rows: usize, row: &[usize]) -> Result<Self> {
        Self::new(&[&[rows], row].concat())
    }

    /// The exact length in bytes of a contiguous tensor of this shape, as torch stores it.
    ///
    /// Where elements share an item (see [`DType::elements_per_item`]), every row of the last
    /// dimension begins on a new item, and its last one may be partly used.
    ///
    /// # Errors
    /// [`Error::Misuse`] if it does not fit `isize`.
    pub fn byte_len(&self, dtype: DType) -> Result<usize> {
        let items = match self.dims() {
            [] => 1,
            // As in `new`: the product of the leading dimensions can't overflow, nor can that with a
            // row that is rounded up to no more items than it has elements.
            [rows @ .., row] => rows.iter().product::<usize>() * row.div_ceil(dtype.elements_per_item()),
        };
        items.checked_mul(dtype.item_bytes()).filter(|&n| isize::try_from(n).is_ok()).ok_or_else(|| {
            Error::Misuse(format!("the byte length of {dtype} {self} is over the limit of {}", isize::MAX))
        })
    }
}

/// `[2, 3]`; a scalar is `[]`.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (axis, dim) in self.dims().iter().enumerate() {
            let separator = if axis == 0 { "" } else { ", " };
            write!(f, "{separator}{dim}")?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shape({self})")
    }
}

impl TryFrom<&[usize]> for Shape {
    type Error = Error;

    fn try_from(dims: &[usize]) -> Result<Self> {
        Self::new(dims)
    }
}

impl<const N: usize> TryFrom<[usize; N]> for Shape {
    type Error = Error;

    fn try_from(dims: [usize; N]) -> Result<Self> {
        Self::new(&dims)
    }
}

impl<const N: usize> TryFrom<&[usize; N]> for Shape {
    type Error = Error;

    fn try_from(dims: &[usize; N]) -> Result<Self> {
        Self::new(dims)
    }
}

/// Lets a function take `impl TryInto<Shape>` from those who have a [`Shape`] as well as from those
/// who have its dimensions.
impl From<Infallible> for Error {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HALF: usize = 1 << (usize::BITS / 2);

    #[test]
    fn a_scalar_has_one_element() {
        let scalar = Shape::new(&[]).unwrap();
        assert_eq!(scalar, Shape::SCALAR);
        assert_eq!(scalar.element_count(), 1);
        assert_eq!(scalar.byte_len(DType::Float64).unwrap(), 8);
        assert_eq!(scalar.byte_len(DType::QUInt2x4).unwrap(), 1);
        assert_eq!(scalar.to_string(), "[]");
    }

    #[test]
    fn a_zero_dimension_leaves_no_elements_and_no_bytes() {
        for dims in [[0, 3], [3, 0], [0, 0]] {
            let shape = Shape::try_from(dims).unwrap();
            assert_eq!(shape.element_count(), 0);
            assert_eq!(shape.byte_len(DType::Complex128).unwrap(), 0);
            assert_eq!(shape.byte_len(DType::QUInt4x2).unwrap(), 0);
        }
    }

    #[test]
    fn a_zero_dimension_excuses_no_overflow_wherever_it_stands() {
        for dims in [[0, HALF, HALF], [HALF, 0, HALF], [HALF, HALF, 0]] {
            assert!(Shape::new(&dims).is_err(), "{dims:?}");
        }
    }

    #[test]
    fn the_element_count_fits_isize_exactly() {
        let largest = isize::MAX as usize;
        assert_eq!(Shape::new(&[1, largest]).unwrap().element_count(), largest);
        let error = Shape::new(&[1, largest + 1]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the element count of shape [1, {}] is over the limit of {largest}", largest + 1)
        );
    }

    #[test]
    fn the_byte_length_fits_isize_exactly() {
        let largest = isize::MAX as usize;
        let fits = Shape::new(&[largest / 2]).unwrap();
        assert_eq!(fits.byte_len(DType::Float16).unwrap(), largest - 1);
        let over = Shape::new(&[largest / 2 + 1]).unwrap();
        let error = over.byte_len(DType::Float16).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the byte length of float16 {over} is over the limit of {largest}")
        );
    }

    #[test]
    fn fourteen_dimensions_are_the_most() {
        let shape = Shape::new(&[2; MAX_DIMS]).unwrap();
        assert_eq!(shape.dims(), [2; MAX_DIMS]);
        assert_eq!(shape.element_count(), 1 << MAX_DIMS);
        let error = Shape::new(&[1; MAX_DIMS + 1]).unwrap_err();
        assert_eq!(error.to_string(), "a shape of 15 dimensions is over the limit of 14");
    }

    #[test]
    fn trailing_zero_dimensions_count_for_equality() {
        assert_ne!(Shape::new(&[2]).unwrap(), Shape::new(&[2, 0]).unwrap());
        assert_ne!(Shape::SCALAR, Shape::new(&[0]).unwrap());
    }

    /// Expected values are those of torch's `get_sub_byte_tensor_size`.
    #[test]
    fn packed_rows_begin_on_a_new_byte() {
        let bytes = |dims: &[usize], dtype| Shape::new(dims).unwrap().byte_len(dtype).unwrap();
        assert_eq!(bytes(&[3, 5], DType::QUInt4x2), 9);
        assert_eq!(bytes(&[3, 5], DType::QUInt2x4), 6);
        assert_eq!(bytes(&[15], DType::QUInt4x2), 8);
        assert_eq!(bytes(&[15], DType::QUInt2x4), 4);
    }

    #[test]
    fn shell_dtypes_take_a_byte_an_element() {
        let shape = Shape::new(&[3, 5]).unwrap();
        for dtype in [DType::UInt1, DType::Int4, DType::Bits1x8, DType::Bits4x2, DType::Float4E2m1fnX2] {
            assert_eq!(shape.byte_len(dtype).unwrap(), 15, "{dtype}");
        }
    }

    proptest! {
        #[test]
        fn arithmetic_agrees_with_wide_integers(
            dims in prop::collection::vec(prop_oneof![0..9_usize, any::<u32>().prop_map(|n| n as usize), any::<usize>()], 0..5),
            dtype in prop::sample::select(DType::ALL),
        ) {
            let limit = isize::MAX as u128;
            let wide = |dims: &[usize]| dims.iter().try_fold(1_u128, |n, &dim| n.checked_mul(dim as u128));
            let nonzero: Vec<usize> = dims.iter().copied().filter(|&dim| dim != 0).collect();
            let accepted = wide(&nonzero).is_some_and(|n| n <= limit);
            let shape = Shape::new(&dims);
            prop_assert_eq!(shape.is_ok(), accepted);
            if let Ok(shape) = shape {
                prop_assert_eq!(shape.dims(), &dims[..]);
                prop_assert_eq!(Some(shape.element_count() as u128), wide(&dims));
                if dtype.elements_per_item() == 1 {
                    let bytes = shape.element_count() as u128 * dtype.item_bytes() as u128;
                    prop_assert_eq!(shape.byte_len(dtype).ok().map(|n| n as u128), (bytes <= limit).then_some(bytes));
                }
            }
        }
    }
}

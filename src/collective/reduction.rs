//! How the elements of all ranks become one.
//!
//! | dtype | operations | accumulated in |
//! |---|---|---|
//! | integers of 8 to 64 bits | all; they wrap, a mean is cut off toward zero | the dtype |
//! | `float32`, `float64` | all | the dtype |
//! | `float16`, `bfloat16` | all | `float32`, rounded once, at the end |
//! | `complex64`, `complex128` | sum and mean, as torch | the dtype |
//! | `complex32` | sum and mean | `float32` parts, rounded once, at the end |
//!
//! The smallest and the largest don't depend on the order of ranks: a NaN anywhere gives NaN, and -0 is
//! smaller than +0.

use super::ReduceOp;
use super::kernels::{Kernels, TILE_BYTES};
use super::program::Form;
use crate::error::{Error, Result};
use crate::tensor::DType;

/// A reduction of one dtype over some ranks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reduction {
    kernels: Kernels,
    element_bytes: usize,
    accumulator_bytes: usize,
    /// What to divide by, for a mean.
    divisor: Option<u64>,
}

/// Where a part's elements are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    /// In other memory than the result's.
    Apart(&'a [u8]),
    /// Where the result goes.
    Target,
}

impl Reduction {
    /// The reduction over `ranks` ranks.
    ///
    /// # Errors
    /// [`Error::Misuse`] for a dtype or an operation that can't be computed with; it says what can.
    pub(super) fn new(dtype: DType, op: ReduceOp, ranks: usize) -> Result<Self> {
        let complex = matches!(dtype, DType::Complex32 | DType::Complex64 | DType::Complex128);
        let kernels = match dtype {
            _ if complex && !matches!(op, ReduceOp::Sum | ReduceOp::Avg) => None,
            _ => Kernels::of(dtype, op),
        };
        let kernels = kernels.ok_or_else(|| Error::Misuse(refusal(dtype, op)))?;
        let element_bytes = dtype.item_bytes();
        Ok(Self {
            kernels,
            element_bytes,
            accumulator_bytes: if kernels.width.is_some() { 2 * element_bytes } else { element_bytes },
            divisor: (op == ReduceOp::Avg).then_some(ranks as u64),
        })
    }

    /// The bytes of an element of the dtype.
    pub(super) const fn element_bytes(&self) -> usize {
        self.element_bytes
    }

    /// The bytes of a partial result.
    pub(super) const fn accumulator_bytes(&self) -> usize {
        self.accumulator_bytes
    }

    /// The bytes of either.
    pub(super) const fn bytes_of(&self, form: Form) -> usize {
        match form {
            Form::Elements => self.element_bytes,
            Form::Accumulators => self.accumulator_bytes,
        }
    }

    /// Whether partial results are larger than elements.
    pub(super) const fn widens(&self) -> bool {
        self.kernels.width.is_some()
    }

    /// Combines parts, in this order, into a result; as [`Form::Elements`] it is complete.
    pub(super) fn fold(&self, parts: &[(Source<'_>, Form)], into: &mut [u8], form: Form) {
        let divisor = self.divisor.filter(|_| form == Form::Elements);
        match parts {
            [(Source::Apart(left), _), (Source::Apart(right), _)] if !self.widens() => {
                (self.kernels.combine)(left, right, into);
            }
            // What is combined in place may change sides: all operations commute.
            [(Source::Apart(other), _), (Source::Target, _)]
            | [(Source::Target, _), (Source::Apart(other), _)]
                if !self.widens() =>
            {
                (self.kernels.accumulate)(into, other);
            }
            _ => return self.fold_tiles(parts, into, form, divisor),
        }
        if let Some(divisor) = divisor {
            (self.kernels.divide)(into, divisor);
        }
    }

    /// By pieces that stay in the nearest cache.
    fn fold_tiles(&self, parts: &[(Source<'_>, Form)], into: &mut [u8], form: Form, divisor: Option<u64>) {
        let (mut accumulators, mut widened) = ([0; TILE_BYTES], [0; TILE_BYTES]);
        let tile = TILE_BYTES / self.accumulator_bytes;
        let elements = into.len() / self.bytes_of(form);
        for first in (0..elements).step_by(tile) {
            let count = tile.min(elements - first);
            let range = |form| first * self.bytes_of(form)..(first + count) * self.bytes_of(form);
            let accumulators = &mut accumulators[..count * self.accumulator_bytes];
            for (position, (source, part_form)) in parts.iter().enumerate() {
                let piece = match source {
                    Source::Apart(bytes) => &bytes[range(*part_form)],
                    Source::Target => &into[range(*part_form)],
                };
                match (self.kernels.width, part_form, position) {
                    (Some(width), Form::Elements, 0) => (width.widen)(piece, accumulators),
                    (Some(width), Form::Elements, _) => {
                        let widened = &mut widened[..accumulators.len()];
                        (width.widen)(piece, widened);
                        (self.kernels.accumulate)(accumulators, widened);
                    }
                    (_, _, 0) => accumulators.copy_from_slice(piece),
                    _ => (self.kernels.accumulate)(accumulators, piece),
                }
            }
            if let Some(divisor) = divisor {
                (self.kernels.divide)(accumulators, divisor);
            }
            match (self.kernels.width, form) {
                (Some(width), Form::Elements) => (width.narrow)(accumulators, &mut into[range(form)]),
                _ => into[range(form)].copy_from_slice(accumulators),
            }
        }
    }
}

/// Why not, and what instead.
fn refusal(dtype: DType, op: ReduceOp) -> String {
    let instead = match dtype {
        DType::Complex32 | DType::Complex64 | DType::Complex128 => {
            return match op {
                ReduceOp::Min | ReduceOp::Max => format!("{dtype} has no order, so no {op}"),
                _ => format!("no {op} of {dtype} is computed: gather the elements and multiply them"),
            };
        }
        DType::Bool => "send it as uint8, where max means any and min means all",
        DType::Float8E5m2
        | DType::Float8E4m3fn
        | DType::Float8E5m2fnuz
        | DType::Float8E4m3fnuz
        | DType::Float8E8m0fnu
        | DType::Float4E2m1fnX2 => "convert it to bfloat16 or float32",
        DType::QInt8 | DType::QUInt8 | DType::QInt32 | DType::QUInt4x2 | DType::QUInt2x4 => {
            "dequantize it: its scale is not known here"
        }
        DType::UInt1
        | DType::UInt2
        | DType::UInt3
        | DType::UInt4
        | DType::UInt5
        | DType::UInt6
        | DType::UInt7 => "convert it to uint8",
        DType::Int1 | DType::Int2 | DType::Int3 | DType::Int4 | DType::Int5 | DType::Int6 | DType::Int7 => {
            "convert it to int8"
        }
        _ => "its bits are no numbers; send them as unsigned integers",
    };
    format!("there is no {op} of {dtype}: {instead}")
}

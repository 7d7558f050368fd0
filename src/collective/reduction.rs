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
use std::ops::Range;

use super::kernels::{Kernels, TILE_BYTES, Width};
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
    ///
    /// By tiles, because a result can take several passes.
    pub(super) fn fold(&self, parts: &[(Source<'_>, Form)], into: &mut [u8], form: Form) {
        let divisor = self.divisor.filter(|_| form == Form::Elements);
        let tile = TILE_BYTES / self.accumulator_bytes;
        let elements = into.len() / self.bytes_of(form);
        for first in (0..elements).step_by(tile) {
            let tile = first..elements.min(first + tile);
            match self.kernels.width {
                None => self.fold_tile(parts, tile, into, divisor),
                Some(width) => self.fold_wide_tile(width, parts, tile, (into, form), divisor),
            }
        }
    }

    /// Of accumulators that are elements.
    fn fold_tile(
        &self,
        parts: &[(Source<'_>, Form)],
        tile: Range<usize>,
        into: &mut [u8],
        divisor: Option<u64>,
    ) {
        let tile = tile.start * self.element_bytes..tile.end * self.element_bytes;
        match *parts {
            [(Source::Apart(left), _), (Source::Apart(right), _)] => {
                (self.kernels.combine)(&left[tile.clone()], &right[tile.clone()], &mut into[tile.clone()]);
            }
            // What is combined in place may change sides: all operations commute.
            [(Source::Apart(other), _), (Source::Target, _)]
            | [(Source::Target, _), (Source::Apart(other), _)] => {
                (self.kernels.accumulate)(&mut into[tile.clone()], &other[tile.clone()]);
            }
            _ => {
                let accumulators = &mut [0; TILE_BYTES][..tile.len()];
                for (position, (source, _)) in parts.iter().enumerate() {
                    let piece = source.read(into, tile.clone());
                    match position {
                        0 => accumulators.copy_from_slice(piece),
                        _ => (self.kernels.accumulate)(accumulators, piece),
                    }
                }
                into[tile.clone()].copy_from_slice(accumulators);
            }
        }
        if let Some(divisor) = divisor {
            (self.kernels.divide)(&mut into[tile], divisor);
        }
    }

    /// Of elements that are narrower than accumulators.
    fn fold_wide_tile(
        &self,
        width: Width,
        parts: &[(Source<'_>, Form)],
        tile: Range<usize>,
        (into, form): (&mut [u8], Form),
        divisor: Option<u64>,
    ) {
        let range = |form| tile.start * self.bytes_of(form)..tile.end * self.bytes_of(form);
        if let (
            [(Source::Apart(left), Form::Elements), (Source::Apart(right), Form::Elements)],
            None,
            Form::Elements,
        ) = (parts, divisor, form)
        {
            (width.combine)(&left[range(form)], &right[range(form)], &mut into[range(form)]);
            return;
        }
        let accumulators = &mut [0; TILE_BYTES][..range(Form::Accumulators).len()];
        for (position, (source, part_form)) in parts.iter().enumerate() {
            let piece = source.read(into, range(*part_form));
            match (position, part_form) {
                (0, Form::Elements) => (width.widen)(piece, accumulators),
                (0, Form::Accumulators) => accumulators.copy_from_slice(piece),
                (_, Form::Elements) => (width.accumulate)(accumulators, piece),
                (_, Form::Accumulators) => (self.kernels.accumulate)(accumulators, piece),
            }
        }
        if let Some(divisor) = divisor {
            (self.kernels.divide)(accumulators, divisor);
        }
        match form {
            Form::Elements => (width.narrow)(accumulators, &mut into[range(form)]),
            Form::Accumulators => into[range(form)].copy_from_slice(accumulators),
        }
    }
}

impl<'a> Source<'a> {
    fn read<'b>(&self, target: &'b [u8], range: Range<usize>) -> &'b [u8]
    where
        'a: 'b,
    {
        match self {
            Self::Apart(bytes) => &bytes[range],
            Self::Target => &target[range],
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::collective::random::Random;
    use crate::collective::reference::{DTYPES, Data, OPS, elements, one_nan, reduced};

    /// What bytes lie at, so that nothing is aligned.
    fn shifted(bytes: &[u8], by: usize) -> Vec<u8> {
        [&vec![0; by][..], bytes].concat()
    }

    fn reason(dtype: DType, op: ReduceOp) -> String {
        let error = Reduction::new(dtype, op, 2).unwrap_err();
        assert!(matches!(error, Error::Misuse(_)), "{error:?}");
        error.to_string()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn parts_are_combined_in_their_order_wherever_they_lie(
            dtype in prop::sample::select(&DTYPES[..]),
            op in prop::sample::select(&OPS[..]),
            data in prop::sample::select(&[Data::Uneven, Data::Bits][..]),
            parts in 1..6_usize,
            count in prop_oneof![0..70_usize, 500..9000_usize],
            target in prop::option::of(0..6_usize),
            shift in 0..9_usize,
            seed in any::<u64>(),
        ) {
            let Ok(reduction) = Reduction::new(dtype, op, parts) else { return Ok(()) };
            let mut random = Random(seed);
            let inputs: Vec<_> =
                (0..parts).map(|_| elements(dtype, op, data, count, &mut random)).collect();
            let memory: Vec<_> =
                inputs.iter().enumerate().map(|(part, input)| shifted(input, (shift + part) % 9)).collect();
            let mut into = shifted(&vec![0xA5; count * dtype.item_bytes()], shift);
            if let Some(input) = target.and_then(|target| inputs.get(target)) {
                into[shift..].copy_from_slice(input);
            }
            let source = |part: usize| match Some(part) == target {
                true => Source::Target,
                false => Source::Apart(&memory[part][(shift + part) % 9..]),
            };
            let sources: Vec<_> = (0..parts).map(|part| (source(part), Form::Elements)).collect();
            reduction.fold(&sources, &mut into[shift..], Form::Elements);
            prop_assert_eq!(one_nan(dtype, &into[shift..]), one_nan(dtype, &reduced(dtype, op, &inputs)));
        }

        #[test]
        fn partial_results_lose_nothing(
            dtype in prop::sample::select(&DTYPES[..]),
            op in prop::sample::select(&OPS[..]),
            parts in 2..6_usize,
            first in 1..5_usize,
            count in 0..3000_usize,
            seed in any::<u64>(),
        ) {
            let Ok(reduction) = Reduction::new(dtype, op, parts) else { return Ok(()) };
            let first = first.min(parts - 1);
            let mut random = Random(seed);
            let inputs: Vec<_> =
                (0..parts).map(|_| elements(dtype, op, Data::Bits, count, &mut random)).collect();
            let mut partial = vec![0xA5; count * reduction.accumulator_bytes()];
            let sources: Vec<_> = inputs[..first].iter().map(|input| (Source::Apart(input), Form::Elements)).collect();
            reduction.fold(&sources, &mut partial, Form::Accumulators);
            let mut result = vec![0xA5; count * reduction.element_bytes()];
            let rest = inputs[first..].iter().map(|input| (Source::Apart(&input[..]), Form::Elements));
            let sources: Vec<_> =
                std::iter::once((Source::Apart(&partial[..]), Form::Accumulators)).chain(rest).collect();
            reduction.fold(&sources, &mut result, Form::Elements);
            prop_assert_eq!(one_nan(dtype, &result), one_nan(dtype, &reduced(dtype, op, &inputs)));
        }

        #[test]
        fn the_smallest_and_the_largest_dont_depend_on_the_order(
            dtype in prop::sample::select(&DTYPES[..]),
            op in prop::sample::select(&[ReduceOp::Min, ReduceOp::Max][..]),
            count in 0..200_usize,
            seed in any::<u64>(),
        ) {
            let Ok(reduction) = Reduction::new(dtype, op, 2) else { return Ok(()) };
            let mut random = Random(seed);
            let [one, other] = [(); 2].map(|()| elements(dtype, op, Data::Bits, count, &mut random));
            let both = [[&one, &other], [&other, &one]].map(|order| {
                let mut result = vec![0; one.len()];
                let sources = order.map(|bytes| (Source::Apart(bytes), Form::Elements));
                reduction.fold(&sources, &mut result, Form::Elements);
                result
            });
            prop_assert_eq!(&both[0], &both[1]);
        }
    }

    #[test]
    fn what_is_no_number_is_refused_and_told_what_to_do() {
        let sum = |dtype| reason(dtype, ReduceOp::Sum);
        assert_eq!(
            sum(DType::Bool),
            "there is no sum of bool: send it as uint8, where max means any and min means all"
        );
        assert_eq!(
            sum(DType::Float8E4m3fn),
            "there is no sum of float8_e4m3fn: convert it to bfloat16 or float32"
        );
        assert_eq!(sum(DType::QInt8), "there is no sum of qint8: dequantize it: its scale is not known here");
        assert_eq!(sum(DType::UInt4), "there is no sum of uint4: convert it to uint8");
        assert_eq!(sum(DType::Int4), "there is no sum of int4: convert it to int8");
        assert_eq!(
            sum(DType::Bits16),
            "there is no sum of bits16: its bits are no numbers; send them as unsigned integers"
        );
        assert_eq!(reason(DType::Complex64, ReduceOp::Min), "complex64 has no order, so no min");
        assert_eq!(
            reason(DType::Complex32, ReduceOp::Prod),
            "no prod of complex32 is computed: gather the elements and multiply them"
        );
    }

    #[test]
    fn every_dtype_is_reduced_or_refused() {
        for &dtype in DType::ALL {
            assert_eq!(Reduction::new(dtype, ReduceOp::Sum, 2).is_ok(), DTYPES.contains(&dtype), "{dtype}");
        }
    }
}

//! Dividing a model among ranks, as vLLM does: a dimension among tensor-parallel ranks, layers among
//! pipeline stages.
//!
//! | here | vLLM 0.9 to 0.12 | what differs |
//! |---|---|---|
//! | [`ensure_divisibility`], [`divide`] | the same names | a divisor of 0 is an error like any other |
//! | [`split_tensor_along_last_dim`] | the same name | chunks are copies, never views |
//! | [`pipeline_partition`] | `get_pp_indices` | negative layers and ranks beyond the last are refused |
//!
//! All refusals are [`Error::Misuse`]; nothing here comes from a peer.

use std::env;
use std::ffi::OsString;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::tensor::{BufferMut, Shape, Tensor};

/// Refuses a `numerator` that is no multiple of `denominator`.
///
/// # Errors
/// [`Error::Misuse`] that has both numbers; also for a `denominator` of 0.
pub fn ensure_divisibility(numerator: usize, denominator: usize) -> Result<()> {
    divide(numerator, denominator).map(drop)
}

/// `numerator / denominator`, where nothing is left over.
///
/// # Errors
/// As [`ensure_divisibility`].
pub fn divide(numerator: usize, denominator: usize) -> Result<usize> {
    match numerator.checked_rem(denominator) {
        Some(0) => Ok(numerator / denominator),
        _ => Err(Error::Misuse(format!("{numerator} is not divisible by {denominator}"))),
    }
}

/// The most parts of a tensor: a last dimension of 0 would be divisible into any number.
const PARTS_MAX: usize = 1 << 16;

/// Splits a tensor into `parts` of equal shape along its last dimension, in order.
///
/// Each chunk is a contiguous copy in memory of its own, whatever the number of parts: it outlives
/// the tensor without keeping it, and can be sent as it is. (vLLM gives views unless told otherwise,
/// which have to be copied before they are sent.)
///
/// ```
/// use kvpipe::Tensor;
/// use kvpipe::parallel::split_tensor_along_last_dim;
///
/// let heads = Tensor::from_slice([2, 4], &[0_i32, 1, 2, 3, 10, 11, 12, 13])?;
/// let halves = split_tensor_along_last_dim(&heads, 2)?;
/// assert_eq!(halves[0].as_slice::<i32>()?, [0, 1, 10, 11]);
/// assert_eq!(halves[1].as_slice::<i32>()?, [2, 3, 12, 13]);
/// # Ok::<(), kvpipe::Error>(())
/// ```
///
/// # Errors
/// [`Error::Misuse`] for a scalar, for 0 parts, if the last dimension is not divisible by `parts`, if
/// the payload is not in host memory, and if a chunk of `quint4x2` or `quint2x4` would begin within a
/// byte. [`Error::Io`] if there is no memory.
pub fn split_tensor_along_last_dim(tensor: &Tensor, parts: usize) -> Result<Vec<Tensor>> {
    let (dtype, shape) = (tensor.dtype(), tensor.shape());
    let refuse =
        |why: &str| Error::Misuse(format!("{dtype} {shape} can't be split into {parts} parts: {why}"));
    let Some((&last, rows)) = shape.dims().split_last() else {
        return Err(refuse("a scalar has no dimension"));
    };
    let chunk = divide(last, parts).map_err(|error| refuse(&error.to_string()))?;
    if parts > PARTS_MAX {
        return Err(refuse(&format!("that is over the limit of {PARTS_MAX} parts")));
    }
    if parts > 1 && !chunk.is_multiple_of(dtype.elements_per_item()) {
        return Err(refuse(&format!("{} elements share a byte", dtype.elements_per_item())));
    }
    let chunk_shape = Shape::new(&[rows, &[chunk]].concat())?;
    let chunk_len = chunk_shape.byte_len(dtype)?;
    let bytes = tensor.bytes()?;
    let row_count: usize = rows.iter().product();
    let in_a_row = |len: usize| len.checked_div(row_count).unwrap_or(0);
    let (row_bytes, chunk_bytes) = (in_a_row(bytes.len()), in_a_row(chunk_len));
    (0..parts)
        .map(|part| {
            let mut buffer = BufferMut::zeroed(chunk_len)?;
            if chunk_len > 0 {
                let rows = bytes.chunks_exact(row_bytes);
                for (to, row) in buffer.chunks_exact_mut(chunk_bytes).zip(rows) {
                    to.copy_from_slice(&row[part * chunk_bytes..][..chunk_bytes]);
                }
            }
            Tensor::new(dtype, chunk_shape, buffer.freeze())
        })
        .collect()
}

/// The variable from which vLLM and [`pipeline_partition_from_env`] take an explicit partition.
pub const PARTITION_VARIABLE: &str = "VLLM_PP_LAYER_PARTITION";

/// The layers of pipeline stage `rank` of `size`: consecutive over the stages, `layers` in all.
///
/// Without an `explicit` partition each stage has `layers / size`. What is left over goes to the
/// stages before the last, one layer each, from the back: the last stage has the output layer to
/// compute as well, and the first one, which has the embedding, gets one only when all others but the
/// last have. (As vLLM since 0.7.4; before, the last stage got all that was left over.)
///
/// An `explicit` partition is the number of layers of each stage, in order and separated by commas, with
/// blanks around the numbers or not: `"15, 15, 16, 15"`. A stage may have none.
///
/// ```
/// use kvpipe::parallel::pipeline_partition;
///
/// assert_eq!(pipeline_partition(61, 2, 4, None)?, 30..46);
/// assert_eq!(pipeline_partition(61, 2, 4, Some("20,20,20,1"))?, 40..60);
/// # Ok::<(), kvpipe::Error>(())
/// ```
///
/// # Errors
/// [`Error::Misuse`] if there is no such stage; if `explicit` is empty or has anything but numbers from
/// 0 (vLLM accepts negative ones, which make stages overlap), has not `size` of them, or they don't sum up
/// to `layers`.
pub fn pipeline_partition(
    layers: usize,
    rank: usize,
    size: usize,
    explicit: Option<&str>,
) -> Result<Range<usize>> {
    if rank >= size {
        return Err(Error::Misuse(format!("pipeline rank {rank} is beyond the pipeline size {size}")));
    }
    if let Some(list) = explicit {
        return explicit_partition(layers, rank, size, list)
            .map_err(|why| Error::Misuse(format!("the layer partition {list:?} {why}")));
    }
    let (base, left_over) = (layers / size, layers % size);
    let first_longer = size - 1 - left_over;
    let start = |rank: usize| rank * base + rank.saturating_sub(first_longer);
    // Not `start(rank + 1)`: the last stage is never a longer one.
    let end = if rank + 1 == size { layers } else { start(rank + 1) };
    Ok(start(rank)..end)
}

/// As [`pipeline_partition`], with the explicit partition of the environment variable
/// `VLLM_PP_LAYER_PARTITION`, if it is set. As in vLLM, the empty string counts as set, and is refused.
///
/// # Errors
/// As [`pipeline_partition`], naming the variable; also if the variable is not Unicode.
pub fn pipeline_partition_from_env(layers: usize, rank: usize, size: usize) -> Result<Range<usize>> {
    partition_of_variable(layers, rank, size, env::var_os(PARTITION_VARIABLE))
}

fn partition_of_variable(
    layers: usize,
    rank: usize,
    size: usize,
    value: Option<OsString>,
) -> Result<Range<usize>> {
    let Some(value) = value else { return pipeline_partition(layers, rank, size, None) };
    let list = value
        .into_string()
        .map_err(|value| Error::Misuse(format!("{PARTITION_VARIABLE}: {value:?} is not Unicode")))?;
    pipeline_partition(layers, rank, size, Some(&list))
        .map_err(|error| Error::Misuse(format!("{PARTITION_VARIABLE}: {error}")))
}

/// Refused with what is wrong with the list.
fn explicit_partition(layers: usize, rank: usize, size: usize, list: &str) -> Result<Range<usize>, String> {
    let mut own = 0..0;
    let (mut stages, mut sum) = (0, 0_usize);
    for entry in list.split(',') {
        let entry = entry.trim();
        // `parse` would take a sign.
        let number = entry.bytes().all(|byte| byte.is_ascii_digit()).then(|| entry.parse::<usize>().ok());
        let count = number.flatten().ok_or_else(|| format!("has {entry:?}, which is no number of layers"))?;
        let end = sum.checked_add(count).ok_or("has more layers than can be counted")?;
        if stages == rank {
            own = sum..end;
        }
        (stages, sum) = (stages + 1, end);
    }
    if stages != size {
        return Err(format!("is for a pipeline of {stages}, where this one has {size} stages"));
    }
    if sum != layers {
        return Err(format!("adds up to {sum}, where the model has {layers} layers"));
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;
    use crate::tensor::DType;

    /// Not a multiple of anything, so that each byte tells where it comes from.
    fn counting(dtype: DType, dims: &[usize]) -> Tensor {
        let shape = Shape::new(dims).unwrap();
        let payload: Vec<u8> = (0..shape.byte_len(dtype).unwrap()).map(|at| (at % 251) as u8).collect();
        Tensor::new(dtype, shape, payload.into()).unwrap()
    }

    fn split_refusal(dtype: DType, dims: &[usize], parts: usize) -> String {
        split_tensor_along_last_dim(&counting(dtype, dims), parts).unwrap_err().to_string()
    }

    fn refusal(layers: usize, rank: usize, size: usize, explicit: Option<&str>) -> String {
        let error = pipeline_partition(layers, rank, size, explicit).unwrap_err();
        assert!(matches!(error, Error::Misuse(_)), "{error:?}");
        error.to_string()
    }

    #[test]
    fn what_does_not_divide_is_refused_with_both_numbers() {
        assert_eq!(divide(6, 3).unwrap(), 2);
        assert_eq!(divide(0, 3).unwrap(), 0);
        ensure_divisibility(usize::MAX, usize::MAX).unwrap();
        for (numerator, denominator) in [(6, 4), (1, 2), (6, 0), (0, 0)] {
            let expected = format!("{numerator} is not divisible by {denominator}");
            assert_eq!(divide(numerator, denominator).unwrap_err().to_string(), expected);
            assert_eq!(ensure_divisibility(numerator, denominator).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn what_cant_be_split_is_refused_with_shape_and_reason() {
        let reason = |dims: &[usize], parts| split_refusal(DType::Float32, dims, parts);
        assert_eq!(reason(&[], 1), "float32 [] can't be split into 1 parts: a scalar has no dimension");
        assert_eq!(reason(&[2, 6], 4), "float32 [2, 6] can't be split into 4 parts: 6 is not divisible by 4");
        assert!(reason(&[2, 0], usize::MAX).ends_with("parts: that is over the limit of 65536 parts"));
        assert!(reason(&[2, 6], 0).ends_with("6 is not divisible by 0"));
        assert!(reason(&[2, 0], 0).ends_with("0 is not divisible by 0"));
    }

    #[test]
    fn a_chunk_is_a_copy_even_if_it_is_the_only_one() {
        let tensor = counting(DType::UInt8, &[8]);
        let [chunk] = &split_tensor_along_last_dim(&tensor, 1).unwrap()[..] else { panic!("one part") };
        assert_eq!(*chunk, tensor);
        assert_ne!(chunk.bytes().unwrap().as_ptr(), tensor.bytes().unwrap().as_ptr());
    }

    #[test]
    fn a_row_longer_than_memory_can_be_split_if_there_are_none() {
        let tensor = counting(DType::Complex128, &[0, 1 << 61]);
        let chunks = split_tensor_along_last_dim(&tensor, 2).unwrap();
        assert_eq!(chunks, [(); 2].map(|()| counting(DType::Complex128, &[0, 1 << 60])));
    }

    #[test]
    fn packed_rows_are_split_between_bytes_only() {
        let halves = split_tensor_along_last_dim(&counting(DType::QUInt4x2, &[2, 8]), 2).unwrap();
        assert_eq!(halves[0].bytes().unwrap()[..], [0, 1, 4, 5]);
        assert_eq!(halves[1].bytes().unwrap()[..], [2, 3, 6, 7]);
        assert!(split_refusal(DType::QUInt4x2, &[2, 6], 2).ends_with("2 elements share a byte"));
        assert!(split_refusal(DType::QUInt2x4, &[2, 8], 4).ends_with("4 elements share a byte"));
        // The only part may end within a byte, as the whole does.
        split_tensor_along_last_dim(&counting(DType::QUInt2x4, &[2, 5]), 1).unwrap();
    }

    /// The table that vLLM's `get_pp_indices` gave.
    #[test]
    fn what_is_left_over_goes_to_the_stages_before_the_last() {
        for (layers, counts) in [
            (61, &[15, 15, 16, 15][..]),
            (94, &[23, 24, 24, 23]),
            (10, &[3, 4, 3]),
            (7, &[4, 3]),
            (5, &[1, 1, 2, 1]),
            (6, &[1, 2, 2, 1]),
            (7, &[2, 2, 2, 1]),
            (3, &[1, 1, 1, 0]),
            (61, &[7, 7, 8, 8, 8, 8, 8, 7]),
            (32, &[32]),
        ] {
            let lengths = (0..counts.len())
                .map(|rank| pipeline_partition(layers, rank, counts.len(), None).unwrap().len());
            assert!(lengths.eq(counts.iter().copied()), "{layers} layers");
        }
    }

    #[test]
    fn an_explicit_partition_is_taken_as_it_is() {
        for (list, expected) in [("3,4,3", [0..3, 3..7, 7..10]), (" 0 ,\t10, 0", [0..0, 0..10, 10..10])] {
            for (rank, layers) in expected.into_iter().enumerate() {
                assert_eq!(pipeline_partition(10, rank, 3, Some(list)).unwrap(), layers);
            }
        }
    }

    #[test]
    fn every_bad_partition_is_refused_and_quoted() {
        for (list, why) in [
            ("", "has \"\", which is no number of layers"),
            ("5,", "has \"\", which is no number of layers"),
            ("12,-5", "has \"-5\", which is no number of layers"),
            ("+3,4", "has \"+3\", which is no number of layers"),
            ("3,4.0", "has \"4.0\", which is no number of layers"),
            ("3;4", "has \"3;4\", which is no number of layers"),
            ("3,four", "has \"four\", which is no number of layers"),
            ("3,99999999999999999999999", "has \"99999999999999999999999\", which is no number of layers"),
            ("18446744073709551615,8", "has more layers than can be counted"),
            ("1,2,4", "is for a pipeline of 3, where this one has 2 stages"),
            ("7", "is for a pipeline of 1, where this one has 2 stages"),
            ("5,5", "adds up to 10, where the model has 7 layers"),
        ] {
            assert_eq!(refusal(7, 0, 2, Some(list)), format!("the layer partition {list:?} {why}"));
        }
    }

    #[test]
    fn a_stage_beyond_the_last_is_refused() {
        for explicit in [None, Some("4,3")] {
            assert_eq!(refusal(7, 2, 2, explicit), "pipeline rank 2 is beyond the pipeline size 2");
        }
        assert_eq!(refusal(7, 0, 0, None), "pipeline rank 0 is beyond the pipeline size 0");
    }

    #[test]
    fn a_variable_that_is_set_is_an_explicit_partition() {
        let partition = |value: Option<&str>| partition_of_variable(7, 1, 2, value.map(OsString::from));
        assert_eq!(partition(None).unwrap(), 4..7);
        assert_eq!(partition(Some("2,5")).unwrap(), 2..7);
        for bad in ["", "12,-5"] {
            let error = partition(Some(bad)).unwrap_err().to_string();
            assert!(error.starts_with("VLLM_PP_LAYER_PARTITION: the layer partition "), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_unicode_is_refused() {
        use std::os::unix::ffi::OsStringExt;

        let value = OsString::from_vec(b"3,\xff".into());
        let error = partition_of_variable(7, 1, 2, Some(value)).unwrap_err().to_string();
        assert_eq!(error, r#"VLLM_PP_LAYER_PARTITION: "3,\xFF" is not Unicode"#);
    }

    #[test]
    fn the_variable_is_read_from_the_environment() {
        let value = "2,5";
        if env::var(PARTITION_VARIABLE).as_deref() == Ok(value) {
            assert_eq!(pipeline_partition_from_env(7, 1, 2).unwrap(), 2..7);
            return;
        }
        // Once more, in a process with another environment: that of this one is everybody's.
        let mut again = Command::new(env::current_exe().unwrap());
        again.args(["--exact", "parallel::tests::the_variable_is_read_from_the_environment"]);
        let output = again.env(PARTITION_VARIABLE, value).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    /// The inverse of splitting: row by row, each part's share.
    fn concatenated(parts: &[Tensor], rows: usize) -> Vec<u8> {
        let share = |part: &Tensor, row: usize| {
            let length = part.byte_len() / rows;
            part.bytes().unwrap()[row * length..][..length].to_vec()
        };
        (0..rows).flat_map(|row| parts.iter().flat_map(move |part| share(part, row))).collect()
    }

    proptest! {
        #[test]
        fn chunks_are_equal_and_make_up_the_whole(
            dtype in prop::sample::select(DType::ALL),
            leading in prop::collection::vec(0..4_usize, 0..4),
            items in 0..4_usize,
            parts in 1..5_usize,
        ) {
            let chunk = items * dtype.elements_per_item();
            let dims = |last: usize| [&leading[..], &[last]].concat();
            let tensor = counting(dtype, &dims(chunk * parts));
            let chunks = split_tensor_along_last_dim(&tensor, parts).unwrap();
            prop_assert_eq!(chunks.len(), parts);
            for part in &chunks {
                prop_assert_eq!((part.dtype(), part.shape().dims()), (dtype, &dims(chunk)[..]));
            }
            let rows = leading.iter().product::<usize>();
            prop_assert_eq!(&concatenated(&chunks, rows)[..], &tensor.bytes().unwrap()[..]);
        }

        #[test]
        fn stages_cover_all_layers_in_order_and_differ_by_one_at_most(
            layers in prop_oneof![0..200_usize, any::<usize>()],
            size in 1..40_usize,
        ) {
            let stages: Vec<_> =
                (0..size).map(|rank| pipeline_partition(layers, rank, size, None).unwrap()).collect();
            prop_assert_eq!(stages[0].start, 0);
            prop_assert_eq!(stages[size - 1].end, layers);
            for pair in stages.windows(2) {
                prop_assert_eq!(pair[0].end, pair[1].start);
            }
            let lengths = || stages.iter().map(ExactSizeIterator::len);
            prop_assert!(lengths().max().unwrap() - lengths().min().unwrap() <= 1);
            // What a person writes for the same stages means the same.
            let list = lengths().map(|length| length.to_string()).collect::<Vec<_>>().join(",");
            for (rank, stage) in stages.iter().enumerate() {
                prop_assert_eq!(&pipeline_partition(layers, rank, size, Some(&list)).unwrap(), stage);
            }
        }
    }
}

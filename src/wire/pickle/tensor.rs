//! A pickled tensor: a view of a storage, which need not be contiguous.

use std::fmt;

use bytes::Bytes;

use super::Limits;
use super::machine::Pickle;
use super::storage::{self, Storage};
use super::value::{Global, Span, Value};
use crate::error::{Error, Result};
use crate::tensor::{BufferMut, DType, MAX_DIMS, Shape, Tensor};
use crate::wire::DecodeError;
use crate::wire::metadata::TensorMetadata;

/// A tensor as it lies in a pickle: a view, possibly transposed or expanded, of the message's bytes.
///
/// It holds on to the message, and has allocated nothing for the elements.
#[derive(Clone)]
pub struct PickledTensor {
    metadata: TensorMetadata,
    /// From the first element to the last one; in bounds is what every combination of strides reaches.
    bytes: Bytes,
    /// In bytes; as many as the shape has dimensions.
    strides: [usize; MAX_DIMS],
}

impl PickledTensor {
    /// Dtype, shape and length of the tensor, once it is contiguous.
    #[must_use]
    pub fn metadata(&self) -> TensorMetadata {
        self.metadata
    }

    /// Whether the elements lie in the message one after the other, in row-major order.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        self.axes().1.is_empty()
    }

    /// Writes the elements in row-major order, without a gap.
    ///
    /// # Errors
    /// [`Error::Misuse`] unless `out` is exactly as long as
    /// [`payload_bytes`](TensorMetadata::payload_bytes) says.
    pub fn copy_to(&self, out: &mut [u8]) -> Result<()> {
        let expected = self.metadata.payload_bytes();
        if out.len() != expected {
            return Err(Error::Misuse(format!(
                "a tensor of {expected} bytes can't be copied to {}",
                out.len()
            )));
        }
        let (run, axes) = self.axes();
        gather(&self.bytes, run, &axes, out);
        Ok(())
    }

    /// The tensor: over the message's bytes if they are contiguous, at whatever address they lie, else
    /// over a contiguous copy.
    ///
    /// # Errors
    /// [`DecodeError::OutOfMemory`] if there is none for the copy.
    pub fn into_tensor(self) -> Result<Tensor, DecodeError> {
        let bytes = self.metadata.payload_bytes();
        let payload = if self.is_contiguous() {
            self.bytes
        } else {
            let mut copy = BufferMut::zeroed(bytes).map_err(|_| DecodeError::OutOfMemory { bytes })?;
            self.copy_to(&mut copy).map_err(|error| DecodeError::Malformed(error.to_string()))?;
            copy.freeze()
        };
        Tensor::new(self.metadata.dtype(), *self.metadata.shape(), payload)
            .map_err(|error| DecodeError::Shape(error.to_string()))
    }

    /// The length of the longest run of bytes that stays together, and how often and how far apart
    /// it recurs, innermost first: dimensions that continue one another are one.
    fn axes(&self) -> (usize, Vec<Axis>) {
        let mut run = self.metadata.dtype().item_bytes();
        let mut axes: Vec<Axis> = Vec::new();
        if self.bytes.is_empty() {
            return (run, axes);
        }
        let dims = self.metadata.shape().dims().iter().zip(self.strides).rev();
        for (&count, stride) in dims.filter(|(count, _)| **count != 1) {
            match axes.last_mut() {
                None if stride == run => run *= count,
                Some(inner) if stride == inner.count * inner.stride => inner.count *= count,
                _ => axes.push(Axis { count, stride }),
            }
        }
        (run, axes)
    }
}

/// Without the bytes.
impl fmt::Debug for PickledTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dtype, shape) = (self.metadata.dtype(), self.metadata.shape());
        write!(f, "PickledTensor({dtype} {shape} in {} bytes)", self.bytes.len())
    }
}

#[derive(Clone, Copy, Debug)]
struct Axis {
    count: usize,
    /// In bytes.
    stride: usize,
}

/// Fills `out` with runs of `run` bytes.
fn gather(source: &[u8], run: usize, axes: &[Axis], out: &mut [u8]) {
    let Some((inner, outer)) = axes.split_first() else {
        out.copy_from_slice(source);
        return;
    };
    // Items of a known length are copied by one load and one store each.
    let row_of: fn(&[u8], usize, usize, &mut [u8]) = match run {
        1 => items::<1>,
        2 => items::<2>,
        4 => items::<4>,
        8 => items::<8>,
        16 => items::<16>,
        _ => runs,
    };
    let mut index = [0; MAX_DIMS];
    let mut start = 0;
    for row in out.chunks_exact_mut(inner.count * run) {
        row_of(&source[start..], inner.stride, run, row);
        for (position, axis) in index.iter_mut().zip(outer) {
            *position += 1;
            start += axis.stride;
            if *position < axis.count {
                break;
            }
            *position = 0;
            start -= axis.count * axis.stride;
        }
    }
}

fn items<const RUN: usize>(source: &[u8], stride: usize, _run: usize, row: &mut [u8]) {
    for (position, item) in row.chunks_exact_mut(RUN).enumerate() {
        item.copy_from_slice(&source[position * stride..][..RUN]);
    }
}

fn runs(source: &[u8], stride: usize, run: usize, row: &mut [u8]) {
    for (position, item) in row.chunks_exact_mut(run).enumerate() {
        item.copy_from_slice(&source[position * stride..][..run]);
    }
}

/// The tensor that a call of `rebuild` with these arguments would give.
pub(super) fn rebuilt(
    message: &Bytes,
    pickle: &Pickle<'_>,
    rebuild: Global,
    arguments: Span,
    limits: &Limits,
) -> Result<PickledTensor, DecodeError> {
    let arguments = pickle.members(arguments);
    let &[stored, offset, Value::Tuple(size), Value::Tuple(stride), Value::Bool(_), hooks, ref rest @ ..] =
        arguments
    else {
        return Err(malformed("a tensor that is not rebuilt from storage, offset, size and stride"));
    };
    if !matches!(hooks, Value::Call(Global::OrderedDict, none) if none.len == 0) {
        return Err(malformed("a tensor with backward hooks"));
    }
    let (named, rest) = match (rebuild, rest) {
        (Global::RebuildTensorV3, &[Value::Global(Global::DType(dtype)), ref rest @ ..]) => {
            (Some(dtype), rest)
        }
        (Global::RebuildTensorV2, rest) => (None, rest),
        _ => return Err(malformed("a tensor without a dtype")),
    };
    match *rest {
        [] | [Value::None] => {}
        [Value::Dict(metadata)] if pickle.entries(metadata).next().is_none() => {}
        _ => return Err(malformed("a tensor with a conjugate or negative bit, or other metadata")),
    }

    let Value::Call(Global::LoadFromBytes, loaded) = stored else {
        return Err(malformed("a tensor without a storage"));
    };
    let &[Value::Bytes(stream)] = pickle.members(loaded) else {
        return Err(malformed("a storage that is not loaded from bytes"));
    };
    let storage = storage::read(message, stream)?;
    let ((Some(dtype), None) | (None, Some(dtype))) = (storage.dtype, named) else {
        return Err(malformed("a tensor and a storage of which not exactly one has a dtype"));
    };
    view(message, &storage, dtype, offset, pickle.members(size), pickle.members(stride), limits)
}

fn view(
    message: &Bytes,
    storage: &Storage,
    dtype: DType,
    offset: Value<'_>,
    size: &[Value<'_>],
    stride: &[Value<'_>],
    limits: &Limits,
) -> Result<PickledTensor, DecodeError> {
    if matches!(dtype, DType::QInt8 | DType::QUInt8 | DType::QInt32 | DType::QUInt4x2 | DType::QUInt2x4) {
        return Err(malformed("a quantized tensor, whose scale is not read"));
    }
    if size.len() != stride.len() {
        return Err(malformed("a tensor with more sizes than strides, or fewer"));
    }
    let metadata = TensorMetadata::new(dtype, shape(size)?).map_err(impossible)?;
    let (bytes, limit) = (metadata.payload_bytes(), limits.tensor_bytes);
    if bytes > limit {
        return Err(DecodeError::TensorTooLong { bytes, limit });
    }

    let item_bytes = dtype.item_bytes();
    let outside = || malformed("a tensor that reaches beyond its storage");
    let in_bytes = |count: usize| count.checked_mul(item_bytes).ok_or_else(outside);
    let mut strides = [0; MAX_DIMS];
    // From the first byte of the first element to the last byte of the last one.
    let mut extent = item_bytes;
    for ((stride, value), dim) in strides.iter_mut().zip(stride).zip(metadata.shape().dims()) {
        *stride = in_bytes(natural(*value, "a stride")?)?;
        let reach = dim.saturating_sub(1).checked_mul(*stride).ok_or_else(outside)?;
        extent = extent.checked_add(reach).ok_or_else(outside)?;
    }
    if bytes == 0 {
        extent = 0;
    }
    let start = in_bytes(natural(offset, "an offset")?)?;
    if start.checked_add(extent).is_none_or(|end| end > storage.data.len) {
        return Err(outside());
    }
    let start = storage.data.start + start;
    Ok(PickledTensor { metadata, bytes: message.slice(start..start + extent), strides })
}

/// The shape of these sizes.
pub(super) fn shape(sizes: &[Value<'_>]) -> Result<Shape, DecodeError> {
    let mut dims = [0; MAX_DIMS];
    let (count, limit) = (sizes.len(), MAX_DIMS);
    let dims = dims.get_mut(..count).ok_or(DecodeError::TooManyDimensions { count, limit })?;
    for (dim, size) in dims.iter_mut().zip(sizes) {
        *dim = natural(*size, "a size")?;
    }
    Shape::new(dims).map_err(impossible)
}

fn natural(value: Value<'_>, what: &str) -> Result<usize, DecodeError> {
    match value {
        Value::Int(number) => usize::try_from(number)
            .map_err(|_| DecodeError::Malformed(format!("{what} of {number} is below 0"))),
        other => Err(DecodeError::Malformed(format!("{what} that is {}, not a length", other.kind()))),
    }
}

fn impossible(error: Error) -> DecodeError {
    DecodeError::Shape(error.to_string())
}

fn malformed(fault: &str) -> DecodeError {
    DecodeError::Malformed(fault.into())
}

//! Tensors: what travels through a pipe.
//!
//! A [`Tensor`] is a [`DType`], a [`Shape`] and a payload: contiguous, row-major, little-endian, as
//! torch lays out a contiguous tensor. Payloads are reference counted and immutable, so cloning a
//! tensor, queueing it and keeping it for a replay copy nothing. Memory to receive into comes from a
//! [`BufferPool`].

// Owning aligned memory and mapping a file can't do without; the module says why it may.
#[allow(unsafe_code)]
mod buffer;
mod dtype;
mod element;
mod exclusive;
mod pool;
#[cfg(feature = "safetensors")]
pub mod safetensors;
mod shape;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

pub use buffer::ALIGNMENT;
#[cfg(feature = "safetensors")]
pub use buffer::map_file;
pub use dtype::DType;
pub use element::Element;
pub use exclusive::TensorMut;
pub use pool::{BufferMut, BufferPool, PoolStats};
pub use shape::{MAX_DIMS, Shape};

use crate::device::{Device, DeviceBuffer, Location, Staging};
use crate::error::{Error, Result};

#[cfg(target_endian = "big")]
compile_error!("payloads are little-endian on the wire and in files, and are not converted");

/// What a pipe moves, one at a time.
///
/// `None` is an item like any other: it takes its place in the order, for whatever sender and
/// receiver agreed that it means (vLLM: nothing was found). It is neither the end of the pipe nor a
/// failure.
pub type Item = Option<Tensor>;

/// A contiguous, row-major tensor. Cloning it shares the payload.
///
/// Equality is that of dtype, shape and bytes. So it is bitwise: a NaN equals itself, and 0.0 does
/// not equal -0.0. On a device, where a look at the bytes takes a copy, it is that of the memory.
///
/// ```
/// use half::bf16;
/// use kvpipe::tensor::{DType, Tensor};
///
/// let keys = Tensor::from_slice([2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0].map(bf16::from_f32))?;
/// assert_eq!(keys.dtype(), DType::BFloat16);
/// assert_eq!(keys.as_slice::<bf16>()?[5].to_f32(), 6.0);
/// assert_eq!(format!("{keys:?}"), "Tensor(bfloat16 [2, 3], 12 bytes, [1.0, 2.0, 3.0, ...])");
/// # Ok::<(), kvpipe::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Tensor {
    dtype: DType,
    shape: Shape,
    payload: Payload,
}

/// Where a tensor's bytes are.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Payload {
    /// In host memory.
    Host(Bytes),
    /// On a device.
    Device(DeviceBuffer),
}

impl Tensor {
    /// A tensor over bytes that are already there, which are not copied: a received buffer, part of
    /// a mapped file (`map_file`, feature `safetensors`), or anything else that became [`Bytes`].
    ///
    /// The bytes may lie at any address; only [`as_slice`](Self::as_slice) asks for alignment.
    ///
    /// # Errors
    /// [`Error::Misuse`] unless `bytes` is exactly as long as
    /// [`Shape::byte_len`](Shape::byte_len) says, or if the shape is none.
    pub fn new(dtype: DType, shape: impl TryInto<Shape, Error: Into<Error>>, bytes: Bytes) -> Result<Self> {
        let shape = shape.try_into().map_err(Into::into)?;
        check_len(dtype, &shape, bytes.len())?;
        Ok(Self { dtype, shape, payload: Payload::Host(bytes) })
    }

    /// A tensor over memory on a device, which is not copied.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn on_device(
        dtype: DType,
        shape: impl TryInto<Shape, Error: Into<Error>>,
        buffer: DeviceBuffer,
    ) -> Result<Self> {
        let shape = shape.try_into().map_err(Into::into)?;
        check_len(dtype, &shape, buffer.len())?;
        Ok(Self { dtype, shape, payload: Payload::Device(buffer) })
    }

    /// A tensor with a copy of `elements`, in row-major order, in memory of its own that is aligned
    /// to [`ALIGNMENT`].
    ///
    /// # Errors
    /// [`Error::Misuse`] unless there are as many elements as the shape has, or if the shape is none;
    /// [`Error::Io`] if there is no memory.
    pub fn from_slice<T: Element>(
        shape: impl TryInto<Shape, Error: Into<Error>>,
        elements: &[T],
    ) -> Result<Self> {
        let shape = checked_shape(shape, elements)?;
        let bytes: &[u8] = bytemuck::cast_slice(elements);
        let mut buffer = BufferMut::zeroed(bytes.len())?;
        buffer.copy_from_slice(bytes);
        Self::new(T::DTYPE, shape, buffer.freeze())
    }

    /// A tensor that takes over `elements`, in row-major order, without copying them.
    ///
    /// # Errors
    /// [`Error::Misuse`] unless there are as many elements as the shape has, or if the shape is none.
    pub fn from_vec<T: Element>(
        shape: impl TryInto<Shape, Error: Into<Error>>,
        elements: Vec<T>,
    ) -> Result<Self> {
        let shape = checked_shape(shape, &elements)?;
        Self::new(T::DTYPE, shape, Bytes::from_owner(Elements(elements)))
    }

    /// The type of the elements.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dimensions.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The bytes, wherever they are.
    #[must_use]
    pub fn payload(&self) -> &Payload {
        &self.payload
    }

    /// The payload's length in bytes.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        match &self.payload {
            Payload::Host(bytes) => bytes.len(),
            Payload::Device(buffer) => buffer.len(),
        }
    }

    /// Where the payload is.
    #[must_use]
    pub fn location(&self) -> Location {
        match &self.payload {
            Payload::Host(_) => Location::Cpu,
            Payload::Device(buffer) => buffer.device().location(),
        }
    }

    /// The payload in host memory: elements in row-major order, little-endian.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the payload is not in host memory: [`to_host`](Self::to_host) copies it.
    pub fn bytes(&self) -> Result<&Bytes> {
        match &self.payload {
            Payload::Host(bytes) => Ok(bytes),
            Payload::Device(_) => Err(Error::Misuse(format!(
                "a tensor on {} has no bytes in host memory; copy it with to_host",
                self.location()
            ))),
        }
    }

    /// The payload's memory on its device; None if it is in host memory.
    #[must_use]
    pub fn device_buffer(&self) -> Option<&DeviceBuffer> {
        match &self.payload {
            Payload::Host(_) => None,
            Payload::Device(buffer) => Some(buffer),
        }
    }

    /// The tensor in host memory: a copy of its payload, or what it is already.
    ///
    /// Whoever copies often keeps a [`Staging`].
    ///
    /// # Errors
    /// [`Error::Cuda`] if the copy fails, or the work that makes the payload; [`Error::Io`] if there is no
    /// memory.
    ///
    /// # Cancel safety
    /// Nothing is lost but the copy.
    pub async fn to_host(&self) -> Result<Self> {
        let Payload::Device(buffer) = &self.payload else { return Ok(self.clone()) };
        let mut bytes = BufferMut::zeroed(buffer.len())?;
        Staging::new(buffer.device())?.to_host(buffer, &mut bytes).await?;
        Self::new(self.dtype, self.shape, bytes.freeze())
    }

    /// The tensor on `device`: a copy of its payload, or what it is already. From one device to another
    /// it goes through host memory.
    ///
    /// # Errors
    /// As [`to_host`](Self::to_host).
    ///
    /// # Cancel safety
    /// Nothing is lost but the copy.
    pub async fn to_device(&self, device: &Arc<dyn Device>) -> Result<Self> {
        if self.location() == device.location() {
            return Ok(self.clone());
        }
        let host = self.to_host().await?;
        let buffer = Staging::new(device)?.to_device(host.bytes()?).await?;
        Self::on_device(self.dtype, self.shape, buffer)
    }

    /// The elements in row-major order, not copied.
    ///
    /// # Errors
    /// [`Error::Misuse`] if `T` is not the dtype's element type, if the payload is not in host
    /// memory, or if it does not lie at an address that `T` can have, which can happen only to
    /// foreign [`Bytes`]: use [`to_vec`](Self::to_vec) then. Also if an element of a `bool` tensor is
    /// a byte other than 0 or 1, which needs a look at all of them.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        let bytes = self.bytes_of::<T>()?;
        if bytes.is_empty() {
            // Wherever an empty payload points.
            return Ok(&[]);
        }
        bytemuck::checked::try_cast_slice(bytes).map_err(|error| match error {
            bytemuck::checked::CheckedCastError::InvalidBitPattern => self.no_such_element(),
            bytemuck::checked::CheckedCastError::PodCastError(_) => Error::Misuse(format!(
                "the payload of {} {} is not aligned to {} bytes; copy it with to_vec",
                self.dtype,
                self.shape,
                align_of::<T>()
            )),
        })
    }

    /// A copy of the elements in row-major order, wherever the payload lies.
    ///
    /// # Errors
    /// As [`as_slice`](Self::as_slice), alignment apart.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.bytes_of::<T>()?
            .chunks_exact(size_of::<T>())
            .map(|item| bytemuck::checked::try_pod_read_unaligned(item).map_err(|_| self.no_such_element()))
            .collect()
    }

    /// The rows of the first dimension from this one on that `shape` has. Nothing is copied.
    #[cfg(not(loom))]
    pub(crate) fn slice_rows(&self, begin: usize, shape: Shape) -> Result<Self> {
        let (_, row) = shape.rows();
        let begin = Shape::of_rows(begin, row)?.byte_len(self.dtype)?;
        let range = begin..begin + shape.byte_len(self.dtype)?;
        match &self.payload {
            Payload::Host(bytes) => Self::new(self.dtype, shape, bytes.slice(range)),
            Payload::Device(buffer) => Self::on_device(self.dtype, shape, buffer.slice(range)?),
        }
    }

    fn bytes_of<T: Element>(&self) -> Result<&Bytes> {
        if T::DTYPE != self.dtype {
            return Err(Error::Misuse(format!("a tensor of {} can't be read as {}", self.dtype, T::DTYPE)));
        }
        self.bytes()
    }

    /// Only `bool` has bytes that are no element.
    fn no_such_element(&self) -> Error {
        Error::Misuse(format!("the payload of {} {} has a byte other than 0 and 1", self.dtype, self.shape))
    }
}

/// What a person needs to recognise it: dtype, shape, size and the first elements.
impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {}, {} bytes, ", self.dtype, self.shape, self.byte_len())?;
        match &self.payload {
            Payload::Host(bytes) => element::preview(f, self.dtype, bytes, PREVIEW_ELEMENTS)?,
            Payload::Device(_) => write!(f, "on {}", self.location())?,
        }
        f.write_str(")")
    }
}

/// The place and the length only: the bytes mean nothing without their dtype.
impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(bytes) => write!(f, "Host({} bytes)", bytes.len()),
            Self::Device(buffer) => write!(f, "{buffer:?}"),
        }
    }
}

/// How many elements `Debug` shows.
const PREVIEW_ELEMENTS: usize = 3;

/// An owner for [`Bytes`]: `Vec<T>` can't become `Vec<u8>`, which would be freed with another
/// alignment than it was allocated with.
struct Elements<T>(Vec<T>);

impl<T: Element> AsRef<[u8]> for Elements<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

fn check_len(dtype: DType, shape: &Shape, len: usize) -> Result<()> {
    let expected = shape.byte_len(dtype)?;
    match len == expected {
        true => Ok(()),
        false => Err(Error::Misuse(format!("a tensor {dtype} {shape} takes {expected} bytes, not {len}"))),
    }
}

fn checked_shape<T: Element>(
    shape: impl TryInto<Shape, Error: Into<Error>>,
    elements: &[T],
) -> Result<Shape> {
    let shape = shape.try_into().map_err(Into::into)?;
    if elements.len() != shape.element_count() {
        return Err(Error::Misuse(format!(
            "a tensor of shape {shape} has {} elements, not {}",
            shape.element_count(),
            elements.len()
        )));
    }
    Ok(shape)
}

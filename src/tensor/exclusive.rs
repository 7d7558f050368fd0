//! Tensors that are still written to.

use std::fmt;
use std::sync::Arc;

use super::{BufferMut, BufferPool, DType, Element, Shape, Tensor, check_len};
use crate::device::{Device, DeviceBufferMut, Location};
use crate::error::{Error, Result};

/// A contiguous, row-major tensor in memory of its own, to be written to: the output of a collective
/// operation, or what one changes in place. [`freeze`](Self::freeze) makes it a [`Tensor`].
///
/// ```
/// use kvpipe::tensor::{DType, TensorMut};
///
/// let mut sums = TensorMut::zeroed(DType::Float32, [2, 2])?;
/// sums.as_slice_mut::<f32>()?[3] = 0.5;
/// assert_eq!(sums.freeze().as_slice::<f32>()?, [0.0, 0.0, 0.0, 0.5]);
/// # Ok::<(), kvpipe::Error>(())
/// ```
pub struct TensorMut {
    dtype: DType,
    shape: Shape,
    payload: PayloadMut,
}

/// Where a [`TensorMut`]'s bytes are.
#[derive(Debug)]
enum PayloadMut {
    /// In host memory.
    Host(BufferMut),
    /// On a device.
    Device(DeviceBufferMut),
}

impl TensorMut {
    /// A tensor of zeros in host memory.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the shape is none; [`Error::Io`] if there is no memory.
    pub fn zeroed(dtype: DType, shape: impl TryInto<Shape, Error: Into<Error>>) -> Result<Self> {
        let shape = shape.try_into().map_err(Into::into)?;
        let payload = PayloadMut::Host(BufferMut::zeroed(shape.byte_len(dtype)?)?);
        Ok(Self { dtype, shape, payload })
    }

    /// A tensor in memory of a pool, to be written over: its elements are what was there.
    ///
    /// # Errors
    /// As [`zeroed`](Self::zeroed).
    pub fn in_pool(
        pool: &BufferPool,
        dtype: DType,
        shape: impl TryInto<Shape, Error: Into<Error>>,
    ) -> Result<Self> {
        let shape = shape.try_into().map_err(Into::into)?;
        let payload = PayloadMut::Host(pool.take(shape.byte_len(dtype)?)?);
        Ok(Self { dtype, shape, payload })
    }

    /// A copy of `elements`, in row-major order.
    ///
    /// # Errors
    /// As [`Tensor::from_slice`].
    pub fn from_slice<T: Element>(
        shape: impl TryInto<Shape, Error: Into<Error>>,
        elements: &[T],
    ) -> Result<Self> {
        let shape = super::checked_shape(shape, elements)?;
        let bytes: &[u8] = bytemuck::cast_slice(elements);
        let mut buffer = BufferMut::zeroed(bytes.len())?;
        buffer.copy_from_slice(bytes);
        Self::new(T::DTYPE, shape, buffer)
    }

    /// A tensor over memory that is there already.
    ///
    /// # Errors
    /// [`Error::Misuse`] unless it is exactly as long as [`Shape::byte_len`] says.
    pub fn new(
        dtype: DType,
        shape: impl TryInto<Shape, Error: Into<Error>>,
        buffer: BufferMut,
    ) -> Result<Self> {
        let shape = shape.try_into().map_err(Into::into)?;
        check_len(dtype, &shape, buffer.len())?;
        Ok(Self { dtype, shape, payload: PayloadMut::Host(buffer) })
    }

    /// A tensor over memory on a device.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn on_device(
        dtype: DType,
        shape: impl TryInto<Shape, Error: Into<Error>>,
        buffer: DeviceBufferMut,
    ) -> Result<Self> {
        let shape = shape.try_into().map_err(Into::into)?;
        check_len(dtype, &shape, buffer.len())?;
        Ok(Self { dtype, shape, payload: PayloadMut::Device(buffer) })
    }

    /// A tensor on `device`, to be written over: its elements are what was there.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the shape is none; [`Error::Cuda`] if there is no memory.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn allocated(
        device: &Arc<dyn Device>,
        dtype: DType,
        shape: impl TryInto<Shape, Error: Into<Error>>,
    ) -> Result<Self> {
        let shape = shape.try_into().map_err(Into::into)?;
        let buffer = DeviceBufferMut::allocated(device, shape.byte_len(dtype)?).await?;
        Ok(Self { dtype, shape, payload: PayloadMut::Device(buffer) })
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

    /// The payload's length in bytes.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        match &self.payload {
            PayloadMut::Host(buffer) => buffer.len(),
            PayloadMut::Device(buffer) => buffer.len(),
        }
    }

    /// Where the payload is.
    #[must_use]
    pub fn location(&self) -> Location {
        match &self.payload {
            PayloadMut::Host(_) => Location::Cpu,
            PayloadMut::Device(buffer) => buffer.device().location(),
        }
    }

    /// The payload in host memory.
    ///
    /// # Errors
    /// [`Error::Misuse`] if it is on a device.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        match &mut self.payload {
            PayloadMut::Host(buffer) => Ok(buffer),
            PayloadMut::Device(buffer) => Err(not_here(buffer.device().location())),
        }
    }

    /// The elements in row-major order.
    ///
    /// # Errors
    /// As [`Tensor::as_slice`].
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.check_element::<T>()?;
        match &self.payload {
            PayloadMut::Host(buffer) if buffer.is_empty() => Ok(&[]),
            PayloadMut::Host(buffer) => bytemuck::checked::try_cast_slice(buffer)
                .map_err(|error| Error::Misuse(format!("{} {}: {error}", self.dtype, self.shape))),
            PayloadMut::Device(buffer) => Err(not_here(buffer.device().location())),
        }
    }

    /// The elements in row-major order, to be changed.
    ///
    /// # Errors
    /// [`Error::Misuse`] if `T` is not the dtype's element type, or the payload not in host memory.
    pub fn as_slice_mut<T: Element + bytemuck::AnyBitPattern>(&mut self) -> Result<&mut [T]> {
        self.check_element::<T>()?;
        let what = format!("{} {}", self.dtype, self.shape);
        let bytes = self.bytes_mut()?;
        if bytes.is_empty() {
            return Ok(&mut []);
        }
        bytemuck::try_cast_slice_mut(bytes).map_err(|error| Error::Misuse(format!("{what}: {error}")))
    }

    /// Makes it immutable and shareable, without copying it.
    #[must_use]
    pub fn freeze(self) -> Tensor {
        let payload = match self.payload {
            PayloadMut::Host(buffer) => super::Payload::Host(buffer.freeze()),
            PayloadMut::Device(buffer) => super::Payload::Device(buffer.freeze()),
        };
        Tensor { dtype: self.dtype, shape: self.shape, payload }
    }

    /// Its memory, if it is on a device.
    #[cfg(all(unix, not(loom)))]
    pub(crate) fn into_device_buffer(self) -> Option<DeviceBufferMut> {
        match self.payload {
            PayloadMut::Host(_) => None,
            PayloadMut::Device(buffer) => Some(buffer),
        }
    }

    fn check_element<T: Element>(&self) -> Result<()> {
        match T::DTYPE == self.dtype {
            true => Ok(()),
            false => Err(Error::Misuse(format!("a tensor of {} is not one of {}", self.dtype, T::DTYPE))),
        }
    }
}

fn not_here(location: Location) -> Error {
    Error::Misuse(format!("a tensor on {location} has no bytes in host memory"))
}

impl fmt::Debug for TensorMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "TensorMut({} {}, {} bytes on {})",
            self.dtype,
            self.shape,
            self.byte_len(),
            self.location()
        )
    }
}

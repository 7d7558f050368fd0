//! What an item is: None, or the dtype and shape of a tensor.
//!
//! # On the wire
//!
//! ```text
//! version  u8      1
//! tag      u8      0: None, and nothing follows; 1: a tensor
//! dtype    u8      DType::code
//! ndim     u8      0 to 14
//! dims     u64 LE  ndim times, outermost first
//! payload  u64 LE  its length in bytes
//! ```
//!
//! The payload's length follows from dtype and shape. It is sent all the same, and must agree: a peer
//! that counts differently is found out before it is misunderstood.

use super::codec::{self, Message, Reader, Writer};
use super::error::DecodeError;
use crate::error::Result;
use crate::tensor::{DType, Item, MAX_DIMS, Shape, Tensor};

/// The version of this format.
const VERSION: u8 = 1;

/// What an item is.
///
/// ```
/// use kvpipe::tensor::Tensor;
/// use kvpipe::wire::Metadata;
///
/// let item = Some(Tensor::from_vec([2, 3], vec![0.5_f32; 6])?);
/// let metadata = Metadata::of(&item);
/// assert_eq!(metadata.payload_bytes(), 24);
/// assert_eq!(Metadata::decode(&metadata.encode())?, metadata);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metadata {
    /// The item None. It has no payload.
    None,
    /// A tensor.
    Tensor(TensorMetadata),
}

impl Metadata {
    /// The longest encoding, in bytes: that of a tensor with the most dimensions.
    pub const MAX_BYTES: usize = 4 + size_of::<u64>() * (MAX_DIMS + 1);

    /// The metadata of an item.
    #[must_use]
    pub fn of(item: &Item) -> Self {
        item.as_ref().map_or(Self::None, |tensor| Self::Tensor(tensor.into()))
    }

    /// The length of the item's payload in bytes.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Tensor(tensor) => tensor.payload_bytes,
        }
    }

    /// The encoding, at most [`MAX_BYTES`](Self::MAX_BYTES).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::MAX_BYTES);
        self.encode_into(&mut bytes);
        bytes
    }

    /// Appends the encoding. Does not allocate if `out` has the room.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        codec::encode_into(self, out);
    }

    /// The metadata that `bytes` is, all of them.
    ///
    /// # Errors
    /// Whatever makes it other bytes than [`encode`](Self::encode) gives, in particular a payload
    /// length that does not agree with dtype and shape, and a shape that this machine can't hold.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::decode(bytes)
    }
}

/// A dtype and a shape whose payload length is known to fit `isize`, and so to be representable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMetadata {
    dtype: DType,
    shape: Shape,
    payload_bytes: usize,
}

impl TensorMetadata {
    /// Metadata of a tensor with this dtype and shape.
    ///
    /// # Errors
    /// [`Error::Misuse`](crate::Error::Misuse) if the payload's length does not fit `isize`.
    pub fn new(dtype: DType, shape: Shape) -> Result<Self> {
        Ok(Self { dtype, shape, payload_bytes: shape.byte_len(dtype)? })
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

    /// The length of the payload in bytes.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }
}

impl From<&Tensor> for TensorMetadata {
    fn from(tensor: &Tensor) -> Self {
        Self { dtype: tensor.dtype(), shape: *tensor.shape(), payload_bytes: tensor.byte_len() }
    }
}

/// Tags on the wire.
mod tag {
    pub(super) const NONE: u8 = 0;
    pub(super) const TENSOR: u8 = 1;
}

impl Message for Metadata {
    fn write(&self, out: &mut Writer<'_>) {
        out.put(&VERSION);
        match self {
            Self::None => out.put(&tag::NONE),
            Self::Tensor(tensor) => {
                out.put(&tag::TENSOR);
                tensor.write(out);
            }
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let version: u8 = input.take()?;
        if version != VERSION {
            let (found, supported) = (version.into(), VERSION.into());
            return Err(DecodeError::Version { what: "metadata", found, supported });
        }
        match input.take()? {
            tag::NONE => Ok(Self::None),
            tag::TENSOR => TensorMetadata::read(input).map(Self::Tensor),
            found => Err(DecodeError::UnknownTag { what: "metadata tag", found: u8::into(found) }),
        }
    }
}

impl Message for TensorMetadata {
    fn write(&self, out: &mut Writer<'_>) {
        let dims = self.shape.dims();
        out.put(&self.dtype.code());
        out.put(&(dims.len() as u8));
        for dim in dims {
            out.put(&(*dim as u64));
        }
        out.put(&(self.payload_bytes as u64));
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let code = input.take()?;
        let dtype = DType::from_code(code).ok_or(DecodeError::UnknownDType { code })?;

        let mut dims = [0; MAX_DIMS];
        let count = usize::from(input.take::<u8>()?);
        let too_many = DecodeError::TooManyDimensions { count, limit: MAX_DIMS };
        let dims = dims.get_mut(..count).ok_or(too_many)?;
        for dim in &mut *dims {
            let declared: u64 = input.take()?;
            *dim = usize::try_from(declared).map_err(|_| {
                DecodeError::Shape(format!("a dimension of {declared} is over the limit of {}", usize::MAX))
            })?;
        }
        let declared: u64 = input.take()?;

        let impossible = |error: crate::Error| DecodeError::Shape(error.to_string());
        let shape = Shape::new(dims).map_err(impossible)?;
        let tensor = Self::new(dtype, shape).map_err(impossible)?;
        let computed = tensor.payload_bytes as u64;
        if declared != computed {
            return Err(DecodeError::PayloadLength { declared, computed });
        }
        Ok(tensor)
    }
}

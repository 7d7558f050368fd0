//! The few values that ranks exchange through a group, and kvpipe's own encoding of them.
//!
//! # On the wire
//!
//! ```text
//! version  u8   1
//! kind     u8   0 None, 1 text, 2 bytes, 3 metadata, 4 tensor, 5 unique id
//! body          of a text its UTF-8, of bytes themselves, of metadata its encoding, of a unique id
//!               its 128 bytes; of a tensor the length of its metadata (u8), the metadata, the payload
//! ```
//!
//! The body goes on to the end of the value.

use bytes::{BufMut, Bytes, BytesMut};

use super::error::DecodeError;
use super::metadata::Metadata;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The version of this format.
const VERSION: u8 = 1;

/// What ranks send one another through a group: the values that vLLM's protocol has, and raw bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Object {
    /// Nothing, which is an object like any other.
    None,
    /// A text.
    Text(String),
    /// Any bytes. vLLM's protocol has no such value.
    Bytes(Bytes),
    /// What an item is: what precedes a tensor in vLLM's pipe, or stands for a None.
    Metadata(Metadata),
    /// A tensor in host memory.
    Tensor(Tensor),
    /// NCCL's unique id, by which ranks find one communicator.
    UniqueId(UniqueId),
}

/// NCCL's unique id (nccl.h, `NCCL_UNIQUE_ID_BYTES`). Whoever has it can join the communicator.
#[derive(Clone, Copy, PartialEq, Eq)]
// NCCL takes and gives it as a C structure.
#[repr(C)]
pub struct UniqueId(pub [u8; Self::BYTES]);

impl UniqueId {
    /// How long it is.
    pub const BYTES: usize = 128;

    /// The id that these bytes are.
    ///
    /// # Errors
    /// [`Error::Misuse`] unless they are exactly [`BYTES`](Self::BYTES).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let wrong = |_| Error::Misuse(format!("a unique id has {} bytes, not {}", Self::BYTES, bytes.len()));
        bytes.try_into().map(Self).map_err(wrong)
    }
}

/// Without the bytes, which say where to connect.
impl std::fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UniqueId(..)")
    }
}

/// Kinds on the wire.
mod kind {
    pub(super) const NONE: u8 = 0;
    pub(super) const TEXT: u8 = 1;
    pub(super) const BYTES: u8 = 2;
    pub(super) const METADATA: u8 = 3;
    pub(super) const TENSOR: u8 = 4;
    pub(super) const UNIQUE_ID: u8 = 5;
}

impl Object {
    /// What it is, in a word or two, for errors.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Text(_) => "a text",
            Self::Bytes(_) => "bytes",
            Self::Metadata(_) => "metadata",
            Self::Tensor(_) => "a tensor",
            Self::UniqueId(_) => "a unique id",
        }
    }

    /// kvpipe's own encoding.
    ///
    /// # Errors
    /// [`Error::Misuse`] for a tensor that is not in host memory.
    pub fn encode(&self) -> Result<Bytes> {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        match self {
            Self::None => out.put_u8(kind::NONE),
            Self::Text(text) => {
                out.put_u8(kind::TEXT);
                out.put_slice(text.as_bytes());
            }
            Self::Bytes(bytes) => {
                out.put_u8(kind::BYTES);
                out.put_slice(bytes);
            }
            Self::Metadata(metadata) => {
                out.put_u8(kind::METADATA);
                out.put_slice(&metadata.encode());
            }
            Self::Tensor(tensor) => {
                let (metadata, payload) = (Metadata::Tensor(tensor.into()).encode(), tensor.bytes()?);
                out.reserve(2 + metadata.len() + payload.len());
                out.put_u8(kind::TENSOR);
                // At most Metadata::MAX_BYTES.
                out.put_u8(metadata.len() as u8);
                out.put_slice(&metadata);
                out.put_slice(payload);
            }
            Self::UniqueId(id) => {
                out.put_u8(kind::UNIQUE_ID);
                out.put_slice(&id.0);
            }
        }
        Ok(out.freeze())
    }

    /// The object that `bytes` is, all of them. Bytes and payloads are parts of `bytes`, not copies, and
    /// so lie at any address.
    ///
    /// # Errors
    /// Whatever makes it other bytes than [`encode`](Self::encode) gives.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let (&[version, kind], _) = bytes.split_first_chunk().ok_or(DecodeError::Truncated)?;
        if version != VERSION {
            let (found, supported) = (version.into(), VERSION.into());
            return Err(DecodeError::Version { what: "object", found, supported });
        }
        let body = bytes.slice(2..);
        match kind {
            kind::NONE if body.is_empty() => Ok(Self::None),
            kind::NONE => Err(DecodeError::TrailingBytes { count: body.len() }),
            kind::TEXT => {
                let text = str::from_utf8(&body).map_err(|_| DecodeError::NotUtf8 { what: "text" })?;
                Ok(Self::Text(text.into()))
            }
            kind::BYTES => Ok(Self::Bytes(body)),
            kind::METADATA => Metadata::decode(&body).map(Self::Metadata),
            kind::TENSOR => tensor(&body).map(Self::Tensor),
            kind::UNIQUE_ID => {
                let id = <[u8; UniqueId::BYTES]>::try_from(&body[..]);
                let wrong = |_| DecodeError::Malformed(format!("a unique id of {} bytes", body.len()));
                id.map(|id| Self::UniqueId(UniqueId(id))).map_err(wrong)
            }
            found => Err(DecodeError::UnknownTag { what: "kind of object", found: found.into() }),
        }
    }
}

fn tensor(body: &Bytes) -> Result<Tensor, DecodeError> {
    let (length, rest) = body.split_first().ok_or(DecodeError::Truncated)?;
    let length = usize::from(*length);
    let metadata = Metadata::decode(rest.get(..length).ok_or(DecodeError::Truncated)?)?;
    let Metadata::Tensor(metadata) = metadata else {
        return Err(DecodeError::Malformed("a tensor whose metadata says None".into()));
    };
    let payload = body.slice(1 + length..);
    Tensor::new(metadata.dtype(), *metadata.shape(), payload)
        .map_err(|error| DecodeError::Shape(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_kind() -> Vec<Object> {
        let tensor = Tensor::from_slice([2], &[1_u16, 2]).unwrap();
        vec![
            Object::None,
            Object::Text(String::new()),
            Object::Text("barrier_é".into()),
            Object::Bytes(Bytes::from_static(b"\x00\xff")),
            Object::Metadata(Metadata::None),
            Object::Metadata(Metadata::Tensor((&tensor).into())),
            Object::Tensor(tensor),
            Object::Tensor(Tensor::from_slice([0, 3], &[0.0_f32; 0]).unwrap()),
            Object::UniqueId(UniqueId([7; UniqueId::BYTES])),
        ]
    }

    #[test]
    fn every_kind_survives_and_truncated_or_lengthened_is_another_or_none() {
        for object in every_kind() {
            let bytes = object.encode().unwrap();
            assert_eq!(Object::decode(&bytes), Ok(object.clone()));
            for length in 0..bytes.len() {
                assert_ne!(Object::decode(&bytes.slice(..length)), Ok(object.clone()));
            }
            let longer = Bytes::from([&bytes[..], b"x"].concat());
            assert_ne!(Object::decode(&longer), Ok(object));
        }
    }

    #[test]
    fn every_kind_is_called_by_its_name() {
        let mut names: Vec<_> = every_kind().iter().map(Object::kind).collect();
        names.dedup();
        assert_eq!(names, ["None", "a text", "bytes", "metadata", "a tensor", "a unique id"]);
    }

    #[test]
    fn debug_shows_nothing_of_a_unique_id() {
        assert_eq!(format!("{:?}", UniqueId([7; UniqueId::BYTES])), "UniqueId(..)");
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let refused =
            |bytes: &'static [u8]| Object::decode(&Bytes::from_static(bytes)).unwrap_err().to_string();
        assert_eq!(refused(b""), "the message is truncated");
        assert_eq!(refused(b"\x02\x00"), "object version 2 is not supported, only version 1");
        assert_eq!(refused(b"\x01\x09"), "unknown kind of object 9");
        assert_eq!(refused(b"\x01\x00x"), "1 trailing bytes after the message");
        assert_eq!(refused(b"\x01\x01\xff"), "the text is not valid utf-8");
        assert_eq!(refused(b"\x01\x05abc"), "malformed: a unique id of 3 bytes");
        assert_eq!(refused(b"\x01\x04\x02\x01\x00"), "malformed: a tensor whose metadata says None");
    }
}

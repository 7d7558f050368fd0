//! The values of vLLM's protocol as Python pickles them, and no other value.
//!
//! A pickle is a program, and Python's `pickle.loads` runs whatever it names. Here a pickle is data: an
//! operation that the protocol's values don't need is refused, names are compared and never imported,
//! and calls are recognised and never made.
//!
//! | value | from | in protocol |
//! |---|---|---|
//! | None, a text | `broadcast_obj`, barriers | 2 to 5 |
//! | metadata: `{"dtype": torch.float16, "shape": torch.Size([2, 3])}`, or both None | `PyNcclPipe` | 2 to 5 |
//! | a tensor in the cpu's memory | `PyNcclPipe` | 3 to 5 |
//! | NCCL's unique id | `PyNcclCommunicator` | 3 to 5 |
//!
//! We write protocol 4, as vLLM does. Protocol 2 has no bytes of its own; Python disguises them as a
//! call of `_codecs.encode`, which is refused.
//!
//! The bytes are those of CPython 3.8 to 3.13, torch 2.8 to 2.15 and vLLM 0.9 to 0.12.
//!
//! # Tensors
//!
//! A pickled tensor is a view (offset, sizes, strides) of a storage, all of which travels. It becomes a
//! contiguous one: [`decode`] copies only where the view is not contiguous already, and
//! [`decode_tensor`] leaves the copy to the caller, who can reserve room first. `requires_grad` is
//! ignored. Refused are conjugate and negative bits, backward hooks, quantized, sparse and meta
//! tensors, subclasses, parameters, other devices and big-endian storages.
//!
//! # Hostile input
//!
//! Decoding never panics, never recurses and never executes anything. It asks for at most
//! [`WORKING_BYTES_MAX`] bytes of memory, whatever the message; beside that, for a text the text, and
//! for a tensor that is not contiguous its copy, which [`Limits::tensor_bytes`] bounds before it is
//! made: a few bytes can claim to expand into any number. Payloads are parts of the message.
//!
//! Unlike the rest of [`wire`](crate::wire), this module accepts more than one form of a value: CPython,
//! its pure-Python twin and several protocols write different ones, with or without frames and memo.
//! What is accepted beyond that means the same, since a value is judged only once it is complete.

mod encode;
mod machine;
mod opcode;
mod storage;
mod tensor;
mod value;

use bytes::Bytes;

use super::error::DecodeError;
use super::metadata::{Metadata, TensorMetadata};
use super::object::{Object, UniqueId};
use machine::Pickle;
use value::{Global, Kinds, Owner, Span, Value};

pub use encode::{check_tensor, encode, encode_tensor};
pub use tensor::PickledTensor;

/// The most memory that decoding asks for beside texts and copies, whatever the message.
pub const WORKING_BYTES_MAX: usize = 64 << 10;

/// What a reader takes at most.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The longest message, in bytes; a longer one is not looked at. For a tensor that includes all of
    /// the storage that it is a view of. 4 GiB and 64 KiB, what a tensor of `tensor_bytes` takes.
    pub message_bytes: usize,
    /// The largest tensor, in bytes once it is contiguous. 4 GiB, as a pipe's `max_item_bytes`.
    pub tensor_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { message_bytes: (4 << 30) + (64 << 10), tensor_bytes: 4 << 30 }
    }
}

/// The object that `message` is, all of it. The payload of a contiguous tensor is a part of `message`,
/// at any address.
///
/// # Errors
/// Whatever makes it none of the values above, or more than `limits` allow.
pub fn decode(message: &Bytes, limits: &Limits) -> Result<Object, DecodeError> {
    let pickle = whole(message, Kinds::OBJECT, limits)?;
    match pickle.root {
        Value::None => Ok(Object::None),
        Value::Text(text) => Ok(Object::Text(text.into())),
        Value::Dict(owner) => metadata(&pickle, owner).map(Object::Metadata),
        Value::Call(rebuild @ (Global::RebuildTensorV2 | Global::RebuildTensorV3), arguments) => {
            let tensor = tensor::rebuilt(message, &pickle, rebuild, arguments, limits)?;
            tensor.into_tensor().map(Object::Tensor)
        }
        Value::Call(Global::CtypesUnpickle, arguments) => {
            unique_id(message, &pickle, arguments).map(Object::UniqueId)
        }
        other => Err(unexpected(other, "an object of vllm's protocol")),
    }
}

/// The metadata that `message` is, all of it; nothing else is even read.
///
/// # Errors
/// Whatever makes it no metadata, or longer than `limits` allow.
pub fn decode_metadata(message: &[u8], limits: &Limits) -> Result<Metadata, DecodeError> {
    let pickle = whole(message, Kinds::METADATA, limits)?;
    match pickle.root {
        Value::Dict(owner) => metadata(&pickle, owner),
        other => Err(unexpected(other, "metadata")),
    }
}

/// The tensor that `message` is, all of it, as it lies there; nothing else is even read.
///
/// # Errors
/// Whatever makes it no tensor, or more than `limits` allow.
pub fn decode_tensor(message: &Bytes, limits: &Limits) -> Result<PickledTensor, DecodeError> {
    let pickle = whole(message, Kinds::TENSOR, limits)?;
    match pickle.root {
        Value::Call(rebuild @ (Global::RebuildTensorV2 | Global::RebuildTensorV3), arguments) => {
            tensor::rebuilt(message, &pickle, rebuild, arguments, limits)
        }
        other => Err(unexpected(other, "a tensor")),
    }
}

/// The pickle that `message` is, from the first byte to the last.
fn whole<'a>(message: &'a [u8], kinds: Kinds, limits: &Limits) -> Result<Pickle<'a>, DecodeError> {
    let (bytes, limit) = (message.len(), limits.message_bytes);
    if bytes > limit {
        return Err(DecodeError::MessageTooLong { bytes, limit });
    }
    let pickle = machine::read(message, 0, kinds)?;
    match bytes - pickle.end {
        0 => Ok(pickle),
        count => Err(DecodeError::TrailingBytes { count }),
    }
}

fn metadata(pickle: &Pickle<'_>, owner: Owner) -> Result<Metadata, DecodeError> {
    let (mut dtype, mut shape) = (None, None);
    for (key, value) in pickle.entries(owner) {
        let field = match key {
            Value::Text("dtype") => &mut dtype,
            Value::Text("shape") => &mut shape,
            Value::Text(other) if other.len() < 64 => {
                return Err(malformed(&format!("metadata with {other:?}")));
            }
            _ => return Err(malformed("metadata with something else than dtype and shape")),
        };
        if field.replace(value).is_some() {
            return Err(malformed("metadata that says the same twice"));
        }
    }
    match (dtype, shape) {
        (Some(Value::None), Some(Value::None)) => Ok(Metadata::None),
        (Some(Value::Global(Global::DType(dtype))), Some(Value::Call(Global::Size, arguments))) => {
            let &[Value::Tuple(sizes)] = pickle.members(arguments) else {
                return Err(malformed("a shape that is not made of one tuple"));
            };
            let shape = tensor::shape(pickle.members(sizes))?;
            let tensor = TensorMetadata::new(dtype, shape);
            tensor.map(Metadata::Tensor).map_err(|error| DecodeError::Shape(error.to_string()))
        }
        (Some(_), Some(_)) => Err(malformed("metadata that is neither a tensor's nor that of None")),
        _ => Err(malformed("metadata without dtype or shape")),
    }
}

/// `_ctypes._unpickle(ncclUniqueId, ({}, bytes))`
fn unique_id(message: &[u8], pickle: &Pickle<'_>, arguments: Span) -> Result<UniqueId, DecodeError> {
    let &[Value::Global(Global::NcclUniqueId), Value::Tuple(state)] = pickle.members(arguments) else {
        return Err(malformed("a ctypes structure other than nccl's unique id"));
    };
    let &[Value::Dict(attributes), Value::Bytes(id)] = pickle.members(state) else {
        return Err(malformed("a unique id that is not made of attributes and bytes"));
    };
    if pickle.entries(attributes).next().is_some() {
        return Err(malformed("a unique id with attributes"));
    }
    let id = message.get(id.range()).and_then(|id| id.try_into().ok()).map(UniqueId);
    id.ok_or_else(|| malformed("a unique id that is not 128 bytes long"))
}

fn unexpected(found: Value<'_>, wanted: &str) -> DecodeError {
    DecodeError::Malformed(format!("a pickle of {} is not {wanted}", found.kind()))
}

fn malformed(fault: &str) -> DecodeError {
    DecodeError::Malformed(fault.into())
}

//! Writing: protocol 4, as CPython 3.8 to 3.13 does it.

use bytes::Bytes;

use super::opcode as op;
use super::storage::{MAGIC, VERSION};
use super::value::{Global, storage_class};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};
use crate::wire::metadata::{Metadata, TensorMetadata};
use crate::wire::object::{Object, UniqueId};

/// A shorter body has no frame (CPython's `FRAME_SIZE_MIN`).
const FRAME_BYTES_MIN: usize = 4;

/// A text of this length has no frame, either (CPython's `FRAME_SIZE_TARGET`).
const UNFRAMED_BYTES_MIN: usize = 64 << 10;

/// Whatever torch calls its storage, an address in the process, is nobody's business.
const KEY: &str = "0";

/// The pickle that vLLM's `pickle.loads` takes for `object`. For [`Object::None`], texts, metadata and
/// unique ids the bytes are those of CPython's own pickler; a tensor takes the shortest form that
/// torch loads.
///
/// # Errors
/// [`Error::Misuse`] for [`Object::Bytes`], for texts of 4 GiB, and for what
/// [`encode_tensor`] refuses.
pub fn encode(object: &Object) -> Result<Bytes> {
    match object {
        Object::None => Ok(framed(&[op::NONE, op::STOP])),
        Object::Text(text) => encode_text(text),
        Object::Bytes(_) => Err(Error::Misuse(
            "vllm's protocol has no bytes: send them as a tensor of uint8, or in a native group".into(),
        )),
        Object::Metadata(metadata) => Ok(encode_metadata(metadata)),
        Object::Tensor(tensor) => encode_tensor(tensor).map(|parts| Bytes::from(parts.concat())),
        Object::UniqueId(id) => Ok(encode_unique_id(id)),
    }
}

/// Refuses a tensor that [`encode_tensor`] refuses once it is in host memory.
///
/// # Errors
/// As there.
pub fn check_tensor(tensor: &Tensor) -> Result<()> {
    class_of(tensor.dtype()).map(drop)
}

/// As [`encode`], in three parts of which the second is the tensor's payload, not copied.
///
/// # Errors
/// [`Error::Misuse`] for a tensor that is not in host memory, and for a dtype that torch can't load
/// from a pickle: it has a storage class for `float16`, `bfloat16`, `float32`, `float64`, `int8` to
/// `int64`, `uint8`, `bool`, `complex64` and `complex128` only.
pub fn encode_tensor(tensor: &Tensor) -> Result<[Bytes; 3]> {
    let (dtype, payload) = (tensor.dtype(), tensor.bytes()?);
    let class = class_of(dtype)?;
    let dims = tensor.shape().dims();
    let count = tensor.shape().element_count();
    let header = storage_header(class, count);

    let mut prefix = Writer(vec![op::PROTO, 4]);
    prefix.global(Global::RebuildTensorV2);
    prefix.code(op::MARK);
    prefix.global(Global::LoadFromBytes);
    let stream_bytes = header.len() + payload.len();
    match u32::try_from(stream_bytes) {
        Ok(bytes) => prefix.sized(op::BINBYTES, &bytes.to_le_bytes(), &header),
        Err(_) => prefix.sized(op::BINBYTES8, &(stream_bytes as u64).to_le_bytes(), &header),
    }

    let mut suffix = Writer(Vec::new());
    suffix.code(op::TUPLE1);
    suffix.code(op::REDUCE);
    suffix.int(0);
    suffix.tuple(dims);
    suffix.tuple(&strides(dims));
    suffix.code(op::NEWFALSE);
    suffix.global(Global::OrderedDict);
    suffix.0.extend([op::EMPTY_TUPLE, op::REDUCE, op::TUPLE, op::REDUCE, op::STOP]);
    Ok([prefix.0.into(), payload.clone(), suffix.0.into()])
}

/// torch's name of the storage of such elements.
fn class_of(dtype: DType) -> Result<&'static str> {
    storage_class(dtype).ok_or_else(|| {
        Error::Misuse(format!(
            "torch can't load a pickled tensor of {dtype}: send its bytes as a tensor of uint8, and the \
             dtype some other way"
        ))
    })
}

/// Everything of a storage's stream before its data.
fn storage_header(class: &str, count: usize) -> Vec<u8> {
    let mut out = Writer(vec![op::PROTO, 2]);
    out.sized(op::LONG1, &[MAGIC.len() as u8], &MAGIC);
    out.0.extend([op::STOP, op::PROTO, 2]);
    out.int(VERSION as usize);

    out.0.extend([op::STOP, op::PROTO, 2, op::EMPTY_DICT, op::MARK]);
    out.long_text("protocol_version");
    out.int(VERSION as usize);
    out.long_text("little_endian");
    out.code(op::NEWTRUE);
    out.long_text("type_sizes");
    out.0.extend([op::EMPTY_DICT, op::MARK]);
    for (name, bytes) in [("short", 2), ("int", 4), ("long", 4)] {
        out.long_text(name);
        out.int(bytes);
    }
    out.0.extend([op::SETITEMS, op::SETITEMS]);

    out.0.extend([op::STOP, op::PROTO, 2, op::MARK]);
    out.long_text("storage");
    out.code(op::GLOBAL);
    out.0.extend(format!("torch\n{class}\n").bytes());
    out.long_text(KEY);
    out.long_text("cpu");
    out.int(count);
    out.0.extend([op::NONE, op::TUPLE, op::BINPERSID]);

    out.0.extend([op::STOP, op::PROTO, 2, op::EMPTY_LIST]);
    out.long_text(KEY);
    out.0.extend([op::APPEND, op::STOP]);
    out.0.extend((count as u64).to_le_bytes());
    out.0
}

/// Those of a contiguous tensor in elements, as torch computes them: a dimension of 0 counts as 1.
fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for axis in (1..dims.len()).rev() {
        // Shape::new has checked the product of all dimensions that are not 0.
        strides[axis - 1] = strides[axis] * dims[axis].max(1);
    }
    strides
}

fn encode_text(text: &str) -> Result<Bytes> {
    let mut out = Writer(Vec::new());
    match (u8::try_from(text.len()), u32::try_from(text.len())) {
        (Ok(length), _) => out.sized(op::SHORT_BINUNICODE, &[length], text.as_bytes()),
        (_, Ok(length)) => out.sized(op::BINUNICODE, &length.to_le_bytes(), text.as_bytes()),
        _ => return Err(Error::Misuse(format!("a text of {} bytes can't be pickled", text.len()))),
    }
    out.0.extend([op::MEMOIZE, op::STOP]);
    if text.len() >= UNFRAMED_BYTES_MIN {
        return Ok([&[op::PROTO, 4], &out.0[..]].concat().into());
    }
    Ok(framed(&out.0))
}

fn encode_metadata(metadata: &Metadata) -> Bytes {
    let mut out = Writer(Vec::new());
    out.memoized(op::EMPTY_DICT);
    out.code(op::MARK);
    out.text("dtype");
    match metadata {
        Metadata::None => out.code(op::NONE),
        Metadata::Tensor(tensor) => out.memoized_global(Global::DType(tensor.dtype())),
    }
    out.text("shape");
    match metadata {
        Metadata::None => out.code(op::NONE),
        Metadata::Tensor(tensor) => out.size(tensor),
    }
    out.0.extend([op::SETITEMS, op::STOP]);
    framed(&out.0)
}

fn encode_unique_id(id: &UniqueId) -> Bytes {
    let mut out = Writer(Vec::new());
    out.memoized_global(Global::CtypesUnpickle);
    out.memoized_global(Global::NcclUniqueId);
    out.memoized(op::EMPTY_DICT);
    out.sized(op::SHORT_BINBYTES, &[UniqueId::BYTES as u8], &id.0);
    out.0.extend([op::MEMOIZE, op::TUPLE2, op::MEMOIZE, op::TUPLE2, op::MEMOIZE]);
    out.memoized(op::REDUCE);
    out.code(op::STOP);
    framed(&out.0)
}

fn framed(body: &[u8]) -> Bytes {
    let mut out = vec![op::PROTO, 4];
    if body.len() >= FRAME_BYTES_MIN {
        out.push(op::FRAME);
        out.extend((body.len() as u64).to_le_bytes());
    }
    out.extend(body);
    out.into()
}

struct Writer(Vec<u8>);

impl Writer {
    fn code(&mut self, code: u8) {
        self.0.push(code);
    }

    fn memoized(&mut self, code: u8) {
        self.0.extend([code, op::MEMOIZE]);
    }

    /// An opcode, a length, and the bytes, or the first of them.
    fn sized(&mut self, code: u8, length: &[u8], bytes: &[u8]) {
        self.0.push(code);
        self.0.extend(length);
        self.0.extend(bytes);
    }

    /// A short text that we know.
    fn plain_text(&mut self, text: &'static str) {
        self.sized(op::SHORT_BINUNICODE, &[text.len() as u8], text.as_bytes());
    }

    fn text(&mut self, text: &'static str) {
        self.plain_text(text);
        self.code(op::MEMOIZE);
    }

    /// As protocol 2 has it.
    fn long_text(&mut self, text: &str) {
        self.sized(op::BINUNICODE, &(text.len() as u32).to_le_bytes(), text.as_bytes());
    }

    fn memoized_global(&mut self, global: Global) {
        let (module, name) = global.name();
        self.text(module);
        self.text(name);
        self.memoized(op::STACK_GLOBAL);
    }

    fn global(&mut self, global: Global) {
        let (module, name) = global.name();
        self.plain_text(module);
        self.plain_text(name);
        self.code(op::STACK_GLOBAL);
    }

    fn size(&mut self, tensor: &TensorMetadata) {
        self.memoized_global(Global::Size);
        let dims = tensor.shape().dims();
        self.tuple(dims);
        // CPython does not memoize the empty tuple.
        if !dims.is_empty() {
            self.code(op::MEMOIZE);
        }
        self.memoized(op::TUPLE1);
        self.memoized(op::REDUCE);
    }

    fn tuple(&mut self, items: &[usize]) {
        if items.len() > 3 {
            self.code(op::MARK);
        }
        for item in items {
            self.int(*item);
        }
        self.code(match items.len() {
            0 => op::EMPTY_TUPLE,
            1 => op::TUPLE1,
            2 => op::TUPLE2,
            3 => op::TUPLE3,
            _ => op::TUPLE,
        });
    }

    fn int(&mut self, number: usize) {
        if let Ok(number) = u8::try_from(number) {
            self.sized(op::BININT1, &[], &number.to_le_bytes());
        } else if let Ok(number) = u16::try_from(number) {
            self.sized(op::BININT2, &[], &number.to_le_bytes());
        } else if let Ok(number) = i32::try_from(number) {
            self.sized(op::BININT, &[], &number.to_le_bytes());
        } else {
            // Two's complement in as few bytes as hold it, its sign included.
            let length = (number.ilog2() as usize + 1) / 8 + 1;
            self.sized(op::LONG1, &[length as u8], &(number as u128).to_le_bytes()[..length]);
        }
    }
}

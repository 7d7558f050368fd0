//! Reading and writing [safetensors](https://github.com/huggingface/safetensors) files.
//!
//! ```
//! use kvpipe::tensor::{Tensor, safetensors};
//!
//! let directory = tempfile::tempdir().unwrap();
//! let path = directory.path().join("cache.safetensors");
//! let tensors = vec![("keys".to_string(), Tensor::from_slice([2], &[1.0_f32, 2.0])?)];
//! safetensors::write(&path, &tensors)?;
//! assert_eq!(safetensors::read(&path)?, tensors);
//! # Ok::<(), kvpipe::Error>(())
//! ```
//!
//! # The format, as of safetensors 0.8
//!
//! Eight bytes with the header's length, little-endian; the header, a JSON object of
//! `"name": {"dtype", "shape", "data_offsets": [begin, end]}` and an optional `"__metadata__"`; then
//! the tensors' bytes, without gaps or overlaps. A header is at most 100 MB.
//!
//! Its dtypes are those with a [`DType::safetensors_name`], and three with fewer than 8 bits. `F4`
//! counts single values where torch's `float4_e2m1fn_x2` counts pairs, so its last dimension is
//! halved on reading and doubled on writing, as safetensors' own Python package does. torch has no
//! counterpart of `F6_E2M3` and `F6_E3M2`, so these are refused.
//!
//! Every function here blocks on the file system.

mod header;
mod replace;

use std::io::{self, Write};
use std::path::Path;

use bytes::Bytes;

use self::header::{Declared, Placed};
use super::{DType, Shape, Tensor, map_file};
use crate::error::{Error, Result};

/// The tensors of a file, by the offset of their data; ties, which only tensors without bytes make,
/// in the header's order.
///
/// Nothing is copied: the tensors are parts of the mapped file, which stays mapped until the last of
/// them is dropped. **Until then the file must not be changed in place**: see [`map_file`] for what
/// that means, and use [`decode`] with [`std::fs::read`] where it can't be promised. The format does
/// not align data, so [`Tensor::as_slice`] may refuse where [`Tensor::to_vec`] would copy; files
/// written by [`write()`] or by safetensors itself are aligned.
///
/// # Errors
/// [`Error::Io`], naming the file, if it can't be mapped, is not a safetensors file that is valid to
/// the last byte, or holds a tensor that kvpipe does not: of a dtype that torch lacks, or with more
/// than [`MAX_DIMS`](super::MAX_DIMS) dimensions.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<(String, Tensor)>> {
    let path = path.as_ref();
    parse(&map_file(path)?).map_err(|reason| invalid(format!("reading {}", path.display()), reason))
}

/// As [`read`], from a file's contents; nothing is copied.
///
/// # Errors
/// [`Error::Io`], as [`read`].
pub fn decode(file: &Bytes) -> Result<Vec<(String, Tensor)>> {
    parse(file).map_err(|reason| invalid("decoding safetensors".into(), reason))
}

/// Writes a file whole or not at all: to a temporary file beside it, which is synchronised to the
/// disk and renamed. On an error the temporary file is removed and an old file of that name is as it
/// was; only if the last step fails, which makes the new name durable, is the new file there already.
/// A symbolic link is followed.
///
/// The header has the tensors in the order given. So does the data, and [`read`] gives that order
/// back, unless it would misalign a tensor's elements; then tensors with larger items come first, as
/// safetensors itself would have them, and else keep their order.
///
/// # Errors
/// [`Error::Misuse`] for a dtype that safetensors lacks, a name used twice or reserved, and a header
/// above the format's limit; [`Error::Io`], naming the file, if the system refuses, such as for want
/// of space, or if `path` is something else than a file.
pub fn write<N: AsRef<str>>(path: impl AsRef<Path>, tensors: &[(N, Tensor)]) -> Result<()> {
    let path = path.as_ref();
    let (placed, payloads) = place(tensors)?;
    let header = header::encode(&placed).map_err(Error::Misuse)?;
    let write_all = |file: &mut dyn Write| {
        file.write_all(&header)?;
        payloads.iter().try_for_each(|payload| file.write_all(payload))
    };
    replace::replace(path, write_all).map_err(|error| Error::io(format!("writing {}", path.display()), error))
}

fn parse(file: &Bytes) -> Result<Vec<(String, Tensor)>, String> {
    let (declared, data) = header::decode(file)?;
    let tensors = declared
        .into_iter()
        .map(|Declared { name, dtype, shape, range }| {
            let (dtype, shape) = to_torch(&dtype, shape).map_err(|why| format!("tensor {name:?}: {why}"))?;
            Tensor::new(dtype, &shape[..], data.slice(range))
                .map_err(|error| format!("tensor {name:?}: {error}"))
                .map(|tensor| (name, tensor))
        })
        .collect::<Result<_, String>>()?;
    // Last, because what was said above names the tensor.
    header::validate(file)?;
    Ok(tensors)
}

/// Where each tensor goes, in the order given, and the payloads in the order of their places.
fn place<N: AsRef<str>>(tensors: &[(N, Tensor)]) -> Result<(Vec<Placed<'_>>, Vec<&Bytes>)> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    if !is_aligned(tensors.iter().map(|(_, tensor)| tensor)) {
        order.sort_by_key(|&index| std::cmp::Reverse(tensors[index].1.dtype().item_bytes()));
    }
    let mut begin = 0;
    let mut begins = vec![0; tensors.len()];
    let mut payloads = Vec::with_capacity(tensors.len());
    for &index in &order {
        let payload = tensors[index].1.bytes()?;
        begins[index] = begin;
        begin += payload.len();
        payloads.push(payload);
    }
    let placed = tensors.iter().zip(begins).map(|((name, tensor), begin)| {
        let name = name.as_ref();
        let (dtype, shape) = from_torch(tensor).map_err(|why| {
            Error::Misuse(format!("tensor {name:?} can't be written to safetensors: {why}"))
        })?;
        Ok(Placed { name, dtype, shape, range: begin..begin + tensor.byte_len() })
    });
    Ok((placed.collect::<Result<_>>()?, payloads))
}

/// Whether data in this order, without gaps, begins every tensor at a multiple of its item size.
fn is_aligned<'a>(mut tensors: impl Iterator<Item = &'a Tensor>) -> bool {
    let mut end = 0_usize;
    tensors.all(|tensor| {
        let begin = end;
        end += tensor.byte_len();
        tensor.byte_len() == 0 || begin.is_multiple_of(tensor.dtype().item_bytes())
    })
}

/// A 4-bit float in a safetensors header; the format counts single values.
const F4: &str = "F4";

fn to_torch(dtype: &str, mut shape: Vec<usize>) -> Result<(DType, Vec<usize>), String> {
    if let Some(dtype) = DType::from_safetensors_name(dtype) {
        return Ok((dtype, shape));
    }
    if dtype != F4 {
        return Err(format!("torch has no dtype {dtype:?}"));
    }
    match shape.last_mut() {
        Some(last) if last.is_multiple_of(2) => *last /= 2,
        _ => return Err(format!("torch holds F4 in pairs, so the last dimension of {shape:?} must be even")),
    }
    Ok((DType::Float4E2m1fnX2, shape))
}

fn from_torch(tensor: &Tensor) -> Result<(&'static str, Vec<usize>), String> {
    let mut shape = tensor.shape().dims().to_vec();
    if let Some(name) = tensor.dtype().safetensors_name() {
        return Ok((name, shape));
    }
    if tensor.dtype() != DType::Float4E2m1fnX2 {
        return Err(format!("the format has no dtype {}", tensor.dtype()));
    }
    let last = shape.last_mut().ok_or("a scalar pair has no last dimension to count its two values")?;
    *last =
        last.checked_mul(2).ok_or_else(|| format!("the last dimension of {} overflows", tensor.shape()))?;
    Shape::new(&shape).map_err(|error| error.to_string())?;
    Ok((F4, shape))
}

fn invalid(doing: String, reason: String) -> Error {
    Error::io(doing, io::Error::new(io::ErrorKind::InvalidData, reason))
}

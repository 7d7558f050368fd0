//! The header of a safetensors file. The `safetensors` crate says whether one is valid; it forgets
//! the order of the tensors, which is read here.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use safetensors::SafeTensors;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

/// Of the length that the header begins with.
const LENGTH_BYTES: usize = size_of::<u64>();

/// The format's limit: a longer header is refused by every reader.
const HEADER_BYTES_MAX: usize = 100_000_000;

/// Data begins at a multiple of this in a file that we write, as in a buffer of ours; the header is
/// padded with blanks, as the format allows.
const DATA_ALIGNMENT: usize = super::super::ALIGNMENT;

/// The one name that is not a tensor's: a map from string to string.
const METADATA: &str = "__metadata__";

/// A tensor as a valid header declares it.
pub(super) struct Declared {
    pub(super) name: String,
    pub(super) dtype: String,
    pub(super) shape: Vec<usize>,
    /// Within the data.
    pub(super) range: Range<usize>,
}

/// A tensor as a header to be written declares it.
pub(super) struct Placed<'a> {
    pub(super) name: &'a str,
    pub(super) dtype: &'static str,
    pub(super) shape: Vec<usize>,
    /// Within the data.
    pub(super) range: Range<usize>,
}

/// The tensors of a file by the beginning of their data, ties in the header's order, and the data, in
/// which each lies. Whether they cover it without gaps and overlaps is left to [`validate`].
pub(super) fn decode(file: &Bytes) -> Result<(Vec<Declared>, Bytes), String> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(format!("{} bytes are too few for a safetensors file", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX as u64 {
        return Err(format!("a header of {length} bytes is over the limit of {HEADER_BYTES_MAX}"));
    }
    let Some(header) = rest.get(..length as usize) else {
        return Err(format!("a header of {length} bytes does not fit in a file of {} bytes", file.len()));
    };
    let Header(mut declared) =
        serde_json::from_slice(header).map_err(|error| format!("the header is invalid: {error}"))?;
    let mut names = BTreeSet::new();
    if let Some(twice) = declared.iter().find(|tensor| !names.insert(&tensor.name)) {
        return Err(format!("the header has two tensors of name {:?}", twice.name));
    }
    declared.sort_by_key(|tensor| tensor.range.start);
    check_extent(&declared, rest.len() - header.len())?;
    Ok((declared, file.slice(LENGTH_BYTES + header.len()..)))
}

/// What the `safetensors` crate holds against a file.
pub(super) fn validate(file: &Bytes) -> Result<(), String> {
    SafeTensors::read_metadata(file).map(|_| ()).map_err(|error| error.to_string())
}

/// A whole header, its length included.
pub(super) fn encode(tensors: &[Placed<'_>]) -> Result<Vec<u8>, String> {
    let mut names = BTreeSet::new();
    for Placed { name, .. } in tensors {
        if *name == METADATA {
            return Err(format!("a tensor can't be named {METADATA}, which safetensors reserves"));
        }
        if !names.insert(name) {
            return Err(format!("two tensors are named {name:?}"));
        }
    }
    let mut header = vec![0; LENGTH_BYTES];
    let entries = tensors.iter().map(|Placed { name, dtype, shape, range }| {
        (name, Entry { dtype: *dtype, shape, data_offsets: (range.start, range.end) })
    });
    serde::Serializer::collect_map(&mut serde_json::Serializer::new(&mut header), entries)
        .map_err(|error| format!("the header can't be written: {error}"))?;
    header.resize(header.len().next_multiple_of(DATA_ALIGNMENT), b' ');
    let length = header.len() - LENGTH_BYTES;
    if length > HEADER_BYTES_MAX {
        return Err(format!("a header of {length} bytes is over the limit of {HEADER_BYTES_MAX}"));
    }
    header[..LENGTH_BYTES].copy_from_slice(&(length as u64).to_le_bytes());
    Ok(header)
}

/// The one fault that deserves better words than the crate's: a file that was cut short.
fn check_extent(declared: &[Declared], data_bytes: usize) -> Result<(), String> {
    match declared.iter().find(|tensor| tensor.range.end > data_bytes) {
        Some(Declared { name, range, .. }) => Err(format!(
            "tensor {name:?} ends at byte {} of the data, of which there are {data_bytes}: the file is truncated",
            range.end
        )),
        None => Ok(()),
    }
}

/// One tensor's declaration in JSON.
#[derive(Deserialize, Serialize)]
struct Entry<D, S> {
    dtype: D,
    shape: S,
    data_offsets: (usize, usize),
}

/// All of them, in order of appearance.
struct Header(Vec<Declared>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut declared = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let Entry { dtype, shape, data_offsets: (begin, end) } = map
                        .next_value::<Entry<String, Vec<usize>>>()
                        .map_err(|error| A::Error::custom(format_args!("tensor {name:?}: {error}")))?;
                    if begin > end {
                        return Err(A::Error::custom(format_args!(
                            "tensor {name:?}: its data ends at {end}, before it begins at {begin}"
                        )));
                    }
                    declared.push(Declared { name, dtype, shape, range: begin..end });
                }
                Ok(Header(declared))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

//! The stream in which torch stores what a tensor's elements are in (`torch/serialization.py`,
//! `_legacy_save`).
//!
//! ```text
//! pickle   the number 0x1950a86a20f9469cfc6c
//! pickle   the number 1001
//! pickle   a dict: the version again, little_endian, sizes of types that nobody reads
//! pickle   a reference: ("storage", class, key, "cpu", count, None)
//! pickle   [key]
//! count    i64 LE   again
//! data              count items, and nothing follows
//! ```

use super::machine::{self, Pickle};
use super::value::{Global, Kinds, Span, Value};
use crate::tensor::DType;
use crate::wire::DecodeError;

/// The first number, as `LONG1` has it.
pub(super) const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
pub(super) const VERSION: i64 = 1001;

/// Which items a storage has, and where in the message they are.
pub(super) struct Storage {
    /// None for bytes.
    pub(super) dtype: Option<DType>,
    pub(super) data: Span,
}

/// The storage that the bytes at `stream` are, all of them.
pub(super) fn read(message: &[u8], stream: Span) -> Result<Storage, DecodeError> {
    // Offsets in errors are those in the whole message.
    let message = message.get(..stream.range().end).ok_or(DecodeError::Truncated)?;
    let next = |start| machine::read(message, start, Kinds::STORAGE);

    let magic = next(stream.start)?;
    if magic.root != Value::Long(&MAGIC) {
        return Err(malformed("a storage without torch's magic number"));
    }
    let version = next(magic.end)?;
    if version.root != Value::Int(VERSION) {
        return Err(malformed("a storage of another version than 1001"));
    }
    let system = next(version.end)?;
    check_system(&system)?;
    let reference = next(system.end)?;
    let (key, dtype, count) = referenced(&reference)?;
    let keys = next(reference.end)?;
    let Value::List(owner) = keys.root else {
        return Err(malformed("a storage without a list of keys"));
    };
    if !keys.entries(owner).map(|(_, listed)| listed).eq([key]) {
        return Err(malformed("a list of keys that is not that of the one storage"));
    }

    let (repeated, data) =
        message.get(keys.end..).and_then(<[u8]>::split_first_chunk).ok_or(DecodeError::Truncated)?;
    if i64::from_le_bytes(*repeated) != count {
        return Err(malformed("two counts of a storage's items that do not agree"));
    }
    let item_bytes = dtype.map_or(1, DType::item_bytes);
    // A count that can't be that of bytes in memory is more than there are.
    let expected = usize::try_from(count).ok().and_then(|count| count.checked_mul(item_bytes));
    match expected {
        Some(expected) if expected == data.len() => {
            Ok(Storage { dtype, data: Span { start: message.len() - expected, len: expected } })
        }
        Some(expected) if expected < data.len() => {
            Err(DecodeError::TrailingBytes { count: data.len() - expected })
        }
        _ if count < 0 => Err(malformed("a negative count of items")),
        _ => Err(DecodeError::Truncated),
    }
}

fn check_system(system: &Pickle<'_>) -> Result<(), DecodeError> {
    let Value::Dict(owner) = system.root else {
        return Err(malformed("a storage that does not describe its system"));
    };
    let (mut version, mut little_endian, mut sizes) = (None, None, None);
    for (key, value) in system.entries(owner) {
        let known = match key {
            Value::Text("protocol_version") => &mut version,
            Value::Text("little_endian") => &mut little_endian,
            Value::Text("type_sizes") => &mut sizes,
            _ => return Err(malformed("an unknown fact about a storage's system")),
        };
        if known.replace(value).is_some() {
            return Err(malformed("a fact about a storage's system is stated twice"));
        }
    }
    match (version, little_endian, sizes) {
        (Some(Value::Int(VERSION)), Some(Value::Bool(true)), Some(Value::Dict(_))) => Ok(()),
        (_, Some(Value::Bool(false)), _) => Err(malformed("a storage in big-endian order")),
        _ => Err(malformed("a storage's system that is not described as torch does")),
    }
}

/// Key, dtype and count of items.
fn referenced<'a>(reference: &Pickle<'a>) -> Result<(Value<'a>, Option<DType>, i64), DecodeError> {
    let Value::Reference(members) = reference.root else {
        return Err(malformed("a storage that refers to none"));
    };
    let &[Value::Text("storage"), Value::Global(class), key @ Value::Text(_), device, count, view] =
        reference.members(members)
    else {
        return Err(malformed("a reference that is not one to a storage"));
    };
    if device != Value::Text("cpu") {
        return Err(malformed("a storage that is not in the cpu's memory"));
    }
    if view != Value::None {
        return Err(malformed("a storage that is a view of another one"));
    }
    let Value::Int(count) = count else {
        return Err(malformed("a count of items that is no count"));
    };
    match class {
        Global::TypedStorage(dtype) => Ok((key, Some(dtype), count)),
        Global::UntypedStorage => Ok((key, None, count)),
        _ => Err(malformed("a storage of an unknown class")),
    }
}

fn malformed(fault: &str) -> DecodeError {
    DecodeError::Malformed(fault.into())
}

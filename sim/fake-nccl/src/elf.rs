//! Libraries of older versions, which lack some functions.

use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::path::Path;
use std::{fs, str};

/// Copies a dynamic library (64-bit little-endian ELF) and breaks some of its symbols' names, so that
/// dlsym does not find them.
///
/// # Errors
///
/// If a file can't be read or written, or lacks one of the names.
pub fn without_symbols(library: &Path, names: &[&str], into: &Path) -> Result<()> {
    let mut bytes = fs::read(library)?;
    let symbols = symbols(&bytes).ok_or_else(|| invalid("no dynamic symbols"))?;
    for name in names {
        let meant = |range: &&Range<usize>| str::from_utf8(&bytes[range.start..range.end]) == Ok(name);
        let range = symbols.iter().find(meant).ok_or_else(|| invalid(&format!("no symbol {name}")))?;
        // A name may be the tail of another.
        let others = symbols.iter().filter(|other| other.contains(&range.start) && *other != range).count();
        if others > 0 {
            return Err(invalid(&format!("{name} shares its bytes with another name")));
        }
        bytes[range.start] = b'-';
    }
    fs::write(into, bytes)
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

const SECTION_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;
const DYNAMIC_SYMBOLS: u32 = 11;

/// Where the names of the dynamic symbols lie, without their final zeros.
fn symbols(file: &[u8]) -> Option<Vec<Range<usize>>> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = word(file, 0x28)?;
    let sections = u16::from_le_bytes(*file.get(0x3c..)?.first_chunk()?);
    let section = |index: usize| file.get(table + index * SECTION_BYTES..);
    let dynamic = (0..usize::from(sections)).filter_map(section);
    let dynamic = dynamic.into_iter().find(|section| half_word(section, 4) == Some(DYNAMIC_SYMBOLS))?;
    let strings = word(section(half_word(dynamic, 0x28)? as usize)?, 0x18)?;
    let (start, bytes) = (word(dynamic, 0x18)?, word(dynamic, 0x20)?);
    let entries = file.get(start..start + bytes)?.chunks_exact(SYMBOL_BYTES);
    let name = |entry: &[u8]| {
        let start = strings + half_word(entry, 0)? as usize;
        let length = file.get(start..)?.iter().position(|byte| *byte == 0)?;
        Some(start..start + length)
    };
    entries.map(name).collect()
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?)).ok()
}

fn half_word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

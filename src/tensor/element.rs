//! Rust types that are elements of tensors.

use std::fmt;

use half::{bf16, f16};

use super::DType;

/// A Rust type that some dtype's elements can be read as. Sealed: the crate relies on the
/// implementations' layouts.
pub trait Element: sealed::Bits + Copy + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// The one dtype whose elements are of this type.
    const DTYPE: DType;
}

mod sealed {
    use bytemuck::{CheckedBitPattern, NoUninit};

    /// Types without padding that can be read from bytes; `bool` only after a look at them, since a
    /// byte other than 0 and 1 is no `bool`.
    pub trait Bits: NoUninit + CheckedBitPattern {}
    impl<T: NoUninit + CheckedBitPattern> Bits for T {}
}

/// Implements [`Element`] and the way back, from a dtype to its element type.
macro_rules! elements {
    ($($element:ty => $dtype:ident,)*) => {
        $(impl Element for $element { const DTYPE: DType = DType::$dtype; })*

        /// Writes the first `limit` elements for people; those of a dtype without a Rust type, and
        /// bytes that are no element, in hexadecimal.
        pub(super) fn preview(
            f: &mut fmt::Formatter<'_>,
            dtype: DType,
            bytes: &[u8],
            limit: usize,
        ) -> fmt::Result {
            match dtype {
                $(DType::$dtype => preview_as::<$element>(f, bytes, limit),)*
                _ => preview_hex(f, bytes, dtype.item_bytes(), limit),
            }
        }
    };
}

elements! {
    u8 => UInt8,
    i8 => Int8,
    u16 => UInt16,
    i16 => Int16,
    u32 => UInt32,
    i32 => Int32,
    u64 => UInt64,
    i64 => Int64,
    f16 => Float16,
    bf16 => BFloat16,
    f32 => Float32,
    f64 => Float64,
    bool => Bool,
}

fn preview_as<T: Element>(f: &mut fmt::Formatter<'_>, bytes: &[u8], limit: usize) -> fmt::Result {
    let mut list = f.debug_list();
    for item in bytes.chunks_exact(size_of::<T>()).take(limit) {
        match bytemuck::checked::try_pod_read_unaligned::<T>(item) {
            Ok(element) => list.entry(&element),
            Err(_) => list.entry(&Hex(item)),
        };
    }
    finish(list, bytes.len() > limit * size_of::<T>())
}

fn preview_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8], item_bytes: usize, limit: usize) -> fmt::Result {
    let mut list = f.debug_list();
    list.entries(bytes.chunks_exact(item_bytes).take(limit).map(Hex));
    finish(list, bytes.len() > limit * item_bytes)
}

fn finish(mut list: fmt::DebugList<'_, '_>, more: bool) -> fmt::Result {
    if more { list.entry(&format_args!("...")).finish() } else { list.finish() }
}

/// An item's bytes in memory order: `0x3f80`.
struct Hex<'a>(&'a [u8]);

impl fmt::Debug for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

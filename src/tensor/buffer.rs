//! Memory that payloads live in: aligned and owned, or a mapped file.
//!
//! With `nccl` and `device` one of the few modules that may hold `unsafe`.

use std::alloc::{self, Layout};
#[cfg(feature = "safetensors")]
use std::fs::File;
use std::io;
#[cfg(feature = "safetensors")]
use std::path::Path;
use std::ptr::NonNull;
use std::slice;

#[cfg(feature = "safetensors")]
use bytes::Bytes;

use crate::error::{Error, Result};

/// The alignment in bytes of every buffer that kvpipe allocates: a cache line, and enough for any
/// vector load.
pub const ALIGNMENT: usize = 64;

/// A file's contents, mapped into memory and not copied; the mapping begins on a page boundary and
/// lives until the last clone or slice of the returned [`Bytes`] is dropped.
///
/// # Contract
/// **While it lives, nobody may write to the file or truncate it**: other processes included, for
/// which kvpipe can't check. Otherwise the bytes change under readers that hold them to be
/// constant, which is undefined behaviour, or the process is killed by `SIGBUS`. Replacing the file
/// by renaming another one over it is fine, and is how [`write`](super::safetensors::write) does it.
/// Where that can't be promised, use [`std::fs::read`].
///
/// # Errors
/// [`Error::Io`], naming the file, if it can't be opened or mapped or is not a regular file.
#[cfg(feature = "safetensors")]
pub fn map_file(path: impl AsRef<Path>) -> Result<Bytes> {
    let path = path.as_ref();
    let map = || {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // SAFETY: the mapping is read-only, and the function's contract, which no operating system
        // lets us enforce, is that the file stays as it is while the mapping lives.
        let mapped = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Bytes::from_owner(mapped))
    };
    map().map_err(|error| Error::io(format!("mapping {}", path.display()), error))
}

/// Owned memory that begins on an [`ALIGNMENT`] boundary and is initialised from the start.
///
/// No allocation for a capacity of 0.
#[derive(Debug)]
pub(super) struct AlignedMemory {
    /// What the allocator gave, less aligned than we promise; dangling for a capacity of 0.
    base: NonNull<u8>,
    /// From `base` to the first aligned byte.
    offset: usize,
    capacity: usize,
}

// SAFETY: it owns its memory exclusively, as `Box<[u8]>` does, which is Send.
unsafe impl Send for AlignedMemory {}
// SAFETY: shared access only reads, as with `Box<[u8]>`, which is Sync.
unsafe impl Sync for AlignedMemory {}

impl AlignedMemory {
    /// `capacity` bytes, all zero. Pages that are not touched cost nothing.
    ///
    /// # Errors
    /// [`Error::Misuse`] if no address space could hold that much, [`Error::Io`] if the allocator
    /// has no memory.
    pub(super) fn zeroed(capacity: usize) -> Result<Self> {
        if capacity == 0 {
            return Ok(Self::default());
        }
        let layout = Self::layout(capacity).ok_or_else(|| {
            Error::Misuse(format!("a buffer of {capacity} bytes is over the limit of {}", isize::MAX))
        })?;
        // SAFETY: the layout's size is at least `capacity`, which is not 0.
        let base = unsafe { alloc::alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else {
            let error = io::ErrorKind::OutOfMemory.into();
            return Err(Error::io(format!("allocating {capacity} bytes"), error));
        };
        let offset = base.addr().get().next_multiple_of(ALIGNMENT) - base.addr().get();
        Ok(Self { base, offset, capacity })
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: `offset + capacity` bytes from `base` are ours until drop (see `layout`; `default`
        // for none) and initialised, since `alloc_zeroed` gave them; nobody writes to them while
        // `self` is borrowed.
        unsafe { slice::from_raw_parts(self.base.add(self.offset).as_ptr(), self.capacity) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; the borrow is exclusive.
        unsafe { slice::from_raw_parts_mut(self.base.add(self.offset).as_ptr(), self.capacity) }
    }

    /// The layout asked of the allocator: room to align by hand within a less aligned block.
    ///
    /// Asking for 64 would make std fill the block by itself, page faults and all, because only for
    /// alignments that every `calloc` has anyway does it take zero pages from the system.
    fn layout(capacity: usize) -> Option<Layout> {
        const ALIGN: usize = align_of::<u64>();
        let size = capacity.checked_add(ALIGNMENT - ALIGN)?;
        Layout::from_size_align(size, ALIGN).ok()
    }
}

/// No memory.
impl Default for AlignedMemory {
    fn default() -> Self {
        /// Something aligned to point at.
        #[repr(align(64))]
        struct Aligned;
        Self { base: NonNull::<Aligned>::dangling().cast(), offset: 0, capacity: 0 }
    }
}

impl Drop for AlignedMemory {
    fn drop(&mut self) {
        if self.capacity == 0 {
            return;
        }
        if let Some(layout) = Self::layout(self.capacity) {
            // SAFETY: `zeroed` got `base` from this allocator with the same layout, which depends on
            // the capacity only, and nothing else frees it.
            unsafe { alloc::dealloc(self.base.as_ptr(), layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_zero_and_writable_to_the_last_byte() {
        for capacity in [0, 1, 63, 64, 65, 4096, (1 << 20) + 1] {
            let mut memory = AlignedMemory::zeroed(capacity).unwrap();
            assert_eq!(memory.as_slice().as_ptr().addr() % ALIGNMENT, 0);
            assert_eq!(memory.as_slice().len(), capacity);
            assert!(memory.as_slice().iter().all(|&byte| byte == 0));
            memory.as_mut_slice().fill(0xA5);
            assert!(memory.as_slice().iter().all(|&byte| byte == 0xA5));
        }
    }

    #[test]
    fn memory_that_does_not_exist_is_an_error() {
        let largest = isize::MAX as usize;
        let error = AlignedMemory::zeroed(largest - 4096).unwrap_err();
        assert_eq!(error.to_string(), format!("allocating {} bytes: out of memory", largest - 4096));
        for absurd in [largest, usize::MAX] {
            let error = AlignedMemory::zeroed(absurd).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("a buffer of {absurd} bytes is over the limit of {largest}")
            );
        }
    }
}

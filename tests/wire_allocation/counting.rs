//! A global allocator that counts what a thread asks for. The fuzz targets use it, too.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[global_allocator]
static COUNTING: Counting = Counting;

/// What `work` returns, and how many bytes it asked the allocator for, freed ones included.
pub(crate) fn allocated_by<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = REQUESTED_BYTES.get();
    let result = work();
    (result, REQUESTED_BYTES.get() - before)
}

thread_local! {
    // Needs neither an allocation nor a destructor, so that the allocator may use it at any time.
    static REQUESTED_BYTES: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: the system's allocator does the work, under the contract that the caller keeps. Counting
// neither allocates nor panics. `alloc_zeroed` and `realloc` have their default, which calls these.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        REQUESTED_BYTES.set(REQUESTED_BYTES.get().saturating_add(layout.size()));
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; `pointer` came from `System.alloc` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

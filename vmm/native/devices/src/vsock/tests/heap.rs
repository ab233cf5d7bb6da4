//! How much memory a thread of the tests holds: what a guest can make the device remember is counted by it.
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which also counts for each thread what it has allocated and not freed.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    // Without a destructor or anything to be made first, so that it may be touched in the allocator.
    static HELD: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    HELD.set(HELD.get() + bytes);
}

// SAFETY: all memory is the system allocator's, with the layouts that were asked for.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the rules of `alloc`, which are the same there.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the pointer came from `System.alloc` with this layout, as the caller says.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Bytes that this thread has allocated and not freed. Not all of a test's: other threads free for it, and it for
/// them.
pub(super) fn held() -> isize {
    HELD.get()
}

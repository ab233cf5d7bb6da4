//! The C library's allocator, made ready for threads that can open nothing.
#![expect(unsafe_code, reason = "the C library")]

use std::hint::black_box;
use std::sync::Once;

/// Blocks that lie in an arena (not mapped one by one), and together are more than an arena keeps at its end.
const BLOCK: usize = 64 << 10;
const BLOCKS: usize = 8;

/// To be called before threads are confined; what comes after the first call has nothing left to do.
///
/// The allocator gives every thread memory of its own to allocate from. Device threads allocate little, and there
/// are many of them: two places are enough for all. And the first time that one of these shrinks it opens a file
/// (`check_may_shrink_heap` of glibc's sysdeps/unix/sysv/linux/malloc-sysdep.h), for which a confined thread would
/// be killed: a thread that is not confined lets it happen here.
pub fn settle() {
    #[cfg(target_env = "gnu")]
    {
        static SETTLED: Once = Once::new();
        SETTLED.call_once(|| {
            // SAFETY: it takes numbers, and may be called at any time.
            unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
            let shrink = || {
                let blocks: Vec<Vec<u8>> = (0..BLOCKS).map(|_| Vec::with_capacity(BLOCK)).collect();
                drop(black_box(blocks));
            };
            // Without a thread to be had now there will be none for devices either, which is told then.
            if let Ok(thread) = crate::thread::spawn(None, "allocator", shrink) {
                let _ = thread.join();
            }
        });
    }
}

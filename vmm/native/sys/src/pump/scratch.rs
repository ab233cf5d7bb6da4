//! The one buffer of the pump's thread.

use strato_plumbing::failure::last_errno;
use strato_plumbing::{Failure, Result};

/// As large as a fifo: what one read can bring.
pub const SCRATCH_BYTES: usize = 64 * 1024;

/// A mapping of its own, so that giving it back really frees the memory.
#[derive(Debug)]
pub struct Scratch {
    start: *mut libc::c_void,
}

// SAFETY: the mapping belongs to this object alone and is not bound to a thread.
unsafe impl Send for Scratch {}

impl Scratch {
    /// Maps the buffer.
    pub fn new() -> Result<Self> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), SCRATCH_BYTES, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(Failure::new("Cannot map the pump's buffer", last_errno()));
        }
        Ok(Self { start })
    }

    /// The buffer.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `start` is a live mapping of this length that only this object knows; zeroed by the kernel.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), SCRATCH_BYTES) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly the mapping made in `new`; no slice of it outlives `self`.
        unsafe { libc::munmap(self.start, SCRATCH_BYTES) };
    }
}

//! Shared memory of a transport, into which a guest may have files mapped (the DAX window; virtio 1.2, 5.11.6).
//!
//! A window is guest-physical address space of its own: a memory slot of the hypervisor, never part of guest
//! memory as devices see it ([`strato_virtio::GuestRam`]). So a descriptor that points into it is refused like
//! any other that points nowhere, and no thread of ours ever touches what is mapped there. A program of the
//! guest that has mapped a file cannot let another device move data there, either: that device's driver must
//! be reset.
//!
//! **Faults.** A mapping may reach beyond the end of its file, and a file may shrink at any time, by the guest's
//! doing or the host's. Whoever then touches the part without a file behind it, or writes to a mapping that may
//! only be read, or touches a part of the window where nothing is mapped, cannot be served: the kernel has no page
//! to give (EFAULT of KVM_RUN; SIGBUS of a thread). Only the guest can do that, so it stops that VM and nothing
//! else. The VMM, which has the address, asks [`ReservedWindow::contains`] to tell such a fault from one of its
//! own, and names it in the event with which the VM stops. Going on is no choice: to the guest, a page that
//! reads as zero would be a file with other contents.
#![expect(unsafe_code, reason = "mappings")]

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What to map where; all three numbers are multiples of [`page_size`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where in the window it begins.
    pub window_offset: u64,
    /// How many bytes it has; not 0.
    pub len: u64,
    /// Where in the file it begins.
    pub file_offset: u64,
    /// Whether the guest may write.
    pub writable: bool,
}

/// A window, as a transport provides it. The fs device calls both methods one at a time.
pub trait Window: fmt::Debug + Send + Sync {
    /// Length in bytes, a multiple of [`page_size`].
    fn length(&self) -> u64;

    /// Maps a part of `file`, shared with the host, in place of what is mapped there. The descriptor is not
    /// needed afterwards.
    ///
    /// # Errors
    /// EINVAL: not inside the window, or not in whole pages. Otherwise the kernel refused: the range is as it
    /// was, or inaccessible, but never something else.
    fn map(&self, file: BorrowedFd<'_>, mapping: Mapping) -> io::Result<()>;

    /// Makes a range inaccessible, whether something is mapped there or not. Cannot fail: what stayed mapped
    /// would be open to a guest that has lost its right to it. An implementation that cannot do it ends the
    /// process, and the VM with it.
    fn unmap(&self, window_offset: u64, len: u64);
}

/// The unit of all mappings.
pub fn page_size() -> u64 {
    // SAFETY: a plain integer.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

/// A window on a range of this process's address space, which the VMM gives the hypervisor as a memory slot of
/// its own. Where nothing is mapped, nobody can read or write.
///
/// The slot has to go before the window does.
#[derive(Debug)]
pub struct ReservedWindow {
    start: usize,
    len: usize,
}

impl ReservedWindow {
    /// Reserves `len` bytes of addresses, and no memory.
    ///
    /// # Errors
    /// Not a number of whole pages, or not so many addresses to be had.
    pub fn new(len: u64) -> io::Result<Self> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let len = usize::try_from(len).map_err(|_| invalid())?;
        if len == 0 || !(len as u64).is_multiple_of(page_size()) {
            return Err(invalid());
        }
        // SAFETY: the kernel chooses a place where nothing is.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, NOTHING, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.addr(), len })
    }

    /// Where the window begins in this process.
    pub fn host_addr(&self) -> u64 {
        self.start as u64
    }

    /// Whether an address of this process lies in the window, so that a fault there is the guest's.
    pub fn contains(&self, host_addr: u64) -> bool {
        host_addr.checked_sub(self.host_addr()).is_some_and(|offset| offset < self.len as u64)
    }

    /// The address and length of a range. Checked here once more: a mistake of the caller would replace memory
    /// of the process.
    fn place(&self, window_offset: u64, len: u64) -> io::Result<(usize, usize)> {
        let whole = (window_offset | len).is_multiple_of(page_size()) && len > 0;
        let inside = window_offset.checked_add(len).is_some_and(|end| end <= self.len as u64);
        match (usize::try_from(window_offset), usize::try_from(len)) {
            (Ok(offset), Ok(len)) if whole && inside => Ok((self.start + offset, len)),
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }
}

/// How addresses are reserved: a mapping that nobody can use and that counts as no memory.
const NOTHING: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Makes a range of a reservation inaccessible. A hole in it would be worse than a lost VM: the next memory
/// that the process gets could lie there, before the guest's eyes.
fn close((at, len): (usize, usize)) {
    let flags = NOTHING | libc::MAP_FIXED;
    let address = std::ptr::without_provenance_mut(at);
    // SAFETY: the range lies in a reservation (`place`), which holds nothing of Rust's.
    let closed = unsafe { libc::mmap(address, len, libc::PROT_NONE, flags, -1, 0) };
    if closed == libc::MAP_FAILED {
        std::process::abort();
    }
}

impl Window for ReservedWindow {
    fn length(&self) -> u64 {
        self.len as u64
    }

    fn map(&self, file: BorrowedFd<'_>, mapping: Mapping) -> io::Result<()> {
        let (at, len) = self.place(mapping.window_offset, mapping.len)?;
        let offset = i64::try_from(mapping.file_offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let protection = libc::PROT_READ | if mapping.writable { libc::PROT_WRITE } else { 0 };
        // Mapped elsewhere first: what the file system refuses (it may allow reading only) leaves the window
        // as it was.
        // SAFETY: the kernel chooses a place where nothing is.
        let made = unsafe {
            libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), offset)
        };
        if made == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let address: *mut libc::c_void = std::ptr::without_provenance_mut(at);
        // SAFETY: `made` is the mapping of that length made above; the range that it replaces lies in the
        // reservation (`place`), which holds nothing of Rust's.
        let moved = unsafe { libc::mremap(made, len, len, flags, address) };
        if moved == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            // The kernel may have taken away what was there before it ran out of memory.
            close((at, len));
            // SAFETY: the mapping made above, which nobody else knows; a move that failed leaves it there.
            unsafe { libc::munmap(made, len) };
            return Err(error);
        }
        Ok(())
    }

    fn unmap(&self, window_offset: u64, len: u64) {
        // Outside the window nothing is mapped.
        if let Ok(place) = self.place(window_offset, len) {
            close(place);
        }
    }
}

impl Drop for ReservedWindow {
    fn drop(&mut self) {
        // SAFETY: the reservation is ours alone and ends here.
        unsafe { libc::munmap(std::ptr::without_provenance_mut(self.start), self.len) };
    }
}

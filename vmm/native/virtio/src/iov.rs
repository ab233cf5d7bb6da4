//! Moving bytes between guest memory and a descriptor without a copy in between.

use std::io;
use std::marker::PhantomData;
use std::os::fd::RawFd;

use vm_memory::GuestMemoryBackend;

use crate::GuestRam;
use crate::chain::{Chain, ChainError, Clipped, Span};

/// Most pieces in one system call (UIO_MAXIOV of Linux).
pub const MAX_IOVECS: usize = 1024;

/// A list of pieces of guest memory, in order. Borrows guest RAM, so the mapping outlives it.
///
/// The bytes may change under the device's hands at any time (the guest runs); so they are only ever passed
/// to the kernel and never looked at here.
#[derive(Debug)]
pub struct GuestBuffers<'ram> {
    iovecs: Vec<libc::iovec>,
    len: usize,
    ram: &'ram GuestRam,
    marker: PhantomData<&'ram GuestRam>,
}

impl<'ram> GuestBuffers<'ram> {
    /// An empty list.
    pub fn new(ram: &'ram GuestRam) -> Self {
        Self { iovecs: Vec::with_capacity(8), len: 0, ram, marker: PhantomData }
    }

    /// Total bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in the list.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `len` bytes of the chain's readable part, from `offset` on.
    ///
    /// # Errors
    /// [`ChainError::Range`], or [`ChainError::TooLong`] at [`MAX_IOVECS`] pieces.
    pub fn push_readable(&mut self, chain: &Chain, offset: u32, len: usize) -> Result<(), ChainError> {
        self.push(Clipped::new(chain.readable(), offset, len)?)
    }

    /// Appends `len` bytes of the chain's writable part, from `offset` on.
    ///
    /// # Errors
    /// As [`Self::push_readable`].
    pub fn push_writable(&mut self, chain: &Chain, offset: u32, len: usize) -> Result<(), ChainError> {
        self.push(Clipped::new(chain.writable(), offset, len)?)
    }

    /// All of the spans, or none of them.
    fn push(&mut self, spans: impl Iterator<Item = Span>) -> Result<(), ChainError> {
        let (pieces, len) = (self.iovecs.len(), self.len);
        let outcome = self.push_some(spans);
        if outcome.is_err() {
            self.iovecs.truncate(pieces);
            self.len = len;
        }
        outcome
    }

    fn push_some(&mut self, spans: impl Iterator<Item = Span>) -> Result<(), ChainError> {
        for span in spans {
            // A span may straddle two memory regions.
            for slice in self.ram.get_slices(span.guest_addr, span.len as usize) {
                let slice = slice.map_err(|_| ChainError::OutOfMemory)?;
                if self.iovecs.len() >= MAX_IOVECS {
                    return Err(ChainError::TooLong);
                }
                self.iovecs.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
                self.len += slice.len();
            }
        }
        Ok(())
    }

    /// Receives from the socket `fd` into the buffers; 0 is the end of the stream. Never waits.
    pub fn receive_from(&mut self, fd: RawFd) -> io::Result<usize> {
        let mut message = self.message();
        // SAFETY: every iovec points into the guest-RAM mapping that `self.ram` keeps alive, with a length
        // checked by get_slices; the kernel writes there, and no Rust reference to those bytes exists.
        let received = unsafe { libc::recvmsg(fd, &mut message, libc::MSG_DONTWAIT) };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// Sends the buffers to the socket `fd`; may send less than [`Self::len`]. Never waits, never signals.
    pub fn send_to(&mut self, fd: RawFd) -> io::Result<usize> {
        let message = self.message();
        // SAFETY: as in `receive_from`; the kernel only reads.
        let sent = unsafe { libc::sendmsg(fd, &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Reads from the file `fd` at `offset` into the buffers; 0 at the end of the file.
    pub fn read_file_at(&mut self, fd: RawFd, offset: i64) -> io::Result<usize> {
        let count = self.iovecs.len() as libc::c_int;
        // SAFETY: as in `receive_from`.
        let read = unsafe { libc::preadv(fd, self.iovecs.as_ptr(), count, offset) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    /// As [`Self::read_file_at`], but fails with EAGAIN rather than wait for the medium (RWF_NOWAIT); with
    /// EOPNOTSUPP if the file system does not know.
    pub fn read_cached_file_at(&mut self, fd: RawFd, offset: i64) -> io::Result<usize> {
        let count = self.iovecs.len() as libc::c_int;
        // SAFETY: as in `receive_from`.
        let read = unsafe { libc::preadv2(fd, self.iovecs.as_ptr(), count, offset, libc::RWF_NOWAIT) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    /// Writes the buffers to the file `fd` at `offset`; may write less.
    pub fn write_file_at(&mut self, fd: RawFd, offset: i64) -> io::Result<usize> {
        let count = self.iovecs.len() as libc::c_int;
        // SAFETY: as in `send_to`.
        let written = unsafe { libc::pwritev(fd, self.iovecs.as_ptr(), count, offset) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    /// Writes the buffers to the end of the file `fd`, wherever it is then (RWF_APPEND); may write less.
    pub fn append_to_file(&mut self, fd: RawFd) -> io::Result<usize> {
        let count = self.iovecs.len() as libc::c_int;
        // SAFETY: as in `send_to`.
        let written = unsafe { libc::pwritev2(fd, self.iovecs.as_ptr(), count, 0, libc::RWF_APPEND) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    fn message(&mut self) -> libc::msghdr {
        // SAFETY: msghdr is plain data for which all-zero (null pointers, no lengths) is a valid value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.iovecs.as_mut_ptr();
        message.msg_iovlen = self.iovecs.len();
        message
    }
}

//! Moving bytes between guest memory and a descriptor without a copy in between.
#![expect(unsafe_code, reason = "pointers into guest memory")]

use std::io;
use std::marker::PhantomData;
use std::os::fd::RawFd;

use vm_memory::GuestMemoryBackend;

use crate::chain::{Chain, ChainError, Clipped, Span};
use crate::{GuestRam, GuestRamHandle};

/// Most pieces in one system call (UIO_MAXIOV of Linux).
pub const MAX_IOVECS: usize = 1024;

/// The storage of a [`GuestBuffers`], kept from request to request so that none allocates.
#[derive(Debug, Default)]
pub struct IovecStorage(Vec<libc::iovec>);

// SAFETY: the list in it is always empty (`GuestBuffers::into_storage`): it owns room for pointers, and none.
unsafe impl Send for IovecStorage {}

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

    /// An empty list that begins with `bytes`, which are the device's own: a checked copy of a header.
    pub fn with_own(ram: &'ram GuestRam, storage: IovecStorage, bytes: &'ram mut [u8]) -> Self {
        let mut iovecs = storage.0;
        iovecs.push(libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() });
        Self { iovecs, len: bytes.len(), ram, marker: PhantomData }
    }

    /// Gives the storage back for the next request.
    pub fn into_storage(mut self) -> IovecStorage {
        self.iovecs.clear();
        self.iovecs.shrink_to(KEPT_IOVECS);
        IovecStorage(self.iovecs)
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
        self.len += append(&mut self.iovecs, self.ram, spans)?;
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

    /// Writes the buffers as one message to `fd`, a tap or a packet socket.
    pub fn write_packet(&mut self, fd: RawFd) -> io::Result<usize> {
        let count = self.iovecs.len() as libc::c_int;
        // SAFETY: as in `send_to`; a piece of the device's own is borrowed for as long as the list lives.
        let written = unsafe { libc::writev(fd, self.iovecs.as_ptr(), count) };
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

/// Appends the pieces of `spans` to `iovecs` and returns how many bytes they have.
pub(crate) fn append(
    iovecs: &mut Vec<libc::iovec>,
    ram: &GuestRam,
    spans: impl Iterator<Item = Span>,
) -> Result<usize, ChainError> {
    let mut added = 0;
    for span in spans {
        // A span may straddle two memory regions.
        for slice in ram.get_slices(span.guest_addr, span.len as usize) {
            let slice = slice.map_err(|_| ChainError::OutOfMemory)?;
            if iovecs.len() >= MAX_IOVECS {
                return Err(ChainError::TooLong);
            }
            let iov_base = slice.ptr_guard_mut().as_ptr().cast();
            iovecs.push(libc::iovec { iov_base, iov_len: slice.len() });
            added += slice.len();
        }
    }
    Ok(added)
}

/// A list of pieces of guest memory that keeps the mapping alive by itself, for work that outlasts the call
/// that began it. To be reused: an empty list keeps its storage, but not the mapping.
#[derive(Debug, Default)]
pub struct OwnedGuestBuffers {
    iovecs: Vec<libc::iovec>,
    /// Pieces before this one are used up.
    first: usize,
    len: usize,
    ram: Option<GuestRamHandle>,
}

// SAFETY: the pointers are into the mapping that `ram` keeps alive wherever the list goes, and are never
// dereferenced here: they are only ever passed to the kernel.
unsafe impl Send for OwnedGuestBuffers {}

/// Storage beyond this many pieces is given back with the request that needed it.
pub(crate) const KEPT_IOVECS: usize = 64;

impl OwnedGuestBuffers {
    /// Replaces the list by `len` bytes of the chain's readable part, from `offset` on.
    ///
    /// # Errors
    /// As [`GuestBuffers::push_readable`]; the list is empty then.
    pub fn set_readable(
        &mut self,
        ram: &GuestRamHandle,
        chain: &Chain,
        offset: u32,
        len: usize,
    ) -> Result<(), ChainError> {
        self.set(ram, Clipped::new(chain.readable(), offset, len)?)
    }

    /// Replaces the list by `len` bytes of the chain's writable part, from `offset` on.
    ///
    /// # Errors
    /// As [`Self::set_readable`].
    pub fn set_writable(
        &mut self,
        ram: &GuestRamHandle,
        chain: &Chain,
        offset: u32,
        len: usize,
    ) -> Result<(), ChainError> {
        self.set(ram, Clipped::new(chain.writable(), offset, len)?)
    }

    fn set(&mut self, ram: &GuestRamHandle, spans: impl Iterator<Item = Span>) -> Result<(), ChainError> {
        self.clear();
        match append(&mut self.iovecs, ram, spans) {
            Ok(len) => {
                self.len = len;
                self.ram = Some(GuestRamHandle::clone(ram));
                Ok(())
            }
            Err(error) => {
                self.clear();
                Err(error)
            }
        }
    }

    /// Empties the list and lets go of guest memory.
    pub fn clear(&mut self) {
        self.iovecs.clear();
        self.iovecs.shrink_to(KEPT_IOVECS);
        self.first = 0;
        self.len = 0;
        self.ram = None;
    }

    /// Bytes left.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no bytes are left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces left. They may be handed to the kernel for as long as the list is neither changed nor
    /// dropped; never look at what they point to, the guest writes there.
    pub fn iovecs(&self) -> &[libc::iovec] {
        self.iovecs.get(self.first..).unwrap_or_default()
    }

    /// Leaves out the first `count` bytes: they are done.
    pub fn advance(&mut self, count: usize) {
        let mut count = count.min(self.len);
        self.len -= count;
        while let Some(piece) = self.iovecs.get_mut(self.first) {
            if count < piece.iov_len {
                piece.iov_base = piece.iov_base.cast::<u8>().wrapping_add(count).cast();
                piece.iov_len -= count;
                return;
            }
            count -= piece.iov_len;
            self.first += 1;
        }
    }
}

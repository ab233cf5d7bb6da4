//! Writable chains taken from a ring ahead of the data that will fill them, in the driver's order.
//!
//! A receive path does not know how long the next packet is. It keeps a window of chains, lets the kernel
//! write into all of them at once, and completes those that were used. Each chain is walked once, however many
//! packets pass before its turn.
#![expect(unsafe_code, reason = "pointers into guest memory")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use vm_memory::Bytes;

use crate::GuestRamHandle;
use crate::chain::{Chain, ChainError, Clipped, Span};
use crate::iov::{MAX_IOVECS, append};

/// Pieces of which the window may consist; one more is the caller's own in [`PostedBuffers::read_packet`].
const MAX_PIECES: usize = MAX_IOVECS - 1;

#[derive(Clone, Copy, Debug)]
struct Posted {
    head: u16,
    pieces: u16,
    spans: u16,
    len: u32,
}

/// A window of writable chains. Keeps guest memory mapped while it holds any.
#[derive(Debug, Default)]
pub struct PostedBuffers {
    chains: VecDeque<Posted>,
    spans: VecDeque<Span>,
    iovecs: Vec<libc::iovec>,
    /// Pieces before this one are used up.
    first: usize,
    len: usize,
    ram: Option<GuestRamHandle>,
}

// SAFETY: the pointers are into the mapping that `ram` keeps alive wherever the window goes, and are never
// dereferenced here: they are only ever passed to the kernel.
unsafe impl Send for PostedBuffers {}

impl PostedBuffers {
    /// Chains in the window.
    pub fn chains(&self) -> usize {
        self.chains.len()
    }

    /// Bytes in all of them.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no chain.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Whether a chain of any shape may still be added.
    pub fn has_room(&self) -> bool {
        self.spans.len() < MAX_PIECES / 4
    }

    /// Appends the writable part of a chain; all of it, or nothing.
    ///
    /// # Errors
    /// [`ChainError::TooLong`] if the chain alone has more pieces than one system call takes, or, in a window
    /// that holds others, if there is no more room (see [`Self::has_room`]).
    pub fn push(&mut self, ram: &GuestRamHandle, chain: &Chain) -> Result<(), ChainError> {
        self.iovecs.drain(..std::mem::take(&mut self.first));
        let before = self.iovecs.len();
        let len = match append(&mut self.iovecs, ram, chain.writable().iter().copied()) {
            Ok(len) if self.iovecs.len() <= MAX_PIECES => len,
            outcome => {
                self.iovecs.truncate(before);
                return Err(outcome.err().unwrap_or(ChainError::TooLong));
            }
        };
        self.spans.extend(chain.writable());
        self.chains.push_back(Posted {
            head: chain.head(),
            // Both are below MAX_IOVECS.
            pieces: (self.iovecs.len() - before) as u16,
            spans: chain.writable().len() as u16,
            len: chain.writable_len(),
        });
        self.len += len;
        if self.ram.is_none() {
            self.ram = Some(GuestRamHandle::clone(ram));
        }
        Ok(())
    }

    /// Reads one message from `fd` into the window, and what does not fit into `rest`. Returns its length,
    /// which is then more than [`Self::len`].
    pub fn read_packet(&mut self, fd: RawFd, rest: &mut [u8]) -> io::Result<usize> {
        self.iovecs.push(libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() });
        let pieces = self.iovecs.get(self.first..).unwrap_or_default();
        // SAFETY: every piece but the last points into the guest-RAM mapping that `self.ram` keeps alive, with
        // a length checked by get_slices, and no Rust reference to those bytes exists; the last is `rest`,
        // borrowed for this call. There are at most MAX_IOVECS of them.
        let read = unsafe { libc::readv(fd, pieces.as_ptr(), pieces.len() as libc::c_int) };
        let outcome = usize::try_from(read).map_err(|_| io::Error::last_os_error());
        self.iovecs.pop();
        outcome
    }

    /// Copies `data` into the window from `offset` on.
    ///
    /// # Errors
    /// [`ChainError::Range`] if the window is shorter.
    pub fn write(&self, offset: u32, data: &[u8]) -> Result<(), ChainError> {
        let ram = self.ram.as_ref().ok_or(ChainError::Range)?;
        let mut rest = data;
        for span in self.clipped(offset, data.len())? {
            let (now, later) = rest.split_at_checked(span.len as usize).ok_or(ChainError::Range)?;
            ram.write_slice(now, span.guest_addr).map_err(|_| ChainError::OutOfMemory)?;
            rest = later;
        }
        Ok(())
    }

    /// Copies out of the window from `offset` on: what was read into it, unless the guest has changed it.
    ///
    /// # Errors
    /// [`ChainError::Range`] if the window is shorter.
    pub fn read(&self, offset: u32, data: &mut [u8]) -> Result<(), ChainError> {
        let ram = self.ram.as_ref().ok_or(ChainError::Range)?;
        let mut rest = data;
        for span in self.clipped(offset, rest.len())? {
            let (now, later) = rest.split_at_mut_checked(span.len as usize).ok_or(ChainError::Range)?;
            ram.read_slice(now, span.guest_addr).map_err(|_| ChainError::OutOfMemory)?;
            rest = later;
        }
        Ok(())
    }

    fn clipped(&self, offset: u32, len: usize) -> Result<impl Iterator<Item = Span>, ChainError> {
        let (front, back) = self.spans.as_slices();
        let front_len: u64 = front.iter().map(|span| u64::from(span.len)).sum();
        let in_front = (front_len.saturating_sub(u64::from(offset))).min(len as u64) as usize;
        let in_back = u32::try_from(u64::from(offset).saturating_sub(front_len));
        let first = Clipped::new(front, if in_front == 0 { 0 } else { offset }, in_front)?;
        let second = Clipped::new(back, in_back.map_err(|_| ChainError::Range)?, len - in_front)?;
        Ok(first.chain(second))
    }

    /// Takes the first chain out; returns its head.
    pub fn discard_first(&mut self) -> Option<u16> {
        let first = self.chains.pop_front()?;
        self.forget(&first);
        Some(first.head)
    }

    /// Takes the chains out that hold the first `len` bytes and appends them to `used` as (head, bytes).
    pub fn take(&mut self, len: usize, used: &mut Vec<(u16, u32)>) {
        let mut left = len;
        while left > 0 {
            let Some(first) = self.chains.pop_front() else { return };
            let now = left.min(first.len as usize);
            left -= now;
            used.push((first.head, now as u32));
            self.forget(&first);
        }
    }

    fn forget(&mut self, chain: &Posted) {
        self.first += usize::from(chain.pieces);
        self.spans.drain(..usize::from(chain.spans));
        self.len -= chain.len as usize;
        if self.chains.is_empty() {
            self.clear();
        }
    }

    /// How many chains a driver has to offer for `len` bytes, of those in the window.
    pub fn chains_for(&self, len: usize) -> usize {
        let mut left = len;
        let mut count = 0;
        for chain in &self.chains {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(chain.len as usize);
            count += 1;
        }
        count
    }

    /// Empties the window and lets go of guest memory. Returns how many chains there were, for the caller to
    /// put back into the ring.
    pub fn clear(&mut self) -> usize {
        let count = self.chains.len();
        self.chains.clear();
        self.spans.clear();
        self.iovecs.clear();
        self.first = 0;
        self.len = 0;
        self.ram = None;
        count
    }
}

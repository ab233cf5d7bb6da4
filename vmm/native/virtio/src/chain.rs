//! One descriptor chain, walked once and checked as a whole.
//!
//! The walk itself is virtio-queue's. It ends quietly at anything wrong (a loop, an index or table outside
//! memory, a nested indirect table); here such an end is told apart from the real one and refused.

use std::fmt;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::GuestRam;

/// Most descriptors in one chain. The specification's limit is the queue size (virtio 1.2, 2.7.5.3.1), but
/// Linux exceeds it with indirect tables; QEMU's limit (VIRTQUEUE_MAX_SIZE) is the one drivers live with.
pub const MAX_CHAIN_DESCRIPTORS: usize = 1024;

/// One contiguous piece of guest memory, known to be inside guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it starts, in guest-physical addresses.
    pub guest_addr: GuestAddress,
    /// Length in bytes, never zero.
    pub len: u32,
}

/// Why a chain was refused. The driver broke the protocol; the device answers with DEVICE_NEEDS_RESET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainError {
    /// The chain loops, leaves the table, or its table cannot be read.
    Broken,
    /// More than [`MAX_CHAIN_DESCRIPTORS`] descriptors.
    TooLong,
    /// A device-readable descriptor follows a device-writable one (virtio 1.2, 2.7.4.2).
    Order,
    /// A buffer lies outside guest memory.
    OutOfMemory,
    /// The buffers add up to more than 2^32 - 1 bytes (virtio 1.2, 2.7.5.2).
    TooLarge,
    /// The device asked for bytes that the chain does not have. A fault of the device, not of the driver.
    Range,
}

impl fmt::Display for ChainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Broken => "Descriptor chain loops or leaves its table",
            Self::TooLong => "Descriptor chain has too many descriptors",
            Self::Order => "Readable descriptor after a writable one",
            Self::OutOfMemory => "Descriptor points outside guest memory",
            Self::TooLarge => "Descriptor chain is longer than 4 GiB",
            Self::Range => "Access beyond the end of a descriptor chain",
        })
    }
}

impl std::error::Error for ChainError {}

/// A checked chain: readable spans first, then writable ones. Reused from request to request.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    head: u16,
    spans: Vec<Span>,
    readable_spans: usize,
    readable_len: u32,
    writable_len: u32,
}

impl Chain {
    /// An empty chain, to be filled by [`crate::Ring::pop`].
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn load(
        &mut self,
        walk: DescriptorChain<&GuestRam>,
        ram: &GuestRam,
    ) -> Result<(), ChainError> {
        self.head = walk.head_index();
        self.spans.clear();
        self.readable_spans = 0;
        self.readable_len = 0;
        self.writable_len = 0;
        // True until a descriptor without NEXT has been seen: an end before that is a broken chain.
        let mut open = true;
        for (position, descriptor) in walk.enumerate() {
            if position >= MAX_CHAIN_DESCRIPTORS {
                return Err(ChainError::TooLong);
            }
            open = descriptor.has_next();
            let total =
                if descriptor.is_write_only() { &mut self.writable_len } else { &mut self.readable_len };
            *total = total.checked_add(descriptor.len()).ok_or(ChainError::TooLarge)?;
            if !descriptor.is_write_only() && self.spans.len() != self.readable_spans {
                return Err(ChainError::Order);
            }
            if descriptor.len() == 0 {
                continue;
            }
            if !GuestMemoryBackend::check_range(ram, descriptor.addr(), descriptor.len() as usize) {
                return Err(ChainError::OutOfMemory);
            }
            self.spans.push(Span { guest_addr: descriptor.addr(), len: descriptor.len() });
            if !descriptor.is_write_only() {
                self.readable_spans += 1;
            }
        }
        if open {
            return Err(ChainError::Broken);
        }
        self.readable_len.checked_add(self.writable_len).ok_or(ChainError::TooLarge)?;
        Ok(())
    }

    /// Index of the first descriptor: the chain's name in the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Spans that the device reads.
    pub fn readable(&self) -> &[Span] {
        self.spans.get(..self.readable_spans).unwrap_or_default()
    }

    /// Spans that the device writes.
    pub fn writable(&self) -> &[Span] {
        self.spans.get(self.readable_spans..).unwrap_or_default()
    }

    /// Total bytes that the device may read.
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Total bytes that the device may write.
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// Copies `data.len()` bytes out of the readable part, from `offset` on.
    ///
    /// # Errors
    /// [`ChainError::Range`] if the readable part is shorter.
    pub fn read_at(&self, ram: &GuestRam, offset: u32, data: &mut [u8]) -> Result<(), ChainError> {
        let mut rest = data;
        for span in Clipped::new(self.readable(), offset, rest.len())? {
            let (now, later) = rest.split_at_mut_checked(span.len as usize).ok_or(ChainError::Range)?;
            ram.read_slice(now, span.guest_addr).map_err(|_| ChainError::OutOfMemory)?;
            rest = later;
        }
        Ok(())
    }

    /// Copies `data` into the writable part, from `offset` on.
    ///
    /// # Errors
    /// [`ChainError::Range`] if the writable part is shorter.
    pub fn write_at(&self, ram: &GuestRam, offset: u32, data: &[u8]) -> Result<(), ChainError> {
        let mut rest = data;
        for span in Clipped::new(self.writable(), offset, rest.len())? {
            let (now, later) = rest.split_at_checked(span.len as usize).ok_or(ChainError::Range)?;
            ram.write_slice(now, span.guest_addr).map_err(|_| ChainError::OutOfMemory)?;
            rest = later;
        }
        Ok(())
    }
}

/// Iterates over the pieces of `spans` that make up the byte range `offset..offset + len`.
pub(crate) struct Clipped<'a> {
    spans: &'a [Span],
    skip: u32,
    left: u32,
}

impl<'a> Clipped<'a> {
    /// # Errors
    /// [`ChainError::Range`] if the spans do not have that many bytes.
    pub(crate) fn new(spans: &'a [Span], offset: u32, len: usize) -> Result<Self, ChainError> {
        let left = u32::try_from(len).map_err(|_| ChainError::Range)?;
        let total: u64 = spans.iter().map(|span| u64::from(span.len)).sum();
        if u64::from(offset) + u64::from(left) > total {
            return Err(ChainError::Range);
        }
        Ok(Self { spans, skip: offset, left })
    }
}

impl Iterator for Clipped<'_> {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        while self.left > 0 {
            let (first, rest) = self.spans.split_first()?;
            self.spans = rest;
            if self.skip >= first.len {
                self.skip -= first.len;
                continue;
            }
            let len = (first.len - self.skip).min(self.left);
            // The span was checked to lie inside guest memory, so this does not overflow.
            let guest_addr = GuestAddress(first.guest_addr.0.wrapping_add(u64::from(self.skip)));
            self.skip = 0;
            self.left -= len;
            return Some(Span { guest_addr, len });
        }
        None
    }
}

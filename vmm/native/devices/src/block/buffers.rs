//! What an operation on the disk reads from or writes to: guest memory itself, or memory of the host's own
//! where the disk wants alignment that the guest's buffers do not have.
#![expect(unsafe_code, reason = "iovecs")]

use std::fmt;

use strato_virtio::OwnedGuestBuffers;

/// Size of a bounce buffer; longer requests go through it piece by piece.
pub(super) const BOUNCE_LEN: usize = 256 * 1024;

const PAGE_LEN: usize = 4096;

/// No disk asks for more alignment of memory than a page.
#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_LEN]);

/// Memory of the host's own, aligned to pages.
pub(super) struct Bounce {
    pages: Vec<Page>,
}

impl fmt::Debug for Bounce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bounce")
    }
}

impl Bounce {
    /// [`BOUNCE_LEN`] zeros.
    pub(super) fn new() -> Self {
        Self { pages: vec![Page([0; PAGE_LEN]); BOUNCE_LEN / PAGE_LEN] }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `Page` is a transparent array of bytes without padding, and the vector's pages are
        // contiguous; the bytes are borrowed as long as the vector is.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.pages.len() * PAGE_LEN) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.pages.len() * PAGE_LEN) }
    }
}

#[repr(C, align(4096))]
struct Zeros([u8; 64 * 1024]);

static ZEROS: Zeros = Zeros([0; 64 * 1024]);

/// The memory of one operation.
#[derive(Debug)]
pub(super) enum Buffers {
    /// Guest memory.
    Guest(OwnedGuestBuffers),
    /// The first `len` bytes of a bounce buffer.
    Bounce(Bounce, usize),
    /// That many zeros, at most [`Buffers::MOST_ZEROS`]. Only to be written to a disk.
    Zeros(usize),
}

/// How the memory is told to the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pieces {
    One(*mut u8, u32),
    Many(*const libc::iovec, u32),
}

impl Buffers {
    pub(super) const MOST_ZEROS: usize = ZEROS.0.len();

    /// Bytes left.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Guest(buffers) => buffers.len(),
            Self::Bounce(_, len) | Self::Zeros(len) => *len,
        }
    }

    /// The memory, for as long as `self` is neither changed nor dropped. Moving it is harmless: what the
    /// pieces name is on the heap or in guest memory.
    pub(super) fn pieces(&mut self) -> Pieces {
        match self {
            Self::Guest(buffers) => match buffers.iovecs() {
                // A request has at most 2^32 - 1 bytes, and so has each of its pieces.
                [one] => Pieces::One(one.iov_base.cast(), one.iov_len as u32),
                many => Pieces::Many(many.as_ptr(), many.len() as u32),
            },
            Self::Bounce(bounce, len) => {
                let len = (*len).min(BOUNCE_LEN);
                Pieces::One(bounce.bytes_mut().as_mut_ptr(), len as u32)
            }
            Self::Zeros(len) => Pieces::One(ZEROS.0.as_ptr().cast_mut(), (*len).min(Self::MOST_ZEROS) as u32),
        }
    }
}

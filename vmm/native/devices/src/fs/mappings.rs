//! What of a window is mapped. Everything that the guest can reach there is in this table, so that it can be
//! taken away: at the guest's word, when its share goes, and when the guest or the device ends.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::backend::{MappableFile, Revocation, ShareId};
use super::window::{Mapping, Window, page_size};

/// Most pieces, however large the window: each takes two of the mappings that the kernel allows a process
/// (vm.max_map_count, 65530), itself and the gap behind it. Linux asks for 2 MiB at a time, which makes 16 GiB.
const MAX_PIECES: usize = 8192;

/// A part of the window that is mapped in one piece, by where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    end: u64,
    share: ShareId,
}

type Pieces = BTreeMap<u64, Piece>;

/// The mappings of one device.
#[derive(Debug)]
pub(super) struct Mappings {
    window: Arc<dyn Window>,
    limit: usize,
    pieces: Mutex<Pieces>,
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl Mappings {
    pub(super) fn new(window: Arc<dyn Window>) -> Self {
        let pages = usize::try_from(window.length() / page_size()).unwrap_or(usize::MAX);
        Self { window, limit: pages.min(MAX_PIECES), pieces: Mutex::default() }
    }

    /// The range of the window, if it is one: whole pages, inside.
    ///
    /// # Errors
    /// EINVAL
    pub(super) fn range(&self, window_offset: u64, len: u64) -> io::Result<Range<u64>> {
        let end = window_offset.checked_add(len).filter(|end| *end <= self.window.length());
        match end {
            Some(end) if len > 0 && (window_offset | len).is_multiple_of(page_size()) => {
                Ok(window_offset..end)
            }
            _ => Err(errno(libc::EINVAL)),
        }
    }

    /// Maps a part of `file` in place of what is mapped there.
    ///
    /// # Errors
    /// EINVAL: no such range; ESTALE: the file's share is gone; ENOSPC: too many pieces; otherwise as
    /// [`Window::map`].
    pub(super) fn map(&self, file: &dyn MappableFile, mapping: Mapping) -> io::Result<()> {
        let range = self.range(mapping.window_offset, mapping.len)?;
        let mut pieces = self.lock();
        // With the lock held: a share that goes says so first, and takes its mappings away then.
        if file.revoked() {
            return Err(errno(libc::ESTALE));
        }
        if left_without(&pieces, &range) >= self.limit {
            return Err(errno(libc::ENOSPC));
        }
        // If it fails, the table may name what is not there any more, never the other way round.
        self.window.map(file.as_fd(), mapping)?;
        cut(&mut pieces, &range);
        pieces.insert(range.start, Piece { end: range.end, share: file.share() });
        Ok(())
    }

    /// Takes away what is mapped in a range that [`Self::range`] gave.
    ///
    /// # Errors
    /// ENOMEM, as of munmap(2): one piece more would be too many.
    pub(super) fn unmap(&self, range: &Range<u64>) -> io::Result<()> {
        let mut pieces = self.lock();
        if left_without(&pieces, range) > self.limit {
            return Err(errno(libc::ENOMEM));
        }
        self.window.unmap(range.start, range.end - range.start);
        cut(&mut pieces, range);
        Ok(())
    }

    /// Takes everything away.
    pub(super) fn clear(&self) {
        self.take(|_| true);
    }

    /// How long the window is.
    pub(super) fn window_length(&self) -> u64 {
        self.window.length()
    }

    fn take(&self, which: impl Fn(&Piece) -> bool) {
        self.lock().retain(|start, piece| {
            let gone = which(piece);
            if gone {
                self.window.unmap(*start, piece.end - start);
            }
            !gone
        });
    }

    fn lock(&self) -> MutexGuard<'_, Pieces> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Revocation for Mappings {
    fn revoke(&self, share: ShareId) {
        self.take(|piece| piece.share == share);
    }
}

impl Drop for Mappings {
    fn drop(&mut self) {
        self.clear();
    }
}

/// How many pieces are left when `range` is cut out.
fn left_without(pieces: &Pieces, range: &Range<u64>) -> usize {
    // One that begins before the range stays; one that ends after it stays, or is one more.
    let beginning_inside = pieces.range(range.clone()).count();
    let last = pieces.range(..range.end).next_back();
    let rest = usize::from(last.is_some_and(|(_, piece)| piece.end > range.end));
    pieces.len() - beginning_inside + rest
}

/// Cuts `range` out; pieces that reach beyond it keep their other parts.
fn cut(pieces: &mut Pieces, range: &Range<u64>) {
    let before = pieces.range_mut(..range.start).next_back().map(|(_, piece)| piece);
    if let Some(piece) = before.filter(|piece| piece.end > range.start) {
        let whole = *piece;
        piece.end = range.start;
        if whole.end > range.end {
            pieces.insert(range.end, whole);
        }
    }
    while let Some((&start, &piece)) = pieces.range(range.clone()).next() {
        pieces.remove(&start);
        if piece.end > range.end {
            pieces.insert(range.end, piece);
        }
    }
}

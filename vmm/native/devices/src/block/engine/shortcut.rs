//! The way past the engine for what the page cache can take or give at once.
//!
//! A write into the page cache is a copy; handed to another thread (which io_uring does too, where the file
//! system has no asynchronous buffered writes) it costs two context switches and more processor time than the
//! copy. So writes of whole pages are done at once on the device's thread, for as long as they do not wait: after
//! one that did (the host holds back who dirties too many pages) the engine does them all for a while.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Done, Job, Work, pool};
use crate::block::CacheMode;
use crate::block::buffers::Pieces;

/// A copy of this many bytes still takes less than a tenth of [`SLOW`].
const MAX_BYTES: usize = 1 << 20;
const PAGE: u64 = 4096;
/// A write that took longer has waited for something.
const SLOW: Duration = Duration::from_millis(5);
/// For how long the engine does the writes then.
const DETOUR: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Shortcut {
    file: Arc<File>,
    buffered: bool,
    /// Whether data can be read only if it is in the page cache, without the engine.
    reads: bool,
    closed_until: Option<Instant>,
}

impl Shortcut {
    pub(super) fn new(file: &Arc<File>, cache: CacheMode, reads: bool) -> Self {
        let buffered = cache != CacheMode::Direct;
        Self { file: Arc::clone(file), buffered, reads: reads && buffered, closed_until: None }
    }

    /// Carries the job out if that does not wait; otherwise gives it back.
    pub(super) fn attempt(&mut self, mut job: Job) -> Result<Done, Job> {
        match &mut job.work {
            Work::Read { offset, buffers } if self.reads => {
                match read_cached(&self.file, *offset, buffers.pieces()) {
                    Ok(count) if count > 0 => Ok(Done { job, result: Ok(count) }),
                    _ => Err(job),
                }
            }
            Work::Write { offset, buffers, durable: false } if self.buffered => {
                let len = buffers.len();
                // Part of a page would have to be read first.
                if len > MAX_BYTES || !(*offset | len as u64).is_multiple_of(PAGE) || !self.open() {
                    return Err(job);
                }
                let begun = Instant::now();
                let done = pool::carry_out(&self.file, job);
                if begun.elapsed() > SLOW {
                    self.closed_until = Some(begun + DETOUR);
                }
                Ok(done)
            }
            _ => Err(job),
        }
    }

    fn open(&mut self) -> bool {
        if self.closed_until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        self.closed_until = None;
        true
    }
}

/// Reads what is in the page cache already (RWF_NOWAIT).
fn read_cached(file: &File, offset: u64, pieces: Pieces) -> io::Result<usize> {
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let one;
    let (list, count) = match pieces {
        Pieces::One(data, len) => {
            one = libc::iovec { iov_base: data.cast(), iov_len: len as usize };
            (&raw const one, 1)
        }
        Pieces::Many(list, count) => (list, count as libc::c_int),
    };
    // SAFETY: the pieces are of a job that the caller holds, and nobody else uses its memory meanwhile.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), list, count, offset, libc::RWF_NOWAIT) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

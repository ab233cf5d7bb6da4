//! The way past the engine for what the page cache can take or give at once.
//!
//! A write into the page cache is a copy; handed to another thread (which io_uring does too, where the file
//! system has no asynchronous buffered writes) it costs two context switches and more processor time than the
//! copy. So writes of whole pages are done at once on the device's thread, for as long as they do not wait: after
//! one that did (the host holds back who dirties too many pages) the engine does them all for a while. Reads of
//! a file in memory are copies as well, which io_uring would hand over too (tmpfs knows no non-blocking reads).
#![expect(unsafe_code, reason = "system calls")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Done, Job, Work, pool};
use crate::block::CacheMode;
use crate::block::backend::Disk;
use crate::block::buffers::Pieces;

/// A copy of this many bytes still takes less than a tenth of [`SLOW`].
const MAX_BYTES: usize = 1 << 20;
const PAGE: u64 = 4096;
/// A write that took longer has waited for something.
const SLOW: Duration = Duration::from_millis(5);
/// For how long the engine does the writes then.
const DETOUR: Duration = Duration::from_millis(500);

/// Which reads go the short way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reads {
    /// None: the engine itself is as quick.
    No,
    /// Those whose data is in the page cache.
    Cached,
    /// All.
    All,
}

#[derive(Debug)]
pub(super) struct Shortcut {
    file: Arc<File>,
    buffered: bool,
    reads: Reads,
    closed_until: Option<Instant>,
}

impl Shortcut {
    /// `reads` is for disks that are in the page cache, in part or not at all.
    pub(super) fn new(disk: &Disk, reads: Reads) -> Self {
        let buffered = disk.cache != CacheMode::Direct;
        let reads = match (buffered, disk.in_memory) {
            (false, _) => Reads::No,
            (true, true) => Reads::All,
            (true, false) => reads,
        };
        Self { file: Arc::clone(&disk.file), buffered, reads, closed_until: None }
    }

    /// Carries the job out if that does not wait; otherwise gives it back.
    pub(super) fn attempt(&mut self, mut job: Job) -> Result<Done, Job> {
        match &mut job.work {
            Work::Read { buffers, .. } if self.reads == Reads::All && buffers.len() <= MAX_BYTES => {
                Ok(pool::carry_out(&self.file, job))
            }
            Work::Read { offset, buffers } if self.reads == Reads::Cached => {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::buffers::Buffers;

    fn write(offset: u64, len: usize, durable: bool) -> Job {
        Job { slot: 0, work: Work::Write { offset, buffers: Buffers::Zeros(len), durable } }
    }

    #[test]
    fn only_whole_pages_for_the_page_cache_go_the_short_way() {
        let path = std::env::temp_dir();
        let options = std::os::unix::fs::OpenOptionsExt::custom_flags(
            std::fs::OpenOptions::new().read(true).write(true),
            libc::O_TMPFILE,
        )
        .open(path);
        let file = options.unwrap();
        let disk = |cache| Disk::new(file.try_clone().unwrap(), cache).unwrap();
        let mut shortcut = Shortcut::new(&disk(CacheMode::Writeback), Reads::Cached);
        assert_eq!(shortcut.attempt(write(4096, 8192, false)).unwrap().result.unwrap(), 8192);
        assert!(shortcut.attempt(write(512, 4096, false)).is_err());
        assert!(shortcut.attempt(write(0, 512, false)).is_err());
        assert!(shortcut.attempt(write(0, 4096, true)).is_err());
        assert!(shortcut.attempt(Job { slot: 0, work: Work::Flush }).is_err());
        shortcut.closed_until = Some(Instant::now() + Duration::from_secs(60));
        assert!(shortcut.attempt(write(0, 4096, false)).is_err());
        shortcut.closed_until = Some(Instant::now());
        assert!(shortcut.attempt(write(0, 4096, false)).is_ok());
        let mut direct = Shortcut::new(&disk(CacheMode::Direct), Reads::Cached);
        assert!(direct.attempt(write(0, 4096, false)).is_err());
    }
}

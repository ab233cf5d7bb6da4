//! The disk: a raw file or a block device.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;

use super::queue::SECTOR;

/// What a flush of the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushPolicy {
    /// Nothing: the disk may be lost with the host (scratch disks).
    Ignore,
    /// Everything written before is on the medium when it is answered.
    Sync,
}

/// A disk and its size.
#[derive(Debug)]
pub struct Disk {
    file: File,
    sectors: u64,
    flush: FlushPolicy,
}

impl Disk {
    /// Uses `file` from its first to its last whole sector.
    ///
    /// # Errors
    /// It has no size.
    pub fn new(mut file: File, flush: FlushPolicy) -> io::Result<Self> {
        // Works for block devices too, whose metadata have no length.
        let sectors = file.seek(SeekFrom::End(0))? / SECTOR;
        Ok(Self { file, sectors, flush })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        match self.flush {
            FlushPolicy::Ignore => Ok(()),
            FlushPolicy::Sync => self.file.sync_data(),
        }
    }

    fn fallocate(&self, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
        let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: no pointers are passed.
        let outcome = unsafe { libc::fallocate(self.fd(), mode | libc::FALLOC_FL_KEEP_SIZE, offset, len) };
        if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Gives the range back. Reads of it give zeros, or what was there if the file system cannot do it.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.fallocate(libc::FALLOC_FL_PUNCH_HOLE, offset, len) {
            // A discard is a hint (virtio 1.2, 5.2.6.2).
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            other => other,
        }
    }

    /// Makes the range zero; gives it back too if `unmap`.
    pub(super) fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let mode = if unmap { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
        match self.fallocate(mode, offset, len) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            other => return other,
        }
        let zeros = [0; 64 * 1024];
        let mut done = 0;
        while done < len {
            let now = usize::try_from(len - done).unwrap_or(zeros.len()).min(zeros.len());
            self.file.write_all_at(zeros.get(..now).unwrap_or_default(), offset + done)?;
            done += now as u64;
        }
        Ok(())
    }
}

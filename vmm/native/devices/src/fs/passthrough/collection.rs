//! The root directory whose entries are shares. It is nowhere on the host.

use std::ffi::{CStr, CString};
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::metrics::PassthroughMetrics;
use super::share::Share;
use super::sys::errno;
use crate::fs::backend::{Attributes, DirectoryEntry, FileSystemStatistics, ROOT_NODE};

/// Shares of one guest. Each holds a descriptor for good, and finding one by name is a walk over them.
const MAX_SHARES: usize = 1024;

/// How long the guest may trust the name of a share; afterwards it sees that the share is gone.
pub(super) const NAME_TIMEOUT: Duration = Duration::from_secs(1);

/// Offsets in the listing: 1 and 2 follow `.` and `..`, the others a share's serial number plus this.
const FIRST_OFFSET: u64 = 2;

#[derive(Debug)]
struct Shares {
    /// In the order of their serial numbers.
    list: Vec<(CString, Arc<Share>)>,
    changed: (i64, u32),
}

#[derive(Debug)]
pub(super) struct Collection(RwLock<Shares>);

impl Default for Collection {
    fn default() -> Self {
        Self(RwLock::new(Shares { list: Vec::new(), changed: now() }))
    }
}

impl Collection {
    pub(super) fn add(
        &self,
        name: &CStr,
        share: &Arc<Share>,
        metrics: &PassthroughMetrics,
    ) -> io::Result<()> {
        let mut shares = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if shares.list.iter().any(|(known, _)| known.as_c_str() == name) {
            return Err(errno(libc::EEXIST));
        }
        if shares.list.len() >= MAX_SHARES {
            return Err(errno(libc::ENOSPC));
        }
        let place = shares.list.partition_point(|(_, other)| other.serial < share.serial);
        shares.list.insert(place, (name.to_owned(), Arc::clone(share)));
        shares.changed = now();
        PassthroughMetrics::level(&metrics.shares, shares.list.len());
        Ok(())
    }

    pub(super) fn remove(&self, name: &CStr, metrics: &PassthroughMetrics) -> io::Result<Arc<Share>> {
        let mut shares = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let place = shares.list.iter().position(|(known, _)| known.as_c_str() == name);
        let place = place.ok_or_else(|| errno(libc::ENOENT))?;
        let (_, share) = shares.list.remove(place);
        shares.changed = now();
        PassthroughMetrics::level(&metrics.shares, shares.list.len());
        Ok(share)
    }

    pub(super) fn find(&self, name: &CStr) -> Option<Arc<Share>> {
        let shares = self.0.read().unwrap_or_else(PoisonError::into_inner);
        shares.list.iter().find(|(known, _)| known.as_c_str() == name).map(|(_, share)| Arc::clone(share))
    }

    pub(super) fn attributes(&self) -> Attributes {
        let shares = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let directories = u32::try_from(shares.list.len()).unwrap_or(u32::MAX);
        Attributes {
            ino: ROOT_NODE,
            mode: libc::S_IFDIR | 0o555,
            nlink: directories.saturating_add(2),
            blksize: 4096,
            atime: shares.changed,
            mtime: shares.changed,
            ctime: shares.changed,
            // STATX_BASIC_STATS
            mask: 0x7ff,
            ..Attributes::default()
        }
    }

    /// As [`crate::fs::backend::HostFs::readdir`]. The lock is not held while `sink` runs.
    pub(super) fn list(&self, offset: u64, sink: &mut dyn FnMut(DirectoryEntry<'_>) -> bool) {
        let mut entries = vec![(1, ROOT_NODE, c".".to_owned()), (2, ROOT_NODE, c"..".to_owned())];
        {
            let shares = self.0.read().unwrap_or_else(PoisonError::into_inner);
            entries.extend(
                shares
                    .list
                    .iter()
                    .map(|(name, share)| (share.serial + FIRST_OFFSET, share.root, name.clone())),
            );
        }
        for (next_offset, ino, name) in entries.iter().filter(|(next, ..)| *next > offset) {
            let entry = DirectoryEntry { ino: *ino, next_offset: *next_offset, kind: libc::DT_DIR, name };
            if !sink(entry) {
                break;
            }
        }
    }

    pub(super) fn statistics() -> FileSystemStatistics {
        FileSystemStatistics { bsize: 4096, frsize: 4096, namelen: 255, ..FileSystemStatistics::default() }
    }
}

fn now() -> (i64, u32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}

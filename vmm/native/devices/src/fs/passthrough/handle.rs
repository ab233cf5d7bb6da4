//! Open files and directories: handle id -> descriptor. Ids are never used twice.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard};

use super::directory::Stream;
use super::metrics::PassthroughMetrics;
use super::node::{Node, Scatter};
use super::share::{Live, Share};
use super::sys::errno;
use crate::fs::backend::{HandleId, MappableFile, NodeId, ShareId};

/// The listing of a collection: it has no state, so all have this handle.
pub(super) const COLLECTION_HANDLE: HandleId = 0;

/// An open file or directory.
#[derive(Debug)]
pub(super) struct Handle {
    file: OwnedFd,
    pub node: NodeId,
    /// The inode number, where the folder of a share is listed: its parent is none of the guest's business.
    pub root_ino: Option<u64>,
    /// Of a directory.
    pub stream: Option<Mutex<Stream>>,
    pub flush_matters: bool,
    /// Last: the descriptor is closed before the share hears of it.
    pub share: Live,
}

impl Handle {
    pub(super) fn file(node: &Node, file: OwnedFd) -> Self {
        Self {
            file,
            node: node.id,
            root_ino: None,
            stream: None,
            flush_matters: node.traits.flush_matters,
            share: Live::new(&node.share),
        }
    }

    pub(super) fn directory(node: &Node, file: OwnedFd) -> Self {
        Self {
            root_ino: node.is_share_root().then(|| node.ino()),
            stream: Some(Mutex::default()),
            ..Self::file(node, file)
        }
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl MappableFile for Handle {
    fn share(&self) -> ShareId {
        self.share.serial
    }

    fn revoked(&self) -> bool {
        self.share.is_closed()
    }
}

/// All handles of one guest.
#[derive(Debug)]
pub(super) struct Handles {
    limit: usize,
    next: AtomicU64,
    table: RwLock<HashMap<HandleId, Arc<Handle>, Scatter>>,
    metrics: Arc<PassthroughMetrics>,
}

impl Handles {
    pub(super) fn new(limit: usize, metrics: Arc<PassthroughMetrics>) -> Self {
        Self { limit, next: AtomicU64::new(COLLECTION_HANDLE + 1), table: RwLock::default(), metrics }
    }

    pub(super) fn get(&self, id: HandleId) -> Option<Arc<Handle>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// EMFILE if there is no room for another handle. To be asked before a file is created for it.
    pub(super) fn check_room(&self) -> io::Result<()> {
        if self.table.read().unwrap_or_else(PoisonError::into_inner).len() < self.limit {
            return Ok(());
        }
        PassthroughMetrics::count(&self.metrics.handles_refused);
        Err(errno(libc::EMFILE))
    }

    pub(super) fn insert(&self, handle: Handle) -> io::Result<HandleId> {
        let handle = Arc::new(handle);
        let mut table = self.write();
        if handle.share.is_closed() {
            return Err(errno(libc::ESTALE));
        }
        if table.len() >= self.limit {
            PassthroughMetrics::count(&self.metrics.handles_refused);
            return Err(errno(libc::EMFILE));
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        table.insert(id, handle);
        PassthroughMetrics::level(&self.metrics.handles, table.len());
        Ok(id)
    }

    pub(super) fn remove(&self, id: HandleId) -> Option<Arc<Handle>> {
        let mut table = self.write();
        let handle = table.remove(&id);
        PassthroughMetrics::level(&self.metrics.handles, table.len());
        handle
    }

    pub(super) fn clear(&self) {
        self.take(|_| true);
    }

    pub(super) fn revoke(&self, share: &Share) {
        self.take(|handle| handle.share.serial == share.serial);
    }

    fn take(&self, which: impl Fn(&Handle) -> bool) {
        let mut table = self.write();
        let gone: Vec<_> = table.extract_if(|_, handle| which(handle)).collect();
        PassthroughMetrics::level(&self.metrics.handles, table.len());
        // Closing can take its time: not under the lock.
        drop(table);
        drop(gone);
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<HandleId, Arc<Handle>, Scatter>> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

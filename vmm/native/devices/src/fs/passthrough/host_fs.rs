//! The trait's methods, each by its function.

use std::ffi::CStr;
use std::io;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use super::metrics::PassthroughMetrics;
use super::{Passthrough, attributes, credentials, directory, files, locks, lookup, names, xattr};
use crate::fs::backend::{
    AttributeChange, Attributes, Caller, Creation, DirectoryEntry, Entry, FileSystemStatistics, HandleId,
    HostFs, MappableFile, NodeId, OpenFile, Opened, RecordLock, Revocation, SessionOptions,
};

impl HostFs for Passthrough {
    fn prepare_thread(&self) -> io::Result<()> {
        self.prepare()
    }

    fn begin(&self, options: SessionOptions) {
        self.end();
        self.options.set(options);
    }

    fn end(&self) {
        self.handles.clear();
        self.locks.clear();
        self.nodes.clear();
    }

    fn lookup(&self, _caller: &Caller, parent: NodeId, name: &CStr) -> io::Result<Entry> {
        lookup::lookup(self, parent, name)
    }

    fn absence_timeout(&self, parent: NodeId) -> Duration {
        self.nodes.get(parent).map_or(Duration::ZERO, |node| node.share.cache.absence_timeout())
    }

    fn forget(&self, node: NodeId, count: u64) {
        if !self.nodes.forget(node, count) {
            PassthroughMetrics::count(&self.metrics.bad_forgets);
        }
    }

    fn attributes(&self, node: NodeId, _handle: Option<HandleId>) -> io::Result<(Attributes, Duration)> {
        attributes::get(self, node)
    }

    fn set_attributes(
        &self,
        _caller: &Caller,
        node: NodeId,
        handle: Option<HandleId>,
        change: &AttributeChange,
    ) -> io::Result<(Attributes, Duration)> {
        attributes::set(self, node, handle, change)
    }

    fn access(&self, caller: &Caller, node: NodeId, mask: u32) -> io::Result<()> {
        attributes::access(self, caller, node, mask)
    }

    fn readlink(&self, node: NodeId) -> io::Result<Vec<u8>> {
        names::readlink(self, node)
    }

    fn mknod(&self, caller: &Caller, parent: NodeId, name: &CStr, new: Creation) -> io::Result<Entry> {
        names::mknod(self, caller, parent, name, new)
    }

    fn mkdir(&self, caller: &Caller, parent: NodeId, name: &CStr, new: Creation) -> io::Result<Entry> {
        names::mkdir(self, caller, parent, name, new)
    }

    fn symlink(&self, caller: &Caller, parent: NodeId, name: &CStr, target: &CStr) -> io::Result<Entry> {
        names::symlink(self, caller, parent, name, target)
    }

    fn link(&self, _caller: &Caller, node: NodeId, new_parent: NodeId, new_name: &CStr) -> io::Result<Entry> {
        names::link(self, node, new_parent, new_name)
    }

    fn unlink(&self, _caller: &Caller, parent: NodeId, name: &CStr) -> io::Result<()> {
        names::unlink(self, parent, name, 0)
    }

    fn rmdir(&self, _caller: &Caller, parent: NodeId, name: &CStr) -> io::Result<()> {
        names::unlink(self, parent, name, libc::AT_REMOVEDIR)
    }

    fn rename(
        &self,
        caller: &Caller,
        from: (NodeId, &CStr),
        to: (NodeId, &CStr),
        flags: u32,
    ) -> io::Result<()> {
        names::rename(self, caller, from, to, flags)
    }

    fn open(&self, _caller: &Caller, node: NodeId, flags: u32, kill_privileges: bool) -> io::Result<Opened> {
        files::open(self, node, flags, kill_privileges)
    }

    fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &CStr,
        flags: u32,
        new: Creation,
    ) -> io::Result<(Entry, Opened)> {
        files::create(self, caller, (parent, name), flags, new)
    }

    fn tmpfile(
        &self,
        caller: &Caller,
        parent: NodeId,
        flags: u32,
        new: Creation,
    ) -> io::Result<(Entry, Opened)> {
        files::tmpfile(self, caller, parent, flags, new)
    }

    fn open_to_map(&self, node: NodeId, writable: bool) -> io::Result<Arc<dyn MappableFile>> {
        files::open_to_map(self, node, writable)
    }

    fn tell_of_removals(&self, revocation: Weak<dyn Revocation>) {
        let mut revocations = self.revocations.lock().unwrap_or_else(PoisonError::into_inner);
        revocations.retain(|known| known.strong_count() > 0);
        revocations.push(revocation);
    }

    fn file(&self, handle: HandleId) -> io::Result<OpenFile> {
        files::file(self, handle)
    }

    fn write_unprivileged(
        &self,
        handle: HandleId,
        write: &mut dyn FnMut() -> io::Result<usize>,
    ) -> io::Result<usize> {
        credentials::clearing_set_id(&*self.handle(handle)?, write)
    }

    fn flush(&self, handle: HandleId, owner: u64) -> io::Result<()> {
        files::flush(self, handle, owner)
    }

    fn fsync(&self, handle: HandleId, data_only: bool) -> io::Result<()> {
        files::fsync(self, handle, data_only)
    }

    fn release(&self, handle: HandleId) -> io::Result<()> {
        files::release(self, handle)
    }

    fn fallocate(
        &self,
        caller: &Caller,
        handle: HandleId,
        mode: u32,
        offset: u64,
        len: u64,
    ) -> io::Result<()> {
        files::fallocate(self, caller, handle, mode, (offset, len))
    }

    fn lseek(&self, handle: HandleId, offset: u64, whence: u32) -> io::Result<u64> {
        files::lseek(self, handle, offset, whence)
    }

    fn copy_file_range(
        &self,
        caller: &Caller,
        from: (HandleId, u64),
        to: (HandleId, u64),
        len: u64,
    ) -> io::Result<usize> {
        files::copy_file_range(self, caller, from, to, len)
    }

    fn opendir(&self, _caller: &Caller, node: NodeId, flags: u32) -> io::Result<Opened> {
        directory::opendir(self, node, flags)
    }

    fn readdir(
        &self,
        handle: HandleId,
        offset: u64,
        sink: &mut dyn FnMut(DirectoryEntry<'_>) -> bool,
    ) -> io::Result<()> {
        directory::readdir(self, handle, offset, sink)
    }

    fn fsyncdir(&self, handle: HandleId, data_only: bool) -> io::Result<()> {
        directory::fsyncdir(self, handle, data_only)
    }

    fn releasedir(&self, handle: HandleId) -> io::Result<()> {
        directory::releasedir(self, handle)
    }

    fn getxattr(&self, node: NodeId, name: &CStr, value: &mut [u8]) -> io::Result<usize> {
        xattr::get(self, node, name, value)
    }

    fn listxattr(&self, node: NodeId, names: &mut [u8]) -> io::Result<usize> {
        xattr::list(self, node, names)
    }

    fn setxattr(
        &self,
        caller: &Caller,
        node: NodeId,
        name: &CStr,
        value: &[u8],
        flags: u32,
        clear_setgid: bool,
    ) -> io::Result<()> {
        xattr::set(self, caller, node, (name, value), flags, clear_setgid)
    }

    fn removexattr(&self, _caller: &Caller, node: NodeId, name: &CStr) -> io::Result<()> {
        xattr::remove(self, node, name)
    }

    fn statfs(&self, node: NodeId) -> io::Result<FileSystemStatistics> {
        attributes::statfs(self, node)
    }

    fn syncfs(&self, node: NodeId) -> io::Result<()> {
        attributes::syncfs(self, node)
    }

    fn get_lock(&self, handle: HandleId, owner: u64, lock: RecordLock) -> io::Result<RecordLock> {
        locks::get(self, handle, owner, lock)
    }

    fn set_lock(&self, handle: HandleId, owner: u64, lock: RecordLock, wait: bool) -> io::Result<()> {
        locks::set(self, handle, owner, lock, wait)
    }

    fn flock(&self, handle: HandleId, operation: i32, wait: bool) -> io::Result<()> {
        locks::flock(self, handle, operation, wait)
    }

    fn remote_locks(&self) -> bool {
        self.remote_locks
    }
}

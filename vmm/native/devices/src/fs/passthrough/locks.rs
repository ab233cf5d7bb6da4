//! Locks on the host's files, for guests that share files with others and are configured so.
//!
//! A record lock of the guest belongs to a file and an owner, whatever descriptor it was taken through; the
//! host's lock of that kind belongs to an open file description. So each pair of file and owner that holds
//! record locks has a description of its own, which ends with the owner's next close of that file.

use std::collections::HashMap;
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Passthrough;
use super::handle::Handle;
use super::node::Scatter;
use super::share::{Live, Share};
use super::sys::{self, ProcName, check, errno};
use crate::fs::backend::{HandleId, NodeId, RecordLock};

/// One (file, owner) that has locks, or had.
#[derive(Debug)]
struct Holder {
    file: OwnedFd,
    /// Last: the descriptor is closed before the share hears of it.
    share: Live,
}

#[derive(Debug)]
pub(super) struct Locks {
    limit: usize,
    holders: Mutex<HashMap<(NodeId, u64), Arc<Holder>, Scatter>>,
}

impl Locks {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, holders: Mutex::default() }
    }

    /// The owner has closed the file: POSIX ends its locks there.
    pub(super) fn end(&self, node: NodeId, owner: u64) {
        drop(self.lock().remove(&(node, owner)));
    }

    pub(super) fn clear(&self) {
        let gone = std::mem::take(&mut *self.lock());
        drop(gone);
    }

    pub(super) fn revoke(&self, share: &Share) {
        let gone: Vec<_> = self.lock().extract_if(|_, holder| holder.share.serial == share.serial).collect();
        drop(gone);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(NodeId, u64), Arc<Holder>, Scatter>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holder(&self, fs: &Passthrough, handle: &Handle, owner: u64) -> io::Result<Arc<Holder>> {
        let mut holders = self.lock();
        if let Some(holder) = holders.get(&(handle.node, owner)) {
            return Ok(Arc::clone(holder));
        }
        if holders.len() >= self.limit {
            return Err(errno(libc::ENOLCK));
        }
        let mode = if handle.share.readonly { libc::O_RDONLY } else { libc::O_RDWR };
        let file = sys::open_at(fs.proc_self_fd(), ProcName::new(handle).name(), mode, 0)?;
        let holder = Arc::new(Holder { file, share: Live::new(&handle.share) });
        if handle.share.is_closed() {
            return Err(errno(libc::ESTALE));
        }
        holders.insert((handle.node, owner), Arc::clone(&holder));
        Ok(holder)
    }
}

/// The handle of a file that can be locked.
fn lockable(fs: &Passthrough, handle: HandleId) -> io::Result<Arc<Handle>> {
    if !fs.remote_locks {
        return Err(errno(libc::ENOSYS));
    }
    let handle = fs.handle(handle)?;
    if handle.stream.is_some() { Err(errno(libc::EBADF)) } else { Ok(handle) }
}

pub(super) fn get(
    fs: &Passthrough,
    handle: HandleId,
    owner: u64,
    lock: RecordLock,
) -> io::Result<RecordLock> {
    let handle = lockable(fs, handle)?;
    let holder = fs.locks.holder(fs, &handle, owner)?;
    let mut raw = encode(lock)?;
    fcntl(&holder, libc::F_OFD_GETLK, &mut raw)?;
    Ok(decode(&raw))
}

pub(super) fn set(
    fs: &Passthrough,
    handle: HandleId,
    owner: u64,
    lock: RecordLock,
    wait: bool,
) -> io::Result<()> {
    let handle = lockable(fs, handle)?;
    let holder = fs.locks.holder(fs, &handle, owner)?;
    would_wait(fcntl(&holder, libc::F_OFD_SETLK, &mut encode(lock)?), wait)
}

pub(super) fn flock(fs: &Passthrough, handle: HandleId, operation: c_int, wait: bool) -> io::Result<()> {
    let handle = if fs.remote_locks { fs.handle(handle)? } else { return Err(errno(libc::ENOSYS)) };
    if ![libc::LOCK_SH, libc::LOCK_EX, libc::LOCK_UN].contains(&operation) {
        return Err(errno(libc::EINVAL));
    }
    // SAFETY: plain integers.
    let outcome = check(unsafe { libc::flock(handle.as_fd().as_raw_fd(), operation | libc::LOCK_NB) });
    would_wait(outcome.map(drop), wait)
}

/// A thread that waited for a lock could not serve the request that gives the lock back.
fn would_wait(outcome: io::Result<()>, wait: bool) -> io::Result<()> {
    match outcome {
        Err(error) if wait && matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Err(errno(libc::EOPNOTSUPP))
        }
        other => other,
    }
}

fn fcntl(holder: &Holder, command: c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: `lock` is a live struct flock, which is what these commands read and write.
    check(unsafe { libc::fcntl(holder.file.as_raw_fd(), command, std::ptr::from_mut(lock)) }).map(drop)
}

fn encode(lock: RecordLock) -> io::Result<libc::flock> {
    let invalid = || errno(libc::EINVAL);
    let kind = i16::try_from(lock.kind).map_err(|_| invalid())?;
    let start = i64::try_from(lock.start).map_err(|_| invalid())?;
    let last = i64::try_from(lock.end).unwrap_or(i64::MAX);
    if start > last || ![libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK].contains(&lock.kind) {
        return Err(invalid());
    }
    // 0: to the end of the file, wherever it is.
    let len = if last == i64::MAX { 0 } else { last - start + 1 };
    let whence = libc::SEEK_SET as i16;
    Ok(libc::flock { l_type: kind, l_whence: whence, l_start: start, l_len: len, l_pid: 0 })
}

fn decode(raw: &libc::flock) -> RecordLock {
    let last = if raw.l_len == 0 { i64::MAX } else { raw.l_start.saturating_add(raw.l_len - 1) };
    RecordLock {
        kind: i32::from(raw.l_type),
        start: raw.l_start.unsigned_abs(),
        end: last.unsigned_abs(),
        // Of a lock that belongs to a description the kernel does not know the process.
        pid: u32::try_from(raw.l_pid).unwrap_or(0),
    }
}

//! Regular files: opening, creating, and what is done with open ones.

use std::ffi::{CStr, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use super::credentials::{clearing_set_id, in_name_of};
use super::handle::Handle;
use super::lookup::check_name;
use super::node::Node;
use super::sys::{self, ProcName, check, errno};
use super::{CachePolicy, Passthrough};
use crate::fs::backend::{Caller, Creation, Entry, HandleId, MappableFile, NodeId, OpenFile, Opened};

/// Flags that reach the host's open(2). O_APPEND is not among them: see [`open_for_io`].
const OPEN_FLAGS: c_int = libc::O_ACCMODE
    | libc::O_DIRECT
    | libc::O_DSYNC
    | libc::O_SYNC
    | libc::O_NOATIME
    | libc::O_NONBLOCK
    | libc::O_LARGEFILE
    | libc::O_TRUNC;

/// Longest copy of one request. The thread that copies cannot be told to stop; the guest goes on with the
/// rest.
const MAX_COPY: u64 = 64 << 20;

impl Passthrough {
    /// What of the guest's open flags is the host's.
    fn host_flags(&self, node: &Node, flags: c_int) -> io::Result<c_int> {
        let mut host = flags & OPEN_FLAGS;
        if !node.share.direct_io {
            host &= !libc::O_DIRECT;
        }
        match host & libc::O_ACCMODE {
            // The guest reads the rest of a page before it writes a part of it.
            libc::O_WRONLY if self.options.get().writeback => host = host & !libc::O_ACCMODE | libc::O_RDWR,
            libc::O_RDONLY | libc::O_WRONLY | libc::O_RDWR => {}
            _ => return Err(errno(libc::EINVAL)),
        }
        if node.share.readonly && (host & libc::O_ACCMODE != libc::O_RDONLY || host & libc::O_TRUNC != 0) {
            return Err(errno(libc::EROFS));
        }
        Ok(host)
    }

    fn opened(&self, node: &Node, file: OwnedFd) -> io::Result<Opened> {
        let handle = self.handles.insert(Handle::file(node, file))?;
        let cache = node.share.cache;
        Ok(Opened {
            handle,
            keep_cache: cache == CachePolicy::Always,
            // Without FUSE_DIRECT_IO_ALLOW_MMAP such a file cannot be mapped shared and writable. Then the
            // guest caches its contents from open to close, and its attributes not at all.
            direct_io: cache == CachePolicy::None && self.options.get().direct_io_mmap,
            cache_dir: false,
            // Saves one request for each close: local file systems have nothing to say there.
            no_flush: !node.traits.flush_matters && !self.remote_locks,
        })
    }
}

/// Opens a node for I/O. Everything but a regular file is the guest's own affair.
pub(super) fn open_for_io(fs: &Passthrough, node: &Node, flags: c_int) -> io::Result<OwnedFd> {
    match node.kind {
        libc::S_IFREG => {}
        libc::S_IFDIR => return Err(errno(libc::EISDIR)),
        libc::S_IFLNK => return Err(errno(libc::ELOOP)),
        _ => return Err(errno(libc::ENXIO)),
    }
    let name = ProcName::new(node);
    let open =
        |more: c_int| sys::open_at(fs.proc_self_fd(), name.name(), fs.host_flags(node, flags)? | more, 0);
    match open(0) {
        // A file that can only be appended to (chattr +a) opens for nothing else.
        Err(error) if flags & libc::O_APPEND != 0 && error.raw_os_error() == Some(libc::EPERM) => {
            open(libc::O_APPEND)
        }
        other => other,
    }
}

pub(super) fn open(fs: &Passthrough, node: NodeId, flags: u32, kill_privileges: bool) -> io::Result<Opened> {
    let node = fs.node(node)?;
    let open = || open_for_io(fs, &node, flags.cast_signed());
    let file = if kill_privileges { clearing_set_id(&*node, open)? } else { open()? };
    fs.opened(&node, file)
}

pub(super) fn create(
    fs: &Passthrough,
    caller: &Caller,
    (parent, name): (NodeId, &CStr),
    flags: u32,
    new: Creation,
) -> io::Result<(Entry, Opened)> {
    check_name(name)?;
    let parent = fs.writable_node(parent)?;
    fs.handles.check_room()?;
    let flags = flags.cast_signed();
    let host = fs.host_flags(&parent, flags)? & !libc::O_TRUNC | libc::O_CREAT | libc::O_EXCL;
    let mode = new.mode & 0o7777;
    let made = in_name_of(caller, fs.umask(new), || sys::open_beneath(parent.as_fd(), name, host, mode));
    match made {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) && flags & libc::O_EXCL == 0 => {
            // Somebody on the host was faster.
            let entry = fs.lookup_below(&parent, name)?;
            let opened =
                fs.node(entry.node).and_then(|node| fs.opened(&node, open_for_io(fs, &node, flags)?));
            fs.both(entry, opened)
        }
        made => finish(fs, &parent, made?),
    }
}

pub(super) fn tmpfile(
    fs: &Passthrough,
    caller: &Caller,
    parent: NodeId,
    flags: u32,
    new: Creation,
) -> io::Result<(Entry, Opened)> {
    let parent = fs.writable_node(parent)?;
    fs.handles.check_room()?;
    let flags = flags.cast_signed();
    // O_EXCL: it can never get a name.
    let host = fs.host_flags(&parent, flags)? & !libc::O_TRUNC | libc::O_TMPFILE | flags & libc::O_EXCL;
    let mode = new.mode & 0o7777;
    let made = in_name_of(caller, fs.umask(new), || sys::open_beneath(parent.as_fd(), c".", host, mode))?;
    finish(fs, &parent, made)
}

/// Makes a file that was just created, and is open, known to the guest.
fn finish(fs: &Passthrough, parent: &Node, file: OwnedFd) -> io::Result<(Entry, Opened)> {
    // By its descriptor: its name may be another file's by now.
    let pin = sys::open_at(fs.proc_self_fd(), ProcName::new(&file).name(), libc::O_PATH, 0)?;
    let stat = sys::stat(pin.as_fd())?;
    let entry = fs.admit(parent, pin, &stat)?;
    let opened = fs.node(entry.node).and_then(|node| fs.opened(&node, file));
    fs.both(entry, opened)
}

impl Passthrough {
    /// The guest learns of both or of none.
    fn both(&self, entry: Entry, opened: io::Result<Opened>) -> io::Result<(Entry, Opened)> {
        match opened {
            Ok(opened) => Ok((entry, opened)),
            Err(error) => {
                self.nodes.forget(entry.node, 1);
                Err(error)
            }
        }
    }
}

/// The descriptor is for one mapping and gets no number, so that it counts as no open file of the guest's.
pub(super) fn open_to_map(
    fs: &Passthrough,
    node: NodeId,
    writable: bool,
) -> io::Result<Arc<dyn MappableFile>> {
    let node = fs.node(node)?;
    if node.kind == libc::S_IFREG && !node.traits.mappable {
        return Err(errno(libc::ENODEV));
    }
    let file = open_for_io(fs, &node, if writable { libc::O_RDWR } else { libc::O_RDONLY })?;
    Ok(Arc::new(Handle::file(&node, file)))
}

pub(super) fn file(fs: &Passthrough, handle: HandleId) -> io::Result<OpenFile> {
    let handle: Arc<Handle> = fs.handle(handle)?;
    if handle.stream.is_some() { Err(errno(libc::EISDIR)) } else { Ok(handle) }
}

pub(super) fn flush(fs: &Passthrough, handle: HandleId, owner: u64) -> io::Result<()> {
    let handle = fs.handle(handle)?;
    if fs.remote_locks {
        fs.locks.end(handle.node, owner);
    }
    if !handle.flush_matters {
        return Ok(());
    }
    // What close(2) of one of several descriptors does, errors included, needs one of several descriptors.
    let copy = handle.as_fd().try_clone_to_owned()?;
    let raw = std::os::fd::IntoRawFd::into_raw_fd(copy);
    // SAFETY: the descriptor is ours, and nobody uses it after this.
    check(unsafe { libc::close(raw) }).map(drop)
}

pub(super) fn fsync(fs: &Passthrough, handle: HandleId, data_only: bool) -> io::Result<()> {
    let handle = fs.handle(handle)?;
    let raw = handle.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open.
    check(unsafe { if data_only { libc::fdatasync(raw) } else { libc::fsync(raw) } }).map(drop)
}

pub(super) fn release(fs: &Passthrough, handle: HandleId) -> io::Result<()> {
    fs.handles.remove(handle).map(drop).ok_or_else(|| errno(libc::EBADF))
}

impl Passthrough {
    /// Runs a change of contents whose request does not say whether set-uid bits are to be cleared: they are
    /// for everybody but root.
    fn changing<T>(
        &self,
        caller: &Caller,
        handle: &Handle,
        change: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let clear = caller.uid != 0 && self.options.get().kill_privileges;
        if clear { clearing_set_id(handle, change) } else { change() }
    }
}

pub(super) fn fallocate(
    fs: &Passthrough,
    caller: &Caller,
    handle: HandleId,
    mode: u32,
    (offset, len): (u64, u64),
) -> io::Result<()> {
    let handle = fs.handle(handle)?;
    let number = |value: u64| i64::try_from(value).map_err(|_| errno(libc::EINVAL));
    let (offset, len) = (number(offset)?, number(len)?);
    fs.changing(caller, &handle, || {
        // SAFETY: plain integers.
        check(unsafe { libc::fallocate(handle.as_fd().as_raw_fd(), mode.cast_signed(), offset, len) })
    })
    .map(drop)
}

pub(super) fn lseek(fs: &Passthrough, handle: HandleId, offset: u64, whence: u32) -> io::Result<u64> {
    let handle = fs.handle(handle)?;
    match whence.cast_signed() {
        whence @ (libc::SEEK_DATA | libc::SEEK_HOLE) => sys::seek(handle.as_fd(), offset, whence),
        _ => Err(errno(libc::EINVAL)),
    }
}

pub(super) fn copy_file_range(
    fs: &Passthrough,
    caller: &Caller,
    from: (HandleId, u64),
    to: (HandleId, u64),
    len: u64,
) -> io::Result<usize> {
    let (source, target) = (fs.handle(from.0)?, fs.handle(to.0)?);
    let number = |value: u64| i64::try_from(value).map_err(|_| errno(libc::EINVAL));
    let (mut from, mut to) = (number(from.1)?, number(to.1)?);
    let len = usize::try_from(len.min(MAX_COPY)).map_err(|_| errno(libc::EINVAL))?;
    fs.changing(caller, &target, || {
        // Not libc::copy_file_range: the standard library names it as a weak symbol, and in a statically
        // linked program optimised as a whole ours becomes weak with it, which is a null pointer.
        // SAFETY: both offsets are live, both descriptors are open.
        let copied = unsafe {
            libc::syscall(
                libc::SYS_copy_file_range,
                source.as_fd().as_raw_fd(),
                &raw mut from,
                target.as_fd().as_raw_fd(),
                &raw mut to,
                len,
                0,
            )
        };
        usize::try_from(copied).map_err(|_| io::Error::last_os_error())
    })
}

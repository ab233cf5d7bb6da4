//! The border between the two halves of the fs device.
//!
//! On one side the FUSE half: it knows guest memory and the wire, and needs no capability. On the other a
//! [`HostFs`]: it knows the host's files and never sees guest memory. File contents do not cross the border
//! as bytes: the FUSE half gets the open file of a handle ([`OpenFile`]) and moves data between it and guest
//! memory itself. Everything here is plain data, so that a confined broker process could stand behind the trait.
//!
//! Errors are `io::Error`s whose raw errno goes to the guest as it is; one without a raw errno becomes EIO.
//! Names are checked by the FUSE half (no NUL, no `/`, not empty, not `.` or `..`, at most 255 bytes), and
//! again by the host half where it matters.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A file that the guest knows of (FUSE's nodeid). 1 is the root.
pub type NodeId = u64;

/// An open file or directory (FUSE's fh).
pub type HandleId = u64;

/// The open file of a handle. Held during one request only: as long as it is held, its share cannot be
/// removed. Data is moved at explicit offsets (preadv2, pwritev2), since requests share the file position.
pub type OpenFile = Arc<dyn AsFd + Send + Sync>;

/// One of the folders that a guest sees. Never used twice.
pub type ShareId = u64;

/// A regular file, open for what a mapping may be used for. Held during one request only, like an [`OpenFile`].
pub trait MappableFile: AsFd + Send + Sync {
    /// The share that it is in.
    fn share(&self) -> ShareId;

    /// Whether the share is gone. Once true, it stays so.
    fn revoked(&self) -> bool;
}

/// Whoever keeps something of a share's files that no descriptor shows: mappings.
pub trait Revocation: Send + Sync {
    /// Nothing of this share may be kept any more. The share's files say that they are revoked already.
    fn revoke(&self, share: ShareId);
}

/// FUSE_ROOT_ID
pub const ROOT_NODE: NodeId = 1;

/// How much the guest may remember of what it has seen, as virtiofsd names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CachePolicy {
    /// Asks again after a second, and drops a file's contents when the file has changed.
    #[default]
    Auto,
    /// Never asks again: nobody else may change the files.
    Always,
    /// Always asks.
    None,
}

/// In whose name the guest asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// File-system user id.
    pub uid: u32,
    /// File-system group id.
    pub gid: u32,
    /// Process id in the guest, for logs only.
    pub pid: u32,
    /// The one supplementary group that a creation needs (FUSE_CREATE_SUPP_GROUP), if the guest sent it.
    pub supplementary_gid: Option<u32>,
}

/// Attributes as of statx(2); times are seconds and nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Inode number on its file system.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Type and permissions (S_IFMT and the rest).
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: DeviceNumber,
    /// Preferred block size.
    pub blksize: u32,
    /// Last access.
    pub atime: (i64, u32),
    /// Last change of contents.
    pub mtime: (i64, u32),
    /// Last change of attributes.
    pub ctime: (i64, u32),
    /// Birth, if the file system knows it.
    pub btime: Option<(i64, u32)>,
    /// STATX_ATTR_* that are set, and those that are known.
    pub statx_attributes: (u64, u64),
    /// Device that holds the file.
    pub dev: DeviceNumber,
    /// Which STATX_* fields are filled.
    pub mask: u32,
    /// The guest is to map the contents instead of reading and writing them (FUSE_ATTR_DAX). Never without
    /// [`SessionOptions::mapped_files`].
    pub mapped: bool,
}

/// A device number in two halves, as statx gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNumber {
    /// Class of devices.
    pub major: u32,
    /// Which of them.
    pub minor: u32,
}

/// The answer to a lookup. The guest holds one more reference to `node` from now on.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The file.
    pub node: NodeId,
    /// Tells uses of one node id apart.
    pub generation: u64,
    /// Its attributes.
    pub attributes: Attributes,
    /// How long the guest may trust the name.
    pub entry_timeout: Duration,
    /// How long the guest may trust the attributes.
    pub attributes_timeout: Duration,
    /// Another file system is mounted here (FUSE_ATTR_SUBMOUNT).
    pub submount: bool,
}

/// A file or directory that was opened.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Its handle.
    pub handle: HandleId,
    /// The guest may keep what it has cached of the contents (FOPEN_KEEP_CACHE).
    pub keep_cache: bool,
    /// The guest must not cache the contents (FOPEN_DIRECT_IO).
    pub direct_io: bool,
    /// The guest may cache the directory's listing (FOPEN_CACHE_DIR).
    pub cache_dir: bool,
    /// A close needs no FLUSH (FOPEN_NOFLUSH).
    pub no_flush: bool,
}

/// A new time of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewTime {
    /// The host's clock.
    Now,
    /// Seconds and nanoseconds since the epoch.
    At(i64, u32),
}

/// What SETATTR changes; `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttributeChange {
    /// New permissions.
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New length.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<NewTime>,
    /// New modification time.
    pub mtime: Option<NewTime>,
    /// Clear set-uid, set-gid and capabilities with the change (FATTR_KILL_SUIDGID).
    pub kill_privileges: bool,
}

/// What a new file is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Creation {
    /// Type and permissions, umask not yet applied.
    pub mode: u32,
    /// The caller's umask.
    pub umask: u32,
    /// Device number of a device node, as the kernel encodes it on the wire (new_encode_dev).
    pub rdev: u32,
}

/// One name of a directory.
#[derive(Clone, Copy, Debug)]
pub struct DirectoryEntry<'a> {
    /// Inode number.
    pub ino: u64,
    /// Position to go on from after this entry.
    pub next_offset: u64,
    /// DT_* type.
    pub kind: u8,
    /// The name.
    pub name: &'a CStr,
}

/// statvfs(3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the fields of struct fuse_kstatfs, by their names there
pub struct FileSystemStatistics {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
    pub frsize: u32,
}

/// What both halves agreed on at FUSE_INIT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionOptions {
    /// The guest writes back late and in page units (FUSE_WRITEBACK_CACHE): O_APPEND is the guest's, files
    /// are opened for reading as well, and its mtime counts.
    pub writeback: bool,
    /// The host clears set-uid, set-gid and capabilities on write, truncate and chown
    /// (FUSE_HANDLE_KILLPRIV_V2).
    pub kill_privileges: bool,
    /// Mount points are announced (FUSE_SUBMOUNTS).
    pub submounts: bool,
    /// POSIX ACLs are the guest's to check (FUSE_POSIX_ACL).
    pub posix_acl: bool,
    /// The umask comes with creations and is not applied by the guest (FUSE_DONT_MASK).
    pub dont_mask: bool,
    /// Files under FOPEN_DIRECT_IO can still be mapped shared and writable (FUSE_DIRECT_IO_ALLOW_MMAP). If
    /// not, cache policy `none` does without FOPEN_DIRECT_IO.
    pub direct_io_mmap: bool,
    /// The guest maps those files into its window that say so (FUSE_MAP_ALIGNMENT, FUSE_HAS_INODE_DAX).
    pub mapped_files: bool,
}

/// A POSIX record lock, as FUSE_GETLK and FUSE_SETLK carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLock {
    /// F_RDLCK, F_WRLCK or F_UNLCK.
    pub kind: i32,
    /// First byte.
    pub start: u64,
    /// Last byte; `i64::MAX` for the end of the file, wherever it is.
    pub end: u64,
    /// The holder; 0 if it is none of this guest's.
    pub pid: u32,
}

/// The files of the host. All methods may be called from several threads at once.
///
/// One implementation: `passthrough`.
#[allow(missing_docs)] // the operations of FUSE by their names; see linux/include/uapi/linux/fuse.h
pub trait HostFs: Send + Sync {
    /// Makes the calling thread fit for this trait's methods (its own umask, working directory and groups;
    /// see `passthrough::credentials`). To be called once, first thing, by each thread that serves requests:
    /// later its capabilities and system calls may be too few.
    fn prepare_thread(&self) -> io::Result<()>;

    /// A guest has mounted: forget what an earlier one knew, and act as agreed.
    fn begin(&self, options: SessionOptions);
    /// The guest has gone (DESTROY, or a reset): all handles and all nodes but the root end.
    fn end(&self);

    fn lookup(&self, caller: &Caller, parent: NodeId, name: &CStr) -> io::Result<Entry>;
    /// How long the guest may trust that a name is not in `parent` (ENOENT of a lookup); zero: not at all.
    fn absence_timeout(&self, _parent: NodeId) -> Duration {
        Duration::ZERO
    }
    /// The guest gives `count` references to `node` back. More than it holds: all of them.
    fn forget(&self, node: NodeId, count: u64);
    fn attributes(&self, node: NodeId, handle: Option<HandleId>) -> io::Result<(Attributes, Duration)>;
    fn set_attributes(
        &self,
        caller: &Caller,
        node: NodeId,
        handle: Option<HandleId>,
        change: &AttributeChange,
    ) -> io::Result<(Attributes, Duration)>;
    fn access(&self, caller: &Caller, node: NodeId, mask: u32) -> io::Result<()>;
    fn readlink(&self, node: NodeId) -> io::Result<Vec<u8>>;

    fn mknod(&self, caller: &Caller, parent: NodeId, name: &CStr, new: Creation) -> io::Result<Entry>;
    fn mkdir(&self, caller: &Caller, parent: NodeId, name: &CStr, new: Creation) -> io::Result<Entry>;
    fn symlink(&self, caller: &Caller, parent: NodeId, name: &CStr, target: &CStr) -> io::Result<Entry>;
    fn link(&self, caller: &Caller, node: NodeId, new_parent: NodeId, new_name: &CStr) -> io::Result<Entry>;
    fn unlink(&self, caller: &Caller, parent: NodeId, name: &CStr) -> io::Result<()>;
    fn rmdir(&self, caller: &Caller, parent: NodeId, name: &CStr) -> io::Result<()>;
    /// `from` and `to` are (directory, name); `flags` are RENAME_*.
    fn rename(
        &self,
        caller: &Caller,
        from: (NodeId, &CStr),
        to: (NodeId, &CStr),
        flags: u32,
    ) -> io::Result<()>;

    /// `flags` are open(2)'s, as Linux on this machine numbers them. `kill_privileges`: FUSE_OPEN_KILL_SUIDGID.
    ///
    /// O_APPEND is dropped where the file allows it, because fcntl(2) can drop it in the guest: a WRITE whose
    /// flags say O_APPEND (and no writeback) is made with RWF_APPEND.
    fn open(&self, caller: &Caller, node: NodeId, flags: u32, kill_privileges: bool) -> io::Result<Opened>;
    /// Creates and opens in one step.
    fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &CStr,
        flags: u32,
        new: Creation,
    ) -> io::Result<(Entry, Opened)>;
    /// A file without a name (O_TMPFILE).
    fn tmpfile(
        &self,
        caller: &Caller,
        parent: NodeId,
        flags: u32,
        new: Creation,
    ) -> io::Result<(Entry, Opened)>;
    /// Opens a regular file to be mapped, shared with the host. ENODEV if it is of a kind whose mappings would
    /// not show what is written to it otherwise.
    fn open_to_map(&self, node: NodeId, writable: bool) -> io::Result<Arc<dyn MappableFile>>;
    /// From now on `revocation` is told of every share that goes, before its removal is reported as done.
    fn tell_of_removals(&self, revocation: Weak<dyn Revocation>);
    /// The open file behind a handle, to move data to and from. EBADF if there is none.
    fn file(&self, handle: HandleId) -> io::Result<OpenFile>;
    /// Runs `write`, which writes to the file of `handle`; set-uid and set-gid bits are cleared as if an
    /// unprivileged process wrote (FUSE_WRITE_KILL_SUIDGID).
    fn write_unprivileged(
        &self,
        handle: HandleId,
        write: &mut dyn FnMut() -> io::Result<usize>,
    ) -> io::Result<usize>;
    /// One of the guest's descriptors of the handle was closed; `owner`'s record locks on the file end.
    fn flush(&self, handle: HandleId, owner: u64) -> io::Result<()>;
    fn fsync(&self, handle: HandleId, data_only: bool) -> io::Result<()>;
    fn release(&self, handle: HandleId) -> io::Result<()>;
    fn fallocate(
        &self,
        caller: &Caller,
        handle: HandleId,
        mode: u32,
        offset: u64,
        len: u64,
    ) -> io::Result<()>;
    /// `whence`: SEEK_DATA or SEEK_HOLE; the others are the guest's own.
    fn lseek(&self, handle: HandleId, offset: u64, whence: u32) -> io::Result<u64>;
    /// `from` and `to` are (handle, offset).
    fn copy_file_range(
        &self,
        caller: &Caller,
        from: (HandleId, u64),
        to: (HandleId, u64),
        len: u64,
    ) -> io::Result<usize>;

    fn opendir(&self, caller: &Caller, node: NodeId, flags: u32) -> io::Result<Opened>;
    /// Gives `sink` one entry after the other from `offset` on, until it answers false (that entry was not
    /// taken) or there are no more. `.` and `..` are among them. `sink` may call [`Self::lookup`].
    fn readdir(
        &self,
        handle: HandleId,
        offset: u64,
        sink: &mut dyn FnMut(DirectoryEntry<'_>) -> bool,
    ) -> io::Result<()>;
    fn fsyncdir(&self, handle: HandleId, data_only: bool) -> io::Result<()>;
    fn releasedir(&self, handle: HandleId) -> io::Result<()>;

    /// Fills `value` and returns the attribute's length; an empty `value` asks for the length alone.
    /// ERANGE if it does not fit.
    fn getxattr(&self, node: NodeId, name: &CStr, value: &mut [u8]) -> io::Result<usize>;
    /// As [`Self::getxattr`], for the NUL-separated names.
    fn listxattr(&self, node: NodeId, names: &mut [u8]) -> io::Result<usize>;
    /// `flags`: XATTR_CREATE, XATTR_REPLACE. `clear_setgid`: FUSE_SETXATTR_ACL_KILL_SGID.
    fn setxattr(
        &self,
        caller: &Caller,
        node: NodeId,
        name: &CStr,
        value: &[u8],
        flags: u32,
        clear_setgid: bool,
    ) -> io::Result<()>;
    fn removexattr(&self, caller: &Caller, node: NodeId, name: &CStr) -> io::Result<()>;

    fn statfs(&self, node: NodeId) -> io::Result<FileSystemStatistics>;
    fn syncfs(&self, node: NodeId) -> io::Result<()>;

    /// The lock that stands in the way of `lock`, or one of kind F_UNLCK. ENOSYS if locks are the guest's own
    /// (then FUSE_POSIX_LOCKS and FUSE_FLOCK_LOCKS are not to be negotiated, see [`Self::remote_locks`]).
    fn get_lock(&self, _handle: HandleId, _owner: u64, _lock: RecordLock) -> io::Result<RecordLock> {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }
    /// Sets or clears a lock; one that would have to wait is EOPNOTSUPP if `wait`, otherwise EAGAIN.
    fn set_lock(&self, _handle: HandleId, _owner: u64, _lock: RecordLock, _wait: bool) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }
    /// flock(2) with LOCK_SH, LOCK_EX or LOCK_UN; waiting as in [`Self::set_lock`].
    fn flock(&self, _handle: HandleId, _operation: i32, _wait: bool) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }
    /// Locks are taken on the host's files, so that guests see each other's.
    fn remote_locks(&self) -> bool {
        false
    }
}

//! Attributes of files and of file systems.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use super::collection::Collection;
use super::credentials::clearing_set_id;
use super::node::Node;
use super::sys::{self, ProcName, check, errno};
use super::{Passthrough, files};
use crate::fs::backend::{
    AttributeChange, Attributes, Caller, FileSystemStatistics, HandleId, NewTime, NodeId,
};

/// R_OK, W_OK and X_OK of access(2)
const ACCESS_MASK: u32 = 7;
const WRITE: u32 = 2;
const EXECUTE: u32 = 1;

pub(super) fn get(fs: &Passthrough, node: NodeId) -> io::Result<(Attributes, Duration)> {
    if let Some(collection) = fs.collection.as_ref().filter(|_| fs.is_collection(node)) {
        return Ok((collection.attributes(), Duration::ZERO));
    }
    of_node(fs, &*fs.node(node)?)
}

fn of_node(fs: &Passthrough, node: &Node) -> io::Result<(Attributes, Duration)> {
    let mut attributes = sys::stat(node.as_fd())?.attributes;
    attributes.mapped = node.kind == libc::S_IFREG && node.traits.mappable && fs.options.get().mapped_files;
    Ok((attributes, node.share.cache.timeout()))
}

pub(super) fn set(
    fs: &Passthrough,
    node: NodeId,
    handle: Option<HandleId>,
    change: &AttributeChange,
) -> io::Result<(Attributes, Duration)> {
    let node = fs.writable_node(node)?;
    // A change of nothing comes from a guest that leaves the clearing of set-uid bits to the host: before an
    // unprivileged write, which clears them itself, and for a chown(2) to nobody, whoever calls it: the guest
    // has not checked that. Since the one cannot be told from the other, neither clears anything here.
    if let Some(mode) = change.mode {
        let name = ProcName::new(&*node);
        // SAFETY: the name is a C string, the descriptor is open.
        check(unsafe {
            libc::fchmodat(fs.proc_self_fd().as_raw_fd(), name.name().as_ptr(), mode & 0o7777, 0)
        })?;
    }
    if change.uid.is_some() || change.gid.is_some() {
        set_owner(&node, change)?;
    }
    if let Some(size) = change.size {
        let truncate = || set_size(fs, &node, handle, size);
        if change.kill_privileges { clearing_set_id(&*node, truncate)? } else { truncate()? }
    }
    if change.atime.is_some() || change.mtime.is_some() {
        set_times(fs, &node, change)?;
    }
    of_node(fs, &node)
}

fn set_owner(node: &Node, change: &AttributeChange) -> io::Result<()> {
    // The kernel's "leave it"; as an id it means nothing.
    const UNCHANGED: u32 = u32::MAX;
    if change.uid == Some(UNCHANGED) || change.gid == Some(UNCHANGED) {
        return Err(errno(libc::EINVAL));
    }
    // SAFETY: the empty name means the descriptor itself, which is open.
    check(unsafe {
        libc::fchownat(
            node.as_fd().as_raw_fd(),
            c"".as_ptr(),
            change.uid.unwrap_or(UNCHANGED),
            change.gid.unwrap_or(UNCHANGED),
            libc::AT_EMPTY_PATH,
        )
    })
    .map(drop)
}

fn set_size(fs: &Passthrough, node: &Node, handle: Option<HandleId>, size: u64) -> io::Result<()> {
    let size = i64::try_from(size).map_err(|_| errno(libc::EINVAL))?;
    let handle = handle.and_then(|id| fs.handle(id).ok()).filter(|handle| handle.node == node.id);
    if let Some(handle) = handle {
        // SAFETY: plain integers.
        return check(unsafe { libc::ftruncate(handle.as_fd().as_raw_fd(), size) }).map(drop);
    }
    // The working directory of a prepared thread is /proc/self/fd. Only regular files have a length.
    let name = ProcName::new(node);
    // SAFETY: the name is a C string.
    check(unsafe { libc::truncate(name.name().as_ptr(), size) }).map(drop)
}

fn set_times(fs: &Passthrough, node: &Node, change: &AttributeChange) -> io::Result<()> {
    let spec = |time: Option<NewTime>| match time {
        None => Ok(libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT }),
        Some(NewTime::Now) => Ok(libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW }),
        // Beyond a second lie UTIME_NOW and UTIME_OMIT.
        Some(NewTime::At(_, nsec)) if nsec >= 1_000_000_000 => Err(errno(libc::EINVAL)),
        Some(NewTime::At(tv_sec, nsec)) => Ok(libc::timespec { tv_sec, tv_nsec: i64::from(nsec) }),
    };
    let times = [spec(change.atime)?, spec(change.mtime)?];
    let name = ProcName::new(node);
    // SAFETY: the name is a C string, `times` are the two that utimensat reads.
    check(unsafe { libc::utimensat(fs.proc_self_fd().as_raw_fd(), name.name().as_ptr(), times.as_ptr(), 0) })
        .map(drop)
}

/// The guest's kernel checks permissions itself and hardly ever asks.
pub(super) fn access(fs: &Passthrough, caller: &Caller, node: NodeId, mask: u32) -> io::Result<()> {
    let (attributes, _) = get(fs, node)?;
    let mask = mask & ACCESS_MASK;
    let readonly = fs.is_collection(node) || fs.node(node)?.share.readonly;
    if mask & WRITE != 0 && readonly {
        return Err(errno(libc::EROFS));
    }
    let shift = if caller.uid == attributes.uid {
        6
    } else if caller.gid == attributes.gid || caller.supplementary_gid == Some(attributes.gid) {
        3
    } else {
        0
    };
    let granted = match caller.uid {
        // CAP_DAC_OVERRIDE: everything but the execution of what nobody may execute.
        0 if attributes.mode & libc::S_IFMT == libc::S_IFDIR || attributes.mode & 0o111 != 0 => ACCESS_MASK,
        0 => ACCESS_MASK & !EXECUTE,
        _ => attributes.mode >> shift,
    };
    if mask & !granted == 0 { Ok(()) } else { Err(errno(libc::EACCES)) }
}

pub(super) fn statfs(fs: &Passthrough, node: NodeId) -> io::Result<FileSystemStatistics> {
    if fs.is_collection(node) {
        return Ok(Collection::statistics());
    }
    let facts = sys::file_system(fs.node(node)?.as_fd())?;
    let small = |value: i64| u32::try_from(value).unwrap_or(u32::MAX);
    Ok(FileSystemStatistics {
        blocks: facts.f_blocks,
        bfree: facts.f_bfree,
        bavail: facts.f_bavail,
        files: facts.f_files,
        ffree: facts.f_ffree,
        bsize: small(facts.f_bsize),
        namelen: small(facts.f_namelen),
        frsize: small(facts.f_frsize),
    })
}

/// Writes a whole file system back. The guest asks for each mount that it knows of as a mount; of those it
/// does not, it expects that they come with its root.
pub(super) fn syncfs(fs: &Passthrough, node: NodeId) -> io::Result<()> {
    if !fs.is_collection(node) && (fs.options.get().submounts || !fs.node(node)?.is_share_root()) {
        return sync_mount(fs, &*fs.node(node)?);
    }
    // All are tried; the first error is told.
    let mut outcome = Ok(());
    for node in fs.nodes.one_per_mount() {
        outcome = outcome.and(sync_mount(fs, &node));
    }
    outcome
}

fn sync_mount(fs: &Passthrough, node: &Node) -> io::Result<()> {
    let file = match node.kind {
        libc::S_IFDIR => sys::open_at(node.as_fd(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?,
        _ => files::open_for_io(fs, node, libc::O_RDONLY)?,
    };
    // SAFETY: the descriptor is open.
    check(unsafe { libc::syncfs(file.as_raw_fd()) }).map(drop)
}

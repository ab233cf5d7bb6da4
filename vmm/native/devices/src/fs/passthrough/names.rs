//! Names made, moved and removed.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::Passthrough;
use super::credentials::in_name_of;
use super::lookup::check_name;
use super::sys::{self, ProcName, check, errno};
use crate::fs::backend::{Caller, Creation, Entry, NodeId};

/// Bits of a mode that a creation may set.
const PERMISSIONS: u32 = 0o7777;

const RENAME_FLAGS: u32 = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT;

impl Passthrough {
    /// The umask to create under: the guest's if it left that to us.
    pub(super) fn umask(&self, new: Creation) -> u32 {
        if self.options.get().dont_mask { new.umask } else { 0 }
    }
}

pub(super) fn mknod(
    fs: &Passthrough,
    caller: &Caller,
    parent: NodeId,
    name: &CStr,
    new: Creation,
) -> io::Result<Entry> {
    check_name(name)?;
    let parent = fs.writable_node(parent)?;
    let (major, minor) = decode_device(new.rdev);
    let device = match new.mode & libc::S_IFMT {
        0 | libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK => 0,
        // Overlayfs' whiteout; anyone may make one.
        libc::S_IFCHR if (major, minor) == (0, 0) => 0,
        libc::S_IFCHR | libc::S_IFBLK if caller.uid == 0 => libc::makedev(major, minor),
        libc::S_IFCHR | libc::S_IFBLK => return Err(errno(libc::EPERM)),
        _ => return Err(errno(libc::EINVAL)),
    };
    let mode = new.mode & (libc::S_IFMT | PERMISSIONS);
    in_name_of(caller, fs.umask(new), || {
        // SAFETY: `name` is a C string, the descriptor is open.
        check(unsafe { libc::mknodat(parent.as_fd().as_raw_fd(), name.as_ptr(), mode, device) })
    })?;
    fs.lookup_below(&parent, name)
}

/// new_decode_dev of linux/kdev_t.h
fn decode_device(rdev: u32) -> (u32, u32) {
    ((rdev & 0xf_ff00) >> 8, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00))
}

pub(super) fn mkdir(
    fs: &Passthrough,
    caller: &Caller,
    parent: NodeId,
    name: &CStr,
    new: Creation,
) -> io::Result<Entry> {
    check_name(name)?;
    let parent = fs.writable_node(parent)?;
    let mode = new.mode & PERMISSIONS;
    in_name_of(caller, fs.umask(new), || {
        // SAFETY: `name` is a C string, the descriptor is open.
        check(unsafe { libc::mkdirat(parent.as_fd().as_raw_fd(), name.as_ptr(), mode) })
    })?;
    fs.lookup_below(&parent, name)
}

pub(super) fn symlink(
    fs: &Passthrough,
    caller: &Caller,
    parent: NodeId,
    name: &CStr,
    target: &CStr,
) -> io::Result<Entry> {
    check_name(name)?;
    let parent = fs.writable_node(parent)?;
    in_name_of(caller, 0, || {
        // SAFETY: both are C strings, the descriptor is open.
        check(unsafe { libc::symlinkat(target.as_ptr(), parent.as_fd().as_raw_fd(), name.as_ptr()) })
    })?;
    fs.lookup_below(&parent, name)
}

pub(super) fn link(fs: &Passthrough, node: NodeId, parent: NodeId, name: &CStr) -> io::Result<Entry> {
    check_name(name)?;
    let parent = fs.writable_node(parent)?;
    let node = fs.writable_node(node)?;
    if node.share.serial != parent.share.serial {
        return Err(errno(libc::EXDEV));
    }
    // Through /proc, since AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH. What is followed is the link in
    // /proc; a node that is a symlink gets the new name itself.
    let from = ProcName::new(&*node);
    // SAFETY: both are C strings, both descriptors are open.
    check(unsafe {
        libc::linkat(
            fs.proc_self_fd().as_raw_fd(),
            from.name().as_ptr(),
            parent.as_fd().as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    })?;
    // Links do not cross mounts: the new name is of the same node.
    let stat = sys::stat(node.as_fd())?;
    fs.nodes.again(node.id)?;
    Ok(fs.entry_below(&parent, node.id, &stat))
}

pub(super) fn unlink(fs: &Passthrough, parent: NodeId, name: &CStr, flags: i32) -> io::Result<()> {
    check_name(name)?;
    let parent = fs.writable_node(parent)?;
    // SAFETY: `name` is a C string, the descriptor is open.
    check(unsafe { libc::unlinkat(parent.as_fd().as_raw_fd(), name.as_ptr(), flags) }).map(drop)
}

pub(super) fn rename(
    fs: &Passthrough,
    caller: &Caller,
    from: (NodeId, &CStr),
    to: (NodeId, &CStr),
    flags: u32,
) -> io::Result<()> {
    check_name(from.1)?;
    check_name(to.1)?;
    if flags & !RENAME_FLAGS != 0 {
        return Err(errno(libc::EINVAL));
    }
    let from_parent = fs.writable_node(from.0)?;
    let to_parent = fs.writable_node(to.0)?;
    if from_parent.share.serial != to_parent.share.serial {
        return Err(errno(libc::EXDEV));
    }
    let rename = || {
        // SAFETY: both names are C strings, both descriptors are open.
        sys::check_long(unsafe {
            libc::syscall(
                libc::SYS_renameat2,
                from_parent.as_fd().as_raw_fd(),
                from.1.as_ptr(),
                to_parent.as_fd().as_raw_fd(),
                to.1.as_ptr(),
                flags,
            )
        })
    };
    // A whiteout is a new file, so it belongs to the caller.
    let outcome = if flags & libc::RENAME_WHITEOUT != 0 { in_name_of(caller, 0, rename) } else { rename() };
    outcome.map(drop)
}

pub(super) fn readlink(fs: &Passthrough, node: NodeId) -> io::Result<Vec<u8>> {
    let node = fs.node(node)?;
    let mut target = vec![0; libc::PATH_MAX.cast_unsigned() as usize];
    // SAFETY: the empty name means the descriptor itself; `target` is writable for the length that is passed.
    let len = unsafe {
        libc::readlinkat(node.as_fd().as_raw_fd(), c"".as_ptr(), target.as_mut_ptr().cast(), target.len())
    };
    target.truncate(usize::try_from(len).map_err(|_| io::Error::last_os_error())?);
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_decoded_as_the_kernel_encodes_them() {
        for (major, minor) in [(0, 0), (1, 3), (8, 1), (259, 0x12345), (0xfff, 0xf_ffff)] {
            // new_encode_dev of linux/kdev_t.h
            let encoded = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
            assert_eq!(decode_device(encoded), (major, minor));
        }
    }
}

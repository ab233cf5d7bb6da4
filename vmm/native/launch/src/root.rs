//! A root of its own for the program: a small tmpfs with nothing in it but what the caller lists.
//!
//! Runs in the child, in its new mount namespace. Every path keeps its name, so that what was configured
//! outside is true inside. Sources are opened in the host's tree before the switch; mount points are made
//! by walking down from the new root without following a symbolic link.

use std::ffi::{CStr, CString, c_uint};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use strato_plumbing::failure::{check, last_errno};
use strato_plumbing::mounts::{self, MountAttr};

use crate::{Failure, Result};

/// How a path of the host shows in the new root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read-only.
    Data,
    /// Read-only, and may be mapped as code.
    Code,
    /// Read and write.
    Folder,
    /// Read and write, with everything mounted below, now and later (if the host shares its mounts).
    Tree,
    /// As `Tree`, read-only. What is mounted later comes with attributes of its own.
    TreeReadonly,
    /// Read and write; alone with `DeviceReadonly` it may be a device.
    Device,
    /// Read-only, as far as a mount can say that of a device.
    DeviceReadonly,
}

/// One path that the program will see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// How it shows.
    pub access: Access,
    /// Absolute, without `.` and `..`.
    pub path: CString,
}

// linux/mount.h; the C library's crate lacks some.
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_NOEXEC: u64 = 0x8;
const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: c_uint = 0x40;
const AT_RECURSIVE: c_uint = 0x8000;
const AT_EMPTY_PATH: c_uint = libc::AT_EMPTY_PATH as c_uint;

/// Folders and empty files only: mount points.
const TMPFS_OPTIONS: &CStr = c"mode=0755,size=1m,nr_inodes=4096";

impl Access {
    fn recursive(self) -> bool {
        matches!(self, Self::Tree | Self::TreeReadonly)
    }

    fn attributes(self) -> MountAttr {
        let attr_set = MOUNT_ATTR_NOSUID
            | match self {
                Self::Data => MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
                Self::Code => MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV,
                Self::Folder | Self::Tree => MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
                Self::TreeReadonly => MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
                Self::Device => MOUNT_ATTR_NOEXEC,
                Self::DeviceReadonly => MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOEXEC,
            };
        // The host's later mounts are to arrive below trees and nowhere else.
        let propagation = if self.recursive() { libc::MS_SLAVE } else { libc::MS_PRIVATE };
        MountAttr { attr_set, propagation, ..MountAttr::default() }
    }
}

/// Builds the root on the empty folder `directory` and enters it; the old root is gone afterwards.
///
/// # Errors
/// Names the path and the step.
pub fn enter(directory: &CStr, entries: &[Entry], with_proc: bool) -> Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mounts::mount(Some(c"tmpfs"), directory, Some(c"tmpfs"), flags, Some(TMPFS_OPTIONS))?;
    let root = open(libc::AT_FDCWD, directory)?;
    for entry in entries {
        bind(&root, entry)
            .map_err(|failure| Failure::new(format!("Cannot show {}: {failure}", shown(&entry.path)), 0))?;
    }
    if with_proc {
        mount_proc(directory, &root)?;
    }
    let readonly = MountAttr { attr_set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    mounts::mount_setattr(root.as_raw_fd(), c"", AT_EMPTY_PATH, &readonly)?;
    // SAFETY: fchdir takes an open descriptor.
    check(unsafe { libc::fchdir(root.as_raw_fd()) }, || "Cannot change to the new root".into())?;
    // The old root ends up below the new one's "." and is taken away there (pivot_root(2)).
    mounts::pivot_root(c".", c".")?;
    mounts::umount(c".", libc::MNT_DETACH)?;
    // SAFETY: the literal is a valid C string.
    check(unsafe { libc::chdir(c"/".as_ptr()) }, || "Cannot change to the new root".into())?;
    Ok(())
}

/// proc(5) of the new pid namespace, without what is not about processes: /proc/sys, /proc/kcore and the like
/// belong to the host, and root without capabilities still owns them.
fn mount_proc(directory: &CStr, root: &OwnedFd) -> Result<()> {
    make_point(root, c"/proc", true)?;
    let target = CString::new([directory.to_bytes(), b"/proc"].concat())
        .map_err(|_| Failure::refused("The new root's path contains a NUL byte"))?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RDONLY;
    let mount = |options: &CStr| {
        mounts::mount(Some(c"proc"), &target, Some(c"proc"), flags, Some(options))
            .map_err(|failure| Failure::new("Cannot mount proc on /proc", failure.errno()))
    };
    match mount(c"hidepid=2,subset=pid") {
        Err(failure) if failure.errno() == libc::EINVAL => mount(c"hidepid=2"), // before Linux 5.8
        outcome => outcome,
    }
}

fn bind(root: &OwnedFd, entry: &Entry) -> Result<()> {
    let recursive = if entry.access.recursive() { AT_RECURSIVE } else { 0 };
    let tree = mounts::open_tree(libc::AT_FDCWD, &entry.path, libc::OPEN_TREE_CLONE | recursive)?;
    let mode = mode(&tree)?;
    mounts::mount_setattr(tree.as_raw_fd(), c"", AT_EMPTY_PATH | recursive, &entry.access.attributes())?;
    let point = make_point(root, &entry.path, mode & libc::S_IFMT == libc::S_IFDIR)?;
    mounts::move_mount(
        (tree.as_raw_fd(), c""),
        (point.as_raw_fd(), c""),
        MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// Makes the folders on the way to `path` below `root`, and its end, unless they are there.
fn make_point(root: &OwnedFd, path: &CStr, folder: bool) -> Result<OwnedFd> {
    let mut names = path.to_bytes().split(|byte| *byte == b'/').filter(|name| !name.is_empty()).peekable();
    let mut place = duplicate(root)?;
    while let Some(name) = names.next() {
        let name = CString::new(name).map_err(|_| Failure::refused("It contains a NUL byte"))?;
        if matches!(name.to_bytes(), b"." | b"..") {
            return Err(Failure::refused("Its path must not contain . or .."));
        }
        let last = names.peek().is_none();
        make(&place, &name, folder || !last)?;
        place = open(place.as_raw_fd(), &name)?;
        if mode(&place)? & libc::S_IFMT == libc::S_IFLNK {
            return Err(Failure::refused(
                "Its place is a symbolic link inside of another path that is shown; give the path without links",
            ));
        }
    }
    Ok(place)
}

fn make(parent: &OwnedFd, name: &CStr, folder: bool) -> Result<()> {
    let parent = parent.as_raw_fd();
    let outcome = if folder {
        // SAFETY: `name` is a valid C string and `parent` an open descriptor.
        unsafe { libc::mkdirat(parent, name.as_ptr(), 0o755) }
    } else {
        // SAFETY: as above.
        unsafe { libc::mknodat(parent, name.as_ptr(), libc::S_IFREG | 0o444, 0) }
    };
    if outcome < 0 && last_errno() != libc::EEXIST {
        // A read-only parent answers EROFS for what is there, too.
        let errno = last_errno();
        return open(parent, name).map(drop).map_err(|_| Failure::new("Cannot make its mount point", errno));
    }
    Ok(())
}

fn open(parent: RawFd, name: &CStr) -> Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: `name` is a valid C string and `parent` an open descriptor or AT_FDCWD.
    let raw = unsafe { libc::openat(parent, name.as_ptr(), flags) };
    check(raw, || format!("Cannot open {}", shown(name)))?;
    // SAFETY: openat returned this descriptor just now; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd> {
    fd.try_clone().map_err(|_| Failure::last("Cannot duplicate a descriptor"))
}

fn mode(fd: &OwnedFd) -> Result<libc::mode_t> {
    // SAFETY: stat is a plain C structure for which all-zero is valid.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is writable and the descriptor open.
    check(unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) }, || "Cannot look at it".into())?;
    Ok(stat.st_mode)
}

fn shown(path: &CStr) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_may_be_executed_and_only_devices_are_devices() {
        let all = [
            Access::Data,
            Access::Code,
            Access::Folder,
            Access::Tree,
            Access::TreeReadonly,
            Access::Device,
            Access::DeviceReadonly,
        ];
        for access in all {
            let attributes = access.attributes().attr_set;
            assert_ne!(attributes & MOUNT_ATTR_NOSUID, 0, "{access:?}");
            assert_eq!(attributes & MOUNT_ATTR_NOEXEC == 0, access == Access::Code, "{access:?}");
            let device = matches!(access, Access::Device | Access::DeviceReadonly);
            assert_eq!(attributes & MOUNT_ATTR_NODEV == 0, device, "{access:?}");
        }
    }
}

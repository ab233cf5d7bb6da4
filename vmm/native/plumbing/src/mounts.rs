//! The mount calls, old and new.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::{Result, check};

fn pointer(text: Option<&CStr>) -> *const c_char {
    text.map_or(std::ptr::null(), CStr::as_ptr)
}

fn shown(text: Option<&CStr>) -> String {
    text.map_or_else(|| "(none)".into(), |text| text.to_string_lossy().into_owned())
}

/// mount(2).
///
/// # Errors
/// Names source, type, target and flags.
pub fn mount(
    source: Option<&CStr>,
    target: &CStr,
    fstype: Option<&CStr>,
    flags: u64,
    data: Option<&CStr>,
) -> Result<()> {
    // SAFETY: every pointer is null or a valid C string for the duration of the call.
    let outcome = unsafe {
        libc::mount(pointer(source), target.as_ptr(), pointer(fstype), flags, pointer(data).cast())
    };
    check(outcome, || {
        let target = target.to_string_lossy();
        format!("Cannot mount {} (type {}) on {target} with flags {flags:#x}", shown(source), shown(fstype))
    })?;
    Ok(())
}

/// umount2(2).
///
/// # Errors
/// Names the target.
pub fn umount(target: &CStr, flags: c_int) -> Result<()> {
    // SAFETY: `target` is a valid C string.
    let outcome = unsafe { libc::umount2(target.as_ptr(), flags) };
    check(outcome, || format!("Cannot unmount {}", target.to_string_lossy()))?;
    Ok(())
}

/// open_tree(2); the descriptor is always CLOEXEC.
///
/// # Errors
/// Names the path.
pub fn open_tree(dirfd: c_int, path: &CStr, flags: c_uint) -> Result<OwnedFd> {
    let flags = flags | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: `path` is a valid C string; the rest are integers.
    let raw = unsafe { libc::syscall(libc::SYS_open_tree, dirfd, path.as_ptr(), flags) };
    check(raw, || format!("Cannot open the mount tree at {}", path.to_string_lossy()))?;
    // SAFETY: open_tree returned this descriptor just now; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw as RawFd) })
}

/// move_mount(2).
///
/// # Errors
/// Names both paths.
pub fn move_mount(from: (c_int, &CStr), to: (c_int, &CStr), flags: c_uint) -> Result<()> {
    let ((from_dirfd, from_path), (to_dirfd, to_path)) = (from, to);
    // SAFETY: both paths are valid C strings; the rest are integers.
    let outcome = unsafe {
        libc::syscall(libc::SYS_move_mount, from_dirfd, from_path.as_ptr(), to_dirfd, to_path.as_ptr(), flags)
    };
    check(outcome, || {
        let (from, to) = (from_path.to_string_lossy(), to_path.to_string_lossy());
        format!("Cannot move the mount {from:?} of descriptor {from_dirfd} to {to:?} of {to_dirfd}")
    })?;
    Ok(())
}

/// `struct mount_attr` of linux/mount.h.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct MountAttr {
    /// MOUNT_ATTR_* to set.
    pub attr_set: u64,
    /// MOUNT_ATTR_* to clear.
    pub attr_clr: u64,
    /// MS_PRIVATE and its like, or 0.
    pub propagation: u64,
    /// User namespace for MOUNT_ATTR_IDMAP.
    pub userns_fd: u64,
}

/// mount_setattr(2).
///
/// # Errors
/// Names the path.
pub fn mount_setattr(dirfd: c_int, path: &CStr, flags: c_uint, attr: &MountAttr) -> Result<()> {
    // SAFETY: `path` is a valid C string and `attr` a mount_attr of the given size.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dirfd,
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    check(outcome, || format!("Cannot change the attributes of mount {}", path.to_string_lossy()))?;
    Ok(())
}

/// pivot_root(2).
///
/// # Errors
/// Names both paths.
pub fn pivot_root(new_root: &CStr, put_old: &CStr) -> Result<()> {
    // SAFETY: both are valid C strings.
    let outcome = unsafe { libc::syscall(libc::SYS_pivot_root, new_root.as_ptr(), put_old.as_ptr()) };
    check(outcome, || {
        format!(
            "Cannot make {} the root (old root to {})",
            new_root.to_string_lossy(),
            put_old.to_string_lossy()
        )
    })?;
    Ok(())
}

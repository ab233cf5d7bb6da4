//! Extended attributes. Which names exist, and who may set them, is the host kernel's business, within what
//! the capabilities of the fs threads allow: `trusted.*` would need CAP_SYS_ADMIN.
//!
//! The system calls want a path and get a descriptor's number, relative to the thread's working directory
//! /proc/self/fd (see [`super::credentials`]): the file that the number leads to is the end, even if it is
//! a symlink.

use std::ffi::CStr;
use std::io;

use super::Passthrough;
use super::credentials::as_member;
use super::sys::{ProcName, check, errno};
use crate::fs::backend::{Caller, NodeId};

/// XATTR_NAME_MAX and XATTR_SIZE_MAX of linux/limits.h
const NAME_MAX: usize = 255;
const VALUE_MAX: usize = 65536;

const ACL_NAMES: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

fn check_name(fs: &Passthrough, name: &CStr) -> io::Result<()> {
    let name = name.to_bytes();
    if name.is_empty() || name.len() > NAME_MAX {
        return Err(errno(libc::ERANGE));
    }
    let known = [&b"user."[..], b"trusted.", b"security."].iter().any(|prefix| name.starts_with(prefix));
    if known || (fs.options.get().posix_acl && ACL_NAMES.contains(&name)) {
        Ok(())
    } else {
        Err(errno(libc::EOPNOTSUPP))
    }
}

/// An ACL that the guest does not enforce would not mean what it says: for such a guest there are none.
fn is_hidden(fs: &Passthrough, name: &CStr) -> bool {
    !fs.options.get().posix_acl && ACL_NAMES.contains(&name.to_bytes())
}

pub(super) fn get(fs: &Passthrough, node: NodeId, name: &CStr, value: &mut [u8]) -> io::Result<usize> {
    if fs.is_collection(node) || is_hidden(fs, name) {
        return Err(errno(libc::ENODATA));
    }
    check_name(fs, name)?;
    let node = fs.node(node)?;
    let path = ProcName::new(&*node);
    // SAFETY: both names are C strings; `value` is writable for the length that is passed.
    let len = unsafe {
        libc::getxattr(path.name().as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}

pub(super) fn list(fs: &Passthrough, node: NodeId, names: &mut [u8]) -> io::Result<usize> {
    if fs.is_collection(node) {
        return Ok(0);
    }
    let node = fs.node(node)?;
    let path = ProcName::new(&*node);
    // SAFETY: the name is a C string; `names` is writable for the length that is passed.
    let len = unsafe { libc::listxattr(path.name().as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}

pub(super) fn set(
    fs: &Passthrough,
    caller: &Caller,
    node: NodeId,
    (name, value): (&CStr, &[u8]),
    flags: u32,
    clear_setgid: bool,
) -> io::Result<()> {
    check_name(fs, name)?;
    if value.len() > VALUE_MAX {
        return Err(errno(libc::E2BIG));
    }
    let node = fs.writable_node(node)?;
    let path = ProcName::new(&*node);
    let set = || {
        // SAFETY: both names are C strings; `value` is readable for the length that is passed.
        check(unsafe {
            libc::setxattr(
                path.name().as_ptr(),
                name.as_ptr(),
                value.as_ptr().cast(),
                value.len(),
                flags.cast_signed(),
            )
        })
    };
    let outcome = if clear_setgid { as_member(caller.gid, set) } else { set() };
    outcome.map(drop)
}

pub(super) fn remove(fs: &Passthrough, node: NodeId, name: &CStr) -> io::Result<()> {
    check_name(fs, name)?;
    let node = fs.writable_node(node)?;
    let path = ProcName::new(&*node);
    // SAFETY: both names are C strings.
    check(unsafe { libc::removexattr(path.name().as_ptr(), name.as_ptr()) }).map(drop)
}

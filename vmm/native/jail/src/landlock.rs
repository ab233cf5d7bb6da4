//! Landlock: the files that the calling thread, and whatever it starts from here on, can still open.
//!
//! A second wall behind the mount namespace: what is visible there for QEMU's or the loader's sake is out of
//! reach for strato-vmm itself, programs cannot be executed, TCP ports and abstract sockets of others are
//! closed (landlock(7)). Kernels differ in what they know; each asks for all that its kernel has.
#![expect(unsafe_code, reason = "system calls")]

use std::ffi::{CStr, c_uint};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use strato_plumbing::failure::last_errno;
use strato_plumbing::{Failure, Result, check};

// linux/landlock.h
const CREATE_RULESET_VERSION: c_uint = 1;
const RULE_PATH_BENEATH: c_uint = 1;
const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_DIR: u64 = 1 << 4;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_CHAR: u64 = 1 << 6;
const MAKE_DIR: u64 = 1 << 7;
const MAKE_REG: u64 = 1 << 8;
const MAKE_SOCK: u64 = 1 << 9;
const MAKE_FIFO: u64 = 1 << 10;
const MAKE_BLOCK: u64 = 1 << 11;
const MAKE_SYM: u64 = 1 << 12;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
const NET_BIND_TCP: u64 = 1 << 0;
const NET_CONNECT_TCP: u64 = 1 << 1;
const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1 << 0;

/// What may be asked of a file that is no directory; anything more in its rule is EINVAL.
const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;

/// What a path is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// To be read: files and directories.
    Read,
    /// A folder of our own: regular files and sockets come and go in there.
    Folder,
    /// A tree of the guest's: anything but running it.
    Tree,
    /// A device or disk: read, written and asked.
    Device,
    /// A device or disk: read and asked.
    DeviceReadonly,
}

impl Use {
    fn rights(self) -> u64 {
        match self {
            Self::Read => READ_FILE | READ_DIR,
            Self::Folder => READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | REMOVE_FILE | MAKE_REG | MAKE_SOCK,
            Self::Tree => {
                READ_FILE
                    | READ_DIR
                    | WRITE_FILE
                    | TRUNCATE
                    | REMOVE_DIR
                    | REMOVE_FILE
                    | MAKE_CHAR
                    | MAKE_DIR
                    | MAKE_REG
                    | MAKE_SOCK
                    | MAKE_FIFO
                    | MAKE_BLOCK
                    | MAKE_SYM
                    | REFER
            }
            Self::Device => READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV,
            Self::DeviceReadonly => READ_FILE | IOCTL_DEV,
        }
    }
}

/// `struct landlock_ruleset_attr`; a shorter one is for older kernels.
#[repr(C)]
#[derive(Default)]
struct RulesetAttributes {
    files: u64,
    net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// The version of the interface that this kernel has; 0: none, or switched off.
pub fn version() -> u32 {
    // SAFETY: with this flag the kernel reads nothing.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(outcome).unwrap_or(0)
}

/// Rights on files that a version knows.
fn known(version: u32) -> u64 {
    match version {
        0 => 0,
        1 => REFER - 1,
        2 => TRUNCATE - 1,
        3 | 4 => IOCTL_DEV - 1,
        _ => IOCTL_DEV | (IOCTL_DEV - 1),
    }
}

/// Restricts the calling thread to these paths and what is below them. It has given up new privileges before.
///
/// The first version cannot move a file from one directory to another, which shares need: it counts as none.
///
/// # Errors
/// Names the path that cannot be opened.
pub fn restrict(paths: &[(&CStr, Use)]) -> Result<u32> {
    let version = version();
    if version < 2 {
        return Ok(0);
    }
    let files = known(version);
    let mut attributes = RulesetAttributes { files, ..RulesetAttributes::default() };
    if version >= 4 {
        attributes.net = NET_BIND_TCP | NET_CONNECT_TCP;
    }
    if version >= 6 {
        attributes.scoped = SCOPE_ABSTRACT_UNIX_SOCKET;
    }
    let size = match version {
        0..4 => 8,
        4..6 => 16,
        _ => size_of::<RulesetAttributes>(),
    };
    // SAFETY: the kernel reads `size` bytes of a live structure that has as many.
    let outcome =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, 0 as c_uint) };
    check(outcome, || "Cannot make a Landlock ruleset".into())?;
    // SAFETY: landlock_create_ruleset has returned this descriptor just now; nobody else owns it.
    let ruleset = unsafe { OwnedFd::from_raw_fd(outcome as RawFd) };
    for (path, usage) in paths {
        allow(&ruleset, path, usage.rights() & files)?;
    }
    // SAFETY: an open ruleset and no flags.
    let outcome =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0 as c_uint) };
    check(outcome, || "Cannot restrict the thread to its files".into())?;
    Ok(version)
}

fn allow(ruleset: &OwnedFd, path: &CStr, rights: u64) -> Result<()> {
    let shown = || path.to_string_lossy().into_owned();
    // SAFETY: `path` is a valid C string.
    let raw = unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
    check(raw, || format!("Cannot open {} to allow its use", shown()))?;
    // SAFETY: open has returned this descriptor just now; nobody else owns it.
    let parent = unsafe { OwnedFd::from_raw_fd(raw) };
    let add = |allowed: u64| {
        let rule = PathBeneath { allowed, parent: parent.as_raw_fd() };
        // SAFETY: the kernel reads one live structure of the kind that the number names.
        unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                ruleset.as_raw_fd(),
                RULE_PATH_BENEATH,
                &raw const rule,
                0 as c_uint,
            )
        }
    };
    if add(rights) < 0 {
        // A file, of which nothing may be asked that only directories have.
        if last_errno() != libc::EINVAL || add(rights & OF_FILES) < 0 {
            return Err(Failure::last(format!("Cannot allow the use of {}", shown())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

//! Cgroup directories of either hierarchy version.

use std::ffi::{CStr, c_int};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::failure::{Failure, Result, check};

/// `CGROUP_SUPER_MAGIC` and `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP_SUPER_MAGIC: libc::__fsword_t = 0x0027_e0eb;
const CGROUP2_SUPER_MAGIC: libc::__fsword_t = 0x6367_7270;

/// An opened cgroup directory.
#[derive(Debug)]
pub struct CgroupDir {
    path: String,
    fd: OwnedFd,
    version: u8,
}

impl CgroupDir {
    /// Opens `path` and finds out which cgroup version it belongs to.
    ///
    /// # Errors
    /// When it cannot be opened, or is no cgroup.
    pub fn open(path: &CStr) -> Result<Self> {
        let shown = path.to_string_lossy().into_owned();
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: `path` is a valid C string for the duration of the call.
        let raw =
            check(unsafe { libc::open(path.as_ptr(), flags) }, || format!("Cannot open cgroup {shown}"))?;
        // SAFETY: open returned `raw` just now; nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let mut facts = std::mem::MaybeUninit::<libc::statfs>::uninit();
        // SAFETY: `facts` is writable and as large as the kernel expects; `fd` is open.
        let outcome = unsafe { libc::fstatfs(fd.as_raw_fd(), facts.as_mut_ptr()) };
        check(outcome, || format!("Cannot stat the file system of cgroup {shown}"))?;
        // SAFETY: fstatfs succeeded and has filled the whole structure.
        let facts = unsafe { facts.assume_init() };
        let version = match facts.f_type {
            CGROUP_SUPER_MAGIC => 1,
            CGROUP2_SUPER_MAGIC => 2,
            _ => return Err(Failure::refused(format!("{shown} is no cgroup"))),
        };
        Ok(Self { path: shown, fd, version })
    }

    /// 2 for the unified hierarchy, otherwise 1.
    pub fn version(&self) -> u8 {
        self.version
    }

    /// The descriptor, for `CLONE_INTO_CGROUP`.
    pub fn raw_fd(&self) -> c_int {
        self.fd.as_raw_fd()
    }

    /// The directory as it was given, for messages.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Moves the caller, which has one thread, into this cgroup.
    ///
    /// In version 1 by its thread: the kernel moves a thread that moves itself without the lock for whole
    /// processes, which a writer gets after an RCU grace period only, some 10 ms (`cgroup_procs_write_start` of
    /// kernel/cgroup/cgroup.c, 5.18).
    ///
    /// # Errors
    /// Names the directory and the kernel's reason.
    pub fn enter(&self) -> Result<()> {
        let name = if self.version == 1 { c"tasks" } else { c"cgroup.procs" };
        // SAFETY: `name` is a C string literal and the directory descriptor is open.
        let raw =
            unsafe { libc::openat(self.fd.as_raw_fd(), name.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
        check(raw, || format!("Cannot open {}/{}", self.path, name.to_string_lossy()))?;
        // SAFETY: openat returned `raw` just now; nobody else owns it.
        let list = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: one byte is readable at the address of the literal.
        let written = unsafe { libc::write(list.as_raw_fd(), b"0".as_ptr().cast(), 1) };
        check(written, || format!("Cannot move process {} into cgroup {}", std::process::id(), self.path))?;
        Ok(())
    }
}

/// Opens every directory and makes sure that at most one of them belongs to cgroup v2.
///
/// # Errors
/// The first directory that cannot be opened, or the second one of version 2.
pub fn open_all(paths: &[std::ffi::CString]) -> Result<Vec<CgroupDir>> {
    let mut dirs: Vec<CgroupDir> = Vec::with_capacity(paths.len());
    for path in paths {
        let dir = CgroupDir::open(path)?;
        if dir.version == 2
            && let Some(first) = dirs.iter().find(|other| other.version == 2)
        {
            return Err(Failure::refused(format!(
                "Cgroups {} and {} are both of version 2; give only one",
                first.path, dir.path
            )));
        }
        dirs.push(dir);
    }
    Ok(dirs)
}

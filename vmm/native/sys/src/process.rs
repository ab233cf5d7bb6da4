//! Namespaces and attributes of the calling process.

use std::ffi::{CStr, c_int, c_uint, c_ulong};

use strato_plumbing::capabilities::{self, Capabilities};
use strato_plumbing::{Failure, Result, check};

/// unshare(2) for the calling thread.
///
/// # Errors
/// The kernel's refusal, with the flags.
pub fn unshare(flags: c_int) -> Result<()> {
    // SAFETY: unshare takes an integer.
    check(unsafe { libc::unshare(flags) }, || format!("Cannot unshare namespaces {flags:#x}"))?;
    Ok(())
}

/// setns(2) for the calling thread.
///
/// # Errors
/// The kernel's refusal, with both arguments.
pub fn setns(fd: c_int, nstype: c_int) -> Result<()> {
    // SAFETY: setns takes integers.
    check(unsafe { libc::setns(fd, nstype) }, || {
        format!("Cannot enter namespace of type {nstype:#x} through descriptor {fd}")
    })?;
    Ok(())
}

/// Makes orphaned descendants children of this process (or stops that).
///
/// # Errors
/// The kernel's refusal.
pub fn set_child_subreaper(enable: bool) -> Result<()> {
    // SAFETY: PR_SET_CHILD_SUBREAPER takes an integer.
    let outcome = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, c_ulong::from(enable), 0, 0, 0) };
    check(outcome, || "Cannot become a child subreaper".into())?;
    Ok(())
}

/// Empties the bounding set and sets no_new_privs: whatever is executed from here on is without power.
///
/// # Errors
/// The kernel's refusal. A process that has no capabilities has nothing to take away and is not refused.
pub fn forbid_gains() -> Result<()> {
    if capabilities::permitted()? != Capabilities::NONE {
        capabilities::bound(Capabilities::NONE)?;
    }
    capabilities::no_new_privileges()
}

/// `PR_SET_DUMPABLE`: whether others of the same user may trace this process, and whether it dumps core.
///
/// # Errors
/// Never on a kernel of this decade.
pub fn set_dumpable(enable: bool) -> Result<()> {
    // SAFETY: PR_SET_DUMPABLE takes an integer.
    let outcome = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, c_ulong::from(enable), 0, 0, 0) };
    check(outcome, || "Cannot hide the process from others".into())?;
    Ok(())
}

/// close_range(2).
///
/// # Errors
/// EINVAL when `first` is above `last`.
///
/// # Safety
/// No owner of a descriptor in the range may use it afterwards.
pub unsafe fn close_range(first: c_uint, last: c_uint, flags: c_uint) -> Result<()> {
    // SAFETY: takes integers; the caller vouches for the descriptors.
    let outcome = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    check(outcome, || format!("Cannot close descriptors {first} to {last}"))?;
    Ok(())
}

/// Sets the name of the process (the main thread's comm), from whichever thread.
///
/// # Errors
/// Outside of the main thread: when /proc is not there.
pub fn set_process_name(name: &CStr) -> Result<()> {
    // SAFETY: gettid takes nothing.
    if unsafe { libc::gettid() } == std::process::id() as libc::pid_t {
        // SAFETY: PR_SET_NAME reads a C string and cuts it to 15 bytes.
        let outcome = unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
        check(outcome, || "Cannot set the process name".into())?;
        return Ok(());
    }
    std::fs::write("/proc/self/comm", name.to_bytes()).map_err(|error| {
        Failure::new("Cannot write /proc/self/comm", error.raw_os_error().unwrap_or(libc::EIO))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_name_their_arguments() {
        assert_eq!(setns(-1, libc::CLONE_NEWNET).unwrap_err().errno(), libc::EBADF);
        assert!(setns(-1, 0x4000_0000).unwrap_err().to_string().contains("0x40000000"));
        // SAFETY: the range is refused before anything is closed.
        assert_eq!(unsafe { close_range(9, 3, 0) }.unwrap_err().errno(), libc::EINVAL);
    }
}

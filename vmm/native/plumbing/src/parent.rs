//! "Die with the parent" without the race between setting the signal and the parent's death.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::failure::{Failure, Result, check, last_errno};

/// The parent as it was when [`ParentWatch::open`] ran.
#[derive(Debug)]
pub struct ParentWatch {
    pidfd: OwnedFd,
}

impl ParentWatch {
    /// Opens a pidfd of the calling process's parent.
    ///
    /// # Errors
    /// When the parent is gone already or lives outside of this pid namespace.
    pub fn open() -> Result<Self> {
        // SAFETY: getppid takes nothing and cannot fail.
        let parent = unsafe { libc::getppid() };
        // SAFETY: pidfd_open takes plain integers.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, parent, 0) };
        check(raw, || format!("Cannot open a pidfd of the parent, process {parent}"))?;
        // SAFETY: pidfd_open returned this descriptor just now (it is CLOEXEC); nobody else owns it.
        Ok(Self { pidfd: unsafe { OwnedFd::from_raw_fd(raw as RawFd) } })
    }

    /// Asks for SIGKILL when the parent dies, then makes sure that it has not died before.
    ///
    /// The kernel's "parent" is the thread that forked: the signal comes when that thread ends.
    ///
    /// # Errors
    /// ESRCH when the parent is dead; otherwise the kernel's refusal.
    pub fn die_with_parent(&self) -> Result<()> {
        set_parent_death_signal(libc::SIGKILL)?;
        let mut poll = libc::pollfd { fd: self.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        loop {
            // SAFETY: `poll` is one live pollfd, as the count says.
            let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
            match ready {
                0 => return Ok(()),
                1 => return Err(Failure::new("The parent process died during the start", libc::ESRCH)),
                _ if last_errno() == libc::EINTR => {}
                _ => return Err(Failure::last("Cannot poll the pidfd of the parent")),
            }
        }
    }
}

/// `PR_SET_PDEATHSIG`; 0 switches it off.
///
/// # Errors
/// EINVAL for a signal that does not exist.
pub fn set_parent_death_signal(signal: c_int) -> Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes one integer.
    let outcome = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong, 0, 0, 0) };
    check(outcome, || format!("Cannot set the parent-death signal to {signal}"))?;
    Ok(())
}

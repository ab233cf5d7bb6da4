//! What belongs to a thread: credentials, capabilities, umask, working directory.
//!
//! Each thread that serves requests is prepared once ([`prepare_thread`]): it gets a working directory and
//! an umask of its own (unshare(CLONE_FS)), its working directory becomes /proc/self/fd (so that a
//! descriptor's number is its path, for system calls that know no descriptors), its umask 0, its
//! supplementary groups none. A thread that was not prepared is prepared when it first needs to be.
//!
//! Files are created in the caller's name by switching the thread's effective ids with the raw system
//! calls, which, unlike libc's functions, change one thread only. The real and saved ids stay, so that the
//! way back is always open; the kernel takes the effective capabilities away with uid 0 and gives them back
//! with it. Should the way back fail nevertheless (no memory for new credentials), the thread refuses all
//! further requests until it succeeds.

use std::cell::Cell;
use std::ffi::{c_int, c_uint};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::sys::{self, check, check_long, errno};
use crate::fs::backend::Caller;

/// Capabilities by their numbers in linux/capability.h.
const CAP_CHOWN: u32 = 0;
const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_FOWNER: u32 = 3;
const CAP_FSETID: u32 = 4;
const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAP_MKNOD: u32 = 27;
const CAP_SETFCAP: u32 = 31;

/// All that a thread needs that serves the files of root and of others.
const NEEDED: u64 = 1 << CAP_CHOWN
    | 1 << CAP_DAC_OVERRIDE
    | 1 << CAP_FOWNER
    | 1 << CAP_FSETID
    | 1 << CAP_SETGID
    | 1 << CAP_SETUID
    | 1 << CAP_MKNOD
    | 1 << CAP_SETFCAP;

/// _LINUX_CAPABILITY_VERSION_3
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// The id that setresuid and setresgid take for "leave it as it is".
const UNCHANGED: c_uint = c_uint::MAX;

/// What is known of the calling thread.
struct Thread {
    prepared: Cell<bool>,
    /// The caller's ids are still in effect, because the way back failed.
    stuck: Cell<bool>,
    umask: Cell<u32>,
    effective: Cell<u64>,
    permitted: Cell<u64>,
    uid: Cell<u32>,
    gid: Cell<u32>,
}

thread_local! {
    static THREAD: Thread = const {
        Thread {
            prepared: Cell::new(false),
            stuck: Cell::new(false),
            umask: Cell::new(0),
            effective: Cell::new(0),
            permitted: Cell::new(0),
            uid: Cell::new(0),
            gid: Cell::new(0),
        }
    };
}

/// Prepares the calling thread; `proc_self_fd` is the directory /proc/self/fd. `confine`: with
/// [`drop_capabilities`].
pub(super) fn prepare_thread(proc_self_fd: BorrowedFd<'_>, confine: bool) -> io::Result<()> {
    THREAD.with(|thread| {
        if thread.stuck.get() {
            restore(thread)?;
        }
        if thread.prepared.get() { Ok(()) } else { prepare(thread, proc_self_fd, confine) }
    })
}

fn prepare(thread: &Thread, proc_self_fd: BorrowedFd<'_>, confine: bool) -> io::Result<()> {
    // SAFETY: unshare takes one integer; CLONE_FS concerns this thread's working directory and umask only.
    check(unsafe { libc::unshare(libc::CLONE_FS) })?;
    // SAFETY: the descriptor is open for the duration of the call.
    check(unsafe { libc::fchdir(proc_self_fd.as_raw_fd()) })?;
    // SAFETY: umask takes one integer and cannot fail.
    unsafe { libc::umask(0) };
    // SAFETY: these take nothing and cannot fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    if confine {
        drop_capabilities()?;
    }
    let (effective, permitted) = capabilities()?;
    if effective & (1 << CAP_SETGID) != 0 {
        set_groups(&[])?;
    }
    thread.umask.set(0);
    thread.effective.set(effective);
    thread.permitted.set(permitted);
    thread.uid.set(uid);
    thread.gid.set(gid);
    thread.prepared.set(true);
    Ok(())
}

/// Drops every capability of the calling thread but those that the host half needs: CHOWN, DAC_OVERRIDE,
/// FOWNER, FSETID, SETGID, SETUID, MKNOD and SETFCAP. Once a thread is prepared nobody else may change its
/// capabilities.
///
/// # Errors
/// The kernel refuses; nothing has changed then.
pub fn drop_capabilities() -> io::Result<()> {
    let (_, permitted) = capabilities()?;
    let keep = permitted & NEEDED;
    // The ambient set goes with the inheritable one.
    set_capabilities(keep, keep)?;
    THREAD.with(|thread| {
        thread.effective.set(keep);
        thread.permitted.set(keep);
    });
    Ok(())
}

/// Runs `create` in the caller's name, with the caller's umask.
///
/// The guest's kernel has checked the permissions. The host's kernel checks them once more for the caller,
/// and where that fails (in the guest the caller had capabilities, or groups that we do not know of) the
/// permission bits are overridden, the owner stays the caller.
pub(super) fn in_name_of<T>(
    caller: &Caller,
    umask: u32,
    mut create: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    THREAD.with(|thread| {
        set_umask(thread, umask);
        let acting = act_as(thread, caller)?;
        match create() {
            Err(error) if acting.uid_changed && error.raw_os_error() == Some(libc::EACCES) => {
                let override_only = 1 << CAP_DAC_OVERRIDE;
                let permitted = thread.permitted.get();
                if permitted & override_only == 0 {
                    return Err(error);
                }
                set_capabilities(override_only, permitted)?;
                create()
            }
            other => other,
        }
    })
}

/// Runs `change` as a member of the group and without CAP_FSETID, so that the kernel decides about the
/// set-gid bit as it would for one who is in that group only.
pub(super) fn as_member<T>(gid: u32, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    THREAD.with(|thread| {
        let _acting = act_as(thread, &Caller { uid: thread.uid.get(), gid, ..Caller::default() })?;
        unprivileged(thread, change)
    })
}

/// Runs `change`, which changes the contents of `file`, so that the kernel clears the set-uid and set-gid
/// bits as for any process without privileges.
///
/// The set-gid bit of a file that its group may not execute gives no privilege. The kernel clears it for
/// those who are not in the group; the guest does not tell whether the caller is, so it stays.
pub(super) fn clearing_set_id<T>(file: impl AsFd, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    // Nearly no file has such bits: one question instead of two changes of credentials.
    let attributes = sys::stat(file.as_fd())?.attributes;
    if attributes.mode & (libc::S_ISUID | libc::S_ISGID) == 0 {
        return change();
    }
    if attributes.mode & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID {
        return as_member(attributes.gid, change);
    }
    THREAD.with(|thread| unprivileged(thread, change))
}

fn unprivileged<T>(thread: &Thread, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let effective = thread.effective.get();
    let without = effective & !(1 << CAP_FSETID);
    if without == effective {
        return change();
    }
    set_capabilities(without, thread.permitted.get())?;
    let _restored = Acting {
        thread,
        uid_changed: false,
        gid_changed: false,
        groups_changed: false,
        capabilities_changed: true,
    };
    change()
}

/// The caller's umask for the creation that follows. Nothing else on this thread depends on it, so it stays
/// until the next creation wants another one: most never do.
fn set_umask(thread: &Thread, umask: u32) {
    let umask = umask & 0o777;
    if thread.umask.get() != umask {
        // SAFETY: umask takes one integer and cannot fail.
        unsafe { libc::umask(umask) };
        thread.umask.set(umask);
    }
}

/// Undoes, when it goes, what was changed for a caller.
struct Acting<'a> {
    thread: &'a Thread,
    uid_changed: bool,
    gid_changed: bool,
    groups_changed: bool,
    capabilities_changed: bool,
}

/// Takes on the ids of `caller`. What has been changed before an error is changed back.
fn act_as<'a>(thread: &'a Thread, caller: &Caller) -> io::Result<Acting<'a>> {
    let supplementary = caller.supplementary_gid.filter(|gid| *gid != caller.gid);
    if [Some(caller.uid), Some(caller.gid), supplementary].contains(&Some(UNCHANGED)) {
        // To the kernel it would mean "no change": the guest would create files as us.
        return Err(errno(libc::EINVAL));
    }
    let mut acting = Acting {
        thread,
        uid_changed: false,
        gid_changed: false,
        groups_changed: false,
        capabilities_changed: false,
    };
    if let Some(gid) = supplementary {
        set_groups(&[gid])?;
        acting.groups_changed = true;
    }
    if caller.gid != thread.gid.get() {
        set_effective_gid(caller.gid)?;
        acting.gid_changed = true;
    }
    // Last: with uid 0 go the capabilities that the others need.
    if caller.uid != thread.uid.get() {
        set_effective_uid(caller.uid)?;
        acting.uid_changed = true;
    }
    Ok(acting)
}

impl Drop for Acting<'_> {
    fn drop(&mut self) {
        let thread = self.thread;
        let way_back = || -> io::Result<()> {
            if self.uid_changed {
                set_effective_uid(thread.uid.get())?;
            }
            if self.gid_changed {
                set_effective_gid(thread.gid.get())?;
            }
            if self.groups_changed {
                set_groups(&[])?;
            }
            if self.capabilities_changed {
                set_capabilities(thread.effective.get(), thread.permitted.get())?;
            }
            Ok(())
        };
        if way_back().is_err() {
            thread.stuck.set(true);
        }
    }
}

/// The whole way back, whatever had been changed.
fn restore(thread: &Thread) -> io::Result<()> {
    set_effective_uid(thread.uid.get())?;
    set_effective_gid(thread.gid.get())?;
    if thread.effective.get() & (1 << CAP_SETGID) != 0 {
        set_groups(&[])?;
    }
    set_capabilities(thread.effective.get(), thread.permitted.get())?;
    thread.stuck.set(false);
    Ok(())
}

fn set_effective_uid(uid: u32) -> io::Result<()> {
    // SAFETY: plain integers.
    check_long(unsafe { libc::syscall(libc::SYS_setresuid, UNCHANGED, uid, UNCHANGED) }).map(drop)
}

fn set_effective_gid(gid: u32) -> io::Result<()> {
    // SAFETY: plain integers.
    check_long(unsafe { libc::syscall(libc::SYS_setresgid, UNCHANGED, gid, UNCHANGED) }).map(drop)
}

fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: `groups` is readable for the count that is passed.
    check_long(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// struct __user_cap_header_struct
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}

/// struct __user_cap_data_struct; one for the low and one for the high half of the sets.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The calling thread's effective and permitted capabilities.
fn capabilities() -> io::Result<(u64, u64)> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let mut data = [CapabilityData::default(); 2];
    // SAFETY: version 3 fills two data structures, which is what there are.
    check_long(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let [low, high] = data;
    let join = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    Ok((join(low.effective, high.effective), join(low.permitted, high.permitted)))
}

fn set_capabilities(effective: u64, permitted: u64) -> io::Result<()> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    #[allow(clippy::cast_possible_truncation)] // the low half is what is wanted
    let half = |shift: u32| CapabilityData {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: 0,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads two data structures, which is what there are.
    check_long(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;
    use std::thread;

    use super::super::sys::open_at;
    use super::*;

    fn effective_uid() -> u32 {
        // SAFETY: geteuid takes nothing and cannot fail.
        unsafe { libc::geteuid() }
    }

    /// On a thread of its own, with /proc/self/fd, as root.
    fn on_prepared_thread(test: impl FnOnce(BorrowedFd<'_>) + Send) {
        if effective_uid() != 0 {
            eprintln!("skipped: needs root");
            return;
        }
        thread::scope(|scope| {
            scope.spawn(|| {
                const PATH: &CStr = c"/proc/self/fd";
                // SAFETY: AT_FDCWD is not a descriptor that anybody could close.
                let nowhere = unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) };
                let proc = open_at(nowhere, PATH, libc::O_PATH | libc::O_DIRECTORY, 0).unwrap();
                prepare_thread(proc.as_fd(), false).unwrap();
                test(proc.as_fd());
            });
        });
    }

    #[test]
    fn thread_that_is_stuck_in_a_callers_ids_comes_back_before_the_next_request() {
        on_prepared_thread(|proc| {
            set_effective_uid(1000).unwrap();
            THREAD.with(|thread| thread.stuck.set(true));
            prepare_thread(proc, false).unwrap();
            assert_eq!(effective_uid(), 0);
            assert_ne!(capabilities().unwrap().0, 0);
        });
    }

    #[test]
    fn thread_that_cannot_come_back_refuses_every_request() {
        on_prepared_thread(|proc| {
            // SAFETY: plain integers.
            check_long(unsafe { libc::syscall(libc::SYS_setresuid, 1000, 1000, 1000) }).unwrap();
            THREAD.with(|thread| thread.stuck.set(true));
            for _ in 0..2 {
                let refused = prepare_thread(proc, false).unwrap_err();
                assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
            }
        });
    }

    #[test]
    fn failed_switch_changes_nothing_and_runs_nothing() {
        on_prepared_thread(|_| {
            // Without CAP_SETUID the group can be taken on, but not the user.
            let without = THREAD.with(|thread| thread.permitted.get()) & !(1 << CAP_SETUID);
            set_capabilities(without, without).unwrap();
            THREAD.with(|thread| {
                thread.effective.set(without);
                thread.permitted.set(without);
            });
            let caller = Caller { uid: 1000, gid: 1000, supplementary_gid: Some(7), ..Caller::default() };
            let outcome = in_name_of(&caller, 0, || -> io::Result<()> { panic!("it ran") });
            assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::EPERM));
            // SAFETY: getegid takes nothing and cannot fail.
            assert_eq!(unsafe { libc::getegid() }, 0);
            // SAFETY: asks for the number of groups only.
            assert_eq!(unsafe { libc::getgroups(0, std::ptr::null_mut()) }, 0);
        });
    }
}

//! The launcher's half: enter the cgroups, clone the child into them, learn how it went.

use std::ffi::{CString, c_int};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use strato_plumbing::cgroup::{self, CgroupDir};
use strato_plumbing::failure::{check, last_errno};
use strato_plumbing::{netns, parent::ParentWatch};

use crate::args::Options;
use crate::child::{self, Child};
use crate::libraries;
use crate::root::{Access, Entry};
use crate::{Failure, Result};

/// `CLONE_INTO_CGROUP` of linux/sched.h; it does not fit into the C library's `int`.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// A child that runs its program.
#[derive(Debug)]
pub struct Started {
    /// Its pid in the launcher's (and so the caller's) pid namespace.
    pub pid: libc::pid_t,
    pidfd: OwnedFd,
}

impl Started {
    /// SIGKILL, without any doubt about who gets it.
    pub fn kill(&self) {
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: pidfd_send_signal takes an open pidfd, integers and a null siginfo, which means "as kill()".
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), libc::SIGKILL, info, 0) };
    }
}

/// Starts the program. On success it has been exec'ed.
///
/// # Errors
/// The failure, and the pid of the dead child if one was made: it is the caller's child and zombie.
pub fn spawn(options: &Options) -> std::result::Result<Started, (Failure, Option<libc::pid_t>)> {
    let prepared = Prepared::new(options).map_err(|failure| (failure, None))?;
    let started = clone_child(options, prepared)?;
    Ok(started)
}

/// Everything that can fail before there is a child.
struct Prepared {
    cgroups: Vec<CgroupDir>,
    netns: Option<OwnedFd>,
    parent: Option<ParentWatch>,
    entries: Vec<Entry>,
    /// Child to launcher: [`child::EXEC_MARK`], then end of file or the text of the failure.
    verdict: Pipe,
}

impl Prepared {
    fn new(options: &Options) -> Result<Self> {
        Ok(Self {
            cgroups: cgroup::open_all(&options.cgroups)?,
            netns: options.netns.as_ref().map(|path: &CString| netns::open(path)).transpose()?,
            parent: if options.die_with_parent { Some(ParentWatch::open()?) } else { None },
            entries: entries(options)?,
            verdict: Pipe::new()?,
        })
    }
}

/// What the new root shows: what was listed, and every file of the programs.
fn entries(options: &Options) -> Result<Vec<Entry>> {
    let mut entries = options.entries.clone();
    let code = libraries::closure(&options.programs)?;
    entries.extend(code.into_iter().map(|path| Entry { access: Access::Code, path }));
    // A path comes before what lies below it, or it would hide that.
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

fn clone_child(
    options: &Options,
    prepared: Prepared,
) -> std::result::Result<Started, (Failure, Option<libc::pid_t>)> {
    let Prepared { cgroups, netns, parent, entries, verdict } = prepared;
    // The child inherits those of version 1, and is made in the other: it is never seen outside.
    for dir in cgroups.iter().filter(|dir| dir.version() == 1) {
        dir.enter().map_err(|failure| (failure, None))?;
    }
    let unified = cgroups.iter().find(|dir| dir.version() == 2);
    match clone3(options.new.clone_flags(), unified).map_err(|failure| (failure, None))? {
        Cloned::Child => {
            drop(verdict.read);
            child::run(Child { options, entries: &entries, netns, parent, verdict: verdict.write })
        }
        Cloned::Parent(started) => {
            // The child has its own copy; ours would keep the pipe open. SIGPIPE is ignored only from here on,
            // where the child no longer inherits it: a vanished status reader must be seen as EPIPE. The child
            // dies of it when it tells a launcher that has died of its exec.
            drop(verdict.write);
            // SAFETY: ignoring a signal installs no handler.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
            match read_verdict(&verdict.read) {
                Ok(()) => Ok(started),
                Err(failure) => {
                    started.kill();
                    Err((failure, Some(started.pid)))
                }
            }
        }
    }
}

enum Cloned {
    Child,
    Parent(Started),
}

/// clone3(2) with CLONE_PARENT: the new process is our sibling, a child of the caller.
fn clone3(namespaces: c_int, cgroup: Option<&CgroupDir>) -> Result<Cloned> {
    let mut pidfd: c_int = -1;
    // SAFETY: clone_args is a plain C structure for which all-zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // exit_signal stays 0: with CLONE_PARENT the child gets the launcher's own.
    args.flags = (libc::CLONE_PARENT | libc::CLONE_PIDFD | namespaces) as u64;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    if let Some(dir) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = dir.raw_fd() as u64;
    }
    // SAFETY: `args` is a filled clone_args of the given size. There is no CLONE_VM, so the child gets a copy
    // of this single-threaded process, as with fork.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone3, std::ptr::from_mut(&mut args), size_of::<libc::clone_args>())
    };
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    check(pid, || match cgroup {
        Some(dir) => format!("Cannot make the process in cgroup {}", dir.path()),
        None => "Cannot make the process".into(),
    })?;
    // SAFETY: clone3 succeeded and has stored a fresh CLOEXEC descriptor in `pidfd`.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent(Started { pid: pid as libc::pid_t, pidfd }))
}

fn read_verdict(pipe: &OwnedFd) -> Result<()> {
    let mut text = Vec::new();
    let mut buffer = [0u8; 512];
    loop {
        // SAFETY: `buffer` is writable for the length that is passed.
        let count = unsafe { libc::read(pipe.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        match usize::try_from(count) {
            Ok(0) => break,
            Ok(count) => text.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(_) if last_errno() == libc::EINTR => {}
            Err(_) => return Err(Failure::last("Cannot read the new process's verdict")),
        }
    }
    child::interpret(&text)
}

/// Both ends of a CLOEXEC pipe.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    fn new() -> Result<Self> {
        let mut ends: [RawFd; 2] = [-1; 2];
        // SAFETY: `ends` has room for the two descriptors.
        check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, || "Cannot make a pipe".into())?;
        let [read, write] = ends;
        // SAFETY: pipe2 returned `read` just now; nobody else owns it.
        let read = unsafe { OwnedFd::from_raw_fd(read) };
        // SAFETY: pipe2 returned `write` just now; nobody else owns it.
        let write = unsafe { OwnedFd::from_raw_fd(write) };
        Ok(Self { read, write })
    }
}

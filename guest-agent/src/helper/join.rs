//! A further process of a running container: joins init's namespaces and cgroup, takes on the user, capabilities,
//! limits and seccomp profile of its own `process`, and executes its program.
//!
//! Own code, because libcontainer 0.7's tenant builder leaves out the container's seccomp profile, needs the
//! container's saved state, and forks twice where clone3 into the cgroup with CLONE_PARENT does with one step.
//! The pieces that decide about rights (capabilities, seccomp translation) are libcontainer's.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use libcontainer::capabilities;
use libcontainer::oci_spec::runtime::{LinuxSeccomp, PosixRlimit, Process};
use libcontainer::seccomp;
use libcontainer::syscall::Syscall;
use libcontainer::syscall::syscall::create_syscall;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};

use super::wire::Exec;
use super::{Result, program};
use crate::descriptor::{receive_with_fds, send_with_fds, set_window_size};
use crate::oci::spec::home_in_passwd;
use crate::oci::status::{StatusWriter, words};
use crate::stdio::ChildEnds;

/// Everything that the new process needs, read before it exists.
struct Plan {
    process: Process,
    seccomp: Option<LinuxSeccomp>,
    terminal_size: (u16, u16),
    init: OwnedFd,
}

/// Makes the process; returns its pid and, for a terminal, the terminal's master.
pub fn run(
    request: &Exec,
    ends: ChildEnds,
    status: StatusWriter,
) -> Result<(i32, Option<OwnedFd>)> {
    let plan = Plan {
        process: serde_json::from_value(request.process.clone())
            .map_err(|error| format!("The OCI process is not understood: {error}"))?,
        seccomp: request
            .seccomp
            .clone()
            .map(serde_json::from_value)
            .transpose()
            .map_err(|error| format!("linux.seccomp is not understood: {error}"))?,
        terminal_size: request.terminal_size,
        init: open_pidfd(request.init_pid)?,
    };
    if let Some(score) = plan.process.oom_score_adj() {
        fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(|error| format!("Setting oomScoreAdj {score}: {error}"))?;
    }
    let cgroup = File::open(&request.cgroup)
        .map_err(|error| format!("Opening cgroup {}: {error}", request.cgroup.display()))?;
    // From inside another user namespace the cgroup could not be entered any more.
    let cgroup = if request.own_user_namespace {
        fs::write(request.cgroup.join("cgroup.procs"), "0")
            .map_err(|error| format!("Entering cgroup {}: {error}", request.cgroup.display()))?;
        None
    } else {
        Some(cgroup)
    };
    let mut namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if request.own_user_namespace {
        namespaces |= CloneFlags::CLONE_NEWUSER;
    }
    if request.own_time_namespace {
        // CLONE_NEWTIME (linux/sched.h), unknown to nix.
        namespaces |= CloneFlags::from_bits_retain(0x80);
    }
    setns(&plan.init, namespaces)
        .map_err(|errno| format!("Joining the container: {}", words(errno)))?;
    let terminal = plan.process.terminal().unwrap_or(false);
    let channel = terminal
        .then(|| {
            socketpair(
                AddressFamily::Unix,
                SockType::SeqPacket,
                None,
                SockFlag::SOCK_CLOEXEC,
            )
        })
        .transpose()
        .map_err(words)?;
    let pid = clone_into(cgroup.as_ref())?;
    if pid == 0 {
        let send = channel.map(|(_, send)| send);
        let Err(reason) = become_process(&plan, &ends, send);
        status.explain(&reason);
        // SAFETY: _exit has no preconditions; nothing of the helper may run in this process.
        unsafe { libc::_exit(127) };
    }
    let terminal = channel.and_then(|(receive, send)| {
        drop(send);
        let mut byte = [0; 1];
        // Nothing received: the process failed before, and its reason is in the status pipe.
        receive_with_fds(receive.as_fd(), &mut byte).ok()?.1.pop()
    });
    Ok((pid, terminal))
}

fn open_pidfd(pid: i32) -> Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(raw) {
        // SAFETY: the descriptor has just been made; nobody else owns it.
        Ok(raw) if raw >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(raw) }),
        _ => Err(format!(
            "The container's init is gone: {}",
            words(Errno::last())
        )),
    }
}

/// clone3(2) arguments up to `cgroup` (CLONE_ARGS_SIZE_VER2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks a child of the agent (not of the helper) that begins inside the cgroup, None for the helper's own; 0 in the
/// child.
fn clone_into(cgroup: Option<&File>) -> Result<i32> {
    /// CLONE_INTO_CGROUP (linux/sched.h).
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let args = CloneArgs {
        flags: libc::CLONE_PARENT as u64 | cgroup.map_or(0, |_| CLONE_INTO_CGROUP),
        cgroup: cgroup
            .and_then(|cgroup| u64::try_from(cgroup.as_raw_fd()).ok())
            .unwrap_or(0),
        ..CloneArgs::default()
    };
    // SAFETY: `args` is a valid clone_args of the given size. Without CLONE_VM and a stack it is a fork; the helper
    // has one thread, so the child may go on with everything that the helper has.
    let raw = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    i32::try_from(raw)
        .ok()
        .filter(|pid| *pid >= 0)
        .ok_or_else(|| {
            format!(
                "Making a process in the container: {}",
                words(Errno::last())
            )
        })
}

/// In the new process: takes on everything and executes the program; returns only with a reason.
fn become_process(
    plan: &Plan,
    ends: &ChildEnds,
    send_terminal: Option<OwnedFd>,
) -> Result<std::convert::Infallible> {
    let process = &plan.process;
    let syscall = create_syscall();
    step("Beginning a session", nix::unistd::setsid())?;
    // Joined here and not by the helper: its place in the cgroup tree is the process's own by now.
    step(
        "Joining the cgroup namespace",
        setns(&plan.init, CloneFlags::CLONE_NEWCGROUP),
    )?;
    match send_terminal {
        Some(send) => open_terminal(plan, &send)?,
        None => {
            for (target, end) in [(0, &ends.stdin), (1, &ends.stdout), (2, &ends.stderr)] {
                step(
                    "Connecting stdio",
                    nix::unistd::dup2(end.as_raw_fd(), target),
                )?;
            }
        }
    }
    for limit in process.rlimits().iter().flatten() {
        set_limit(syscall.as_ref(), limit)?;
    }
    if let Some(umask) = process.user().umask() {
        nix::sys::stat::umask(Mode::from_bits_truncate(umask));
    }
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    if !no_new_privileges {
        // Loading a filter takes CAP_SYS_ADMIN then, which the process may be about to lose.
        load_seccomp(plan)?;
    }
    take_on_user(process, syscall.as_ref())?;
    if no_new_privileges {
        step("Setting no_new_privs", nix::sys::prctl::set_no_new_privs())?;
        load_seccomp(plan)?;
    }
    let mut env = process.env().clone().unwrap_or_default();
    add_home(&mut env, process.user().uid());
    step("Closing descriptors", close_on_exec_above_stdio())?;
    let args = process.args().clone().unwrap_or_default();
    program::execute(&args, &env)
}

fn step<T>(what: &str, result: nix::Result<T>) -> Result<T> {
    result.map_err(|errno| format!("{what}: {}", words(errno)))
}

/// A terminal from the container's own devpts becomes stdio and the controlling terminal.
fn open_terminal(plan: &Plan, send: &OwnedFd) -> Result<()> {
    let failed = |error: std::io::Error| format!("Opening a terminal in the container: {error}");
    let master = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC)
        .open("/dev/ptmx")
        .map_err(failed)?;
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int from the pointer, which is valid for the call.
    let unlocked = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) };
    // SAFETY: TIOCGPTPEER takes open flags and returns a new descriptor or -1.
    let raw = unsafe {
        libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCGPTPEER,
            libc::O_RDWR | libc::O_NOCTTY,
        )
    };
    if unlocked != 0 || raw < 0 {
        return Err(failed(std::io::Error::last_os_error()));
    }
    // SAFETY: the descriptor has just been made; nobody else owns it.
    let slave = unsafe { OwnedFd::from_raw_fd(raw) };
    if plan.terminal_size != (0, 0) {
        let (rows, columns) = plan.terminal_size;
        set_window_size(slave.as_fd(), rows, columns).map_err(failed)?;
    }
    let uid = Uid::from_raw(plan.process.user().uid());
    // The terminal belongs to its user, as after a login; refused on a read-only devpts, which changes nothing.
    let _ = nix::unistd::fchown(slave.as_raw_fd(), Some(uid), None);
    // SAFETY: TIOCSCTTY takes an integer; the process leads its session and has no terminal yet.
    if unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) } != 0 {
        return Err(failed(std::io::Error::last_os_error()));
    }
    for target in 0..=2 {
        step(
            "Connecting the terminal",
            nix::unistd::dup2(slave.as_raw_fd(), target),
        )?;
    }
    let fds: [BorrowedFd<'_>; 1] = [master.as_fd()];
    send_with_fds(send.as_fd(), b"t", &fds).map_err(failed)
}

fn set_limit(syscall: &dyn Syscall, limit: &PosixRlimit) -> Result<()> {
    syscall
        .set_rlimit(limit)
        .map_err(|error| format!("Setting rlimit {:?}: {error}", limit.typ()))
}

fn load_seccomp(plan: &Plan) -> Result<()> {
    let Some(profile) = &plan.seccomp else {
        return Ok(());
    };
    match seccomp::initialize_seccomp(profile) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => {
            Err("linux.seccomp: SCMP_ACT_NOTIFY has no listener in the guest".to_owned())
        }
        Err(error) => Err(format!("Loading linux.seccomp: {error}")),
    }
}

/// Working directory, groups, user, capabilities.
fn take_on_user(process: &Process, syscall: &dyn Syscall) -> Result<()> {
    let cwd = process.cwd();
    let enter = || nix::unistd::chdir(cwd);
    let refused = |errno| format!("cwd {:?}: {}", cwd.display().to_string(), words(errno));
    // Before the user changes, as other runtimes do it: root may enter what the user may not. Again after it where
    // root may not (a squashing file system).
    let entered = match enter() {
        Err(Errno::EACCES | Errno::EPERM) => false,
        other => other.map(|()| true).map_err(refused)?,
    };
    let user = process.user();
    let groups: Vec<Gid> = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    syscall
        .set_groups(&groups)
        .map_err(|error| format!("Setting additionalGids {groups:?}: {error}"))?;
    syscall
        .set_id(Uid::from_raw(user.uid()), Gid::from_raw(user.gid()))
        .map_err(|error| format!("Becoming user {}:{}: {error}", user.uid(), user.gid()))?;
    capabilities::reset_effective(syscall)
        .map_err(|error| format!("Setting capabilities: {error}"))?;
    if let Some(wanted) = process.capabilities() {
        capabilities::drop_privileges(wanted, syscall)
            .map_err(|error| format!("Setting capabilities: {error}"))?;
    }
    if !entered {
        enter().map_err(refused)?;
    }
    Ok(())
}

/// HOME by the container's /etc/passwd; the process is inside the container already.
fn add_home(env: &mut Vec<String>, uid: u32) {
    if env
        .iter()
        .any(|entry| entry.len() > 5 && entry.starts_with("HOME="))
    {
        return;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let home = home_in_passwd(&passwd, uid).unwrap_or_else(|| "/".to_owned());
    env.push(format!("HOME={home}"));
}

fn close_on_exec_above_stdio() -> nix::Result<()> {
    // SAFETY: marks descriptors; none is closed before the program is executed.
    let result = unsafe {
        libc::close_range(
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC.cast_signed(),
        )
    };
    Errno::result(result).map(|_| ())
}

//! The first thread: Python with its event loop, QMP, the console's files, and the lives of all others.
//!
//! Measured with Pythons 3.11 to 3.14 on glibc; where a library may use one of two calls, both are here.
//! Nothing here makes a process, code, a namespace, a mount or a socket, or looks into another process.

use crate::rules::{Rule, is, permit, refuse};

pub(in crate::tables) const RULES: [Rule; 48] = [
    // the event loop
    permit!(SYS_epoll_wait, "The event loop"),
    permit!(SYS_epoll_pwait, "The event loop, with other C libraries"),
    permit!(SYS_epoll_ctl, "The event loop"),
    permit!(SYS_poll, "Looking whether there is something to be read"),
    permit!(SYS_read, "Signals, eventfds, the console, modules, files"),
    permit!(SYS_fcntl, [is(1, libc::F_GETFL)], "Descriptors"),
    permit!(SYS_fcntl, [is(1, libc::F_SETFL)], "Descriptors"),
    permit!(SYS_fcntl, [is(1, libc::F_GETFD)], "Descriptors"),
    permit!(SYS_fcntl, [is(1, libc::F_SETFD)], "Descriptors"),
    permit!(SYS_fcntl, [is(1, libc::F_DUPFD_CLOEXEC)], "Descriptors handed to devices"),
    permit!(SYS_ioctl, [is(1, libc::FIONBIO as i32)], "Accepted connections never block"),
    permit!(SYS_ioctl, [is(1, libc::FIOCLEX as i32)], "Descriptors are not inherited"),
    permit!(SYS_ioctl, [is(1, libc::TCGETS as i32)], "Python asks each file whether it is a terminal"),
    // QMP, the console, QEMU's channel: sockets that are there
    permit!(SYS_accept4, "Clients of QMP"),
    permit!(SYS_recvfrom, "QMP and the console"),
    permit!(SYS_recvmsg, "Descriptors that a client of QMP passes"),
    permit!(SYS_sendto, "QMP and the console"),
    permit!(SYS_sendmsg, "QMP"),
    permit!(SYS_getsockname, "Python makes a socket of an accepted descriptor"),
    permit!(SYS_getpeername, "Python makes a socket of an accepted descriptor"),
    permit!(SYS_getsockopt, "Python makes a socket of an accepted descriptor"),
    permit!(SYS_shutdown, "Conversations of devices come to their end"),
    // files: modules that are imported late, the console's log, exit.json
    permit!(SYS_openat, "Late imports, the console's log, shares that are added, exit.json"),
    permit!(SYS_newfstatat, "Late imports; the size of a file"),
    permit!(SYS_fstat, "Late imports; the size of a file"),
    permit!(SYS_stat, "Late imports, with other C libraries"),
    permit!(SYS_lstat, "The size of a file, with other C libraries"),
    permit!(SYS_statx, "Files of devices that are added"),
    permit!(SYS_lseek, "Python's files"),
    permit!(SYS_getdents64, "What is to be removed at the end"),
    permit!(SYS_readlink, "Paths of late imports"),
    permit!(SYS_rename, "The console's log moves on; exit.json appears as a whole"),
    permit!(SYS_renameat, "As rename"),
    permit!(SYS_unlink, "Sockets of devices are removed at the end"),
    permit!(SYS_unlinkat, "As unlink"),
    refuse!(SYS_mkdir, libc::EACCES, "Python would keep what it has compiled of a late import"),
    // signals and children
    permit!(SYS_rt_sigaction, "Signals go back to what they were, at the end"),
    permit!(SYS_rt_sigreturn, "The end of a signal handler"),
    permit!(SYS_wait4, "Children are reaped"),
    permit!(SYS_kill, "QEMU is ended; in this namespace there is nobody else"),
    permit!(SYS_getpid, "Names of temporary files"),
    permit!(SYS_gettid, "Raising a signal for oneself: abort"),
    permit!(SYS_tgkill, "Raising a signal for oneself: abort"),
    permit!(SYS_exit_group, "The end"),
    permit!(SYS_restart_syscall, "Waiting goes on after a stop"),
    // the rest
    permit!(SYS_uname, "The architecture, for query-cpus-fast"),
    permit!(SYS_getrandom, "Seeds of hash tables"),
    permit!(SYS_sched_getaffinity, "The allocator, for the number of processors"),
];

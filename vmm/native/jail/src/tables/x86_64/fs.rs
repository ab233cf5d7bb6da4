//! A share: names and contents of the host's files, each call in the name of the guest's user.
//!
//! What a path or a flag may be is no filter's business: files are opened beneath their directory by openat2,
//! and Landlock and the mount namespace bound all others.

use crate::rules::{Rule, is, permit};

/// "Leave it as it is" of setresuid and setresgid.
const UNCHANGED: i32 = -1;

pub(in crate::tables) const RULES: [Rule; 42] = [
    permit!(SYS_unshare, [is(0, libc::CLONE_FS)], "A working directory and umask of the thread's own"),
    permit!(SYS_fchdir, "To /proc/self/fd: a descriptor's number is its path"),
    permit!(SYS_umask, "The umask of the guest's process"),
    permit!(SYS_geteuid, "Who the thread is to go back to"),
    permit!(SYS_getegid, "Who the thread is to go back to"),
    permit!(SYS_capget, "What can be given up for a while"),
    permit!(SYS_capset, "Doing without a privilege as the guest's user would"),
    permit!(SYS_setgroups, "The guest's user"),
    permit!(SYS_setresuid, [is(0, UNCHANGED), is(2, UNCHANGED)], "The guest's user; the way back stays open"),
    permit!(SYS_setresgid, [is(0, UNCHANGED), is(2, UNCHANGED)], "The guest's user; the way back stays open"),
    permit!(SYS_openat2, "Names, beneath their directory"),
    permit!(SYS_openat, "What is known already, by its number"),
    permit!(SYS_statx, "Attributes"),
    permit!(SYS_fstatfs, "Free space"),
    permit!(SYS_fchmodat, "Attributes"),
    permit!(SYS_fchownat, "Attributes"),
    permit!(SYS_utimensat, "Attributes"),
    permit!(SYS_truncate, "Attributes"),
    permit!(SYS_ftruncate, "Attributes"),
    permit!(SYS_mkdirat, "Names"),
    permit!(SYS_mknodat, "Names"),
    permit!(SYS_symlinkat, "Names"),
    permit!(SYS_linkat, "Names"),
    permit!(SYS_unlinkat, "Names"),
    permit!(SYS_renameat2, "Names"),
    permit!(SYS_readlinkat, "Names"),
    permit!(SYS_getdents64, "Directories"),
    permit!(SYS_getxattr, "Extended attributes"),
    permit!(SYS_setxattr, "Extended attributes"),
    permit!(SYS_listxattr, "Extended attributes"),
    permit!(SYS_removexattr, "Extended attributes"),
    permit!(SYS_preadv, "Contents"),
    permit!(SYS_pwritev, "Contents"),
    permit!(SYS_pwritev2, "Contents, at the end of the file"),
    permit!(SYS_lseek, "Positions in directories, holes in files"),
    permit!(SYS_fallocate, "Contents"),
    permit!(SYS_copy_file_range, "Contents"),
    permit!(SYS_fsync, "Contents"),
    permit!(SYS_fdatasync, "Contents"),
    permit!(SYS_syncfs, "Contents"),
    permit!(
        SYS_fcntl,
        [is(1, libc::F_DUPFD_CLOEXEC)],
        "Closing a file of a network file system, to hear of errors"
    ),
    permit!(SYS_getrandom, "Tables that a guest's choice of names does not slow down"),
];

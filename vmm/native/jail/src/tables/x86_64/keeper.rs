//! The thread that starts all others: threads inherit its filter, so it has what all of them have, too.

use crate::rules::{Rule, is, permit, refuse};

/// The flags of a thread (pthread_create): memory, files, signals and process in common with its maker.
const THREAD: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID;

pub(in crate::tables) const RULES: [Rule; 8] = [
    // Its flags are in memory, where no filter sees them.
    refuse!(SYS_clone3, libc::ENOSYS, "The C library starts a thread by clone then"),
    permit!(SYS_clone, [is(0, THREAD)], "A thread"),
    permit!(SYS_set_robust_list, "A thread's start"),
    permit!(SYS_rseq, "A thread's start"),
    permit!(SYS_prctl, [is(0, libc::PR_SET_NAME)], "A thread's name"),
    permit!(SYS_capget, "A thread gives up what it does not need"),
    permit!(SYS_capset, "A thread gives up what it does not need"),
    permit!(SYS_seccomp, "A thread gives up what it does not need"),
];

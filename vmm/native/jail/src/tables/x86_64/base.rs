//! What every thread of a library of Rust does, whatever its work is.

#[cfg(debug_assertions)]
use crate::rules::is;
use crate::rules::{Rule, permit, without};

pub(in crate::tables) const RULES: [Rule; 12] = [
    permit!(SYS_futex, "Locks, and waiting for other threads"),
    permit!(SYS_write, "Eventfds: to wake others up; standard error: the report of a panic"),
    permit!(SYS_munmap, "The allocator gives memory back; stacks and guest memory that nobody uses any more"),
    permit!(SYS_madvise, "The end of a thread gives its stack back; so does the allocator"),
    permit!(
        SYS_rt_sigprocmask,
        "The C library blocks all signals while a thread ends; vCPUs hear kicks at times"
    ),
    permit!(SYS_exit, "The end of a thread"),
    permit!(SYS_mmap, [without(2, libc::PROT_EXEC)], "The allocator, for what is large"),
    permit!(SYS_mprotect, [without(2, libc::PROT_EXEC)], "The allocator, for arenas of threads"),
    permit!(SYS_mremap, "The allocator, for what is large and grows"),
    permit!(SYS_brk, "The allocator"),
    permit!(SYS_sched_yield, "Another thread has just put something into a channel, or is about to"),
    permit!(SYS_clock_gettime, "The time, on hosts whose vDSO cannot tell it"),
];

/// For threads that own descriptors.
#[cfg(not(debug_assertions))]
pub(in crate::tables) const CLOSING: [Rule; 1] = [CLOSE];
/// As above; in builds for developers the standard library looks whether what it closes was open.
#[cfg(debug_assertions)]
pub(in crate::tables) const CLOSING: [Rule; 2] =
    [CLOSE, permit!(SYS_fcntl, [is(1, libc::F_GETFD)], "Whether a descriptor that is closed was open")];

const CLOSE: Rule = permit!(SYS_close, "Whatever is owned is closed by its owner");

//! A disk: with io_uring, or with threads.

use crate::rules::{Rule, permit};

pub(in crate::tables) const RULES: [Rule; 7] = [
    permit!(SYS_io_uring_enter, "Requests to the kernel"),
    permit!(
        SYS_io_uring_register,
        "The end takes back what is under way; the ring allows nothing else by then"
    ),
    permit!(SYS_pread64, "A disk in memory (tmpfs) is read at once"),
    permit!(SYS_preadv, "A disk in memory (tmpfs) is read at once"),
    permit!(SYS_pwritev2, "Data that the page cache takes at once"),
    permit!(SYS_sendto, "The size has changed"),
    permit!(SYS_restart_syscall, "Waiting for the threads goes on after a stop"),
];

/// The threads.
pub(in crate::tables) const POOL: [Rule; 5] = [
    permit!(SYS_pread64, "Reading"),
    permit!(SYS_preadv, "Reading to several places"),
    permit!(SYS_pwritev2, "Writing"),
    permit!(SYS_fdatasync, "A flush"),
    permit!(SYS_fallocate, "Discarding and zeroing"),
];

//! The balloon: memory that the guest does not need goes back to the host.

use crate::rules::{Rule, is, permit};

/// FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
const PUNCH: i32 = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;

pub(in crate::tables) const RULES: [Rule; 3] = [
    permit!(SYS_sendto, "The host wants another size"),
    permit!(SYS_fallocate, [is(1, PUNCH)], "Guest memory in a file"),
    permit!(SYS_fstatfs, "How large the pages are that guest memory in a file is made of"),
];

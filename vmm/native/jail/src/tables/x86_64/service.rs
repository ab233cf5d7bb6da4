//! The conversation with a vhost-user front end: messages with descriptors, and the guest's memory.

use crate::rules::{Rule, is, is_long, permit};

/// `F_ADD_SEALS`, `F_DUPFD_CLOEXEC` of linux/fcntl.h.
const F_ADD_SEALS: i32 = 1033;
const F_DUPFD_CLOEXEC: i32 = 1030;

pub(in crate::tables) const RULES: [Rule; 11] = [
    permit!(SYS_recvmsg, "Messages and the descriptors that come with them"),
    permit!(SYS_recvfrom, "Looking at a message before it is taken"),
    permit!(SYS_sendmsg, "Answers"),
    permit!(SYS_sendto, "Configuration changes, on the channel back"),
    permit!(SYS_accept4, "An interface's front end connects for itself"),
    permit!(SYS_shutdown, "The end of the conversation, for both sides"),
    permit!(
        SYS_getsockopt,
        [is(1, libc::SOL_SOCKET), is(2, libc::SO_ACCEPTCONN)],
        "Whether it connects for itself"
    ),
    permit!(SYS_statx, "The size of the guest's memory"),
    permit!(
        SYS_fcntl,
        [is(1, F_DUPFD_CLOEXEC)],
        "Both directions of the connection; the queues' descriptors"
    ),
    permit!(SYS_fcntl, [is(1, libc::F_GETFL)], "What kind of descriptor the front end gives"),
    permit!(
        SYS_fcntl,
        [is(1, F_ADD_SEALS), is_long(2, libc::F_SEAL_SHRINK as u64)],
        "Guest memory is not to shrink"
    ),
];

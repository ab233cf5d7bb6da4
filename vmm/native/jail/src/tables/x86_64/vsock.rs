//! Streams and messages between the guest and unix sockets.

use crate::rules::{Rule, is, permit};

const STREAM: i32 = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
const SEQPACKET: i32 = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;

pub(in crate::tables) const RULES: [Rule; 11] = [
    permit!(SYS_accept4, "Connections of the host"),
    permit!(SYS_ioctl, [is(1, libc::FIONBIO as i32)], "Accepted connections never block"),
    permit!(SYS_ioctl, [is(1, libc::FIONREAD as i32)], "Whether more follows an empty message"),
    permit!(SYS_socket, [is(0, libc::AF_UNIX), is(1, STREAM), is(2, 0)], "Connections of the guest"),
    permit!(SYS_socket, [is(0, libc::AF_UNIX), is(1, SEQPACKET), is(2, 0)], "The same, with messages"),
    permit!(SYS_connect, "Connections of the guest"),
    permit!(SYS_recvfrom, "The line that says to which port the host connects; messages of the host"),
    permit!(SYS_recvmsg, "From the host to the guest's buffers"),
    permit!(SYS_sendmsg, "From the guest's buffers to the host, and what was kept"),
    permit!(SYS_shutdown, "An end of one direction"),
    permit!(SYS_unlink, "The device's end takes its socket's name away"),
];

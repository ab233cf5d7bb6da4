//! The back-end channel: a socket of the front end on which the device speaks first.
//!
//! Crate `vhost` hands such a socket over in a form that can send none of the messages needed here, so the one
//! request that brings it is taken from the connection before the crate sees it.
#![expect(unsafe_code, reason = "system calls")]

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// VHOST_USER_SET_BACKEND_REQ_FD
const SET_BACKEND_REQ_FD: u32 = 21;
/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG
const CONFIG_CHANGE_MSG: u32 = 2;
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
const HEADER_LEN: usize = 12;

fn header(request: u32, flags: u32, size: u32) -> [u8; HEADER_LEN] {
    let mut raw = [0; HEADER_LEN];
    for (to, field) in raw.chunks_exact_mut(4).zip([request, flags, size]) {
        to.copy_from_slice(&field.to_ne_bytes());
    }
    raw
}

/// Request, flags and size.
fn parse(raw: &[u8; HEADER_LEN]) -> [u32; 3] {
    let mut fields = [0; 3];
    for (field, bytes) in fields.iter_mut().zip(raw.as_chunks::<4>().0) {
        *field = u32::from_ne_bytes(*bytes);
    }
    fields
}

/// The request that brings a channel.
#[derive(Debug)]
pub(crate) struct ChannelRequest {
    /// The channel.
    pub(crate) channel: OwnedFd,
    /// Whether the front end asked for an answer.
    pub(crate) need_reply: bool,
}

/// Waits for the next request and takes it if it brings a channel. None: it is something else, and has been
/// left alone.
///
/// # Errors
/// The connection failed, or the request is malformed: the conversation is over.
pub(crate) fn take_request(connection: &UnixStream) -> io::Result<Option<ChannelRequest>> {
    let mut raw = [0; HEADER_LEN];
    // SAFETY: the pointer and length describe `raw`, which is ours to write.
    let seen =
        unsafe { libc::recv(connection.as_raw_fd(), raw.as_mut_ptr().cast(), HEADER_LEN, libc::MSG_PEEK) };
    // An end, an error or a header in pieces: crate `vhost` finds the same, and knows what to do.
    if seen != HEADER_LEN as isize || parse(&raw)[0] != SET_BACKEND_REQ_FD {
        return Ok(None);
    }
    let (count, file) = connection.recv_with_fd(&mut raw).map_err(io::Error::from)?;
    let [request, flags, size] = parse(&raw);
    let whole = count == HEADER_LEN && request == SET_BACKEND_REQ_FD;
    let channel: File = match file {
        Some(file) if whole && size == 0 && flags & (VERSION_MASK | REPLY) == VERSION => file,
        _ => return Err(ErrorKind::InvalidData.into()),
    };
    Ok(Some(ChannelRequest { channel: channel.into(), need_reply: flags & NEED_REPLY != 0 }))
}

/// Answers the request that brought a channel.
///
/// # Errors
/// The connection failed.
pub(crate) fn reply(connection: &UnixStream, accepted: bool) -> io::Result<()> {
    let mut message = header(SET_BACKEND_REQ_FD, VERSION | REPLY, 8).to_vec();
    message.extend_from_slice(&u64::from(!accepted).to_ne_bytes());
    (&mut &*connection).write_all(&message)
}

/// Tells the front end that the configuration space changed. Does not wait; an error means that the channel
/// is of no use any more.
///
/// # Errors
/// What the kernel said.
pub(crate) fn send_config_change(channel: &OwnedFd) -> io::Result<()> {
    let message = header(CONFIG_CHANGE_MSG, VERSION, 0);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the pointer and length describe `message`, which the kernel only reads.
    let sent = unsafe { libc::send(channel.as_raw_fd(), message.as_ptr().cast(), message.len(), flags) };
    match usize::try_from(sent) {
        Ok(HEADER_LEN) => Ok(()),
        // Half a message cannot be taken back.
        Ok(_) => Err(ErrorKind::WriteZero.into()),
        Err(_) => match io::Error::last_os_error() {
            // Full of messages that the front end has not read: it reads the configuration after those.
            error if error.kind() == ErrorKind::WouldBlock => Ok(()),
            error => Err(error),
        },
    }
}

//! vsock sockets of the agent: the ports of the contract, listeners, and the one connection to the host.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, connect, listen, socket,
};

use crate::descriptor::Descriptor;

/// Host port of the hello, and guest port of the ttrpc service.
pub const CONTROL_PORT: u32 = 1024;
/// Guest port of stdio streams.
pub const STREAM_PORT: u32 = 1025;
/// VMADDR_CID_HOST (linux/vm_sockets.h).
const HOST_CID: u32 = 2;

/// A listening socket, for whoever accepts from it.
pub fn listener(port: u32) -> io::Result<OwnedFd> {
    let fd = new_socket()?;
    bind(fd.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
    listen(&fd, Backlog::new(128)?)?;
    Ok(fd)
}

/// Accepts the next connection.
pub async fn accept(listener: &Descriptor) -> io::Result<Descriptor> {
    let connection = listener.when_readable(accept_now).await?;
    Descriptor::new(connection)
}

/// Accepts the next connection, or fails with WouldBlock.
pub fn accept_now(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let raw = accept4(listener.as_raw_fd(), flags)?;
    // SAFETY: accept4 has just made this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Connects to a port of the host.
pub async fn connect_host(port: u32) -> io::Result<Descriptor> {
    let fd = new_socket()?;
    match connect(fd.as_raw_fd(), &VsockAddr::new(HOST_CID, port)) {
        Ok(()) => return Descriptor::new(fd),
        Err(Errno::EINPROGRESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    let connection = Descriptor::new(fd)?;
    connection.connected().await?;
    Ok(connection)
}

fn new_socket() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?)
}

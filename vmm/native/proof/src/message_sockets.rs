//! Unix sockets of type SEQPACKET for tests. std does not know them; its own types do as their owners.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

const LEN: libc::socklen_t = size_of::<libc::sockaddr_un>() as libc::socklen_t;

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: socket() just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(path: &Path) -> libc::sockaddr_un {
    // SAFETY: sockaddr_un is plain data for which all-zero is a valid value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(path.as_os_str().as_bytes()) {
        *to = *from as libc::c_char;
    }
    address
}

/// Waits for connections at `path`.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let (socket, address) = (socket()?, address(path));
    // SAFETY: pointer and length describe `address`.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LEN) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointers are passed.
    if unsafe { libc::listen(socket.as_raw_fd(), 16) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(UnixListener::from(socket))
}

/// Connects to whoever waits at `path`.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (socket, address) = (socket()?, address(path));
    // SAFETY: pointer and length describe `address`.
    if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LEN) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(UnixStream::from(socket))
}

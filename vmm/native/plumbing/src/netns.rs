//! Network namespaces: entering one, and bringing its loopback up.

use std::ffi::{CStr, c_char, c_int, c_short};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::failure::{Failure, Result, check};

/// Opens a network namespace file such as `/run/netns/x` or `/proc/7/ns/net`.
///
/// # Errors
/// When it cannot be opened.
pub fn open(path: &CStr) -> Result<OwnedFd> {
    // SAFETY: `path` is a valid C string for the duration of the call.
    let raw = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    check(raw, || format!("Cannot open network namespace {}", path.to_string_lossy()))?;
    // SAFETY: open returned `raw` just now; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Moves the calling thread into the namespace; `name` is for the message only.
///
/// # Errors
/// When the kernel refuses, for example because the file is no network namespace (EINVAL).
pub fn enter(fd: BorrowedFd<'_>, name: &str) -> Result<()> {
    // SAFETY: setns takes no pointers; `fd` is open for the duration of the call.
    let outcome = unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) };
    check(outcome, || format!("Cannot enter network namespace {name}"))?;
    Ok(())
}

/// An `ifreq` with its name filled in and the rest zero.
///
/// # Errors
/// When the name is empty or does not fit into IFNAMSIZ with its NUL.
pub fn interface_request(name: &str) -> Result<libc::ifreq> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
        return Err(Failure::refused(format!(
            "Interface name {name:?} must have 1 to {} bytes",
            libc::IFNAMSIZ - 1
        )));
    }
    // SAFETY: ifreq is a plain C structure for which all-zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = c_char::from_ne_bytes([byte]);
    }
    Ok(request)
}

/// A datagram socket of the calling thread's network namespace, good for interface ioctls only.
///
/// # Errors
/// When the kernel refuses.
pub fn control_socket() -> Result<OwnedFd> {
    // Any socket serves for interface ioctls (dev_ioctl); AF_UNIX is there even without IP.
    // SAFETY: socket takes no pointers.
    let raw = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    check(raw, || "Cannot open a control socket for network interfaces".into())?;
    // SAFETY: socket returned `raw` just now; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Runs one interface ioctl.
///
/// # Errors
/// Says `what` and the errno.
pub fn interface_ioctl(
    socket: BorrowedFd<'_>,
    number: libc::Ioctl,
    request: &mut libc::ifreq,
    what: impl FnOnce() -> String,
) -> Result<c_int> {
    // SAFETY: `request` is a live ifreq, which is what every SIOC?IF* and TUNSETIFF ioctl reads and writes.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), number, std::ptr::from_mut(request)) }, what)
}

/// Brings interface `name` of the calling thread's namespace up.
///
/// # Errors
/// When it does not exist or the kernel refuses.
pub fn set_up(socket: BorrowedFd<'_>, name: &str) -> Result<()> {
    let mut request = interface_request(name)?;
    interface_ioctl(socket, libc::SIOCGIFFLAGS, &mut request, || {
        format!("Cannot read the flags of interface {name}")
    })?;
    // SAFETY: SIOCGIFFLAGS has just filled ifru_flags, the member that is read here.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as c_short;
    interface_ioctl(socket, libc::SIOCSIFFLAGS, &mut request, || {
        format!("Cannot bring interface {name} up")
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_request_refuses_names_that_do_not_fit() {
        assert!(interface_request("").is_err());
        assert!(interface_request("sixteen-bytes-ab").is_err());
        let request = interface_request("fifteen-bytes-a").unwrap();
        assert_eq!(request.ifr_name[14], b'a' as c_char);
        assert_eq!(request.ifr_name[15], 0);
    }
}

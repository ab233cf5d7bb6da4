//! Taps and netlink sockets in a chosen network namespace.

use std::ffi::{c_char, c_int, c_short};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use strato_plumbing::netns::{control_socket, interface_ioctl, interface_request, set_up};
use strato_plumbing::{Result, check};

use crate::namespaced;

/// What kind of tap to make.
#[derive(Debug, Clone)]
pub struct TapConfig<'a> {
    /// Namespace, or None for the caller's.
    pub netns_fd: Option<RawFd>,
    /// Interface name.
    pub name: &'a str,
    /// MTU, or None for the default.
    pub mtu: Option<c_int>,
    /// Bring it up.
    pub up: bool,
}

/// Makes a non-persistent tap with virtio-net headers; it lives as long as the descriptor.
///
/// # Errors
/// Names the interface and the step.
pub fn open_tap(config: &TapConfig<'_>) -> Result<OwnedFd> {
    namespaced::run(config.netns_fd, || open_tap_here(config))
}

fn open_tap_here(config: &TapConfig<'_>) -> Result<OwnedFd> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let mut request = interface_request(config.name)?;
    // SAFETY: the path is a C string literal.
    let raw =
        unsafe { libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK) };
    check(raw, || "Cannot open /dev/net/tun".into())?;
    // SAFETY: open returned `raw` just now; nobody else owns it.
    let tap = unsafe { OwnedFd::from_raw_fd(raw) };
    request.ifr_ifru.ifru_flags = flags as c_short;
    interface_ioctl(tap.as_fd(), libc::TUNSETIFF as libc::Ioctl, &mut request, || {
        format!("Cannot make tap {}", config.name)
    })?;
    let name = interface_name(&request.ifr_name);
    let socket = control_socket()?;
    if let Some(mtu) = config.mtu {
        let mut request = interface_request(&name)?;
        request.ifr_ifru.ifru_mtu = mtu;
        interface_ioctl(socket.as_fd(), libc::SIOCSIFMTU, &mut request, || {
            format!("Cannot set the MTU of tap {name} to {mtu}")
        })?;
    }
    if config.up {
        set_up(socket.as_fd(), &name)?;
    }
    Ok(tap)
}

/// The kernel has filled a %d in.
fn interface_name(raw: &[c_char]) -> String {
    let bytes = raw.iter().take_while(|byte| **byte != 0).map(|byte| byte.cast_unsigned()).collect();
    String::from_utf8(bytes).unwrap_or_default()
}

/// Opens a NETLINK_ROUTE socket in a namespace.
///
/// # Errors
/// When the namespace cannot be entered or the kernel refuses.
pub fn netlink_socket(netns_fd: RawFd) -> Result<OwnedFd> {
    namespaced::run(Some(netns_fd), || {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: socket takes integers.
        let raw = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
        check(raw, || "Cannot open a netlink socket".into())?;
        // SAFETY: socket returned `raw` just now; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(raw) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_name_stops_at_nul() {
        let raw: Vec<c_char> = c"tap7".to_bytes_with_nul().iter().map(|byte| byte.cast_signed()).collect();
        assert_eq!(interface_name(&raw), "tap7");
    }

    #[test]
    fn netlink_socket_refuses_a_closed_namespace() {
        assert_eq!(netlink_socket(-1).unwrap_err().errno(), libc::EBADF);
    }
}

//! The host side: a tap, or one queue of a multi-queue tap.
#![expect(unsafe_code, reason = "system calls")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::queue::HEADER_LEN;

/// Most queue pairs of one device (MAX_TAP_QUEUES of Linux).
pub const MAX_PAIRS: usize = 256;

/// What the reader of a tap can take (linux/if_tun.h, TUN_F_*).
pub(super) mod offload {
    pub(in super::super) const CSUM: u32 = 0x01;
    pub(in super::super) const TSO4: u32 = 0x02;
    pub(in super::super) const TSO6: u32 = 0x04;
    pub(in super::super) const TSO_ECN: u32 = 0x08;
    pub(in super::super) const UFO: u32 = 0x10;
    pub(in super::super) const USO4: u32 = 0x20;
    pub(in super::super) const USO6: u32 = 0x40;
    /// All of the above.
    pub(in super::super) const ALL: u32 = 0x7f;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tap {
        multi_queue: bool,
    },
    /// Whoever is at the other end takes every packet that virtio-net can describe.
    Socket,
}

/// One queue of a tap: each read and each write is one packet with a virtio-net header before it.
#[derive(Debug)]
pub struct Tap {
    file: File,
    kind: Kind,
}

impl Tap {
    /// Takes a tap that is open: IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, and IFF_MULTI_QUEUE or not.
    ///
    /// # Errors
    /// Not such a descriptor.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: ifreq is plain data for which all-zero is a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF fills an ifreq, and `request` is one.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF as libc::Ioctl, &mut request) })?;
        // SAFETY: TUNGETIFF has filled the flags in.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & wanted != wanted {
            let text = "Tap needs the flags IFF_TAP, IFF_NO_PI and IFF_VNET_HDR";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let header_len = HEADER_LEN as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ as libc::Ioctl, &header_len) })?;
        let multi_queue = flags & libc::IFF_MULTI_QUEUE != 0;
        Self::nonblocking(fd, Kind::Tap { multi_queue })
    }

    /// Opens `queues` queues of the tap `name` of this network namespace; more than one needs a tap that was
    /// made with IFF_MULTI_QUEUE.
    ///
    /// # Errors
    /// No such tap, or no right to it.
    pub fn open(name: &str, queues: usize) -> io::Result<Vec<Self>> {
        (0..queues).map(|_| Self::open_queue(name, queues > 1)).collect()
    }

    fn open_queue(name: &str, multi_queue: bool) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        // SAFETY: ifreq is plain data for which all-zero is a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.len() >= request.ifr_name.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "Name of the tap is too long"));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        let mut attach = |queues: libc::c_int| {
            let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues;
            request.ifr_ifru.ifru_flags = flags as libc::c_short;
            // SAFETY: TUNSETIFF reads and fills an ifreq, and `request` is one.
            check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as libc::Ioctl, &mut request) })
        };
        match attach(if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 }) {
            // A tap that was made for several queues takes none that is not said to be one of several.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !multi_queue => {
                attach(libc::IFF_MULTI_QUEUE)?;
            }
            other => other?,
        }
        Self::new(file.into())
    }

    /// A packet socket (SOCK_SEQPACKET or SOCK_DGRAM, connected) instead of a tap.
    ///
    /// # Errors
    /// Not an open descriptor.
    pub fn packet_socket(fd: OwnedFd) -> io::Result<Self> {
        Self::nonblocking(fd, Kind::Socket)
    }

    fn nonblocking(fd: OwnedFd, kind: Kind) -> io::Result<Self> {
        // SAFETY: fcntl on a descriptor of ours.
        let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
        check(flags)?;
        // SAFETY: as above.
        check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
        Ok(Self { file: File::from(fd), kind })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Which offloads this host's taps know; none is on afterwards.
    pub(super) fn known_offloads(&self) -> u32 {
        let newer = offload::USO4 | offload::USO6;
        let candidates = [offload::ALL, offload::ALL & !newer, offload::ALL & !newer & !offload::UFO];
        let known = candidates.into_iter().find(|&wanted| self.set_offloads(wanted).is_ok());
        // Turning everything off is never refused by a tap.
        let _ = self.set_offloads(0);
        known.unwrap_or(0)
    }

    /// Says which packets the guest can take as they are. Holds for all queues of the tap.
    pub(super) fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        if self.kind == Kind::Socket {
            return Ok(());
        }
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let done = unsafe {
            libc::ioctl(self.fd(), libc::TUNSETOFFLOAD as libc::Ioctl, libc::c_ulong::from(offloads))
        };
        check(done)
    }

    /// Whether the host gives packets to this queue. Without effect on a tap of one queue.
    pub(super) fn set_attached(&self, attached: bool) -> io::Result<()> {
        if self.kind != (Kind::Tap { multi_queue: true }) {
            return Ok(());
        }
        // SAFETY: ifreq is plain data for which all-zero is a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let flags = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETQUEUE reads an ifreq, and `request` is one.
        check(unsafe { libc::ioctl(self.fd(), libc::TUNSETQUEUE as libc::Ioctl, &request) })
    }

    /// Reads one packet away; false if there is none, or the tap is gone.
    pub(super) fn discard_packet(&self) -> bool {
        let mut byte = 0u8;
        loop {
            // SAFETY: `byte` is a byte; what does not fit is cut off and lost, as it shall be.
            let read = unsafe { libc::read(self.fd(), (&raw mut byte).cast(), 1) };
            if read >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return read > 0;
            }
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

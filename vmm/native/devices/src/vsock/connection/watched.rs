//! What is heard of a connection's unix socket. The host program's every read and write would wake the device;
//! only what is news is asked for.

use std::os::fd::RawFd;

use strato_virtio::Interest;

use super::Connection;

/// What is heard of a unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vsock) struct Watched {
    input: bool,
    output: bool,
}

impl Watched {
    /// Of a socket that is to be read and takes whatever it is given, as far as is known.
    pub(in crate::vsock) const FRESH: Self = Self { input: true, output: false };

    pub(in crate::vsock) fn interest(self) -> Interest {
        Interest::Stream { input: self.input, output: self.output }
    }
}

impl Connection {
    /// What is to be heard of the unix socket from now on, if that has changed. Each change is a system call,
    /// each event that tells nothing new a wake-up.
    pub(in crate::vsock) fn watch_otherwise(&mut self) -> Option<(RawFd, Watched)> {
        let wanted = Watched { input: !self.told_twice, output: !self.writable };
        let former = std::mem::replace(&mut self.watched, wanted);
        if former == wanted { None } else { Some((self.fd()?, wanted)) }
    }
}

//! A one-shot timer in a device's epoll set.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

/// A timerfd that remembers whether it is set.
#[derive(Debug)]
pub(crate) struct Timer {
    fd: TimerFd,
    armed: bool,
}

impl Timer {
    /// # Errors
    /// No descriptor to be had.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { fd: TimerFd::new()?, armed: false })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(crate) fn armed(&self) -> bool {
        self.armed
    }

    /// Goes off once, `after` from now (at least a microsecond: zero would disarm it).
    pub(crate) fn arm(&mut self, after: Duration) {
        // Setting a valid timerfd to a valid time cannot fail.
        self.armed = self.fd.reset(after.max(Duration::from_micros(1)), None).is_ok();
    }

    /// Takes note that it went off. Only call after its descriptor was readable.
    pub(crate) fn expired(&mut self) {
        if std::mem::take(&mut self.armed) {
            // Readable, so this does not wait; an error leaves nothing to do.
            let _ = self.fd.wait();
        }
    }

    pub(crate) fn disarm(&mut self) {
        if std::mem::take(&mut self.armed) {
            let _ = self.fd.clear();
        }
    }
}

//! A one-shot timer in a device's epoll set.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

/// A timerfd that remembers what it is set to.
#[derive(Debug)]
pub(crate) struct Timer {
    fd: TimerFd,
    /// When it goes off.
    due: Option<Instant>,
}

impl Timer {
    /// # Errors
    /// No descriptor to be had.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { fd: TimerFd::new()?, due: None })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(crate) fn armed(&self) -> bool {
        self.due.is_some()
    }

    /// Goes off once, `after` from now (at least a microsecond: zero would disarm it).
    pub(crate) fn arm(&mut self, after: Duration) {
        // Setting a valid timerfd to a valid time cannot fail.
        let armed = self.fd.reset(after.max(Duration::from_micros(1)), None).is_ok();
        self.due = armed.then(|| Instant::now() + after);
    }

    /// As [`Self::arm`], unless it goes off sooner as it is: armed again and again, it would never go off.
    pub(crate) fn arm_within(&mut self, after: Duration) {
        if self.due.is_none_or(|due| due > Instant::now() + after) {
            self.arm(after);
        }
    }

    /// Takes note that it went off. Only call after its descriptor was readable.
    pub(crate) fn expired(&mut self) {
        if self.due.take().is_some() {
            // Readable, so this does not wait; an error leaves nothing to do.
            let _ = self.fd.wait();
        }
    }

    pub(crate) fn disarm(&mut self) {
        if self.due.take().is_some() {
            let _ = self.fd.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timer_that_is_armed_again_and_again_goes_off_as_first_said() {
        let mut timer = Timer::new().unwrap();
        timer.arm(Duration::from_secs(3600));
        timer.arm_within(Duration::from_millis(1));
        let due = timer.due.unwrap();
        timer.arm_within(Duration::from_secs(1));
        assert_eq!(timer.due, Some(due));
        // Waits until it has gone off.
        timer.expired();
        assert!(!timer.armed() && Instant::now() >= due);
        timer.arm_within(Duration::from_secs(1));
        assert!(timer.armed());
    }
}

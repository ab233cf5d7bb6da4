//! The guest's console as the agent's log: one line each, `strato-agent: <level>: <text>`.
//!
//! The console reaches the host as a ring of limited size, so what a peer can provoke at will goes through
//! [`RateLimit`]. The panic hook lives here too: PID 1's reason to die has to be readable on the host.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Logs something that went wrong without ending anything.
#[macro_export]
macro_rules! warning {
    ($($arg:tt)*) => { $crate::console::line("warning", &format!($($arg)*)) };
}

/// Logs an event worth a line on every boot or container.
#[macro_export]
macro_rules! notice {
    ($($arg:tt)*) => { $crate::console::line("info", &format!($($arg)*)) };
}

/// Writes one line to the console; a console that is not there is no error.
pub fn line(level: &str, text: &str) {
    let _ = writeln!(
        std::io::stderr(),
        "strato-agent: {level}: {}",
        text.replace('\n', "; ")
    );
}

/// Makes /dev/console standard input, output and error of the agent; /dev/hvc0 where there is no console device.
pub fn attach() {
    for path in ["/dev/console", "/dev/hvc0", "/dev/null"] {
        if let Ok(console) = OpenOptions::new().read(true).write(true).open(path) {
            for target in 0..=2 {
                // SAFETY: both are plain descriptor numbers; dup2 replaces whatever the kernel gave PID 1.
                unsafe { libc::dup2(console.as_raw_fd(), target) };
            }
            return;
        }
    }
}

/// From here on a panic is told on the console and ends the process, which as PID 1 ends the guest.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no reason given");
        let place = info.location().map_or_else(String::new, |location| {
            format!(" at {}:{}", location.file(), location.line())
        });
        let _ = writeln!(
            std::io::stderr(),
            "strato-agent: panic: {}{place}",
            message.replace('\n', "; ")
        );
        // SAFETY: _exit has no preconditions. abort() would be ignored by the kernel for PID 1 at first.
        unsafe { libc::_exit(101) };
    }));
}

/// Lets a few lines through per period and counts the rest.
pub struct RateLimit {
    burst: u32,
    period: Duration,
    state: Mutex<RateState>,
}

struct RateState {
    since: Option<Instant>,
    passed: u32,
    dropped: u64,
}

impl RateLimit {
    pub const fn new(burst: u32, period: Duration) -> Self {
        Self {
            burst,
            period,
            state: Mutex::new(RateState {
                since: None,
                passed: 0,
                dropped: 0,
            }),
        }
    }

    /// None: hold the line back. Some(n): print it, n lines were held back before.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = crate::sync::lock(&self.state);
        let fresh = state
            .since
            .is_none_or(|since| now.duration_since(since) >= self.period);
        if fresh {
            state.since = Some(now);
            state.passed = 0;
        }
        if state.passed >= self.burst {
            state.dropped += 1;
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.dropped))
    }

    /// Logs a warning if the limit allows.
    pub fn warn(&self, text: impl FnOnce() -> String) {
        match self.pass(Instant::now()) {
            None => {}
            Some(0) => line("warning", &text()),
            Some(dropped) => line("warning", &format!("{} ({dropped} more before)", text())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pass_beyond_burst_is_counted_until_next_period() {
        let limit = RateLimit::new(2, Duration::from_secs(10));
        let start = Instant::now();
        assert_eq!(limit.pass(start), Some(0));
        assert_eq!(limit.pass(start), Some(0));
        assert_eq!(limit.pass(start), None);
        assert_eq!(limit.pass(start + Duration::from_secs(9)), None);
        assert_eq!(limit.pass(start + Duration::from_secs(10)), Some(2));
    }
}

//! The guest's clocks: boot time for the hello, wall time from the host.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime, clock_settime};

use crate::errors::{AgentError, Context, Result};

/// Nanoseconds since the kernel started (CLOCK_BOOTTIME).
pub fn boot_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |now| {
        u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000_000
            + u64::try_from(now.tv_nsec()).unwrap_or(0)
    })
}

/// Nanoseconds since the Unix epoch.
pub fn wall_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| i64::try_from(now.as_nanos()).unwrap_or(i64::MAX))
}

/// Sets the wall clock to the host's.
pub fn set_wall_ns(wall_clock_ns: i64) -> Result<()> {
    if wall_clock_ns <= 0 {
        return Err(AgentError::invalid(format!(
            "Wall clock {wall_clock_ns} ns is not after 1970"
        )));
    }
    let seconds = wall_clock_ns / 1_000_000_000;
    let nanos = wall_clock_ns % 1_000_000_000;
    clock_settime(
        ClockId::CLOCK_REALTIME,
        nix::sys::time::TimeSpec::new(seconds, nanos),
    )
    .with_context(|| format!("Setting the wall clock to {wall_clock_ns} ns"))
}

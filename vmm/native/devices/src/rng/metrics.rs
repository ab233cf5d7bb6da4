//! Counters of the entropy device.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters; written by the device thread, read by anyone.
#[derive(Debug, Default)]
pub struct RngMetrics {
    /// Requests answered.
    pub requests: AtomicU64,
    /// Random bytes given.
    pub bytes: AtomicU64,
    /// Times that the rate limit made the guest wait.
    pub throttled: AtomicU64,
    /// Requests answered empty because the source failed.
    pub failures: AtomicU64,
}

impl RngMetrics {
    pub(super) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    /// All counters by name.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("requests", read(&self.requests)),
            ("bytes", read(&self.bytes)),
            ("throttled", read(&self.throttled)),
            ("failures", read(&self.failures)),
        ]
    }
}

//! Counters of the balloon device.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters; written by the device thread, read by anyone.
#[derive(Debug, Default)]
pub struct BalloonMetrics {
    /// Pages of 4 KiB that the guest has put into the balloon.
    pub inflated_pages: AtomicU64,
    /// Pages of 4 KiB that the guest has taken out of it.
    pub deflated_pages: AtomicU64,
    /// Bytes that the guest has reported as free.
    pub reported_bytes: AtomicU64,
    /// Bytes that went back to the host, of both.
    pub discarded_bytes: AtomicU64,
    /// Statistics received.
    pub stats_updates: AtomicU64,
    /// Pages that do not exist, and what exceeded the length of a list.
    pub refused: AtomicU64,
    /// Ranges that the host's kernel refused to take.
    pub failures: AtomicU64,
}

impl BalloonMetrics {
    pub(super) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    /// All counters by name.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("inflated_pages", read(&self.inflated_pages)),
            ("deflated_pages", read(&self.deflated_pages)),
            ("reported_bytes", read(&self.reported_bytes)),
            ("discarded_bytes", read(&self.discarded_bytes)),
            ("stats_updates", read(&self.stats_updates)),
            ("refused", read(&self.refused)),
            ("failures", read(&self.failures)),
        ]
    }
}

//! Counters of the block device.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters; written by the device thread, read by anyone.
#[derive(Debug, Default)]
pub struct BlockMetrics {
    /// Requests answered, of all kinds.
    pub requests: AtomicU64,
    /// Requests answered with an error.
    pub errors: AtomicU64,
    /// Reads that succeeded.
    pub reads: AtomicU64,
    /// Bytes they read.
    pub read_bytes: AtomicU64,
    /// Writes that succeeded.
    pub writes: AtomicU64,
    /// Bytes they wrote.
    pub written_bytes: AtomicU64,
    /// Flushes carried out.
    pub flushes: AtomicU64,
    /// Flushes answered without doing anything, as configured.
    pub flushes_ignored: AtomicU64,
    /// Discards and write-zeroes that succeeded.
    pub ranges: AtomicU64,
    /// Times that a limit held the device back.
    pub throttled: AtomicU64,
    /// Requests that went through memory of the host's own for their alignment.
    pub bounced: AtomicU64,
    /// 1 if io_uring carries the requests out, 0 if threads do.
    pub uring: AtomicU64,
}

impl BlockMetrics {
    pub(super) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    /// All values by name.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        [
            ("requests", &self.requests),
            ("errors", &self.errors),
            ("reads", &self.reads),
            ("read_bytes", &self.read_bytes),
            ("writes", &self.writes),
            ("written_bytes", &self.written_bytes),
            ("flushes", &self.flushes),
            ("flushes_ignored", &self.flushes_ignored),
            ("ranges", &self.ranges),
            ("throttled", &self.throttled),
            ("bounced", &self.bounced),
            ("uring", &self.uring),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
        .to_vec()
    }
}

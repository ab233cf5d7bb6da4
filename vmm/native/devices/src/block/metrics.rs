//! Counters of the block device.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters; written by the device thread, read by anyone.
#[derive(Debug, Default)]
pub struct BlockMetrics {
    /// Requests answered, of all kinds.
    pub requests: AtomicU64,
    /// Bytes read.
    pub read_bytes: AtomicU64,
    /// Bytes written.
    pub written_bytes: AtomicU64,
    /// Flushes carried out.
    pub flushes: AtomicU64,
    /// Requests answered with an error.
    pub errors: AtomicU64,
}

impl BlockMetrics {
    pub(super) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}

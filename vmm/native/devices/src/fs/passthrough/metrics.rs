//! Counters of the host half.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters and levels; written by the fs threads, read by anyone.
#[derive(Debug, Default)]
pub struct PassthroughMetrics {
    /// Files that the guest knows of now.
    pub nodes: AtomicU64,
    /// Files and directories open now.
    pub handles: AtomicU64,
    /// Shares now.
    pub shares: AtomicU64,
    /// Look-ups refused because the guest knew of too many files.
    pub nodes_refused: AtomicU64,
    /// Opens refused because the guest had too many open.
    pub handles_refused: AtomicU64,
    /// Forgets of more than the guest held.
    pub bad_forgets: AtomicU64,
}

impl PassthroughMetrics {
    /// Names and values.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("nodes", value(&self.nodes)),
            ("handles", value(&self.handles)),
            ("shares", value(&self.shares)),
            ("nodes_refused", value(&self.nodes_refused)),
            ("handles_refused", value(&self.handles_refused)),
            ("bad_forgets", value(&self.bad_forgets)),
        ]
    }

    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn level(counter: &AtomicU64, value: usize) {
        counter.store(u64::try_from(value).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

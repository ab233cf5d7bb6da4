//! Counters of the console device.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters; written by the device thread, read by anyone.
#[derive(Debug, Default)]
pub struct ConsoleMetrics {
    /// Bytes from the guest.
    pub tx_bytes: AtomicU64,
    /// Bytes to the guest.
    pub rx_bytes: AtomicU64,
    /// Bytes from the guest that nobody on the host took in time.
    pub dropped_bytes: AtomicU64,
    /// Control messages from the guest.
    pub control_messages: AtomicU64,
    /// Control messages that made no sense, and buffers too small for ours.
    pub refused: AtomicU64,
}

impl ConsoleMetrics {
    pub(super) fn add(counter: &AtomicU64, amount: usize) {
        counter.fetch_add(amount as u64, Ordering::Relaxed);
    }

    /// All counters by name.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("tx_bytes", read(&self.tx_bytes)),
            ("rx_bytes", read(&self.rx_bytes)),
            ("dropped_bytes", read(&self.dropped_bytes)),
            ("control_messages", read(&self.control_messages)),
            ("refused", read(&self.refused)),
        ]
    }
}

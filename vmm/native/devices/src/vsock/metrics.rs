//! Counters of the socket device.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters; written by the device thread, read by anyone.
#[derive(Debug, Default)]
pub struct VsockMetrics {
    /// Packets from the guest.
    pub tx_packets: AtomicU64,
    /// Data bytes from the guest.
    pub tx_bytes: AtomicU64,
    /// Packets to the guest.
    pub rx_packets: AtomicU64,
    /// Data bytes to the guest.
    pub rx_bytes: AtomicU64,
    /// Connections made, in both directions.
    pub opened: AtomicU64,
    /// Connections that ended.
    pub closed: AtomicU64,
    /// Packets that broke the protocol: answered with a reset or dropped.
    pub refused: AtomicU64,
}

impl VsockMetrics {
    pub(super) fn add(counter: &AtomicU64, amount: usize) {
        counter.fetch_add(amount as u64, Ordering::Relaxed);
    }

    /// All counters by name.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("tx_packets", read(&self.tx_packets)),
            ("tx_bytes", read(&self.tx_bytes)),
            ("rx_packets", read(&self.rx_packets)),
            ("rx_bytes", read(&self.rx_bytes)),
            ("opened", read(&self.opened)),
            ("closed", read(&self.closed)),
            ("refused", read(&self.refused)),
        ]
    }
}

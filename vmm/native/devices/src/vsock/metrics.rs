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
}

//! Counters of the network device.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters; written by the device thread, read by anyone. "rx" is towards the guest. Bytes are those of
/// the frames, without virtio-net headers.
#[derive(Debug, Default)]
pub struct NetMetrics {
    /// Packets given to the guest.
    pub rx_packets: AtomicU64,
    /// Bytes given to the guest.
    pub rx_bytes: AtomicU64,
    /// Packets dropped because they are longer than the guest's buffers.
    pub rx_too_long: AtomicU64,
    /// Packets dropped because they came before the driver, or while the link was down, or were in the way of
    /// a reset.
    pub rx_stale: AtomicU64,
    /// Times that the guest had no buffers for a packet, which then waited in the tap.
    pub rx_starved: AtomicU64,
    /// Receive buffers given back empty because they hold no header.
    pub rx_bad_buffers: AtomicU64,
    /// Reads that the tap refused.
    pub rx_errors: AtomicU64,
    /// Times that the limit made the tap wait.
    pub rx_throttled: AtomicU64,
    /// Packets taken from the guest and given to the tap.
    pub tx_packets: AtomicU64,
    /// Bytes taken from the guest.
    pub tx_bytes: AtomicU64,
    /// Packets dropped because of their header or length.
    pub tx_bad_packets: AtomicU64,
    /// Packets dropped while the link was down.
    pub tx_link_down: AtomicU64,
    /// Packets that the tap refused.
    pub tx_errors: AtomicU64,
    /// Times that the tap had no room.
    pub tx_blocked: AtomicU64,
    /// Times that the limit made the guest wait.
    pub tx_throttled: AtomicU64,
    /// Control commands carried out.
    pub control_commands: AtomicU64,
    /// Control commands refused.
    pub control_refused: AtomicU64,
    /// Wake-ups by the tap.
    pub tap_events: AtomicU64,
}

impl NetMetrics {
    pub(super) fn add(counter: &AtomicU64, amount: u64) {
        if amount > 0 {
            counter.fetch_add(amount, Ordering::Relaxed);
        }
    }

    /// All counters by name.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        [
            ("rx_packets", &self.rx_packets),
            ("rx_bytes", &self.rx_bytes),
            ("rx_too_long", &self.rx_too_long),
            ("rx_stale", &self.rx_stale),
            ("rx_starved", &self.rx_starved),
            ("rx_bad_buffers", &self.rx_bad_buffers),
            ("rx_errors", &self.rx_errors),
            ("rx_throttled", &self.rx_throttled),
            ("tx_packets", &self.tx_packets),
            ("tx_bytes", &self.tx_bytes),
            ("tx_bad_packets", &self.tx_bad_packets),
            ("tx_link_down", &self.tx_link_down),
            ("tx_errors", &self.tx_errors),
            ("tx_blocked", &self.tx_blocked),
            ("tx_throttled", &self.tx_throttled),
            ("control_commands", &self.control_commands),
            ("control_refused", &self.control_refused),
            ("tap_events", &self.tap_events),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
        .to_vec()
    }
}

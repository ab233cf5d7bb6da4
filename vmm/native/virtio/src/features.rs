//! Feature bits that belong to the ring, not to a device (virtio 1.2, section 6).

/// The device speaks virtio 1.x; without it nothing here runs.
pub const VIRTIO_F_VERSION_1: u64 = 1 << 32;
/// Indirect descriptor tables.
pub const VIRTIO_F_INDIRECT_DESC: u64 = 1 << 28;
/// used_event / avail_event notification suppression.
pub const VIRTIO_F_EVENT_IDX: u64 = 1 << 29;

/// What the split ring of this crate offers for every device.
pub const RING_FEATURES: u64 = VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX;

/// Whether a driver that was offered `offered` may accept `accepted`: nothing that was not offered, and
/// always VERSION_1.
pub fn negotiated(offered: u64, accepted: u64) -> bool {
    accepted & !offered == 0 && accepted & VIRTIO_F_VERSION_1 != 0
}

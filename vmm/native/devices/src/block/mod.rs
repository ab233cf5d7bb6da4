//! The block device (virtio 1.2, section 5.2) on a raw file or block device. The format is never guessed:
//! byte n of the file is byte n of the disk.
//!
//! This engine does one request after the other with preadv and pwritev on the device's own thread, so a
//! slow disk holds up nothing but itself.

mod backend;
mod device;
mod metrics;
mod queue;
mod state;
#[cfg(test)]
mod tests;

pub use self::backend::{Disk, FlushPolicy};
pub use self::device::{Block, BlockConfig};
pub use self::metrics::BlockMetrics;

//! The network device (virtio 1.2, section 5.1) on a tap.
//!
//! Packets move with one system call each between guest memory and the tap: no copy, no allocation. Checksums
//! and segmentation are left to whoever can do them best: the virtio-net header goes through, checked.
//! Filters of the control queue (promiscuous and multicast modes, address tables, VLANs) are accepted and
//! everything is delivered, which virtio allows (5.1.6.5.1 and 5.1.6.5.3 promise best effort only).

mod backend;
mod commands;
mod control;
mod device;
mod metrics;
mod orders;
mod pair;
mod queue;
mod receive;
mod state;
#[cfg(test)]
mod tests;
mod transmit;

pub use self::backend::{MAX_PAIRS, Tap};
pub use self::control::NetControl;
pub use self::device::{Net, NetConfig};
pub use self::metrics::NetMetrics;

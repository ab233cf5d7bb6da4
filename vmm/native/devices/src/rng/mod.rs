//! The entropy device (virtio 1.2, section 5.4): the guest hands in buffers, they come back random.

mod backend;
mod device;
mod metrics;
mod queue;
mod state;
#[cfg(test)]
mod tests;

pub use self::backend::{Entropy, HostEntropy};
pub use self::device::{Rng, RngConfig};
pub use self::metrics::RngMetrics;

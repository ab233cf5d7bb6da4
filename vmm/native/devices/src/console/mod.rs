//! The console device (virtio 1.2, section 5.3): one port, or several with a control queue.
//!
//! Each port has a host side of passed descriptors. What the guest writes goes there at once or into a bounded
//! buffer; when nobody reads, the oldest bytes give way and are counted, and the guest never waits. What the host
//! writes stays in its descriptor until the guest has room for it.

mod backend;
mod control;
mod device;
mod metrics;
mod port;
mod queue;
mod state;
#[cfg(test)]
mod tests;

pub use self::backend::PortConfig;
pub use self::control::ConsoleControl;
pub use self::device::{Console, ConsoleConfig, MAX_PORTS};
pub use self::metrics::ConsoleMetrics;

//! The traditional memory balloon (virtio 1.2, section 5.5): the guest gives pages up when it is asked to, and tells
//! of pages that are free anyway (free page reporting); both go back to the host.
//!
//! Everything that the guest says is advice. A page that it names and that is none is counted; one that it names and
//! uses all the same reads as zeroes to it, and to nobody else. Free page hinting and page poisoning are not
//! offered: the first is for migration, and a driver that poisons its free pages reports none without the second.

mod backend;
mod control;
mod device;
mod metrics;
mod queue;
mod state;
#[cfg(test)]
mod tests;

pub use self::backend::{Discard, HostDiscard};
pub use self::control::{BalloonControl, BalloonInfo, OnActual, STATS};
pub use self::device::{Balloon, BalloonConfig};
pub use self::metrics::BalloonMetrics;

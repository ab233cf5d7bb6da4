//! The virtio-mmio shell (virtio 1.2, section 4.2): any [`strato_virtio::DeviceCore`] behind registers.
//!
//! Two kinds of threads come here: vCPUs, which read and write registers, and the device's
//! [`strato_virtio::Worker`], which notifies. A vCPU may wait for the worker (a reset, the start of the queues, a
//! stale configuration), so the worker never waits for a lock that a vCPU can hold: what it has to say is in
//! atomics and one eventfd ([`signals`]).
//!
//! Nothing here knows KVM. Whoever has the guest's exits gives them to [`MmioDevice::read`] and
//! [`MmioDevice::write`], and connects [`MmioDevice::interrupt`] and [`MmioDevice::doorbells`].
#![forbid(unsafe_code)]

mod device;
mod error;
#[cfg(any(test, feature = "mock"))]
pub mod mock;
mod registers;
mod signals;
mod state;

pub use self::device::MmioDevice;
pub use self::error::MmioError;
pub use self::registers::WINDOW_LEN;

//! What the host hears of a device, whatever shell it stands in.

use std::io;

use crate::core::DeviceFault;
use crate::worker::WorkerEnd;

/// Hears on the device's thread what the host should know of it. Must not wait.
pub trait Observer: Send + Sync {
    /// The driver broke the protocol; the device stands still until a reset.
    fn faulted(&self, _fault: &DeviceFault) {}

    /// The backend failed; the guest has its answer.
    fn backend_failed(&self, _error: &io::Error) {}

    /// The device changed its configuration space.
    fn config_changed(&self) {}

    /// The device's thread has ended, and the device with it.
    fn ended(&self, _end: WorkerEnd) {}
}

/// For those who do not listen.
#[derive(Clone, Copy, Debug)]
pub struct Unobserved;

impl Observer for Unobserved {}

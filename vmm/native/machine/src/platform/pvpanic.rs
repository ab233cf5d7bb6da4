//! The panic device: one port, by which a guest's kernel says that it has panicked (QEMU docs/specs/pvpanic.rst).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::bus::BusDevice;
use crate::events::{MachineEvent, MachineEvents};

/// The kernel has panicked, and the machine is not of use any more.
const PANICKED: u8 = 1 << 0;
/// The kernel has panicked, and its crash kernel takes over.
const CRASH_LOADED: u8 = 1 << 1;
const SUPPORTED: u8 = PANICKED | CRASH_LOADED;

/// Reading gives the events that it understands, writing tells one.
pub struct Pvpanic {
    events: Arc<dyn MachineEvents>,
    told: AtomicU8,
}

impl Pvpanic {
    /// Tells `events`.
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self { events, told: AtomicU8::new(0) }
    }

    /// The guest begins anew.
    pub fn reset(&self) {
        self.told.store(0, Ordering::Relaxed);
    }
}

impl BusDevice for Pvpanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        if let Some(byte) = data.first_mut() {
            *byte = SUPPORTED;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let happened = data.first().copied().unwrap_or(0) & SUPPORTED;
        // Once per boot: a guest that goes on writing tells nothing new.
        let is_new = happened & !self.told.fetch_or(happened, Ordering::Relaxed);
        if is_new & PANICKED != 0 {
            self.events.happened(MachineEvent::Panicked);
        }
        if is_new & CRASH_LOADED != 0 {
            self.events.happened(MachineEvent::CrashLoaded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::tests::Heard;

    #[test]
    fn events_that_are_supported_can_be_read() {
        let mut data = [0xFF];
        Pvpanic::new(Heard::new()).read(0, &mut data);
        assert_eq!(data, [3]);
    }

    #[test]
    fn each_event_is_told_once_per_boot_and_unknown_ones_never() {
        let heard = Heard::new();
        let device = Pvpanic::new(heard.clone());
        for byte in [0x84, 2, 1, 3, 1, 2] {
            device.write(0, &[byte]);
        }
        assert_eq!(heard.take(), [MachineEvent::CrashLoaded, MachineEvent::Panicked]);
        device.reset();
        device.write(0, &[3, 0]);
        assert_eq!(heard.take(), [MachineEvent::Panicked, MachineEvent::CrashLoaded]);
    }
}

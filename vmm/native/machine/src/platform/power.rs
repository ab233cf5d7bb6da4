//! Power: what the guest hears through the generic event device, and how it switches itself off or resets itself.
//!
//! Four ports of one byte each. The first is ours alone, and only the DSDT's method reads it. The others are ACPI's
//! sleep control, sleep status and reset registers, whose places are in the FADT (ACPI 6.5, sections 4.8.3.6, 4.8.3.7
//! and 4.8.4.6).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::events::{MachineEvent, MachineEvents};

/// Port: events that are pending. Reading takes them.
pub const EVENTS: u16 = 0;
/// Port: sleep control.
pub const SLEEP_CONTROL: u16 = 1;
/// Port: sleep status. Nothing ever wakes up here, so it reads as zero.
pub const SLEEP_STATUS: u16 = 2;
/// Port: reset.
pub const RESET: u16 = 3;

/// Bit of [`EVENTS`]: the power button was pressed.
pub const EVENT_BUTTON: u8 = 1 << 0;
/// Bit of [`EVENTS`]: the VM's generation has changed.
pub const EVENT_GENERATION: u8 = 1 << 1;

/// What resets the machine when it is written to [`RESET`].
pub const RESET_VALUE: u8 = 0x42;

/// SLP_TYP of S5, soft off. The specification leaves the number to the machine.
pub const SLEEP_TYPE_OFF: u8 = 5;

/// SLP_EN of the sleep control register, and where SLP_TYP is in it.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u32 = 2;
const SLEEP_TYPE_MASK: u8 = 0x7;

/// The four ports.
pub struct Power {
    events: Arc<dyn MachineEvents>,
    interrupt: EventFd,
    pending: AtomicU8,
}

impl Power {
    /// Tells `events` what the guest does to itself; `interrupt` raises the line of the generic event device.
    pub fn new(events: Arc<dyn MachineEvents>, interrupt: EventFd) -> Self {
        Self { events, interrupt, pending: AtomicU8::new(0) }
    }

    /// The line of the generic event device, edge-triggered.
    pub fn interrupt(&self) -> &EventFd {
        &self.interrupt
    }

    /// Somebody presses the power button.
    pub fn press_button(&self) {
        self.raise(EVENT_BUTTON);
    }

    /// The VM's generation has been changed in guest memory.
    pub fn generation_changed(&self) {
        self.raise(EVENT_GENERATION);
    }

    /// The guest begins anew, and hears nothing of what was meant for the one before it.
    pub fn reset(&self) {
        self.pending.store(0, Ordering::Release);
    }

    fn raise(&self, event: u8) {
        self.pending.fetch_or(event, Ordering::AcqRel);
        // Fails only when it has been raised 2^64 times and nobody took note.
        let _ = self.interrupt.write(1);
    }

    fn read_register(&self, register: u64) -> u8 {
        if register == u64::from(EVENTS) { self.pending.swap(0, Ordering::AcqRel) } else { 0 }
    }

    fn write_register(&self, register: u64, value: u8) {
        let is_off =
            value & SLEEP_ENABLE != 0 && value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == SLEEP_TYPE_OFF;
        if register == u64::from(SLEEP_CONTROL) && is_off {
            self.events.happened(MachineEvent::Shutdown);
        }
        if register == u64::from(RESET) && value == RESET_VALUE {
            self.events.happened(MachineEvent::Reset);
        }
    }
}

impl BusDevice for Power {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (register, byte) in (offset..).zip(data) {
            *byte = self.read_register(register);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (register, byte) in (offset..).zip(data) {
            self.write_register(register, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::tests::Heard;

    fn power() -> (Power, Arc<Heard>) {
        let heard = Heard::new();
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        (Power::new(heard.clone(), interrupt), heard)
    }

    fn read(power: &Power, offset: u16) -> u8 {
        let mut data = [0xFF];
        power.read(offset.into(), &mut data);
        data[0]
    }

    #[test]
    fn pending_events_raise_the_line_and_are_taken_by_reading() {
        let (power, _) = power();
        power.press_button();
        power.generation_changed();
        power.press_button();
        assert_eq!(power.interrupt().read().unwrap(), 3);
        assert_eq!(read(&power, EVENTS), EVENT_BUTTON | EVENT_GENERATION);
        assert_eq!(read(&power, EVENTS), 0);
        assert!(power.interrupt().read().is_err());
    }

    #[test]
    fn reset_forgets_what_was_pending() {
        let (power, _) = power();
        power.press_button();
        power.reset();
        assert_eq!(read(&power, EVENTS), 0);
    }

    #[test]
    fn only_sleep_state_5_with_its_enable_bit_is_a_shutdown() {
        let (power, heard) = power();
        for value in 0..=u8::MAX {
            power.write(SLEEP_CONTROL.into(), &[value]);
            let expected = value & 0x3C == 0x34;
            assert_eq!(heard.take() == [MachineEvent::Shutdown], expected, "{value:#x}");
        }
    }

    #[test]
    fn only_the_reset_value_resets() {
        let (power, heard) = power();
        for value in 0..=u8::MAX {
            power.write(RESET.into(), &[value]);
            assert_eq!(heard.take() == [MachineEvent::Reset], value == 0x42, "{value:#x}");
        }
    }

    #[test]
    fn registers_do_nothing_but_their_own_work() {
        let (power, heard) = power();
        power.write(EVENTS.into(), &[0x42]);
        power.write(SLEEP_STATUS.into(), &[0x34]);
        power.write(SLEEP_CONTROL.into(), &[0x42]);
        power.write(RESET.into(), &[0x34]);
        assert_eq!(heard.take(), []);
        power.press_button();
        for register in [SLEEP_CONTROL, SLEEP_STATUS, RESET, 7] {
            assert_eq!(read(&power, register), 0);
        }
        assert_eq!(read(&power, EVENTS), EVENT_BUTTON);
    }

    #[test]
    fn wide_accesses_reach_each_register_that_they_cover() {
        let (power, heard) = power();
        power.generation_changed();
        let mut data = [0xFF; 4];
        power.read(0, &mut data);
        assert_eq!(data, [EVENT_GENERATION, 0, 0, 0]);
        power.write(0, &[0, 0x34, 0, 0x42]);
        assert_eq!(heard.take(), [MachineEvent::Shutdown, MachineEvent::Reset]);
    }
}

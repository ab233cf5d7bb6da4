//! The local APIC at power-on, with the two interrupt pins as firmware leaves them on a machine without a PIC.

use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::VcpuFd;
use strato_plumbing::{Failure, Result};

/// Offsets of registers (Intel SDM volume 3, table 11-1).
const VERSION: usize = 0x30;
const ID: usize = 0x20;
const DFR: usize = 0xE0;
const SPURIOUS: usize = 0xF0;
const LVT_CMCI: usize = 0x2F0;
const LVT_TIMER: usize = 0x320;
const LVT_THERMAL: usize = 0x330;
const LVT_COUNTERS: usize = 0x340;
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const LVT_ERROR: usize = 0x370;

/// Mask bit of a local vector, and the delivery mode NMI (section 11.5.1).
const MASKED: u32 = 1 << 16;
const MODE_NMI: u32 = 0b100 << 8;

/// Puts the local APIC of vCPU `index` into its state at power-on: LINT0, to which a PIC would be wired, is masked;
/// LINT1 is the NMI, as the MADT says.
///
/// # Errors
/// What KVM said.
pub fn reset(vcpu: &VcpuFd, index: u32) -> Result<()> {
    let current = vcpu.get_lapic().map_err(|error| {
        Failure::new(format!("Cannot read the local APIC of vCPU {index}"), error.errno())
    })?;
    vcpu.set_lapic(&at_power_on(&current, index))
        .map_err(|error| Failure::new(format!("Cannot set the local APIC of vCPU {index}"), error.errno()))
}

/// Only the version is kept. Whatever else is not written here is zero at power-on (section 11.4.7.1).
fn at_power_on(current: &kvm_lapic_state, index: u32) -> kvm_lapic_state {
    let mut state = kvm_lapic_state::default();
    write(&mut state, VERSION, read(current, VERSION));
    write(&mut state, ID, index << 24);
    write(&mut state, DFR, u32::MAX);
    write(&mut state, SPURIOUS, 0xFF);
    for vector in [LVT_CMCI, LVT_TIMER, LVT_THERMAL, LVT_COUNTERS, LVT_LINT0, LVT_ERROR] {
        write(&mut state, vector, MASKED);
    }
    write(&mut state, LVT_LINT1, MODE_NMI);
    state
}

fn read(state: &kvm_lapic_state, offset: usize) -> u32 {
    let byte = |at: usize| state.regs.get(offset + at).map_or(0, |byte| byte.cast_unsigned());
    u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
}

fn write(state: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (register, byte) in state.regs.iter_mut().skip(offset).zip(value.to_le_bytes()) {
        *register = byte.cast_signed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_as_the_tables_say_and_nothing_of_a_former_life_is_left() {
        let mut used = kvm_lapic_state::default();
        used.regs.fill(0x55);
        write(&mut used, VERSION, 0x5_0014);
        let state = at_power_on(&used, 3);
        assert_eq!(read(&state, VERSION), 0x5_0014);
        assert_eq!(read(&state, ID), 3 << 24);
        assert_eq!(read(&state, LVT_LINT0), 1 << 16);
        assert_eq!(read(&state, LVT_LINT1), 0x400);
        let written = [VERSION, ID, DFR, SPURIOUS, LVT_CMCI, LVT_TIMER, LVT_THERMAL, LVT_COUNTERS];
        let written: Vec<_> = written.into_iter().chain([LVT_LINT0, LVT_LINT1, LVT_ERROR]).collect();
        for offset in (0..0x400).step_by(0x10).filter(|offset| !written.contains(offset)) {
            assert_eq!(read(&state, offset), 0, "{offset:#x}");
        }
    }
}

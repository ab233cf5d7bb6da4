//! What a vCPU comes out of the guest for on this architecture only: ports, interrupt controllers, triple faults.
#![expect(unsafe_code, reason = "what KVM says of an exit is a union")]

use kvm_bindings::*;
use kvm_ioctls::VcpuFd;

use crate::bus::Bus;
use crate::counters::{Count, Counters};
use crate::events::MachineEvent;
use crate::exit::{Buses, Next};

/// Handles an exit. None: it is one that other architectures have as well.
pub(crate) fn handle_exit(run: &mut kvm_run, buses: &Buses, counters: &Counters) -> Option<Next> {
    match run.exit_reason {
        KVM_EXIT_IO => {
            port(run, &buses.ports, counters);
            return Some(Next::Enter);
        }
        // A guest that programs a line as level triggered tells of its end, which nobody waits for.
        KVM_EXIT_IRQ_WINDOW_OPEN | KVM_EXIT_IOAPIC_EOI => Some(Next::Enter),
        KVM_EXIT_SHUTDOWN => Some(Next::Tell(MachineEvent::TripleFault)),
        _ => None,
    }
    .inspect(|_| counters.count(Count::Other))
}

/// A string instruction moves several elements through one port in one exit.
fn port(run: &mut kvm_run, bus: &Bus, counters: &Counters) {
    let start = std::ptr::from_mut(run).cast::<u8>();
    // SAFETY: the exit reason names the member of the union that KVM filled.
    let io = unsafe { run.__bindgen_anon_1.io };
    let (size, count) = (usize::from(io.size), io.count as usize);
    if size == 0 {
        return;
    }
    // SAFETY: KVM puts `count` elements of `size` bytes at this offset into the area that is mapped for this vCPU,
    // beyond the structure itself, and leaves them alone until the next KVM_RUN.
    let data = unsafe { std::slice::from_raw_parts_mut(start.add(io.data_offset as usize), size * count) };
    let write = u32::from(io.direction) == KVM_EXIT_IO_OUT;
    counters.count(if write { Count::IoOut } else { Count::IoIn });
    for element in data.chunks_exact_mut(size) {
        if write {
            if !bus.write(io.port.into(), element) {
                counters.count(Count::UnknownWrite);
            }
        } else if !bus.read(io.port.into(), element) {
            counters.count(Count::UnknownRead);
        }
    }
}

/// Where the guest's code is.
pub(crate) fn program_counter(vcpu: &VcpuFd) -> Option<u64> {
    vcpu.get_regs().ok().map(|registers| registers.rip)
}

/// Tells the guest's watchdogs, before it goes on, that it stood still.
pub(crate) fn note_pause(vcpu: &VcpuFd) {
    // EINVAL: it has no kvmclock.
    let _ = vcpu.kvmclock_ctrl();
}

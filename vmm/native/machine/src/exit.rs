//! What a vCPU came out of the guest for, and what is done about it.
//!
//! Called for every exit, so nothing here allocates or locks but when the guest is at its end.
#![expect(unsafe_code, reason = "what KVM says of an exit is a union")]

use kvm_bindings::*;
use kvm_ioctls::VcpuFd;

use crate::arch;
use crate::bus::Bus;
use crate::counters::{Count, Counters};
use crate::events::MachineEvent;

/// The two address spaces of a guest.
#[derive(Default)]
pub struct Buses {
    /// Ports.
    pub ports: Bus,
    /// Guest-physical addresses without RAM.
    pub memory: Bus,
}

/// What follows an exit.
pub(crate) enum Next {
    /// Into the guest again.
    Enter,
    /// To the gate.
    Look,
    /// The owner hears of it, then as [`Next::Look`].
    Tell(MachineEvent),
}

/// Enters the guest once and does what it came out for.
pub(crate) fn turn(fd: &mut VcpuFd, buses: &Buses, counters: &Counters) -> Next {
    // Its own view of the exit lacks the size of a port access.
    let outcome = fd.run().map(|_| ());
    match outcome {
        Ok(()) => handle(fd, buses, counters),
        Err(error) => match error.errno() {
            libc::EINTR => {
                counters.count(Count::Interrupted);
                Next::Look
            }
            // A vCPU that has not been started yet, or a host that wants to be asked again.
            libc::EAGAIN => {
                counters.count(Count::Again);
                Next::Enter
            }
            errno => {
                let what = format!("KVM_RUN failed: {}", strato_plumbing::failure::errno_text(errno));
                Next::Tell(failed(fd, what))
            }
        },
    }
}

fn handle(fd: &mut VcpuFd, buses: &Buses, counters: &Counters) -> Next {
    let run = fd.get_kvm_run();
    if run.exit_reason == KVM_EXIT_MMIO {
        // SAFETY: the exit reason names the member of the union that KVM filled.
        memory(unsafe { &mut run.__bindgen_anon_1.mmio }, &buses.memory, counters);
        return Next::Enter;
    }
    if let Some(next) = arch::handle_exit(run, buses, counters) {
        return next;
    }
    counters.count(Count::Other);
    match run.exit_reason {
        KVM_EXIT_INTR => Next::Look,
        KVM_EXIT_SYSTEM_EVENT => {
            // SAFETY: as above.
            let event = unsafe { run.__bindgen_anon_1.system_event };
            match event.type_ {
                KVM_SYSTEM_EVENT_SHUTDOWN => Next::Tell(MachineEvent::Shutdown),
                KVM_SYSTEM_EVENT_RESET => Next::Tell(MachineEvent::Reset),
                other => Next::Tell(failed(fd, format!("KVM_EXIT_SYSTEM_EVENT of type {other}"))),
            }
        }
        _ => {
            let what = describe(run);
            Next::Tell(failed(fd, what))
        }
    }
}

fn memory(mmio: &mut kvm_run__bindgen_ty_1__bindgen_ty_6, bus: &Bus, counters: &Counters) {
    let Some(data) = mmio.data.get_mut(..mmio.len as usize) else { return };
    if mmio.is_write != 0 {
        counters.count(Count::MmioWrite);
        if !bus.write(mmio.phys_addr, data) {
            counters.count(Count::UnknownWrite);
        }
    } else {
        counters.count(Count::MmioRead);
        if !bus.read(mmio.phys_addr, data) {
            counters.count(Count::UnknownRead);
        }
    }
}

/// KVM's numbers of an exit that is the end of a vCPU.
fn describe(run: &kvm_run) -> String {
    let member = &run.__bindgen_anon_1;
    match run.exit_reason {
        KVM_EXIT_UNKNOWN => {
            // SAFETY: the exit reason names the member of the union that KVM filled.
            format!("KVM_EXIT_UNKNOWN, hardware exit reason {:#x}", unsafe { member.hw }.hardware_exit_reason)
        }
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: as above.
            let fail = unsafe { member.fail_entry };
            let reason = fail.hardware_entry_failure_reason;
            format!("KVM_EXIT_FAIL_ENTRY, hardware reason {reason:#x}, host CPU {}", fail.cpu)
        }
        KVM_EXIT_INTERNAL_ERROR => {
            // SAFETY: as above.
            let internal = unsafe { member.internal };
            let what = match internal.suberror {
                KVM_INTERNAL_ERROR_EMULATION => " (emulation)",
                KVM_INTERNAL_ERROR_SIMUL_EX => " (simultaneous exceptions)",
                KVM_INTERNAL_ERROR_DELIVERY_EV => " (event delivery)",
                KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => " (unexpected exit reason)",
                _ => "",
            };
            let mut text = format!("KVM_EXIT_INTERNAL_ERROR, suberror {}{what}", internal.suberror);
            for value in internal.data.iter().take(internal.ndata as usize) {
                text.push_str(&format!(" {value:#x}"));
            }
            text
        }
        KVM_EXIT_EXCEPTION => {
            // SAFETY: as above.
            let exception = unsafe { member.ex };
            format!("KVM_EXIT_EXCEPTION {}, error code {:#x}", exception.exception, exception.error_code)
        }
        KVM_EXIT_MEMORY_FAULT => {
            // SAFETY: as above.
            let fault = unsafe { member.memory_fault };
            format!(
                "KVM_EXIT_MEMORY_FAULT at {:#x}, {:#x} bytes, flags {:#x}",
                fault.gpa, fault.size, fault.flags
            )
        }
        KVM_EXIT_HLT => "KVM_EXIT_HLT, though KVM has the interrupt controller".to_owned(),
        other => format!("KVM exit reason {other}"),
    }
}

/// The end of a vCPU, with the place in the guest's code.
fn failed(fd: &VcpuFd, what: String) -> MachineEvent {
    MachineEvent::VcpuFailed(match arch::program_counter(fd) {
        Some(addr) => format!("{what}; at {addr:#x}"),
        None => what,
    })
}

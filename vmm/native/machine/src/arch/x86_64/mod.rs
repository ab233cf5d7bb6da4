//! x86_64: CPUID, registers, how kernels are entered, ACPI tables.
//!
//! What the guest sees is a machine with one package of processors, local APICs and one I/O APIC, described by
//! hardware-reduced ACPI: no PIC, no PIT, no CMOS, no PCI, no firmware. Time comes from kvmclock and the TSC.

mod acpi;
mod coalesced;
mod cpuid;
mod exit;
mod ioapic;
mod kernel;
mod lapic;
mod layout;
mod memory_map;
mod msr;
pub mod probe_guest;
mod registers;
mod topology;
mod vcpu;
mod vm;

pub use self::cpuid::CpuModel;
pub(crate) use self::exit::{handle_exit, note_pause, program_counter};
pub use self::ioapic::{InterruptController, LINES};
pub use self::kernel::{BootEntry, load};
pub use self::topology::Topology;
pub use self::vcpu::{configure_vcpu, enter, reset_vcpu};
pub(crate) use self::vm::REQUIRED;
pub use self::vm::prepare_vm;

//! x86_64: CPUID, registers, how kernels are entered, ACPI tables.

mod ioapic;
pub mod probe_guest;

pub use self::ioapic::{InterruptController, LINES};

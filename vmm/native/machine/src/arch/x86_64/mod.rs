//! x86_64: CPUID, registers, how kernels are entered, ACPI tables.

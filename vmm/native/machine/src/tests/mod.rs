//! Tiny guests on real KVM. They run wherever /dev/kvm opens, and say that they were skipped where it does not.
#![allow(unsafe_code, reason = "tests")]

mod exits;
mod guest;
mod interrupts;
mod io_apic;
mod kicks;
mod machine;
mod many;
mod memory;
mod owned;
mod pause;
mod probe;
mod tiny_kernel;

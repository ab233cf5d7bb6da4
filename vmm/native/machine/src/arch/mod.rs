//! What differs between architectures.
//!
//! The machine says `arch::load` and never the name of an architecture. Each folder here provides, under these names:
//!
//! | name | called | does |
//! |---|---|---|
//! | `Topology` | once | how many processors, in what cores; refuses what the architecture cannot number |
//! | `REQUIRED` | before there is a VM | capabilities that KVM must have, besides those needed everywhere |
//! | `prepare_vm` | before the interrupt controller and the first vCPU | what belongs to the VM as a whole |
//! | `InterruptController`, `LINES` | before the first vCPU | lines for devices |
//! | `InterruptController::coalesce` | when there is a vCPU | spares exits, where KVM can do that |
//! | `CpuModel::new` | once | which processor the guest sees |
//! | `configure_vcpu` | once per vCPU | gives it that processor |
//! | `reset_vcpu` | before every boot, per vCPU | its state at power-on |
//! | `load` | before every boot | kernel, initrd, command line, memory map, firmware tables, into fresh RAM |
//! | `enter` | after `load` | the registers of the vCPU that runs the kernel's entry |
//! | `note_pause` | after a pause, per vCPU | tells the guest that it stood still |
//! | `handle_exit` | when a vCPU comes out of the guest | exits that only this architecture has |
//! | `program_counter` | when KVM cannot go on | where the guest's code is |
//!
//! `probe_guest` is the code that finds out whether this host can run guests at all.
//!
//! A boot is the same calls in the same order the first time and after a reset of the guest.

mod board;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

pub use self::board::{Board, Boot, EntryChoice, SlotPlace};
#[cfg(target_arch = "x86_64")]
pub use self::x86_64::{
    BootEntry, CpuModel, InterruptController, LINES, Topology, configure_vcpu, enter, load, prepare_vm,
    probe_guest, reset_vcpu,
};
#[cfg(target_arch = "x86_64")]
pub(crate) use self::x86_64::{REQUIRED, handle_exit, note_pause, program_counter};

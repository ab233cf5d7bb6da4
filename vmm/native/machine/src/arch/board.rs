//! What the machine is told about itself: numbers that the board's plan has resolved.

use std::ffi::CString;
use std::fs::File;

/// Where things are, as the firmware tables describe it to the guest.
#[derive(Clone, Debug)]
pub struct Board {
    /// Processors; their numbers are 0 up to this.
    pub num_cpus: u32,
    /// Where the firmware tables begin. They reach to the next MiB at most, and nothing else may be there.
    pub tables_addr: u64,
    /// Where the 16 bytes of the VM's generation are, in the same MiB behind the tables.
    pub generation_addr: u64,
    /// Line of the generic event device.
    pub ged_gsi: u32,
    /// Port of the panic device.
    pub pvpanic_port: u16,
    /// First of the four ports of [`crate::platform::power::Power`].
    pub power_port: u16,
    /// First port and line of the serial port, when there is one.
    pub serial: Option<(u16, u32)>,
    /// Where virtio devices are or may come to be, in the order in which the guest shall find them.
    pub slots: Vec<SlotPlace>,
}

/// A place for one virtio-mmio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotPlace {
    /// Number of the slot, which is the device's unique id in the tables.
    pub index: u32,
    /// First address of its 4 KiB of registers.
    pub guest_addr: u64,
    /// Its line, which several slots may share.
    pub gsi: u32,
}

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryChoice {
    /// The fastest way that is known to be right for this kernel.
    Auto,
    /// Linux's own 64-bit entry.
    Linux64,
    /// The PVH entry; only an ELF kernel with Xen's note has one.
    Pvh,
}

/// What is to be booted. The files are untrusted.
#[derive(Debug)]
pub struct Boot {
    /// An ELF `vmlinux` or a `bzImage`.
    pub kernel: File,
    /// The initial RAM disk, if any.
    pub initrd: Option<File>,
    /// How to enter the kernel.
    pub entry: EntryChoice,
    /// The kernel's command line.
    pub cmdline: CString,
}

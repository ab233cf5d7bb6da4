//! Guest addresses that the architecture or the boot protocols fix, or that are scratch until the kernel has taken
//! over. What a board may choose (slots, ports, where the tables are) is in [`crate::arch::Board`].

use std::ops::Range;

/// The least RAM that [`load`](super::load) can do anything with: the whole of the first MiB.
pub const LOW_RAM_END: u64 = 0x10_0000;

/// From here to 1 MiB a PC has no RAM (video memory, option ROMs, BIOS). Linux never uses it either
/// (arch/x86/kernel/setup.c, trim_bios_range).
pub const ISA_HOLE: Range<u64> = 0xA_0000..0x10_0000;

/// I/O APIC (Intel 82093AA, section 3.0); KVM's is fixed there (arch/x86/kvm/ioapic.h).
pub const IOAPIC_ADDR: u32 = 0xFEC0_0000;

/// Local APICs at power-on (Intel SDM volume 3, section 11.4.1).
pub const LAPIC_ADDR: u32 = 0xFEE0_0000;

/// One page for KVM's identity map and three for its TSS, which it wants below 4 GiB and which the guest must not
/// use (Documentation/virt/kvm/api.rst, KVM_SET_TSS_ADDR and KVM_SET_IDENTITY_MAP_ADDR).
pub const KVM_IDENTITY_MAP_ADDR: u64 = 0xFFFB_C000;
/// See [`KVM_IDENTITY_MAP_ADDR`].
pub const KVM_TSS_ADDR: u64 = 0xFFFB_D000;
/// Both of them.
pub const KVM_PAGES: Range<u64> = KVM_IDENTITY_MAP_ADDR..KVM_TSS_ADDR + 0x3000;

/// Segment descriptors of the entry.
pub const GDT_ADDR: u64 = 0x500;
/// `struct hvm_start_info` of a PVH entry, and behind it the module and the memory map.
pub const START_INFO_ADDR: u64 = 0x6000;
/// `struct boot_params` of a 64-bit entry.
pub const ZERO_PAGE_ADDR: u64 = 0x7000;
/// Page tables of a 64-bit entry: one page each of PML4, PDPT and PD, which map the first GiB to itself.
pub const PAGE_TABLES_ADDR: u64 = 0x9000;
/// Guest memory that a 64-bit entry finds mapped.
pub const MAPPED_AT_ENTRY: u64 = 1 << 30;
/// The command line.
pub const CMDLINE_ADDR: u64 = 0x2_0000;
/// The longest that there is room for, without the NUL, whatever a kernel says it reads.
pub const CMDLINE_ROOM: usize = (ISA_HOLE.start - CMDLINE_ADDR - 1) as usize;
/// What a kernel that does not say takes at most, without the NUL (COMMAND_LINE_SIZE of
/// arch/x86/include/asm/setup.h).
pub const CMDLINE_MAX: usize = 2047;

/// The page size.
pub const PAGE_SIZE: u64 = 0x1000;

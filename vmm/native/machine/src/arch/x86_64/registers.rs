//! The registers with which a vCPU enters a kernel, and the descriptor and page tables that they point to.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use strato_plumbing::{Failure, Result};
use strato_virtio::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use super::layout;

/// Bits of control registers (Intel SDM volume 3, section 2.5) and of EFER (section 2.2.1).
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set; interrupts and traps are off.
const RFLAGS: u64 = 1 << 1;

/// Bits of IA32_APIC_BASE: the bootstrap processor, and the APIC is on (section 11.4.4).
const APIC_BASE_BSP: u64 = 1 << 8;
const APIC_BASE_ENABLED: u64 = 1 << 11;

/// Page table entries: present and writable; in a PD also a page of 2 MiB (section 4.5).
const PRESENT_WRITABLE: u64 = 0x3;
const LARGE_PAGE: u64 = 1 << 7;
const LARGE_PAGE_SIZE: u64 = 2 << 20;

/// Selectors. Linux's 64-bit entry demands these two (Documentation/arch/x86/boot.rst); PVH leaves them free.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// How a kernel is entered on vCPU 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit with the first GiB mapped to itself; RSI has the address of the zero page.
    Long,
    /// 32-bit, protected, no paging; EBX has the address of the start info.
    Protected,
}

/// Writes the tables that the registers of `mode` point to.
///
/// # Errors
/// They lie outside RAM.
pub fn write_tables(ram: &GuestRam, mode: Mode) -> Result<()> {
    write(ram, layout::GDT_ADDR, &gdt(mode))?;
    if mode == Mode::Protected {
        return Ok(());
    }
    let (pml4, pdpt, pd) = page_table_addrs();
    write(ram, pml4, &[pdpt | PRESENT_WRITABLE])?;
    write(ram, pdpt, &[pd | PRESENT_WRITABLE])?;
    let pages: Vec<u64> = (0..layout::MAPPED_AT_ENTRY / LARGE_PAGE_SIZE)
        .map(|page| (page * LARGE_PAGE_SIZE) | LARGE_PAGE | PRESENT_WRITABLE)
        .collect();
    write(ram, pd, &pages)
}

fn page_table_addrs() -> (u64, u64, u64) {
    let pml4 = layout::PAGE_TABLES_ADDR;
    (pml4, pml4 + layout::PAGE_SIZE, pml4 + 2 * layout::PAGE_SIZE)
}

fn write(ram: &GuestRam, addr: u64, words: &[u64]) -> Result<()> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    ram.write_slice(&bytes, GuestAddress(addr))
        .map_err(|error| Failure::refused(format!("Table of the kernel's entry at {addr:#x}: {error}")))
}

/// General registers at the entry.
pub fn general(mode: Mode, entry: u64, info: u64) -> kvm_regs {
    let regs = kvm_regs { rip: entry, rflags: RFLAGS, ..kvm_regs::default() };
    match mode {
        Mode::Long => kvm_regs { rsi: info, ..regs },
        Mode::Protected => kvm_regs { rbx: info, ..regs },
    }
}

/// Special registers at the entry, made from those at power-on.
pub fn special(mode: Mode, power_on: &kvm_sregs) -> kvm_sregs {
    let code = code_segment(mode);
    let sregs = kvm_sregs {
        cs: code,
        ds: DATA,
        es: DATA,
        fs: DATA,
        gs: DATA,
        ss: DATA,
        tr: TASK,
        gdt: kvm_dtable { base: layout::GDT_ADDR, limit: GDT_BYTES - 1, ..kvm_dtable::default() },
        idt: kvm_dtable::default(),
        cr0: CR0_PE | CR0_ET,
        cr3: 0,
        cr4: 0,
        efer: 0,
        ..*power_on
    };
    match mode {
        Mode::Protected => sregs,
        Mode::Long => kvm_sregs {
            cr0: sregs.cr0 | CR0_PG,
            cr3: layout::PAGE_TABLES_ADDR,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            ..sregs
        },
    }
}

/// Special registers at power-on (Intel SDM volume 3, table 10-1), with the APIC on, as firmware leaves it.
pub fn special_at_power_on(index: u32) -> kvm_sregs {
    let bsp = if index == 0 { APIC_BASE_BSP } else { 0 };
    let real = |selector: u16, kind| kvm_segment {
        base: u64::from(selector) << 4,
        limit: 0xFFFF,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        ..kvm_segment::default()
    };
    let system = |kind| kvm_segment { limit: 0xFFFF, type_: kind, present: 1, ..kvm_segment::default() };
    let table = kvm_dtable { base: 0, limit: 0xFFFF, ..kvm_dtable::default() };
    let data = real(0, 0x3);
    kvm_sregs {
        cs: kvm_segment { base: 0xFFFF_0000, ..real(0xF000, 0xB) },
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: system(0xB),
        ldt: system(0x2),
        gdt: table,
        idt: table,
        // Cache disable, not write-through, extension type.
        cr0: 0x6000_0010,
        apic_base: u64::from(layout::LAPIC_ADDR) | APIC_BASE_ENABLED | bsp,
        ..kvm_sregs::default()
    }
}

/// General registers at power-on.
pub fn general_at_power_on() -> kvm_regs {
    kvm_regs { rip: 0xFFF0, rflags: RFLAGS, ..kvm_regs::default() }
}

/// Flat, read and write, accessed.
const DATA: kvm_segment = flat(DATA_SELECTOR, 0x3);

/// A 32-bit TSS that is in use, of 0x67 bytes, which PVH demands (Xen docs/misc/pvh.pandoc). In 64-bit mode the same
/// type is a 64-bit TSS.
const TASK: kvm_segment = kvm_segment { limit: 0x67, s: 0, g: 0, db: 0, ..flat(TASK_SELECTOR, 0xB) };

const fn flat(selector: u16, kind: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// Flat, execute and read, accessed.
fn code_segment(mode: Mode) -> kvm_segment {
    let code = flat(CODE_SELECTOR, 0xB);
    match mode {
        Mode::Protected => code,
        Mode::Long => kvm_segment { db: 0, l: 1, ..code },
    }
}

/// Null, unused, code, data, and a TSS, which takes two places in 64-bit mode.
fn gdt(mode: Mode) -> [u64; 6] {
    [0, 0, descriptor(&code_segment(mode)), descriptor(&DATA), descriptor(&TASK), 0]
}

const GDT_BYTES: u16 = 6 * 8;

/// A segment as it stands in a descriptor table (Intel SDM volume 3, section 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7);
    let flags = u64::from(segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3);
    let base = segment.base;
    limit & 0xFFFF
        | (base & 0xFF_FFFF) << 16
        | access << 40
        | (limit >> 16 & 0xF) << 48
        | flags << 52
        | (base >> 24 & 0xFF) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    #[test]
    fn descriptors_are_those_of_every_flat_model() {
        assert_eq!(
            gdt(Mode::Long),
            [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x0000_8B00_0000_0067, 0]
        );
        assert_eq!(gdt(Mode::Protected)[2], 0x00CF_9B00_0000_FFFF);
    }

    #[test]
    fn page_tables_map_the_first_gib_to_itself() {
        let ram = ram();
        write_tables(&ram, Mode::Long).unwrap();
        let entry = |table: u64, index: u64| ram.read_obj::<u64>(GuestAddress(table + index * 8)).unwrap();
        for addr in [0u64, 0x7000, 0x10_0000, 0x3FFF_FFFF] {
            let pdpt = entry(layout::PAGE_TABLES_ADDR, addr >> 39 & 511);
            let pd = entry(pdpt & !0xFFF, addr >> 30 & 511);
            let page = entry(pd & !0xFFF, addr >> 21 & 511);
            assert_eq!((pdpt & 0xFFF, pd & 0xFFF, page & 0xFFF), (0x3, 0x3, 0x83));
            assert_eq!(page & !0xFFF, addr & !0x1F_FFFF, "{addr:#x}");
        }
        assert_eq!(entry(layout::PAGE_TABLES_ADDR, 1), 0);
        assert_eq!(entry(layout::PAGE_TABLES_ADDR + 0x1000, 1), 0);
    }

    #[test]
    fn protected_entry_has_what_pvh_demands() {
        let sregs = special(Mode::Protected, &special_at_power_on(0));
        assert_eq!((sregs.cr0 & 1, sregs.cr0 >> 31, sregs.cr4, sregs.efer), (1, 0, 0, 0));
        assert_eq!((sregs.cs.base, sregs.cs.limit, sregs.cs.db, sregs.cs.l), (0, u32::MAX, 1, 0));
        assert_eq!((sregs.tr.base, sregs.tr.limit, sregs.tr.type_, sregs.tr.s), (0, 0x67, 0xB, 0));
        let regs = general(Mode::Protected, 0x100_0000, 0x6000);
        assert_eq!((regs.rip, regs.rbx, regs.rsi, regs.rflags), (0x100_0000, 0x6000, 0, 2));
    }

    #[test]
    fn tables_outside_ram_are_an_error() {
        let small = GuestRam::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap();
        let failure = write_tables(&small, Mode::Long).unwrap_err();
        assert!(failure.to_string().starts_with("Table of the kernel's entry at 0x9000: "), "{failure}");
    }
}

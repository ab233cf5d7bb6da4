//! ELF kernels: what is loaded where, and every lie that a file can tell.

use super::super::Mode;
use super::files::*;
use crate::arch::EntryChoice;

/// Offsets in the ELF header.
const E_TYPE: usize = 16;
const E_MACHINE: usize = 18;
const E_ENTRY: usize = 24;
const E_PHOFF: usize = 32;
const E_PHENTSIZE: usize = 54;
const E_PHNUM: usize = 56;
/// Offsets in a program header.
const P_OFFSET: usize = 8;
const P_PADDR: usize = 24;
const P_FILESZ: usize = 32;
const P_MEMSZ: usize = 40;

fn phdr_field(number: usize, field: usize) -> usize {
    PHDRS + number * PHDR_BYTES + field
}

fn changed(offset: usize, value: &[u8]) -> Vec<u8> {
    let mut file = vmlinux();
    put(&mut file, offset, value);
    file
}

#[test]
fn segments_go_where_they_ask_to_and_the_rest_stays_zero() {
    let ram = ram();
    start(&ram, &vmlinux(), EntryChoice::Auto).unwrap();
    assert_eq!(read(&ram, TEXT_ADDR), [0x90; 0x1000]);
    assert_eq!(read(&ram, TEXT_ADDR + 0x1000), [0; 16]);
    assert_eq!(read(&ram, DATA_ADDR), [0xDA; 0x800]);
    assert_eq!(read(&ram, DATA_ADDR + 0x800), [0; (DATA_BYTES - 0x800) as usize]);
}

#[test]
fn entry_is_the_one_that_was_asked_for() {
    let entry = start(&ram(), &vmlinux(), EntryChoice::Linux64).unwrap();
    assert_eq!((entry.mode, entry.addr, entry.info_addr), (Mode::Long, TEXT_ADDR, 0x7000));
    let entry = start(&ram(), &vmlinux(), EntryChoice::Pvh).unwrap();
    assert_eq!((entry.mode, entry.addr, entry.info_addr), (Mode::Protected, u64::from(PVH_ADDR), 0x6000));
}

#[test]
fn linux_is_entered_in_64_bit_mode_and_other_kernels_by_pvh() {
    let mode = |kernel: &[u8]| start(&ram(), kernel, EntryChoice::Auto).unwrap().mode;
    assert_eq!((mode(&vmlinux()), mode(&unikernel())), (Mode::Long, Mode::Protected));
}

#[test]
fn kernel_without_the_note_is_entered_in_64_bit_mode() {
    let plain = elf(&note(b"Xen\0", 17, &[0; 8]));
    let entry = start(&ram(), &plain, EntryChoice::Auto).unwrap();
    assert_eq!((entry.mode, entry.addr), (Mode::Long, TEXT_ADDR));
    assert_eq!(
        start(&ram(), &plain, EntryChoice::Pvh).unwrap_err().to_string(),
        "The kernel has no PVH entry: only an ELF kernel built with CONFIG_PVH has one"
    );
}

#[test]
fn notes_may_have_short_entries_and_other_padding() {
    let short = elf(&note(b"Xen\0", 18, &PVH_ADDR.to_le_bytes()));
    assert_eq!(start(&ram(), &short, EntryChoice::Auto).unwrap().addr, u64::from(PVH_ADDR));
    // Padded to 8 bytes: a name of 4 is followed by 4 more.
    let note = [
        [4u32, 8, 18].map(u32::to_le_bytes).concat(),
        b"Xen\0\0\0\0\0".to_vec(),
        u64::from(PVH_ADDR).to_le_bytes().to_vec(),
    ];
    let mut wide = elf(&note.concat());
    put(&mut wide, phdr_field(2, 48), &8u64.to_le_bytes());
    assert_eq!(start(&ram(), &wide, EntryChoice::Auto).unwrap().addr, u64::from(PVH_ADDR));
}

#[test]
fn header_that_lies_is_refused_by_name() {
    for (offset, value, text) in [
        (4, &[1u8][..], "The kernel's ELF class must be 2 (64-bit), not 1"),
        (5, &[2], "The kernel's ELF byte order must be 1 (little-endian), not 2"),
        (E_MACHINE, &[0xB7, 0], "The kernel's ELF machine must be 62 (x86_64), not 183"),
        (
            E_TYPE,
            &[1, 0],
            "The kernel's ELF type must be 2 (executable) or 3 (relocatable executable), not 1",
        ),
        (E_PHENTSIZE, &[32, 0], "The kernel's ELF program headers must have 56 bytes each, not 32"),
        (E_PHNUM, &[0, 0], "The kernel's ELF program headers must be 1 to 64, not 0"),
        (E_PHNUM, &[0xFF, 0xFF], "The kernel's ELF program headers must be 1 to 64, not 65535"),
        (
            E_PHOFF,
            &[0xFF; 8],
            "The kernel ends after 10240 bytes, but its program header 0 is 56 bytes at 18446744073709551615",
        ),
        (
            E_PHOFF,
            &[0, 0x28, 0, 0, 0, 0, 0, 0],
            "The kernel ends after 10240 bytes, but its program header 0 is 56 bytes at 10240",
        ),
        (E_ENTRY, &[0; 8], "The kernel's entry 0x0 is in none of its segments"),
    ] {
        assert_eq!(refusal(&changed(offset, value)), text);
    }
}

#[test]
fn segment_that_lies_is_refused_by_name() {
    let quad = |value: u64| value.to_le_bytes();
    for (field, value, text) in [
        (
            P_OFFSET,
            quad(u64::MAX - 10),
            "The kernel ends after 10240 bytes, but its segment 1 is 2048 bytes at 18446744073709551605",
        ),
        (
            P_OFFSET,
            quad(0x2001),
            "The kernel ends after 10240 bytes, but its segment 1 is 2048 bytes at 8193",
        ),
        (
            P_FILESZ,
            quad(u64::MAX),
            "Segment 1 of the kernel has 18446744073709551615 bytes in the file but only 12288 in memory",
        ),
        (
            P_MEMSZ,
            quad(u64::MAX),
            "Segment 1 of the kernel wants memory at 0x1200000 to 0xffffffffffffffff; it may have 0x100000 to \
             0x2000000",
        ),
        (
            P_PADDR,
            quad(RAM_BYTES - 0x1000),
            "Segment 1 of the kernel wants memory at 0x1fff000 to 0x2002000; it may have 0x100000 to 0x2000000",
        ),
        (
            // Over the command line, the page tables, the ACPI tables.
            P_PADDR,
            quad(0x9000),
            "Segment 1 of the kernel wants memory at 0x9000 to 0xc000; it may have 0x100000 to 0x2000000",
        ),
        (
            P_PADDR,
            quad(TEXT_ADDR - 0x2FFF),
            "Segment 1 of the kernel at 0xffd001 overlaps the one at 0x1000000",
        ),
    ] {
        assert_eq!(refusal(&changed(phdr_field(1, field), &value)), text);
    }
}

#[test]
fn kernel_beyond_what_its_entry_has_mapped_is_refused() {
    let large = strato_virtio::GuestRam::from_ranges(&[(vm_memory::GuestAddress(0), 2 << 30)]).unwrap();
    let kernel = changed(phdr_field(1, P_PADDR), &((1u64 << 30) - 0x1000).to_le_bytes());
    assert_eq!(
        start(&large, &kernel, EntryChoice::Auto).unwrap_err().to_string(),
        "Segment 1 of the kernel wants memory at 0x3ffff000 to 0x40002000; it may have 0x100000 to 0x40000000"
    );
}

#[test]
fn notes_that_lie_are_refused_by_name() {
    let lying = |name_len: u32, desc_len: u32| {
        let mut notes = note(b"Xen\0", 18, &[0; 8]);
        put(&mut notes, 0, &[name_len, desc_len].map(u32::to_le_bytes).concat());
        refusal(&elf(&notes))
    };
    let too_long = "An ELF note of the kernel is longer than its segment";
    assert_eq!(lying(u32::MAX, 8), too_long);
    assert_eq!(lying(4, u32::MAX), too_long);
    assert_eq!(lying(4, 9), too_long);
    assert_eq!(
        lying(4, 2),
        "The kernel's PVH entry is no 32-bit address: its note contains 2 bytes, [00, 00]"
    );
    assert_eq!(
        refusal(&elf(&note(b"Xen\0", 18, &(1u64 << 32).to_le_bytes()))),
        "The kernel's PVH entry is no 32-bit address: its note contains 8 bytes, [00, 00, 00, 00, 01, 00, 00, 00]"
    );
    assert_eq!(
        refusal(&elf(&note(b"Xen\0", 18, &0x2000u32.to_le_bytes()))),
        "The kernel's PVH entry 0x2000 is in none of its segments"
    );
    assert_eq!(
        refusal(&changed(phdr_field(2, P_FILESZ), &(1u64 << 40).to_le_bytes())),
        "The kernel has 1099511627776 bytes of ELF notes; 65536 are taken"
    );
}

#[test]
fn file_of_another_kind_is_refused_with_how_it_begins() {
    assert_eq!(refusal(b""), "The kernel is empty");
    assert_eq!(refusal(b"abc"), "The kernel ends after 3 bytes, but its magic number is 4 bytes at 0");
    assert_eq!(
        refusal(b"#!/bin/sh\n"),
        "The kernel is neither an ELF file nor a bzImage: it begins with 23 21 2f 62"
    );
    assert_eq!(refusal(b"\x7fELF\x02"), "The kernel ends after 5 bytes, but its ELF header is 64 bytes at 0");
}

#[test]
fn kernel_that_is_cut_off_anywhere_is_refused() {
    let whole = vmlinux();
    for len in (0..whole.len()).step_by(7) {
        let text = refusal(&whole[..len]);
        assert!(text == "The kernel is empty" || text.starts_with("The kernel ends after"), "{len}: {text}");
    }
}

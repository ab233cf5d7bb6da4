//! What a kernel is told at its entry: command line, initial RAM disk, memory map, tables.

use std::ffi::CString;

use strato_virtio::GuestRam;
use vm_memory::GuestAddress;

use super::super::load;
use super::files::*;
use crate::arch::x86_64::memory_map::tests::board;
use crate::arch::{Boot, EntryChoice};

const INITRD_BYTES: usize = 0x1801;

fn boot_with_initrd(kernel: &[u8], entry: EntryChoice) -> Boot {
    Boot { initrd: Some(file(&[0x1D; INITRD_BYTES])), ..boot(kernel, entry) }
}

fn cmdline_at(ram: &GuestRam, addr: u64) -> Vec<u8> {
    read::<64>(ram, addr).into_iter().take_while(|byte| *byte != 0).collect()
}

#[test]
fn pvh_start_info_tells_everything() {
    let ram = ram();
    let entry = load(&ram, &board(), &boot_with_initrd(&vmlinux(), EntryChoice::Pvh)).unwrap();
    let info = entry.info_addr;
    assert_eq!((word(&ram, info), word(&ram, info + 4), word(&ram, info + 12)), (0x336E_C578, 1, 1));
    assert_eq!(cmdline_at(&ram, quad(&ram, info + 24)), CMDLINE.as_bytes());
    assert_eq!(read(&ram, quad(&ram, info + 32)), *b"RSD PTR ");
    let module = quad(&ram, info + 16);
    let (addr, bytes) = (quad(&ram, module), quad(&ram, module + 8));
    assert_eq!((addr, bytes), (RAM_BYTES - 0x2000, INITRD_BYTES as u64));
    assert_eq!(read(&ram, addr), [0x1D; INITRD_BYTES]);
    let map = quad(&ram, info + 40);
    let pieces: Vec<_> = (0..u64::from(word(&ram, info + 48)))
        .map(|number| map + number * 24)
        .map(|at| (quad(&ram, at), quad(&ram, at + 8), word(&ram, at + 16)))
        .collect();
    assert_eq!(
        pieces,
        [(0, 0xA_0000, 1), (0xE_0000, 0x2_0000, 2), (MIB, RAM_BYTES - MIB, 1), (0xFFFB_C000, 0x4000, 2)]
    );
}

#[test]
fn zero_page_tells_everything() {
    for kernel in [vmlinux(), bzimage()] {
        let ram = ram();
        let entry = load(&ram, &board(), &boot_with_initrd(&kernel, EntryChoice::Linux64)).unwrap();
        let page = entry.info_addr;
        assert_eq!(word(&ram, page + 0x202), u32::from_le_bytes(*b"HdrS"));
        assert_eq!(cmdline_at(&ram, word(&ram, page + 0x228).into()), CMDLINE.as_bytes());
        assert_eq!(quad(&ram, page + 0x070), 0xE_0000);
        assert_eq!(word(&ram, page + 0x218), (RAM_BYTES - 0x2000) as u32);
        assert_eq!(word(&ram, page + 0x21C), INITRD_BYTES as u32);
        // A sentinel that is not 0 makes Linux forget most of the page.
        assert_eq!(read(&ram, page + 0x1EF), [0]);
        assert_eq!(read(&ram, page + 0x1E8), [4]);
        let at = page + 0x2D0 + 2 * 20;
        let main = (quad(&ram, at), quad(&ram, at + 8), word(&ram, at + 16));
        assert_eq!(main, (MIB, RAM_BYTES - MIB, 1));
    }
}

#[test]
fn kernel_without_initrd_is_told_of_none() {
    let ram = ram();
    start(&ram, &vmlinux(), EntryChoice::Pvh).unwrap();
    assert_eq!((word(&ram, 0x600C), quad(&ram, 0x6010)), (0, 0));
    start(&ram, &vmlinux(), EntryChoice::Linux64).unwrap();
    assert_eq!((word(&ram, 0x7218), word(&ram, 0x721C)), (0, 0));
}

#[test]
fn initrd_keeps_below_what_its_kernel_can_reach() {
    let mut kernel = bzimage();
    let max = 24 * MIB as u32 - 1;
    put(&mut kernel, setup::INITRD_ADDR_MAX, &max.to_le_bytes());
    let ram = ram();
    load(&ram, &board(), &boot_with_initrd(&kernel, EntryChoice::Auto)).unwrap();
    assert_eq!(word(&ram, 0x7218), 24 * MIB as u32 - 0x2000);
}

#[test]
fn initrd_stays_below_4_gib_when_there_is_ram_above() {
    let ranges = [(GuestAddress(0), 64 * MIB as usize), (GuestAddress(4 << 30), 64 * MIB as usize)];
    let ram = GuestRam::from_ranges(&ranges).unwrap();
    load(&ram, &board(), &boot_with_initrd(&vmlinux(), EntryChoice::Linux64)).unwrap();
    assert_eq!(word(&ram, 0x7218), 64 * MIB as u32 - 0x2000);
}

#[test]
fn initrd_that_does_not_fit_is_refused_with_both_sizes() {
    let room = RAM_BYTES - (DATA_ADDR + DATA_BYTES);
    let of = |bytes: u64| Boot {
        initrd: Some(file(&vec![1; bytes as usize])),
        ..boot(&vmlinux(), EntryChoice::Auto)
    };
    assert!(load(&ram(), &board(), &of(room)).is_ok());
    assert_eq!(
        load(&ram(), &board(), &of(room + 1)).unwrap_err().to_string(),
        format!(
            "The initial RAM disk is {} bytes; between the kernel's end at 0x1203000 and 0x2000000 there are {room}",
            room + 1
        )
    );
    assert_eq!(load(&ram(), &board(), &of(0)).unwrap_err().to_string(), "The initial RAM disk is empty");
}

#[test]
fn command_line_is_limited_by_what_the_kernel_reads() {
    let with = |kernel: &[u8], len: usize| {
        let cmdline = CString::new("x".repeat(len)).unwrap();
        load(&ram(), &board(), &Boot { cmdline, ..boot(kernel, EntryChoice::Auto) })
    };
    assert!(with(&vmlinux(), 2047).is_ok());
    assert_eq!(
        with(&vmlinux(), 2048).unwrap_err().to_string(),
        "The kernel's command line is 2048 bytes; this kernel reads 2047"
    );
    let mut short = bzimage();
    put(&mut short, setup::CMDLINE_SIZE, &255u32.to_le_bytes());
    assert!(with(&short, 255).is_ok());
    assert!(with(&short, 256).is_err());
    // A kernel that says it reads anything: there is room up to 640 KiB.
    put(&mut short, setup::CMDLINE_SIZE, &u32::MAX.to_le_bytes());
    assert!(with(&short, 0x7_FFFF).is_ok());
    assert_eq!(
        with(&short, 0x8_0000).unwrap_err().to_string(),
        "The kernel's command line is 524288 bytes; this kernel reads 524287"
    );
}

#[test]
fn same_files_can_be_loaded_again() {
    let boot = boot_with_initrd(&vmlinux(), EntryChoice::Auto);
    let (first, second) = (ram(), ram());
    assert_eq!(load(&first, &board(), &boot).unwrap(), load(&second, &board(), &boot).unwrap());
    const BLOCK: usize = 0x1_0000;
    for addr in (0..RAM_BYTES).step_by(BLOCK) {
        assert!(read::<BLOCK>(&first, addr) == read(&second, addr), "{addr:#x}");
    }
}

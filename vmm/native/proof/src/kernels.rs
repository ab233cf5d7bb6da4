//! Files that say they are kernels. Loading one ends in an entry that keeps its bounds, or in an error.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

use strato_machine::arch::{Board, Boot, EntryChoice, SlotPlace, load};
use strato_virtio::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use crate::choices::Choices;

const RAM_BYTES: usize = 8 << 20;
const TABLES_ADDR: u64 = 0xE_0000;
const CMDLINE_ADDR: u64 = 0x2_0000;

/// Values at the edge of something: pages, the first MiB, the end of RAM, of 32 and of 64 bits.
const EDGES: [u64; 10] =
    [0, 0xFFF, 0x1000, 0xA_0000, 0x10_0000, RAM_BYTES as u64, 1 << 30, 1 << 32, 1 << 63, u64::MAX];

/// Makes a file of one of the kinds, spoils it, and has it loaded.
pub fn run(choices: &mut Choices<'_>) {
    let mut kernel = match choices.below(4) {
        0 => noise(choices),
        1 => bzimage(),
        _ => elf(),
    };
    for _ in 0..choices.below(12) {
        spoil(&mut kernel, choices);
    }
    let cmdline = CString::new("fuzz").unwrap();
    let entry = choices.one_of(&[EntryChoice::Auto, EntryChoice::Linux64, EntryChoice::Pvh]);
    let initrd = choices.once_in(3).then(|| file(&vec![0; choices.length() as usize % RAM_BYTES]));
    let boot = Boot { kernel: file(&kernel), initrd, entry, cmdline };
    if let Err(failure) = load(ram(), &board(), &boot) {
        assert!(failure.to_string().starts_with(char::is_uppercase), "{failure}");
        return;
    }
    // Nothing of the file got where the kernel reads what it is told.
    let mut word = [0; 8];
    for (addr, expected) in [(TABLES_ADDR, b"RSD PTR "), (CMDLINE_ADDR, b"fuzz\0\0\0\0")] {
        ram().read_slice(&mut word, GuestAddress(addr)).unwrap();
        assert_eq!(&word, expected);
    }
}

/// What one input leaves there means nothing to the next.
fn ram() -> &'static GuestRam {
    static RAM: OnceLock<GuestRam> = OnceLock::new();
    RAM.get_or_init(|| GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap())
}

fn board() -> Board {
    Board {
        num_cpus: 1,
        tables_addr: TABLES_ADDR,
        generation_addr: 0xF_F000,
        ged_gsi: 5,
        pvpanic_port: 0x505,
        power_port: 0x600,
        serial: None,
        slots: vec![SlotPlace { index: 0, guest_addr: 0xC000_0000, gsi: 6 }],
    }
}

fn file(contents: &[u8]) -> File {
    // SAFETY: the name is a C string literal.
    let fd = unsafe { libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: the call returned this descriptor just now; nobody else owns it.
    let mut file: File = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
    file.write_all(contents).unwrap();
    file
}

fn spoil(kernel: &mut Vec<u8>, choices: &mut Choices<'_>) {
    let at = choices.below(kernel.len() as u64) as usize;
    let value = match choices.below(4) {
        0 => return kernel.truncate(at),
        1 => choices.number(),
        _ => choices.one_of(&EDGES).wrapping_add(choices.below(3)).wrapping_sub(1),
    };
    let width = 1 << choices.below(4);
    for (byte, new) in kernel.iter_mut().skip(at).zip(&value.to_le_bytes()[..width]) {
        *byte = *new;
    }
}

fn noise(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut bytes = vec![0; choices.below(2000) as usize];
    choices.fill(&mut bytes);
    let magic = choices.one_of(&[b"\x7fELF\x02\x01", b"MZ\0\0\0\0"]);
    bytes.splice(..magic.len().min(bytes.len()), *magic);
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Two segments from 1 MiB on, and the note with a PVH entry.
fn elf() -> Vec<u8> {
    let mut file = vec![0x90; 0x400];
    file[..0x200].fill(0);
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, &[2u16, 62].map(u16::to_le_bytes).concat());
    put(&mut file, 24, &[0x10_0000u64, 64].map(u64::to_le_bytes).concat());
    put(&mut file, 54, &[56u16, 3].map(u16::to_le_bytes).concat());
    let segments = [
        (1u32, 0x200u64, 0x10_0000u64, 0x100u64, 0x1000u64),
        (1, 0x300, 0x20_0000, 0x100, 0x100),
        (4, 0x180, 0, 28, 28),
    ];
    for (number, (kind, offset, addr, in_file, in_memory)) in segments.into_iter().enumerate() {
        let at = 64 + number * 56;
        put(&mut file, at, &[kind, 7].map(u32::to_le_bytes).concat());
        put(&mut file, at + 8, &[offset, addr, addr, in_file, in_memory, 4].map(u64::to_le_bytes).concat());
    }
    put(&mut file, 0x180, &[4u32, 8, 18].map(u32::to_le_bytes).concat());
    put(&mut file, 0x18C, b"Xen\0\0\0\x10\0\0\0\0\0");
    file
}

/// A setup header with a kernel of one paragraph behind one sector of setup.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 0x410];
    file[0x1F1] = 1;
    put(&mut file, 0x1F4, &1u32.to_le_bytes());
    put(&mut file, 0x1FE, &[0x55, 0xAA, 0xEB, 0x6A]);
    put(&mut file, 0x202, b"HdrS\x0F\x02");
    file[0x211] = 1;
    put(&mut file, 0x22C, &0x7FFF_FFFFu32.to_le_bytes());
    put(&mut file, 0x236, &1u16.to_le_bytes());
    put(&mut file, 0x238, &2047u32.to_le_bytes());
    put(&mut file, 0x258, &0x10_0000u64.to_le_bytes());
    put(&mut file, 0x260, &0x1000u32.to_le_bytes());
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_not_spoilt_are_loaded() {
        for kernel in [elf(), bzimage()] {
            let cmdline = CString::new("fuzz").unwrap();
            let boot = Boot { kernel: file(&kernel), initrd: None, entry: EntryChoice::Auto, cmdline };
            load(ram(), &board(), &boot).unwrap();
        }
    }
}

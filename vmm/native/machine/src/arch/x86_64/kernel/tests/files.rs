//! Files to boot, made byte by byte.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;

use strato_plumbing::Result;
use strato_virtio::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use super::super::{BootEntry, load};
use crate::arch::x86_64::memory_map::tests::board;
use crate::arch::{Boot, EntryChoice};

pub const MIB: u64 = 1 << 20;
pub const RAM_BYTES: u64 = 32 * MIB;
pub const CMDLINE: &str = "console=hvc0 quiet";

/// Addresses in [`vmlinux`].
pub const TEXT_ADDR: u64 = 16 * MIB;
pub const DATA_ADDR: u64 = 18 * MIB;
pub const DATA_BYTES: u64 = 0x3000;
pub const PVH_ADDR: u32 = 0x100_0100;

/// Where things are in [`vmlinux`].
pub const PHDRS: usize = 64;
pub const PHDR_BYTES: usize = 56;
const NOTES_OFFSET: u64 = 0x200;
const TEXT_OFFSET: u64 = 0x1000;
const DATA_OFFSET: u64 = 0x2000;
const DATA_IN_FILE: u64 = 0x800;

pub fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES as usize)]).unwrap()
}

pub fn file(contents: &[u8]) -> File {
    // SAFETY: the name is a C string literal.
    let fd = unsafe { libc::memfd_create(c"kernel".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: the call returned this descriptor just now; nobody else owns it.
    let mut file: File = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
    file.write_all(contents).unwrap();
    file
}

pub fn boot(kernel: &[u8], entry: EntryChoice) -> Boot {
    Boot { kernel: file(kernel), initrd: None, entry, cmdline: CString::new(CMDLINE).unwrap() }
}

pub fn start(ram: &GuestRam, kernel: &[u8], entry: EntryChoice) -> Result<BootEntry> {
    load(ram, &board(), &boot(kernel, entry))
}

/// What a kernel is refused with.
pub fn refusal(kernel: &[u8]) -> String {
    start(&ram(), kernel, EntryChoice::Auto).unwrap_err().to_string()
}

pub fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

/// A note as assemblers write it.
pub fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let padded = |bytes: &[u8]| [bytes, &vec![0; bytes.len().next_multiple_of(4) - bytes.len()]].concat();
    let head = [name.len() as u32, desc.len() as u32, kind].map(u32::to_le_bytes).concat();
    [head, padded(name), padded(desc)].concat()
}

/// One program header.
pub fn phdr(kind: u32, offset: u64, addr: u64, in_file: u64, in_memory: u64) -> Vec<u8> {
    let words = [offset, addr, addr, in_file, in_memory, 0x1000].map(u64::to_le_bytes).concat();
    [[kind, 7].map(u32::to_le_bytes).concat(), words].concat()
}

/// A kernel with two segments and these notes. Its text is one byte, repeated; its data another.
pub fn elf(notes: &[u8]) -> Vec<u8> {
    let mut file = vec![0; (DATA_OFFSET + DATA_IN_FILE) as usize];
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, &[2u16, 62].map(u16::to_le_bytes).concat());
    put(&mut file, 20, &1u32.to_le_bytes());
    put(&mut file, 24, &[TEXT_ADDR, PHDRS as u64, 0].map(u64::to_le_bytes).concat());
    put(&mut file, 52, &[64u16, PHDR_BYTES as u16, 3].map(u16::to_le_bytes).concat());
    let phdrs = [
        phdr(1, TEXT_OFFSET, TEXT_ADDR, 0x1000, 0x1000),
        phdr(1, DATA_OFFSET, DATA_ADDR, DATA_IN_FILE, DATA_BYTES),
        phdr(4, NOTES_OFFSET, 0, notes.len() as u64, notes.len() as u64),
    ];
    put(&mut file, PHDRS, &phdrs.concat());
    put(&mut file, NOTES_OFFSET as usize, notes);
    file[TEXT_OFFSET as usize..][..0x1000].fill(0x90);
    file[DATA_OFFSET as usize..].fill(0xDA);
    file
}

/// Linux with a PVH entry, as its notes say.
pub fn vmlinux() -> Vec<u8> {
    let notes = [
        note(b"GNU\0", 3, &[0xAB; 20]),
        note(b"Linux\0", 257, &[0]),
        note(b"Xen\0", 6, b"linux\0"),
        note(b"Xen\0", 18, &u64::from(PVH_ADDR).to_le_bytes()),
    ];
    elf(&notes.concat())
}

/// A kernel of another kind, with a PVH entry.
pub fn unikernel() -> Vec<u8> {
    elf(&note(b"Xen\0", 18, &u64::from(PVH_ADDR).to_le_bytes()))
}

/// Offsets in a bzImage (Documentation/arch/x86/boot.rst).
pub mod setup {
    pub const SETUP_SECTS: usize = 0x1F1;
    pub const SYSSIZE: usize = 0x1F4;
    pub const BOOT_FLAG: usize = 0x1FE;
    pub const JUMP: usize = 0x200;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const LOADFLAGS: usize = 0x211;
    pub const INITRD_ADDR_MAX: usize = 0x22C;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
}

/// Bytes of packed kernel, not whole paragraphs.
pub const PACKED_BYTES: usize = 0x1234;
pub const INIT_SIZE: u32 = 0x40_0000;

pub fn bzimage() -> Vec<u8> {
    let sectors = 3;
    let offset = (sectors + 1) * 512;
    let mut file = vec![0; offset + PACKED_BYTES];
    file[setup::SETUP_SECTS] = sectors as u8;
    put(&mut file, setup::SYSSIZE, &(PACKED_BYTES as u32).div_ceil(16).to_le_bytes());
    put(&mut file, setup::BOOT_FLAG, &0xAA55u16.to_le_bytes());
    // The header ends at 0x26C; what follows is code.
    put(&mut file, setup::JUMP, &[0xEB, 0x6A]);
    put(&mut file, setup::MAGIC, b"HdrS");
    put(&mut file, setup::VERSION, &0x020Fu16.to_le_bytes());
    file[setup::LOADFLAGS] = 1;
    put(&mut file, setup::INITRD_ADDR_MAX, &0x7FFF_FFFFu32.to_le_bytes());
    put(&mut file, setup::XLOADFLAGS, &0x7Fu16.to_le_bytes());
    put(&mut file, setup::CMDLINE_SIZE, &2047u32.to_le_bytes());
    put(&mut file, setup::PREF_ADDRESS, &TEXT_ADDR.to_le_bytes());
    put(&mut file, setup::INIT_SIZE, &INIT_SIZE.to_le_bytes());
    file[0x26C..offset].fill(0xCC);
    file[offset..].fill(0x5A);
    file
}

pub fn read<const N: usize>(ram: &GuestRam, addr: u64) -> [u8; N] {
    let mut bytes = [0; N];
    ram.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
    bytes
}

pub fn word(ram: &GuestRam, addr: u64) -> u32 {
    u32::from_le_bytes(read(ram, addr))
}

pub fn quad(ram: &GuestRam, addr: u64) -> u64 {
    u64::from_le_bytes(read(ram, addr))
}

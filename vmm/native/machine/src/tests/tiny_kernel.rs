//! A kernel of a few instructions, for guests without Linux. The program of the jail's proof includes this file, too.

use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;

/// Where it is loaded and entered, by PVH in 32 bits.
pub(crate) const KERNEL_ADDR: u64 = 1 << 20;

/// An ELF kernel of these instructions, which begin at [`KERNEL_ADDR`]: its headers, a note, and the code.
pub(crate) fn kernel(code: &[u8]) -> File {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    let mut put = |bytes: &[u8]| elf.extend_from_slice(bytes);
    // Executable, x86_64, version; entry; program headers follow the header, section headers there are none.
    put(&[2, 0, 62, 0, 1, 0, 0, 0]);
    put(&KERNEL_ADDR.to_le_bytes());
    put(&64u64.to_le_bytes());
    put(&[0; 12]);
    put(&[64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let mut header = |kind: u32, offset: u64, addr: u64, len: u64| {
        put(&kind.to_le_bytes());
        put(&7u32.to_le_bytes());
        [offset, addr, addr, len, len, 4].iter().for_each(|field| put(&field.to_le_bytes()));
    };
    header(4, 176, 0, 20);
    header(1, 256, KERNEL_ADDR, code.len() as u64);
    // Xen's note 18: the address of the entry (include/xen/interface/elfnote.h).
    [4u32, 4, 18].iter().for_each(|field| elf.extend_from_slice(&field.to_le_bytes()));
    elf.extend_from_slice(b"Xen\0");
    elf.extend_from_slice(&(KERNEL_ADDR as u32).to_le_bytes());
    elf.resize(256, 0);
    elf.extend_from_slice(code);
    // SAFETY: the name is a C string of static storage.
    let fd = unsafe { libc::memfd_create(c"kernel".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: made just now, nobody else owns it.
    let mut file = unsafe { File::from_raw_fd(fd) };
    // A memfd of the test itself: that it cannot be written is the failure of the test.
    file.write_all(&elf).unwrap();
    file
}

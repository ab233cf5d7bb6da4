//! `bzImage`: a compressed kernel with its own loader, entered by that one's 64-bit entry.
//!
//! Offsets and fields are those of Documentation/arch/x86/boot.rst.

use linux_loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, setup_header};
use strato_plumbing::{Failure, Result};
use strato_virtio::GuestRam;
use vm_memory::ByteValued;

use super::image::Image;
use super::{Kernel, layout};
use crate::arch::x86_64::memory_map::MemoryMap;

const HEADER_OFFSET: u64 = 0x1F1;
const MAGIC_OFFSET: u64 = 0x202;
const MAGIC: &[u8; 4] = b"HdrS";
const BOOT_FLAG: u16 = 0xAA55;
const SECTOR: u64 = 512;
/// Units of `syssize`.
const PARAGRAPH: u64 = 16;
/// The 64-bit entry, from the start of what is loaded.
const ENTRY_OFFSET: u64 = 0x200;
/// 2.12: the first with a 64-bit entry.
const MIN_VERSION: u16 = 0x020C;

/// Whether the file has the magic number of a bzImage.
pub fn is_magic(image: &Image) -> Result<bool> {
    let mut magic = [0; 4];
    if image.len() < MAGIC_OFFSET + magic.len() as u64 {
        return Ok(false);
    }
    image.read("setup header", MAGIC_OFFSET, &mut magic)?;
    Ok(&magic == MAGIC)
}

/// Loads what is behind the real-mode code where it prefers to be.
pub fn load(ram: &GuestRam, map: &MemoryMap, image: &Image) -> Result<Kernel> {
    let mut header = setup_header::default();
    image.read("setup header", HEADER_OFFSET, header.as_mut_slice())?;
    check(&header)?;
    // The length of the header is in its jump instruction; what is behind it is code.
    let len = usize::from(header.jump >> 8) + (MAGIC_OFFSET - HEADER_OFFSET) as usize;
    header.as_mut_slice().get_mut(len..).unwrap_or_default().fill(0);
    let sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    let offset = (sectors + 1) * SECTOR;
    // Rounded up to whole paragraphs; what may be behind it is a signature.
    let in_file = image.len().saturating_sub(offset);
    let loaded = u64::from(header.syssize) * PARAGRAPH;
    if loaded == 0 || loaded >= in_file + PARAGRAPH {
        return Err(Failure::refused(format!(
            "The kernel's setup header says {loaded} bytes of kernel at {offset}; the file has {in_file}"
        )));
    }
    let (start, needed) = (header.pref_address, u64::from(header.init_size).max(loaded));
    let end = start.saturating_add(needed);
    let (main, limit) = (map.main(), map.main().end.min(layout::MAPPED_AT_ENTRY));
    if start < main.start || end > limit {
        return Err(Failure::refused(format!(
            "The kernel wants memory at {start:#x} to {end:#x} to unpack itself; it may have {:#x} to {limit:#x}",
            main.start
        )));
    }
    image.load(ram, "packed kernel", offset, loaded.min(in_file), start)?;
    Ok(Kernel {
        span: start..end,
        linux64: start + ENTRY_OFFSET,
        pvh: None,
        is_linux: true,
        header: Some(header),
        initrd_max: header.initrd_addr_max.into(),
        cmdline_max: header.cmdline_size as usize,
    })
}

fn check(header: &setup_header) -> Result<()> {
    let (flag, version, xloadflags) = (header.boot_flag, header.version, header.xloadflags);
    let refused = |text: String| Err(Failure::refused(format!("The kernel's setup header {text}")));
    if flag != BOOT_FLAG {
        return refused(format!("has boot flag {flag:#x} instead of {BOOT_FLAG:#x}"));
    }
    if version < MIN_VERSION {
        return refused(format!("is of protocol {version:#x}; 64-bit entries begin with {MIN_VERSION:#x}"));
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return refused("is that of a zImage, which is loaded below 1 MiB".into());
    }
    if xloadflags & XLF_KERNEL_64 == 0 {
        return refused(format!("has no 64-bit entry: xloadflags are {xloadflags:#x}"));
    }
    Ok(())
}

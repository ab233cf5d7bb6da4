//! Puts a kernel and what it needs into fresh RAM, and says how it is entered.
//!
//! The kernel's file is untrusted: every number in it is checked against the file's length, against RAM and against
//! what else has been put there, before anything is done with it. Kernels go where they ask to, from 1 MiB up; below
//! are our own tables and structures ([`layout`]), which a kernel reads and then frees.

mod bzimage;
mod elf;
mod image;
mod linux64;
mod pvh;
#[cfg(test)]
mod tests;

use std::ops::Range;

use strato_plumbing::{Failure, Result};
use strato_virtio::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use self::image::Image;
use super::memory_map::MemoryMap;
use super::registers::Mode;
use super::{acpi, layout, registers};
use crate::arch::{Board, Boot, EntryChoice};

/// How vCPU 0 begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootEntry {
    /// The processor's mode.
    pub(super) mode: Mode,
    /// The first instruction.
    pub(super) addr: u64,
    /// What the kernel is told: `struct boot_params` or `struct hvm_start_info`.
    pub(super) info_addr: u64,
}

/// A kernel that has been loaded.
#[derive(Debug)]
struct Kernel {
    /// Memory that must not be touched until it runs.
    span: Range<u64>,
    /// 64-bit entry.
    linux64: u64,
    /// PVH entry, if it has one.
    pvh: Option<u64>,
    /// Whether it is known to be Linux.
    is_linux: bool,
    /// The header of a bzImage, which goes into the zero page.
    header: Option<linux_loader::bootparam::setup_header>,
    /// Highest address that its initial RAM disk may have.
    initrd_max: u64,
    /// Longest command line that it reads, without the NUL.
    cmdline_max: usize,
}

/// What is common to both ways of telling a kernel about its machine.
#[derive(Debug)]
struct BootInfo<'a> {
    map: &'a MemoryMap,
    initrd: Option<Range<u64>>,
    tables_addr: u64,
}

/// Loads kernel, initial RAM disk and command line, and writes the memory map and the ACPI tables. RAM must read as
/// zeros where nothing has been loaded.
///
/// # Errors
/// A file that is not what it should be, or what does not fit. RAM is then of no use.
pub fn load(ram: &GuestRam, board: &Board, boot: &Boot) -> Result<BootEntry> {
    let map = MemoryMap::new(ram, board)?;
    acpi::write_tables(ram, board)?;
    let kernel = load_kernel(ram, &map, &Image::new(&boot.kernel, "kernel")?)?;
    let initrd = match &boot.initrd {
        Some(file) => Some(load_initrd(ram, &map, &kernel, &Image::new(file, "initial RAM disk")?)?),
        None => None,
    };
    write_cmdline(ram, boot.cmdline.as_bytes_with_nul(), kernel.cmdline_max)?;
    let info = BootInfo { map: &map, initrd, tables_addr: board.tables_addr };
    // Linux saves 256 exits without PVH, by which it looks for Xen in all of CPUID (arch/x86/platform/pvh/enlighten.c,
    // xen_cpuid_base). What a kernel of another kind expects at its ELF entry nobody knows; PVH is the same for all.
    let choice = match boot.entry {
        EntryChoice::Auto if kernel.pvh.is_some() && !kernel.is_linux => EntryChoice::Pvh,
        EntryChoice::Auto => EntryChoice::Linux64,
        choice => choice,
    };
    let entry = match (choice, kernel.pvh) {
        (EntryChoice::Pvh, Some(addr)) => {
            pvh::write_start_info(ram, &info)?;
            BootEntry { mode: Mode::Protected, addr, info_addr: layout::START_INFO_ADDR }
        }
        (EntryChoice::Pvh, None) => {
            return Err(Failure::refused(
                "The kernel has no PVH entry: only an ELF kernel built with CONFIG_PVH has one",
            ));
        }
        (EntryChoice::Linux64 | EntryChoice::Auto, _) => {
            linux64::write_zero_page(ram, &info, kernel.header)?;
            BootEntry { mode: Mode::Long, addr: kernel.linux64, info_addr: layout::ZERO_PAGE_ADDR }
        }
    };
    registers::write_tables(ram, entry.mode)?;
    Ok(entry)
}

fn load_kernel(ram: &GuestRam, map: &MemoryMap, image: &Image) -> Result<Kernel> {
    let mut magic = [0; 4];
    image.read("magic number", 0, &mut magic)?;
    if &magic == elf::MAGIC {
        return elf::load(ram, map, image);
    }
    if bzimage::is_magic(image)? {
        return bzimage::load(ram, map, image);
    }
    Err(Failure::refused(format!(
        "The kernel is neither an ELF file nor a bzImage: it begins with {:02x} {:02x} {:02x} {:02x}",
        magic[0], magic[1], magic[2], magic[3]
    )))
}

/// At the end of the RAM below the devices, as firmware does: the kernel's own memory grows from its image upwards.
fn load_initrd(ram: &GuestRam, map: &MemoryMap, kernel: &Kernel, image: &Image) -> Result<Range<u64>> {
    let end = map.main().end.min(kernel.initrd_max.saturating_add(1));
    let start = end.saturating_sub(image.len()) / layout::PAGE_SIZE * layout::PAGE_SIZE;
    if start < kernel.span.end {
        return Err(Failure::refused(format!(
            "The initial RAM disk is {} bytes; between the kernel's end at {:#x} and {end:#x} there are {}",
            image.len(),
            kernel.span.end,
            end.saturating_sub(kernel.span.end)
        )));
    }
    image.load(ram, "contents", 0, image.len(), start)?;
    Ok(start..start + image.len())
}

fn write_cmdline(ram: &GuestRam, cmdline: &[u8], max: usize) -> Result<()> {
    let (len, max) = (cmdline.len() - 1, max.min(layout::CMDLINE_ROOM));
    if len > max {
        return Err(Failure::refused(format!(
            "The kernel's command line is {len} bytes; this kernel reads {max}"
        )));
    }
    write(ram, "command line", layout::CMDLINE_ADDR, cmdline)
}

fn write(ram: &GuestRam, what: &str, addr: u64, bytes: &[u8]) -> Result<()> {
    ram.write_slice(bytes, GuestAddress(addr))
        .map_err(|error| Failure::refused(format!("Cannot write the {what} at {addr:#x}: {error}")))
}

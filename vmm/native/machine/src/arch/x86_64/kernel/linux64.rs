//! The 64-bit boot protocol of Linux: `struct boot_params`, also called the zero page
//! (Documentation/arch/x86/boot.rst and zero-page.rst).

use linux_loader::bootparam::{LOADED_HIGH, boot_e820_entry, boot_params, setup_header};
use strato_plumbing::Result;
use strato_virtio::GuestRam;
use vm_memory::ByteValued;

use super::{BootInfo, layout, write};

/// A loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xFF;
const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const BOOT_FLAG: u16 = 0xAA55;
/// 2.15, which has all fields that are set here.
const VERSION: u16 = 0x020F;

/// Writes the zero page. `header` is that of a bzImage; an ELF kernel has none, and gets what it would say.
pub fn write_zero_page(ram: &GuestRam, info: &BootInfo, header: Option<setup_header>) -> Result<()> {
    let elf = setup_header {
        boot_flag: BOOT_FLAG,
        header: MAGIC,
        version: VERSION,
        loadflags: LOADED_HIGH,
        ..setup_header::default()
    };
    let initrd = info.initrd.clone().unwrap_or_default();
    let mut page = boot_params {
        hdr: setup_header {
            type_of_loader: LOADER_UNDEFINED,
            cmd_line_ptr: layout::CMDLINE_ADDR as u32,
            // Both below 4 GiB: `Kernel::initrd_max`.
            ramdisk_image: initrd.start as u32,
            ramdisk_size: (initrd.end - initrd.start) as u32,
            ..header.unwrap_or(elf)
        },
        acpi_rsdp_addr: info.tables_addr,
        // At most 126: `MemoryMap::new`.
        e820_entries: info.map.pieces().len() as u8,
        ..boot_params::default()
    };
    for (entry, (range, kind)) in page.e820_table.iter_mut().zip(info.map.pieces()) {
        *entry = boot_e820_entry { addr: range.start, size: range.end - range.start, r#type: kind as u32 };
    }
    write(ram, "zero page", layout::ZERO_PAGE_ADDR, page.as_slice())
}

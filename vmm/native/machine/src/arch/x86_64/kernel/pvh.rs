//! The PVH boot protocol: `struct hvm_start_info` of Xen, which KVM guests take as well
//! (include/xen/interface/hvm/start_info.h, Xen docs/misc/pvh.pandoc).

use linux_loader::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use strato_plumbing::Result;
use strato_virtio::GuestRam;
use vm_memory::ByteValued;

use super::{BootInfo, layout, write};

/// The first with a memory map.
const VERSION: u32 = 1;

/// Where the lists are, behind the start info.
const MODULES_ADDR: u64 = layout::START_INFO_ADDR + size_of::<hvm_start_info>() as u64;
const MAP_ADDR: u64 = MODULES_ADDR + size_of::<hvm_modlist_entry>() as u64;

/// Writes the start info, with the initial RAM disk as the first module.
pub fn write_start_info(ram: &GuestRam, info: &BootInfo) -> Result<()> {
    let module = info.initrd.as_ref().map(|initrd| hvm_modlist_entry {
        paddr: initrd.start,
        size: initrd.end - initrd.start,
        ..hvm_modlist_entry::default()
    });
    let start_info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        nr_modules: module.is_some().into(),
        modlist_paddr: if module.is_some() { MODULES_ADDR } else { 0 },
        cmdline_paddr: layout::CMDLINE_ADDR,
        rsdp_paddr: info.tables_addr,
        memmap_paddr: MAP_ADDR,
        memmap_entries: info.map.pieces().len() as u32,
        ..hvm_start_info::default()
    };
    write(ram, "start info", layout::START_INFO_ADDR, start_info.as_slice())?;
    write(ram, "module list", MODULES_ADDR, module.unwrap_or_default().as_slice())?;
    let entries = info.map.pieces().map(|(range, kind)| hvm_memmap_table_entry {
        addr: range.start,
        size: range.end - range.start,
        type_: kind as u32,
        reserved: 0,
    });
    let map: Vec<u8> = entries.flat_map(|entry| entry.as_slice().to_vec()).collect();
    write(ram, "memory map", MAP_ADDR, &map)
}

//! ELF kernels: `vmlinux` as the kernel's build leaves it.

use std::ops::Range;

use linux_loader::elf::{
    EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, EM_X86_64, ET_DYN, ET_EXEC, Elf64_Ehdr, Elf64_Phdr, PT_LOAD,
    PT_NOTE,
};
use strato_plumbing::{Failure, Result};
use strato_virtio::GuestRam;
use vm_memory::ByteValued;

use super::image::Image;
use super::{Kernel, layout};
use crate::arch::x86_64::memory_map::{MemoryMap, overlap};

pub const MAGIC: &[u8; 4] = b"\x7fELF";

/// Linux has five or six program headers, and some hundred bytes of notes.
const MAX_HEADERS: u16 = 64;
const MAX_NOTES_BYTES: u64 = 64 * 1024;

/// Owner of notes that every Linux has, such as how it was built (include/linux/build-salt.h, elfnote-lto.h).
const LINUX: &[u8] = b"Linux\0";
/// The note with the PVH entry (include/xen/interface/elfnote.h), and its owner.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
const XEN: &[u8] = b"Xen\0";

/// Loads the segments where they ask to be.
pub fn load(ram: &GuestRam, map: &MemoryMap, image: &Image) -> Result<Kernel> {
    let header = read_header(image)?;
    let headers = read_program_headers(image, &header)?;
    let mut segments: Vec<Range<u64>> = Vec::new();
    for (number, segment) in headers.iter().enumerate().filter(|(_, header)| header.p_type == PT_LOAD) {
        let range = check_segment(map, number, segment)?;
        if let Some(other) = segments.iter().find(|other| overlap(other, &range)) {
            return Err(Failure::refused(format!(
                "Segment {number} of the kernel at {:#x} overlaps the one at {:#x}",
                range.start, other.start
            )));
        }
        let part = format!("segment {number}");
        image.load(ram, &part, segment.p_offset, segment.p_filesz, segment.p_paddr)?;
        segments.push(range);
    }
    check_entry("entry", header.e_entry, &segments)?;
    let notes = read_notes(image, &headers)?;
    if let Some(entry) = notes.pvh {
        check_entry("PVH entry", entry, &segments)?;
    }
    let start = segments.iter().map(|segment| segment.start).min().unwrap_or_default();
    let end = segments.iter().map(|segment| segment.end).max().unwrap_or_default();
    Ok(Kernel {
        span: start..end,
        linux64: header.e_entry,
        pvh: notes.pvh,
        is_linux: notes.is_linux,
        header: None,
        // The fields for it have 32 bits.
        initrd_max: u32::MAX.into(),
        cmdline_max: layout::CMDLINE_MAX,
    })
}

fn read_header(image: &Image) -> Result<Elf64_Ehdr> {
    let mut header = Elf64_Ehdr::default();
    image.read("ELF header", 0, header.as_mut_slice())?;
    let ident = |at: usize| header.e_ident.get(at).copied().unwrap_or(0);
    let refused = |text: &str, value: u64| Err(Failure::refused(format!("The kernel's ELF {text} {value}")));
    if ident(EI_CLASS) != ELFCLASS64 {
        return refused("class must be 2 (64-bit), not", ident(EI_CLASS).into());
    }
    if ident(EI_DATA) != ELFDATA2LSB {
        return refused("byte order must be 1 (little-endian), not", ident(EI_DATA).into());
    }
    if header.e_machine != EM_X86_64 {
        return refused("machine must be 62 (x86_64), not", header.e_machine.into());
    }
    if header.e_type != ET_EXEC && header.e_type != ET_DYN {
        return refused(
            "type must be 2 (executable) or 3 (relocatable executable), not",
            header.e_type.into(),
        );
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() {
        return refused("program headers must have 56 bytes each, not", header.e_phentsize.into());
    }
    if !(1..=MAX_HEADERS).contains(&header.e_phnum) {
        return refused("program headers must be 1 to 64, not", header.e_phnum.into());
    }
    Ok(header)
}

fn read_program_headers(image: &Image, header: &Elf64_Ehdr) -> Result<Vec<Elf64_Phdr>> {
    let mut headers = vec![Elf64_Phdr::default(); header.e_phnum.into()];
    for (number, entry) in (0..).zip(&mut headers) {
        let offset = header.e_phoff.saturating_add(number * size_of::<Elf64_Phdr>() as u64);
        image.read(&format!("program header {number}"), offset, entry.as_mut_slice())?;
    }
    Ok(headers)
}

/// The memory that a segment takes.
fn check_segment(map: &MemoryMap, number: usize, segment: &Elf64_Phdr) -> Result<Range<u64>> {
    if segment.p_filesz > segment.p_memsz {
        return Err(Failure::refused(format!(
            "Segment {number} of the kernel has {} bytes in the file but only {} in memory",
            segment.p_filesz, segment.p_memsz
        )));
    }
    let (start, main) = (segment.p_paddr, map.main());
    let end = start.saturating_add(segment.p_memsz);
    // At its entry a kernel has that much mapped, whichever it is (arch/x86/platform/pvh/head.S).
    let limit = main.end.min(layout::MAPPED_AT_ENTRY);
    if start < main.start || end > limit {
        return Err(Failure::refused(format!(
            "Segment {number} of the kernel wants memory at {start:#x} to {end:#x}; it may have {:#x} to {limit:#x}",
            main.start
        )));
    }
    Ok(start..end)
}

fn check_entry(what: &str, entry: u64, segments: &[Range<u64>]) -> Result<()> {
    if segments.iter().any(|segment| segment.contains(&entry)) {
        return Ok(());
    }
    Err(Failure::refused(format!("The kernel's {what} {entry:#x} is in none of its segments")))
}

/// What the notes say.
#[derive(Default)]
struct Notes {
    pvh: Option<u64>,
    is_linux: bool,
}

fn read_notes(image: &Image, headers: &[Elf64_Phdr]) -> Result<Notes> {
    let mut found = Notes::default();
    for header in headers.iter().filter(|header| header.p_type == PT_NOTE) {
        if header.p_filesz > MAX_NOTES_BYTES {
            return Err(Failure::refused(format!(
                "The kernel has {} bytes of ELF notes; {MAX_NOTES_BYTES} are taken",
                header.p_filesz
            )));
        }
        let mut notes = vec![0; usize::try_from(header.p_filesz).unwrap_or_default()];
        image.read("ELF notes", header.p_offset, &mut notes)?;
        // Padding is to 4 bytes, but to 8 where the segment says so.
        found.look_through(&notes, if header.p_align == 8 { 8 } else { 4 })?;
    }
    Ok(found)
}

impl Notes {
    /// A note is the length of its owner's name, the length of its contents, its type, and then name and contents,
    /// padded.
    fn look_through(&mut self, notes: &[u8], align: usize) -> Result<()> {
        let broken = || Failure::refused("An ELF note of the kernel is longer than its segment");
        let mut rest = notes;
        while let Some((head, after)) = rest.split_first_chunk::<12>() {
            let [a, b, c, d, e, f, g, h, i, j, k, l] = *head;
            let name_len = u32::from_le_bytes([a, b, c, d]) as usize;
            let desc_len = u32::from_le_bytes([e, f, g, h]) as usize;
            let name = after.get(..name_len).ok_or_else(broken)?;
            // A last note need not be padded.
            let after = after.get(name_len.next_multiple_of(align)..).unwrap_or_default();
            let desc = after.get(..desc_len).ok_or_else(broken)?;
            rest = after.get(desc_len.next_multiple_of(align)..).unwrap_or_default();
            self.is_linux |= name == LINUX;
            if name == XEN && u32::from_le_bytes([i, j, k, l]) == XEN_ELFNOTE_PHYS32_ENTRY {
                self.pvh = Some(pvh_entry(desc)?);
            }
        }
        Ok(())
    }
}

fn pvh_entry(desc: &[u8]) -> Result<u64> {
    match *desc {
        [a, b, c, d] | [a, b, c, d, 0, 0, 0, 0] => Ok(u32::from_le_bytes([a, b, c, d]).into()),
        _ => Err(Failure::refused(format!(
            "The kernel's PVH entry is no 32-bit address: its note contains {} bytes, {desc:02x?}",
            desc.len()
        ))),
    }
}

//! ACPI tables (ACPI 6.5): a hardware-reduced machine, whose devices are all in the DSDT.
//!
//! Linux learns from them which processors there are, where the I/O APIC is, where virtio devices may be and on which
//! lines, and how the machine is switched off and reset. They lie below 1 MiB in memory that the map calls reserved,
//! the root pointer first, so that a kernel which is not told finds it by its signature (section 5.2.5.1).

mod dsdt;
mod fixed;
#[cfg(test)]
mod tests;

use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, rsdp::Rsdp, xsdt::XSDT};
use strato_plumbing::{Failure, Result};
use strato_virtio::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use super::layout;
use crate::arch::Board;

const OEM_ID: [u8; 6] = *b"STRATO";
const OEM_TABLE_ID: [u8; 8] = *b"STRATOVM";
const OEM_REVISION: u32 = 1;

/// Tables begin at multiples of this; the specification demands it of the root pointer.
const ALIGN: u64 = 16;

/// Bytes of the VM's generation, and how it has to be aligned (Microsoft, "Virtual Machine Generation ID").
const GENERATION_BYTES: u64 = 16;
const GENERATION_ALIGN: u64 = 8;

/// Writes all tables from the board's address on.
///
/// # Errors
/// They do not fit in front of the generation, or the board has numbers that a table cannot say.
pub fn write_tables(ram: &GuestRam, board: &Board) -> Result<()> {
    let limit = check_generation(board)?;
    let dsdt = dsdt::dsdt(board)?;
    let mut writer = Writer { ram, next: board.tables_addr, limit };
    // The root pointer's place is known; what it points to is not yet.
    let root = writer.reserve(Rsdp::len())?;
    let dsdt = writer.put(dsdt.as_slice())?;
    let fadt = writer.put(&bytes(&fixed::fadt(board, dsdt)))?;
    let madt = writer.put(fixed::madt(board).as_slice())?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = writer.put(&bytes(&xsdt))?;
    writer.write(root, &bytes(&Rsdp::new(OEM_ID, xsdt)))
}

/// Where the tables must end: at the generation, which is in the same reserved memory.
fn check_generation(board: &Board) -> Result<u64> {
    let (addr, end) = (board.generation_addr, layout::LOW_RAM_END - GENERATION_BYTES);
    if !(board.tables_addr..=end).contains(&addr) || !addr.is_multiple_of(GENERATION_ALIGN) {
        return Err(Failure::refused(format!(
            "Generation at {addr:#x} must be at a multiple of {GENERATION_ALIGN} from {:#x} to {end:#x}",
            board.tables_addr
        )));
    }
    Ok(addr)
}

/// A table without contents; it grows by what is appended.
fn table(signature: &[u8; 4], revision: u8) -> Sdt {
    const HEADER_BYTES: u32 = 36;
    Sdt::new(*signature, HEADER_BYTES, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

/// Puts tables one behind the other.
struct Writer<'a> {
    ram: &'a GuestRam,
    next: u64,
    limit: u64,
}

impl Writer<'_> {
    fn reserve(&mut self, len: usize) -> Result<u64> {
        let addr = self.next;
        let end = addr + len as u64;
        if end > self.limit {
            return Err(Failure::refused(format!(
                "ACPI tables end at {end:#x}, beyond {:#x}: the board has too many slots for their place",
                self.limit
            )));
        }
        self.next = end.next_multiple_of(ALIGN);
        Ok(addr)
    }

    fn put(&mut self, table: &[u8]) -> Result<u64> {
        let addr = self.reserve(table.len())?;
        self.write(addr, table)?;
        Ok(addr)
    }

    fn write(&self, addr: u64, table: &[u8]) -> Result<()> {
        self.ram
            .write_slice(table, GuestAddress(addr))
            .map_err(|error| Failure::refused(format!("Cannot write an ACPI table at {addr:#x}: {error}")))
    }
}

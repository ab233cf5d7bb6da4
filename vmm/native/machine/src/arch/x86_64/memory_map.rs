//! Which guest addresses are RAM that a kernel may use, as it is told at its entry.

use std::ops::Range;

use strato_plumbing::{Failure, Result};
use strato_virtio::GuestRam;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::layout;
use crate::arch::Board;

/// Most pieces that the zero page has room for, less one that Linux adds itself to a PVH map
/// (arch/x86/platform/pvh/enlighten.c).
const MAX_PIECES: usize = linux_loader::bootparam::E820_MAX_ENTRIES_ZEROPAGE - 2;

/// What a piece of the map is; E820_TYPE_RAM and E820_TYPE_RESERVED, which PVH calls by the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Free for the kernel.
    Ram = 1,
    /// There is something else.
    Reserved = 2,
}

/// The map, in ascending order.
#[derive(Clone, Debug)]
pub struct MemoryMap {
    pieces: Vec<(Range<u64>, Kind)>,
}

impl MemoryMap {
    /// # Errors
    /// RAM that lacks its first MiB, that lies where devices are, or in too many pieces; tables where no tables can
    /// be.
    pub fn new(ram: &GuestRam, board: &Board) -> Result<Self> {
        let tables = tables_range(board)?;
        let mut pieces = Vec::new();
        for region in ram.iter() {
            let first = region.start_addr().raw_value();
            add(&mut pieces, first..first.saturating_add(region.len()), board)?;
        }
        match pieces.first() {
            Some(low) if low.start == 0 && low.end > layout::LOW_RAM_END => {}
            _ => return Err(Failure::refused("RAM must begin at address 0 and be more than 1 MiB")),
        }
        let mut pieces: Vec<_> = pieces
            .into_iter()
            .flat_map(|piece| without(piece, layout::ISA_HOLE))
            .map(|range| (range, Kind::Ram))
            .collect();
        pieces.push((tables, Kind::Reserved));
        pieces.push((layout::KVM_PAGES, Kind::Reserved));
        pieces.sort_unstable_by_key(|(range, _)| range.start);
        if pieces.len() > MAX_PIECES {
            return Err(Failure::refused(format!(
                "RAM is in {} pieces; a kernel takes {MAX_PIECES}",
                pieces.len()
            )));
        }
        Ok(Self { pieces })
    }

    /// All pieces.
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = (&Range<u64>, Kind)> {
        self.pieces.iter().map(|(range, kind)| (range, *kind))
    }

    /// The piece of RAM that begins at 1 MiB: where kernels and initial RAM disks go.
    pub fn main(&self) -> Range<u64> {
        self.pieces
            .iter()
            .map(|(range, _)| range)
            .find(|range| range.start == layout::LOW_RAM_END)
            .cloned()
            .unwrap_or(0..0)
    }
}

/// What is kept for the tables and the generation: up to 1 MiB.
fn tables_range(board: &Board) -> Result<Range<u64>> {
    let tables = board.tables_addr..layout::LOW_RAM_END;
    if !layout::ISA_HOLE.contains(&tables.start) || !tables.start.is_multiple_of(layout::PAGE_SIZE) {
        return Err(Failure::refused(format!(
            "Tables at {:#x} must begin at a page from {:#x} up to 1 MiB",
            tables.start,
            layout::ISA_HOLE.start
        )));
    }
    Ok(tables)
}

/// Adds a region to those before it, which it may continue.
fn add(pieces: &mut Vec<Range<u64>>, region: Range<u64>, board: &Board) -> Result<()> {
    let page = |addr: u64| addr..addr.saturating_add(layout::PAGE_SIZE);
    let fixed = [page(layout::IOAPIC_ADDR.into()), page(layout::LAPIC_ADDR.into()), layout::KVM_PAGES];
    let slots = board.slots.iter().map(|slot| page(slot.guest_addr));
    if let Some(device) = fixed.into_iter().chain(slots).find(|device| overlap(device, &region)) {
        return Err(Failure::refused(format!(
            "RAM at {:#x} to {:#x} covers the device at {:#x}",
            region.start, region.end, device.start
        )));
    }
    match pieces.last_mut() {
        Some(last) if last.end == region.start => last.end = region.end,
        _ => pieces.push(region),
    }
    Ok(())
}

/// Whether two ranges have an address in common.
pub fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// What is left of a range around a hole.
fn without(range: Range<u64>, hole: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let below = range.start..range.end.min(hole.start);
    let above = range.start.max(hole.end)..range.end;
    [below, above].into_iter().filter(|part| !part.is_empty())
}

#[cfg(test)]
pub(super) mod tests {
    use vm_memory::GuestAddress;

    use super::*;
    use crate::arch::SlotPlace;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    pub fn board() -> Board {
        Board {
            num_cpus: 2,
            tables_addr: 0xE_0000,
            generation_addr: 0xF_F000,
            ged_gsi: 5,
            pvpanic_port: 0x505,
            power_port: 0x600,
            serial: None,
            slots: vec![SlotPlace { index: 0, guest_addr: 0xC000_0000, gsi: 6 }],
        }
    }

    fn map(ranges: &[(u64, u64)]) -> Result<Vec<(u64, u64, Kind)>> {
        // Only addresses matter, so the RAM is never touched and costs nothing.
        let ranges: Vec<_> =
            ranges.iter().map(|(addr, bytes)| (GuestAddress(*addr), *bytes as usize)).collect();
        let ram = GuestRam::from_ranges(&ranges).unwrap();
        let map = MemoryMap::new(&ram, &board())?;
        Ok(map.pieces().map(|(range, kind)| (range.start, range.end, kind)).collect())
    }

    const TABLES: (u64, u64, Kind) = (0xE_0000, 0x10_0000, Kind::Reserved);
    const KVM: (u64, u64, Kind) = (0xFFFB_C000, 0xFFFC_0000, Kind::Reserved);

    #[test]
    fn ram_on_both_sides_of_the_devices_is_told_whole() {
        let expected =
            [(0, 0xA_0000, Kind::Ram), TABLES, (MIB, 3 * GIB, Kind::Ram), KVM, (4 * GIB, 5 * GIB, Kind::Ram)];
        assert_eq!(map(&[(0, 3 * GIB), (4 * GIB, GIB)]).unwrap(), expected);
        // The same in several mappings that touch.
        assert_eq!(map(&[(0, 2 * MIB), (2 * MIB, 3 * GIB - 2 * MIB), (4 * GIB, GIB)]).unwrap(), expected);
    }

    #[test]
    fn ram_that_leaves_no_room_is_refused_by_name() {
        for (ranges, text) in [
            (vec![(MIB, 64 * MIB)], "RAM must begin at address 0 and be more than 1 MiB"),
            (vec![(0, MIB)], "RAM must begin at address 0 and be more than 1 MiB"),
            (vec![(0, MIB / 2), (MIB, MIB)], "RAM must begin at address 0 and be more than 1 MiB"),
            (vec![(0, 4 * GIB)], "RAM at 0x0 to 0x100000000 covers the device at 0xfec00000"),
            (vec![(0, 3 * GIB + 4096)], "RAM at 0x0 to 0xc0001000 covers the device at 0xc0000000"),
            (
                vec![(0, GIB), (0xFFFB_F000, 4096)],
                "RAM at 0xfffbf000 to 0xfffc0000 covers the device at 0xfffbc000",
            ),
        ] {
            assert_eq!(map(&ranges).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn pieces_are_counted() {
        let many: Vec<_> = (0..126).map(|piece| (piece * 4 * MIB, 2 * MIB)).collect();
        assert!(map(&many[..123]).is_ok());
        assert_eq!(map(&many).unwrap_err().to_string(), "RAM is in 129 pieces; a kernel takes 126");
    }

    #[test]
    fn tables_have_their_place_below_1_mib() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        for addr in [0x9_F000, 0x10_0000, 0xE_0001, 0] {
            let failure = MemoryMap::new(&ram, &Board { tables_addr: addr, ..board() }).unwrap_err();
            assert_eq!(
                failure.to_string(),
                format!("Tables at {addr:#x} must begin at a page from 0xa0000 up to 1 MiB")
            );
        }
    }
}
